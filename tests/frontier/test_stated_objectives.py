"""Each method at settings that make it a plain expectation: its mean gradient is its stated objective's, exactly."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from opdbench import registry
from opdbench.distiller import Distiller
from opdbench.schema.spec import Budget
from tests.enumerable import context, flat_gradient, make, near
from tests.frontier.exact import Objective, expected_slope, forward, kl, loss_of, reverse, stated_slope, world_of

ALL = 3  # actions of the enumerable language


def top(side: Tensor, k: int) -> Tensor:
    return side.topk(k, -1).indices


def on(ids: Tensor, side: Tensor) -> Tensor:
    """Renormalised on some actions."""
    part = side.gather(-1, ids)
    return part / part.sum(-1, keepdim=True)


def jsd(p: Tensor, q: Tensor) -> Tensor:
    m = (p + q) / 2
    return (kl(p, m) + kl(q, m)) / 2


def power(p: Tensor, q: Tensor) -> Tensor:
    return -((p**3 - q.detach()**3) * q).sum(-1)


def extrapolated(p: Tensor, q: Tensor) -> Tensor:
    """KL(q || p^1.5 q_ref^-0.5) up to a constant; the reference is the starting student."""
    return (q * (q.log() - 1.5 * p.log() + 0.5 * q.detach().log())).sum(-1)


def covering(p: Tensor, q: Tensor, k: int) -> Tensor:
    ids = top(p, k)
    return (on(ids, p) * (on(ids, p) / q.gather(-1, ids)).log()).sum(-1)


def plain(p: Tensor, q: Tensor) -> Tensor:
    ids = top(q, 2)
    return (q.gather(-1, ids) * (q.gather(-1, ids) / p.gather(-1, ids)).log()).sum(-1)


def captured(q: Tensor) -> Tensor:
    return q.gather(-1, top(q, 2)).sum(-1)


def bucketed(p: Tensor, q: Tensor) -> Tensor:
    ids = top(q, 2)
    p, q = (torch.cat([side.gather(-1, ids), 1 - side.gather(-1, ids).sum(-1, keepdim=True)], -1) for side in (p, q))
    return kl(q, p)


def interpolated(p: Tensor, q: Tensor) -> Tensor:
    return kl((0.6 * q.detach().log() + 0.4 * p.log()).softmax(-1), q)


class Case(NamedTuple):
    method: str
    params: dict[str, Any]
    objective: Objective


ONE = {"minibatches": 1}
CASES = [
    Case("opd-plus", {"divergence": "reverse_kl"}, reverse),
    Case("opd-plus", {"divergence": "forward_kl"}, forward),
    Case("opd-plus", {"divergence": "jsd"}, jsd),
    Case("poweropd", {"alpha": 3.0, "stop_token": True}, power),
    Case("exopd", {"extrapolation": 1.0}, reverse),
    Case("exopd", {"extrapolation": 1.5}, extrapolated),
    Case("fire-opd", {"percentile": 0.0, "alpha": 0.0, "beta": 0.0}, reverse),
    Case("tip", {"share": 1.0}, reverse),
    Case("eopd", {**ONE, "entropy": 100.0}, reverse),
    Case("eopd", {**ONE, "entropy": 0.0, "top_k": 2}, lambda p, q: reverse(p, q) + covering(p, q, 2)),
    Case("reopold", {**ONE, "mixture": 1e-9, "switch": 1.0}, reverse),
    Case("reopold", {**ONE, "mixture": 1e-9, "switch": 0.0, "share": 1.0}, reverse),
    Case("trb", {}, reverse),
    Case("trb", {"top_k": 2}, bucketed),
    Case("revisiting-opd", {**ONE, "top_k": ALL}, reverse),
    Case("revisiting-opd", {**ONE, "top_k": 2}, lambda p, q: kl(on(top(p, 2), q), on(top(p, 2), p))),
    Case("rethinking-opd", {"top_k": ALL}, reverse),
    Case("rethinking-opd", {"top_k": ALL, "form": "equation"}, reverse),
    Case("rethinking-opd", {"top_k": 2, "form": "equation"}, lambda p, q: kl(on(top(q, 2), q), on(top(q, 2), p))),
    *(Case("many-faces", {"fix": fix, "top_k": ALL}, reverse)
      for fix in ("plain", "stop_gradient", "intersection", "bucket")),
    Case("many-faces", {"fix": "plain", "top_k": 2}, plain),
    Case("many-faces", {"fix": "bucket", "top_k": 2}, bucketed),
    Case("many-faces", {"fix": "stop_gradient", "top_k": 2}, lambda p, q: plain(p, q) - captured(q)),
    Case("skd", {}, forward),
    Case("skd", {"divergence": "reverse_kl"}, reverse),
    Case("skd", {"divergence": "jsd"}, jsd),
    Case("taid", {"t_start": 0.4}, interpolated),
    Case("taid", {"t_start": 1.0}, forward),
    Case("ta-opd", {"share": 1.0}, reverse),
    Case("ta-opd", {"share": 1.0, "loss": "full"}, reverse),
    Case("esr", {}, reverse),
    Case("kat", {}, reverse),
    Case("rock-tokens", {"measure": 1.0}, reverse),
]


def of(case: Case) -> Distiller:
    return make(registry.load("method", case.method), **case.params)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.method} {case.params}")
def test_the_expected_gradient_is_that_of_the_stated_objective(case: Case) -> None:
    world = world_of()
    exact = stated_slope(case.objective, world)
    assert float(exact.norm()) > 0.01 and near(expected_slope(of(case), world), exact, 1e-10)


# ------------------------------------------------------------------------------------------- a student like its teacher

AT_TEACHER = [
    *(Case(case.method, case.params, case.objective) for case in CASES
      if not (case.method == "many-faces" and case.params == {"fix": "plain", "top_k": 2})  # drains S even there
      and not (case.method == "eopd" and "top_k" in case.params)),  # and this one fills it
    Case("gndpo", {}, reverse), Case("fire-opd", {}, reverse), Case("fire-opd", {"normalise": "answer"}, reverse),
    Case("tip", {}, reverse), Case("tip", {"select": "entropy"}, reverse), Case("ta-opd", {}, reverse),
    Case("tip", {"select": "confident_errors"}, reverse), Case("reopold", {}, reverse),
    Case("reopold", {"switch": 0.0}, reverse), Case("eopd", {}, reverse), Case("draft-opd", {}, reverse),
    Case("rock-tokens", {"measure": 0.0}, reverse), Case("tropd", {}, reverse),
    Case("tropd", {"form": "advantages"}, reverse), Case("exopd", {}, reverse), Case("poweropd", {}, reverse),
    Case("rethinking-opd", {"top_k": 2}, reverse), Case("kat", {}, reverse), Case("taid", {"t_start": 0.0}, reverse),
]


@pytest.mark.parametrize("case", AT_TEACHER, ids=lambda case: f"{case.method} {case.params}")
def test_a_student_that_equals_its_teacher_learns_nothing_from_any_row(case: Case) -> None:
    world = world_of(teacher=1)
    ctx = context(world, budget=Budget(steps=100))
    value_n = loss_of(of(case), ctx, world.completions()).value_n
    assert len(value_n)
    for weight_n in (torch.ones_like(value_n), torch.arange(1.0, len(value_n) + 1)):
        assert near(flat_gradient((weight_n * value_n).sum(), world.student, retain_graph=True), 0.0, 1e-9)


def test_what_does_not_vanish_there_says_so() -> None:
    for name in ("scope", "kepo"):
        assert not registry.load("method", name).vanishes_at_teacher
