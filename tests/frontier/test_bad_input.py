"""Little, nothing, and too much of it: a refusal or a counted skip, and never NaN."""

from __future__ import annotations

import math

import pytest
import torch

from opdbench import registry
from opdbench.baselines.poweropd import PowerOPD
from opdbench.conformance.enumerable import END, EnumerableWorld
from opdbench.errors import UserError
from opdbench.loop import Trainer
from opdbench.report.tables import standing_of
from opdbench.resolve import Request, resolve
from opdbench.schema.spec import Budget
from opdbench.worlds import build
from tests.enumerable import context, make
from tests.frontier.exact import world_of

PUBLISHED = ("trb", "scope", "fire-opd", "gndpo", "tip", "exopd", "poweropd", "eopd", "reopold", "revisiting-opd",
             "rethinking-opd", "kepo", "many-faces", "skd", "taid", "opd-plus")
FROM_NOTES = ("tropd", "ta-opd", "esr", "kat", "draft-opd", "rock-tokens")
GROUPED = {"scope": {"group": 1}, "kepo": {"group": 2}}
NO_LANGUAGE = ("trb", "tropd", "opd-plus", "gndpo", "fire-opd", "ta-opd", "tip", "kat", "esr", "eopd", "exopd",
               "reopold", "poweropd")


def finite(figures: dict[str, float]) -> bool:
    return all(math.isfinite(value) for value in figures.values())


@pytest.mark.parametrize("name", (*PUBLISHED, *FROM_NOTES))
def test_a_batch_of_one_answer_of_one_token_is_learnt_from_or_skipped_aloud(name: str) -> None:
    """Quantiles over one sequence, a spread of nothing, one sibling or none, no wrong answer."""
    batch = 2 if name == "kepo" else 1
    world = world_of()
    trainer = Trainer(make(registry.load("method", name), **GROUPED.get(name, {})),
                      context(world, batch=batch, horizon=1, budget=Budget(steps=8)))
    for _ in range(8):
        figures = trainer.step()
        assert finite(figures) and ("loss" in figures or figures["empty_minibatches"] >= 1)
    assert all(weight.isfinite().all() for weight in world.student.parameters())


@pytest.mark.parametrize("name", (*PUBLISHED, *FROM_NOTES))
def test_a_certain_student_and_a_certain_teacher_give_finite_losses(name: str) -> None:
    """Entropies of zero, ratios of e^100, weights of nothing."""
    world: EnumerableWorld = world_of(scale=60.0)
    trainer = Trainer(make(registry.load("method", name)), context(world, budget=Budget(steps=3)))
    for _ in range(3):
        assert finite(trainer.step())
    assert all(weight.isfinite().all() for weight in world.student.parameters())


def test_a_batch_that_is_filtered_away_moves_nothing_and_is_counted() -> None:
    world = world_of()
    with torch.no_grad():  # a student that ends every answer at once
        world.student.head.zero_()  # type: ignore[union-attr]
        world.student.table.fill_(1.0)
        world.student.head[END] = 200.0  # type: ignore[index]
    before = [weight.detach().clone() for weight in world.student.parameters()]
    trainer = Trainer(make(PowerOPD), context(world))
    figures = trainer.step()
    assert figures["empty_minibatches"] == 1 and "loss" not in figures and trainer.ctx.ledger.updates == 0
    assert all(torch.equal(*pair) for pair in zip(before, world.student.parameters(), strict=True))


@pytest.mark.parametrize("name", NO_LANGUAGE)
def test_a_method_that_needs_no_language_runs_on_cartpole(name: str) -> None:
    plan = resolve(Request(method=name, task="cartpole", settings=("batch=8", "horizon=16"), budget=("steps=3",)))
    world = build(plan)
    recipe = plan.spec.recipe
    trainer = Trainer(plan.new_method(), context(world, budget=recipe.budget, **{
        key: value for key, value in recipe.training.model_dump().items()}))
    before = [weight.detach().clone() for weight in world.student.parameters()]
    figures = [trainer.step() for _ in range(3)]
    assert all(map(finite, figures)) and any("loss" in step for step in figures)
    assert any(not torch.equal(*pair) for pair in zip(before, world.student.parameters(), strict=True))


@pytest.mark.parametrize("name", ["scope", "kepo", "rock-tokens"])
def test_a_method_of_words_and_verdicts_is_refused_on_cartpole(name: str) -> None:
    with pytest.raises(UserError, match="does not run on cartpole"):
        resolve(Request(method=name, task="cartpole"))


def test_standings_are_told_on_boards() -> None:
    assert (standing_of("tropd"), standing_of("trb"), standing_of("a-stranger")) == ("from notes", None, None)


def test_standings_are_told_in_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    from opdbench.cli.main import main

    found = {description.name: description.standing for description in registry.descriptions("method")}
    assert {found[name] for name in PUBLISHED} == {"published"}
    assert {found[name] for name in FROM_NOTES} == {"from notes"}
    assert main(["list", "methods"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert all("[from notes]" in lines[name] for name in FROM_NOTES) and "[" not in lines["trb"]
    assert main(["show", "tropd"]) == 0 and "from notes" in capsys.readouterr().out
    assert main(["show", "trb"]) == 0 and "from notes" not in capsys.readouterr().out
