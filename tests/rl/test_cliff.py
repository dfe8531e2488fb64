"""R1 with students that were trained: cloning costs the square of the horizon, DAgger the horizon."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from opdbench.baselines.dagger import DAgger
from opdbench.baselines.sft import SFT
from opdbench.distiller import Distiller
from tests.test_methods_control import OFF_PATH, PATH, TEACHER, chain, cost, erring, table_policy, train

SLIP = 1e-6


@pytest.mark.parametrize(("cls", "params", "slope"), [(SFT, {}, 2), (DAgger, {"beta": "never"}, 1)])
def test_r1_trained_students_pay_for_a_slip_until_the_end_or_once(cls: type[Distiller], params: dict[str, Any],
                                                                  slope: int) -> None:
    """Off the path it begins sure of the wrong action. Demonstrations never show that state, its own play does."""
    student = table_policy([[0.0, 0.0], [14.0, 0.0]])
    train(cls, chain(20, after_an_error="back"), TEACHER, student, rounds=40, lr=1.0, **params)
    slipping = table_policy(torch.stack([erring(SLIP).table[PATH], student.table[OFF_PATH]]).detach())
    costs = [cost(chain(horizon, after_an_error="back"), slipping) for horizon in (200, 400)]
    assert math.log2(costs[1] / costs[0]) == pytest.approx(slope, abs=0.05)
