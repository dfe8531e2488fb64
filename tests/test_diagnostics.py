"""What every step of every method logs, so that a run that goes wrong can be seen to."""

from __future__ import annotations

import math

import pytest

from opdbench import registry
from opdbench.baselines.gkd import GKD
from opdbench.baselines.opd import OPD
from opdbench.loop import Trainer
from opdbench.schema.spec import Budget
from tests.enumerable import context, distributions, make, small_language

WATCHED = {"loss", "forward_kl", "reverse_kl", "entropy", "teacher_entropy", "agreement", "top_k_mass", "length",
           "truncated", "reward", "student_share"}


@pytest.mark.parametrize(
    "name", [name for name in registry.names("method") if "lm" in registry.load("method", name).domains])
def test_every_step_logs_what_a_collapse_shows_in(name: str) -> None:
    """Trap: long runs collapse unseen. Distances both ways, entropies, mass, lengths, truncation, agreement, and who
    wrote; and of what the student wrote, how far its sampler is from what is trained."""
    cls = registry.load("method", name)
    trainer = Trainer(make(cls), context(small_language(), budget=Budget(steps=8), top_k=2))
    for figures in (trainer.step(), trainer.step()):
        skipped = figures.get("empty_minibatches", 0) > 0  # a method that left no row in has no update to watch
        watched = WATCHED - {"loss", "entropy"} if skipped else WATCHED
        assert figures.keys() >= watched and all(math.isfinite(figures[name]) for name in watched)
        assert 0 <= figures["student_share"] <= 1 and 0 < figures["top_k_mass"] < 1
        assert skipped or ("sampler_gap" in figures) == (figures["student_share"] > 0)


def test_the_top_k_mass_is_the_students_on_the_teachers_likely_actions() -> None:
    world = small_language()
    figures = Trainer(make(OPD), context(world, top_k=2)).step()
    world = small_language()
    rollouts = make(OPD).collect(context(world))
    teacher, student = (side.detach() for side in distributions(world, rollouts))
    mass_n = student.p_na.gather(-1, teacher.p_na.topk(2).indices).sum(-1)
    assert figures["top_k_mass"] == pytest.approx(float(mass_n.mean()), rel=1e-9)


def test_the_captured_mass_is_logged_and_is_the_mass_of_the_support() -> None:
    world = small_language()
    ctx = context(world, support="teacher", top_k=1)
    trainer = Trainer(make(GKD), ctx)
    figures = trainer.step()
    assert 1 / 3 < figures["teacher_mass"] < 1 and 0 < figures["student_mass"] < 1
    assert "teacher_mass" not in Trainer(make(GKD), context(small_language())).step()
