from __future__ import annotations

import math

import pytest

from benchmarks.dpd_table import VARIANTS, Setting, curve, steps_until, table

SETTING = Setting(size=4, corrupted=0.0, rounds=12, batch=8, horizon=8, lr=0.5)


def test_curves_are_shares_of_the_gap_and_repeat() -> None:
    first, again = (curve(1, VARIANTS["on-policy"], SETTING) for _ in range(2))
    assert first == again and len(first) == 13 and first[0] == 0
    assert 0.5 < first[-1] < 1.05


def test_the_table_gives_medians_and_says_never() -> None:
    assert steps_until([0.0, 0.4, 0.6, 0.3], 0.5, per_round=10) == 20 and math.isinf(steps_until([0.0], 0.5, 10))
    (line,) = table({"one": [[0.0, 0.94], [0.0, 0.2, 0.6]]}, per_round=10)[2:]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["one", "15", "never", "1 of 2", "0.77 (0.60)"]


@pytest.mark.parametrize("params", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_row_of_the_table_is_a_valid_setting(params: dict[str, object]) -> None:
    from opdbench.baselines.dpd import DPD

    DPD.Params(**params)
