from __future__ import annotations

import math

import pytest

from benchmarks.dpd_table import VARIANTS, Setting, curve, main, steps_until, table

SETTING = Setting(size=4, corrupted=0.0, rounds=12, batch=8, horizon=8, lr=0.5)


def test_curves_are_shares_of_the_gap_and_repeat() -> None:
    first, again = (curve(1, VARIANTS["on-policy"], SETTING) for _ in range(2))
    assert first == again and len(first) == 13 and first[0] == 0
    assert 0.5 < first[-1] < 1.05


def test_the_table_gives_medians_and_says_never() -> None:
    assert steps_until([0.0, 0.4, 0.6, 0.3], 0.5, per_round=10) == 20 and math.isinf(steps_until([0.0], 0.5, 10))
    (line,) = table({"one": [[0.0, 0.94], [0.0, 0.2, 0.6]]}, per_round=10)[2:]
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["one", "15", "never", "1 of 2", "-", "0.77 (0.60)"]


def test_objectives_are_compared_with_teacher_driven_distillation_grid_by_grid() -> None:
    curves = {"teacher": [[0.0, 0.0, 0.5, 0.9], [0.0, 0.0, 0.5, 0.9], [0.0, 0.9]],
              "on-policy": [[0.0, 0.9], [0.0, 0.9], [0.0, 0.1]]}
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(curves, per_round=10)[2:]]
    assert [row[4] for row in rows] == ["-", "3.00 (3.00 to 3.00)"]


def test_the_command_plays_its_grids_in_processes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--grids", "2", "--size", "4", "--rounds", "4", "--batch", "2", "--horizon", "8", "--jobs", "2",
          "--only", "teacher", "--only", "on-policy"])
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["| teacher", "| on-policy"]


@pytest.mark.parametrize("params", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_row_of_the_table_is_a_valid_setting(params: dict[str, object]) -> None:
    from opdbench.baselines.dpd import DPD

    DPD.Params(**params)
