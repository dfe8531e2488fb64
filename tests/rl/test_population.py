"""Population based training: who copies whom, what is copied, what it costs, and that it resumes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind
from torch import Tensor

from opdbench import seeds
from opdbench.baselines.kickstarting import Kickstarting
from opdbench.baselines.kickstarting_pbt import KickstartingPBT
from opdbench.baselines.ppo import PPO
from opdbench.conformance.compare import differences
from opdbench.conformance.harness import Unrewarded
from opdbench.conformance.tabular import TabularTask, corridor
from opdbench.context import Context
from opdbench.copies import averaged
from opdbench.distiller import Distiller
from opdbench.errors import UserError
from opdbench.loop import Trainer
from opdbench.policy import Policy
from opdbench.population import Population, beats, start
from opdbench.rl.world import ControlWorld
from opdbench.schema.record import MEASURED_LEDGER
from opdbench.schema.spec import Budget
from opdbench.signals import Cancelled
from opdbench.store import pack, unpack
from tests.enumerable import context, make, near
from tests.rl.test_methods import first_minibatch, gradient, in_context, mixed, policy, world
from tests.test_run import Watcher, execute, plan_of, weights


def population(steps: int = 100, **params: Any) -> Population:
    settings = {"population": 3, "epochs": 1, "minibatches": 1, **params}
    made = start(lambda: make(KickstartingPBT, **settings), in_context(world(), steps=steps))
    assert isinstance(made, Population)
    return made


def method(trainer: Trainer) -> KickstartingPBT:
    assert isinstance(trainer.method, KickstartingPBT)
    return trainer.method


def earns(trainer: Trainer, returns: list[float]) -> None:
    own = method(trainer).returns
    own.load_state_dict({**own.state_dict(), "last": returns})


def learnt(trainer: Trainer) -> dict[str, Any]:
    """What is trained, and how."""
    state = trainer.state_dict()
    return unpack(pack({name: state[name] for name in ("student", "modules", "optimizer")}))


class Coins:
    """Draws as they are told."""

    def __init__(self, *choices: float) -> None:
        self._choices = list(choices)

    def choice(self, options: Any) -> Any:
        drawn = self._choices.pop(0)
        assert drawn in options
        return drawn


@pytest.mark.parametrize(("theirs", "mine", "better"), [
    ([10.0, 11, 12], [1.0, 2, 3], True), ([1.0, 2, 3], [10.0, 11, 12], False), ([3.0, 9, 1], [2.0, 4, 5], False),
    ([5.0, 5], [4.0, 4, 4], True), ([5.0, 5], [5.0, 5], False), ([50.0], [1.0, 1], False), ([], [], False)])
def test_significantly_better_by_hand(theirs: list[float], mine: list[float], better: bool) -> None:
    assert beats(theirs, mine) is better


def test_significantly_better_is_welchs_test() -> None:
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(60):
        theirs, mine = (list(rng.normal(mean, spread, size)) for mean, spread, size in ((0.7, 1, 10), (0, 2, 7)))
        expected = ttest_ind(theirs, mine, equal_var=False, alternative="greater").pvalue < 0.05
        assert beats(theirs, mine) == expected
        verdicts.add(bool(expected))
    assert verdicts == {True, False}


def test_who_is_beaten_becomes_a_copy_with_lambda_a_fifth_up_or_down() -> None:
    """Members 0 and 1 meet member 2, and 2 meets 1; only 0 earns significantly less."""
    here = population()
    for _ in range(6):
        here.step()
    trainers = here.trainers
    for trainer, factor, returns in zip(trainers, (0.5, 1.0, 2.0), ([1.0, 2, 1, 2], [8.0, 30, 9], [9.0, 10, 9, 10]),
                                        strict=True):
        method(trainer).factors = [factor]
        earns(trainer, returns)
    before = [learnt(trainer) for trainer in trainers]
    worlds = [trainer.ctx.world.state_dict() for trainer in trainers]
    assert here.best == 1 and here.student is trainers[1].ctx.student
    assert here.evolve(Coins(2, 1.2, 2, 1)) == 1  # type: ignore[arg-type]
    assert [method(trainer).factors for trainer in trainers] == [[2.0 * 1.2], [1.0], [2.0]]
    assert not list(differences(learnt(trainers[0]), before[2]))
    assert list(differences(before[0], before[2]))  # it was another one
    for number in (1, 2):
        assert not list(differences(learnt(trainers[number]), before[number]))
    assert not list(differences([trainer.ctx.world.state_dict() for trainer in trainers], worlds))
    # What the replaced one earned before counts no more, nor does the episode that it is in.
    assert method(trainers[0]).recent() == () and method(trainers[2]).recent() == (9.0, 10.0, 9.0, 10.0)
    earns(trainers[1], [1.0, 2.0, 1.0])
    assert here.evolve(Coins(1, 2, 0.8, 0)) == 1  # type: ignore[arg-type]
    assert method(trainers[1]).factors == [2.0 * 0.8]
    here.step()  # a copy goes on by itself
    assert list(differences(learnt(trainers[0]), learnt(trainers[2])))


def test_first_lambdas_are_drawn_and_multiply_the_schedule() -> None:
    here = population(population=40, spread=4.0, weight=0.5, decay="linear", until=0.5)
    factors = [method(trainer).factors[0] for trainer in here.trainers]
    assert len(set(factors)) == 40 and 0.25 < min(factors) < 0.5 and 2 < max(factors) < 4
    assert 10 < sum(factor > 1 for factor in factors) < 30
    here.ctx.ledger.steps = 25
    assert method(here.trainers[3]).teacher_weight(here.trainers[3].ctx) == pytest.approx(0.5 * 0.5 * factors[3])


def test_comparisons_come_when_every_member_has_had_its_rounds() -> None:
    here, counted = population(interval=2, population=3), list[int]()
    here.evolve = lambda rng: counted.append(here.ctx.step) or 0  # type: ignore[method-assign, func-returns-value]
    figures = [here.step() for _ in range(13)]
    assert counted == [6, 12]
    assert [figure["member"] for figure in figures[:4]] == [0, 1, 2, 0]
    assert all(figure["lambda_0"] > 0 for figure in figures)


def test_the_budget_counts_all_members() -> None:
    here = population(steps=6)
    while not here.finished:
        here.step()
    ledger = here.ctx.ledger
    assert ledger.steps == 6 and ledger.student_tokens == 6 * 8 * 6 == ledger.teacher_scored
    assert all(trainer.ctx.ledger is ledger for trainer in here.trainers)


def test_members_have_draws_and_environments_of_their_own_and_share_the_teacher() -> None:
    here = population()
    rolled = [method(trainer).collect(trainer.ctx) for trainer in here.trainers]
    assert not torch.equal(rolled[0].action_bt, rolled[1].action_bt)
    assert len({trainer.ctx.rng("x").random() for trainer in here.trainers}) == 3
    assert len({id(trainer.ctx.world.teacher) for trainer in here.trainers}) == 1
    assert len({id(trainer.ctx.student) for trainer in here.trainers}) == 3


def test_r4_a_population_without_the_teachers_weight_is_ppos_to_the_bit() -> None:
    def run(cls: type[Distiller], **params: Any) -> list[dict[str, Any]]:
        first = in_context(world())
        here = Population([Trainer(make(cls, **params), ctx) for ctx in (first, first.member(1, first.world.twin))])  # type: ignore[attr-defined]
        for number in range(6):
            here.trainers[number % 2].step()
        assert first.ledger.teacher_scored == 0
        return [learnt(trainer) for trainer in here.trainers]

    cuts = {"epochs": 1, "minibatches": 2}
    plain, weightless = run(PPO, **cuts), run(KickstartingPBT, weight=0.0, **cuts)
    assert not list(differences(plain, weightless)) and list(differences(plain[0], plain[1]))


def test_each_teacher_has_a_weight_of_its_own() -> None:
    """As drawn, on shares 0.7 and 0.3: the sum of what kickstarting from each of the two alone has."""
    def first_gradient(method: Distiller, teacher: Policy) -> Tensor:
        ctx = in_context(Unrewarded(ControlWorld(TabularTask(tables=corridor()), policy(1), teacher, seed=0)))
        return gradient(method, ctx, first_minibatch(method, ctx))

    parts, tuned = [policy(2), policy(3)], make(KickstartingPBT, weight=20.0, spread=100.0)
    both = first_gradient(tuned, mixed(parts, [0.7, 0.3]))
    assert isinstance(tuned, KickstartingPBT) and max(tuned.factors) / min(tuned.factors) > 1.2
    alone = [first_gradient(make(Kickstarting, weight=20.0 * share * factor), part)
             for share, factor, part in zip((0.7, 0.3), tuned.factors, parts, strict=True)]
    assert near(both, alone[0] + alone[1]) and float((alone[0] - alone[1]).norm()) > 0.1


def test_a_resumed_population_is_the_same_bit_for_bit() -> None:
    def run(here: Population, rounds: int) -> Population:
        for _ in range(rounds):
            here.step()
        return here

    whole = run(population(interval=1), 14)
    assert any(method(trainer)._joins or trainer.ctx.step for trainer in whole.trainers)
    resumed = population(interval=1)
    resumed.load_state_dict(unpack(pack(run(population(interval=1), 7).state_dict())))
    found = [path for path in differences(whole.state_dict(), run(resumed, 7).state_dict())
             if path.rpartition(".")[2] not in MEASURED_LEDGER]
    assert not found


def test_selection_follows_the_reward() -> None:
    """On the corridor under a teacher that walks the wrong way, members that listen to it are replaced."""
    wrong = policy(2)
    with torch.no_grad():
        wrong.table.zero_()
        wrong.head.zero_()
        wrong.table[:, 0], wrong.head[0, 0] = 3.0, 3.0  # always to the left
    task = TabularTask(tables=corridor(horizon=20))
    here = start(lambda: make(KickstartingPBT, weight=1.0, spread=50.0, interval=3, population=4, discount=0.9,
                              epochs=1, minibatches=1),
                 context(ControlWorld(task, policy(1), wrong, seed=0), batch=8, horizon=20, lr=0.1,
                         budget=Budget(steps=60)))
    assert isinstance(here, Population)
    first = [method(trainer).factors[0] for trainer in here.trainers]
    replaced = 0.0
    while not here.finished:
        replaced += here.step()["replaced"]
    last = [method(trainer).factors[0] for trainer in here.trainers]
    assert replaced > 0 and max(last) < 0.5 * max(first)


def test_a_teacher_that_follows_the_student_is_refused() -> None:
    here = world()
    here.teacher = averaged(here.student, 0.9)
    with pytest.raises(UserError, match="follows the student, and kickstarting-pbt trains 4 students"):
        start(lambda: make(KickstartingPBT), in_context(here))


def test_a_run_of_a_population_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def interrupt(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = ("population=2", "interval=1", "horizon=32", "epochs=1", "minibatches=1")
    record, folder = execute(plan_of("kickstarting-pbt", *settings), tmp_path)
    assert record.status == "completed" and record.ledger["student_tokens"] == 12 * 4 * 32
    assert [entry["member"] for entry in record.curve] == [0, 1] * 6
    with pytest.raises(Cancelled):
        execute(plan_of("kickstarting-pbt", *settings), tmp_path / "again", Watcher(interrupt))
    again, resumed = execute(plan_of("kickstarting-pbt", *settings), tmp_path / "again")
    assert again.times.resumed == 1 and again.ledger["steps"] == 12
    assert [again.curve, again.after] == [record.curve, record.after]
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(folder).items())


def test_what_a_run_hands_on_is_the_best_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for best in (0, 1):
        monkeypatch.setattr(Population, "best", property(lambda self, best=best: best))
        _, folder = execute(plan_of("kickstarting-pbt", "population=2", "epochs=1", budget="steps=2"),
                            tmp_path / str(best))
        found.append(weights(folder))
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_draws_of_a_member_derive_from_the_runs() -> None:
    first = in_context(world())
    other = first.member(2, first.world.twin)  # type: ignore[attr-defined]
    assert isinstance(other, Context) and other._seed == seeds.derive(0, "member", 2)
