"""Probes: what they see is right, and that they change nothing."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch

from opdbench import probes, registry
from opdbench.conformance.enumerable import EnumerableWorld, PrefixPolicy
from opdbench.conformance.harness import make_world
from opdbench.distiller import Needs
from opdbench.errors import UserError
from opdbench.loop import Trainer
from opdbench.probes.base import LOOKS, Look
from opdbench.probes.distance import lowest_window
from opdbench.probes.geometry import overlap, right_directions, stable_rank, unchanged
from opdbench.report.summary import sparkline
from opdbench.schema.spec import Budget
from opdbench.store import pack, unpack
from tests.enumerable import context, generator, make, near, random_logits, small_language

STEPS = 6
OF_ONE_TASK = [name for name in probes.PROBES if name != "forgetting"]  # which tests/rl/test_continual.py has


def run(names: list[str], *, method: str = "opd", steps: int = STEPS) -> Trainer:
    ctx = context(small_language(), budget=Budget(steps=STEPS), batch=16)
    trainer = Trainer(make(registry.load("method", method)), ctx, probes.make(names))
    for _ in range(steps):
        trainer.step()
    return trainer


def test_every_probe_sees_something_finite_and_changes_nothing() -> None:
    plain, watched = run([]), run(OF_ONE_TASK)
    for name, weight in plain.ctx.student.state_dict().items():
        assert torch.equal(weight, watched.ctx.student.state_dict()[name])
    costs = [{key: value for key, value in trainer.ctx.ledger.as_dict().items()
              if "second" not in key and "peak" not in key} for trainer in (plain, watched)]
    assert costs[0] == costs[1]
    for probe in watched.probes:
        assert 0 < len(probe.series) <= LOOKS + 1, probe.name
        assert all(math.isfinite(value) for entry in probe.series for value in entry.values()), probe.name
        assert probe.series[0]["step"] == 0


@pytest.mark.parametrize("method", ["opsd", "sdpo", "oprd", "grpo"])
def test_probes_look_at_other_kinds_of_methods_too(method: str) -> None:
    for probe in run(OF_ONE_TASK, method=method, steps=2).probes:
        assert probe.series


def test_probes_run_in_control_where_they_can() -> None:
    names = [name for name in OF_ONE_TASK if name != "context-gain"]
    ctx = context(make_world("rl"), budget=Budget(steps=2))
    trainer = Trainer(make(registry.load("method", "opd")), ctx, probes.make(names))
    trainer.step()
    assert all(probe.series for probe in trainer.probes)
    with pytest.raises(UserError, match="tells a teacher the solution"):
        Trainer(make(registry.load("method", "opd")), ctx, probes.make(["context-gain"]))


def test_a_probe_of_the_teacher_is_refused_without_one() -> None:
    world = small_language()
    world.teacher = None
    with pytest.raises(UserError, match="whole distributions"):
        Trainer(make(registry.load("method", "grpo")), context(world), probes.make(["overlap"]))
    with pytest.raises(UserError, match="unknown probe 'overlp'"):
        probes.check(["overlp"])


def test_probes_resume() -> None:
    names = ["geometry", "rocks", "context-gain"]
    whole, half = run(names), run(names, steps=3)
    ctx = context(small_language(), budget=Budget(steps=STEPS), batch=16)
    resumed = Trainer(make(registry.load("method", "opd")), ctx, probes.make(names))
    resumed.load_state_dict(unpack(pack(deepcopy(half.state_dict()))))
    for _ in range(3):
        resumed.step()
    for one, other in zip(whole.probes, resumed.probes, strict=True):
        assert one.series == other.series and one.summary(whole.ctx) == other.summary(resumed.ctx)


# ------------------------------------------------------------------------------------------------------------- geometry


def test_the_stable_rank_lies_between_one_and_the_rank() -> None:
    low = random_logits(9, 3, seed=1) @ random_logits(3, 7, seed=2)
    assert 1 <= stable_rank(low) <= 3 + 1e-9
    assert near(stable_rank(random_logits(9, 1, seed=1) @ random_logits(1, 7, seed=2)), 1.0, 1e-9)
    assert near(stable_rank(torch.eye(5).double()), 5.0, 1e-9)


def test_subspaces_overlap_with_themselves_and_random_ones_by_chance() -> None:
    k, d = 4, 40
    one = right_directions(random_logits(60, d, seed=1), k)
    assert near(overlap(one, one), 1.0, 1e-9)
    chance = [overlap(one, right_directions(random_logits(60, d, seed=seed), k)) for seed in range(2, 60)]
    assert all(0 <= value <= 1 for value in chance) and abs(sum(chance) / len(chance) - k / d) < 0.03
    projector = one @ one.T
    assert near(projector @ projector, projector, 1e-9)


def test_what_moved_less_than_a_thousandth_of_itself_is_unchanged() -> None:
    before = torch.tensor([[1.0, 2.0], [0.0, -4.0]])
    assert unchanged(before, before) == 1.0
    assert unchanged(before, before + torch.tensor([[0.0005, 0.1], [0.1, 0.001]])) == 0.5


def test_a_student_that_has_not_moved_is_unchanged_and_its_last_change_overlaps_with_itself() -> None:
    trainer = run(["geometry"])
    (probe,) = trainer.probes
    assert probe.series[0]["unchanged"] == 1.0 and probe.series[-1]["unchanged"] < 1.0
    found = probe.summary(trainer.ctx)
    assert all(0 <= value <= 1 + 1e-9 for value in found["overlap_with_last"])
    probe.figures(Look(trainer.method, None, trainer.ctx))  # type: ignore[arg-type]  # at the end
    assert near(probe.summary(trainer.ctx)["overlap_with_last"][-1], 1.0, 1e-9)


# ------------------------------------------------------------------------------------------------- distances, gradients


def twins(names: list[str]) -> Trainer:
    world = EnumerableWorld(*(PrefixPolicy(generator(1), scale=1.0) for _ in range(2)))
    trainer = Trainer(make(registry.load("method", "opd")), context(world, budget=Budget(steps=3)), probes.make(names))
    trainer.step()
    return trainer


def test_between_equals_everything_overlaps_and_no_token_is_hard() -> None:
    overlapping, rocks, fidelity, agreement = twins(["overlap", "rocks", "fidelity", "agreement"]).probes
    assert near(overlapping.series[0]["overlap"], 1.0) and near(overlapping.series[0]["overlap_advantage"], 0.0)
    assert near(overlapping.series[0]["entropy_gap"], 0.0)
    assert near(agreement.series[0]["lowest_window_p90"], 0.0) and near(fidelity.series[0]["reverse_kl_to_1"], 0.0)
    assert 1 / 3 <= fidelity.series[0]["sure_to_1"] <= 1 and rocks.series[0]["kinds"] >= 1


def test_rocks_are_sorted_and_their_scores_sum_to_the_mean_distance() -> None:
    trainer = run(["rocks"])
    rocks = trainer.probes[0].summary(trainer.ctx)["rocks"]
    scores = [rock["score"] for rock in rocks]
    assert scores == sorted(scores, reverse=True)
    total = sum(rock["count"] for rock in rocks)
    assert near(sum(scores), sum(rock["mean_reverse_kl"] * rock["count"] for rock in rocks) / total)


def test_the_lowest_window() -> None:
    distance = torch.tensor([4.0, 1.0, 1.0, 0.0, 5.0]).double()
    assert near(lowest_window(distance, 2), 0.5) and near(lowest_window(distance, 9), 2.2)


def test_a_batch_of_one_answer_repeated_has_no_variance() -> None:
    trainer = run(["gradient-variance"], steps=1)
    (probe,) = trainer.probes
    assert probe.series[0]["variance"] > 0
    rollouts = trainer.ctx.score(trainer.method.collect(trainer.ctx), Needs.FULL).select([0] * 16)
    assert near(probe.figures(Look(trainer.method, rollouts, trainer.ctx))["variance"], 0.0)


def test_a_course_is_drawn() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█" and sparkline([2.0, 2.0]) == "▁▁"
