"""The methods where states have consequences: small tabular control tasks whose theory is known in closed form.

Names say which check of the reference list (R1 to R10) a test is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from opdbench.baselines.dagger import DAgger
from opdbench.baselines.gkd import GKD
from opdbench.baselines.kd import KD
from opdbench.baselines.opd import OPD
from opdbench.baselines.sft import SFT
from opdbench.conformance.compare import same_bits
from opdbench.conformance.harness import make_rows
from opdbench.conformance.tabular import StatePolicy, Tables, TabularTask, corridor
from opdbench.distiller import Distiller
from opdbench.loop import Trainer
from opdbench.rl.world import ControlWorld
from opdbench.rollouts import Rollouts, Source
from tests.enumerable import context, flat_gradient, generator, make, near

RIGHT, WRONG = 0, 1
PATH, OFF_PATH = 0, 1


def chain(horizon: int, *, after_an_error: str) -> Tables:
    """Two states. An error on the path costs 1, and leads: to nothing else ("path"), off a cliff for good ("cliff"), or
    off the path, where every step costs 1 until the right way back is taken, which there is the other action ("back").
    """
    off = {"path": [PATH, PATH], "cliff": [OFF_PATH, OFF_PATH], "back": [OFF_PATH, PATH]}[after_an_error]
    next_sa = np.array([[PATH, PATH if after_an_error == "path" else OFF_PATH], off])
    reward_sa = np.array([[0.0, -1.0], [-1.0, -1.0 if after_an_error != "back" else 0.0]])
    return Tables(next_sa, reward_sa, np.zeros((2, 2), bool), starts=[PATH], horizon=horizon)


def table_policy(logits_sa: Any) -> StatePolicy:
    logits_sa = torch.as_tensor(logits_sa, dtype=torch.float64)
    policy = StatePolicy(*logits_sa.shape, generator(), scale=0.0)
    with torch.no_grad():
        policy.table.copy_(logits_sa)
    return policy


def probabilities(policy: StatePolicy) -> Tensor:
    """[S, A]."""
    return policy.project(policy.features(torch.eye(len(policy.table)), torch.ones(1))).softmax(-1)


def visits(tables: Tables, policy: StatePolicy) -> Tensor:
    """Expected number of visits [S] to every state in one episode."""
    p_sa = probabilities(policy).detach()
    now_s = torch.zeros(tables.n_states, dtype=torch.float64)
    now_s[list(tables.starts)] = 1 / len(tables.starts)
    total_s = torch.zeros_like(now_s)
    for _ in range(tables.horizon):
        total_s += now_s
        flow_sa = (now_s[:, None] * p_sa) * torch.from_numpy(~tables.end_sa)
        now_s = torch.zeros_like(now_s).index_add_(0, torch.from_numpy(tables.next_sa).flatten(), flow_sa.flatten())
    return total_s


def cost(tables: Tables, policy: StatePolicy) -> float:
    """Expected cost of one episode, by dynamic programming."""
    reward_s = (probabilities(policy).detach() * torch.from_numpy(tables.reward_sa)).sum(1)
    return -float((visits(tables, policy) * reward_s).sum())


def erring(error: float) -> StatePolicy:
    """On the path it errs with probability `error`; off the path it has learnt nothing."""
    return table_policy([[math.log(1 - error), math.log(error)], [0.0, 0.0]])


# ------------------------------------------------------------------------------------------- R1: how errors compound


@pytest.mark.parametrize("error", [0.2, 0.01])
@pytest.mark.parametrize("horizon", [5, 40])
def test_r1_costs_of_an_erring_imitator_in_closed_form(error: float, horizon: int) -> None:
    off_a_cliff = horizon - (1 - error) * (1 - (1 - error) ** horizon) / error
    assert cost(chain(horizon, after_an_error="cliff"), erring(error)) == pytest.approx(off_a_cliff, rel=1e-10)
    assert cost(chain(horizon, after_an_error="path"), erring(error)) == pytest.approx(error * horizon, rel=1e-10)


@pytest.mark.parametrize(("after_an_error", "slope"), [("cliff", 2), ("path", 1)])
def test_r1_cost_grows_with_the_square_of_the_horizon_where_errors_are_final(after_an_error: str, slope: int) -> None:
    costs = [cost(chain(horizon, after_an_error=after_an_error), erring(1e-6)) for horizon in (1000, 2000)]
    assert math.log2(costs[1] / costs[0]) == pytest.approx(slope, abs=0.01)


@pytest.mark.parametrize("after_an_error", ["cliff", "path", "back"])
def test_r1_the_world_measures_that_cost(after_an_error: str) -> None:
    """What evaluation plays, episode for episode, has the exact mean within four standard errors."""
    tables, policy = chain(20, after_an_error=after_an_error), erring(0.1)
    world = ControlWorld(TabularTask(tables=tables), policy, None, seed=0)
    costs = [-outcome.score for outcome in world.evaluate(policy, split="test", mode="sampled", n=400, seed=0)]
    assert abs(fmean(costs) - cost(tables, policy)) < 4 * stdev(costs) / 20


TEACHER = table_policy([[60.0, 0.0], [0.0, 60.0]])  # right on the path, and back to it when off


def train(cls: type[Distiller], tables: Tables, teacher: StatePolicy, student: StatePolicy, *, rounds: int,
          lr: float = 0.1, batch: int = 4, **params: Any) -> Trainer:
    world = ControlWorld(TabularTask(tables=tables), student, teacher, seed=0)
    trainer = Trainer(make(cls, **params), context(world, lr=lr, batch=batch, horizon=tables.horizon))
    for _ in range(rounds):
        trainer.step()
    return trainer


@pytest.mark.parametrize(("cls", "params"), [(SFT, {}), (KD, {}), (GKD, {"lmbda": 0.0})])
def test_r1_off_policy_methods_leave_states_that_the_teacher_avoids_as_they_were(cls: type[Distiller],
                                                                                 params: dict[str, Any]) -> None:
    """To the bit: so a student that slips off the path does there whatever it did before."""
    student = table_policy([[0.0, 0.0], [0.7, -0.2]])
    train(cls, chain(20, after_an_error="back"), TEACHER, student, rounds=20, **params)
    assert student.table[OFF_PATH].tolist() == [0.7, -0.2]
    assert probabilities(student)[PATH, RIGHT] > 0.8


@pytest.mark.parametrize(("cls", "params"), [
    (GKD, {}), (OPD, {}), (OPD, {"estimator": "sampled"}), (DAgger, {"replay_ratio": 0.01}),
    (DAgger, {"labels": "soft"})])
def test_r1_on_policy_methods_learn_the_way_back(cls: type[Distiller], params: dict[str, Any]) -> None:
    tables = chain(20, after_an_error="back")
    student, cloned = (table_policy([[0.0, 0.0], [0.7, -0.2]]) for _ in range(2))
    train(cls, tables, TEACHER, student, rounds=20, **params)
    train(SFT, tables, TEACHER, cloned, rounds=20)
    assert probabilities(student)[OFF_PATH, WRONG] > 0.7 > 0.5 > probabilities(cloned)[OFF_PATH, WRONG]
    error = 0.1  # both slip as often on the path, so what differs is what they do afterwards
    slipping = [table_policy(torch.stack([erring(error).table[PATH], policy.table[OFF_PATH]]).detach())
                for policy in (student, cloned)]
    assert cost(tables, slipping[0]) < 0.8 * cost(tables, slipping[1])


# ------------------------------------------------------------------------------------- R5: fields that are no gradients


def every_state(world: ControlWorld, tables: Tables) -> Rollouts:
    """Each state once, as a trajectory of its own."""
    n = tables.n_states
    one, zeros = torch.ones(n, 1), torch.zeros(n, 1)
    return Rollouts(input_bt=torch.eye(n)[:, None], action_bt=zeros.long(), source_bt=one.to(torch.uint8),
                    behaviour_logp_bt=zeros, reward_bt=zeros, done_bt=zeros.bool(), length_b=torch.ones(n).long(),
                    truncated_b=torch.zeros(n).bool())


def field(method: Distiller, tables: Tables, student: StatePolicy, teacher: StatePolicy, actor: StatePolicy) -> Tensor:
    """The expected update of `method` [W] when `actor` decides which states are visited."""
    world = ControlWorld(TabularTask(tables=tables), student, teacher, seed=0)
    ctx = context(world)
    value_n = method.loss(make_rows(ctx, ctx.score(every_state(world, tables), method.requires())), ctx).value_n
    return flat_gradient((visits(tables, actor) * value_n).sum(), student)


def jacobian(at: Callable[[], Tensor], policy: StatePolicy, width: float = 1e-5) -> Tensor:
    """Central differences of a field [W] in the policy's weights: [W, W]."""
    rows = []
    with torch.no_grad():
        for parameter in policy.parameters():
            for index in range(parameter.numel()):
                flat = parameter.view(-1)
                value = float(flat[index])
                sides = []
                for moved in (value + width, value - width):
                    flat[index] = moved
                    with torch.enable_grad():
                        sides.append(at())
                flat[index] = value
                rows.append((sides[0] - sides[1]) / (2 * width))
    return torch.stack(rows)


def shared_policies(tables: Tables, n_features: int | None) -> tuple[StatePolicy, StatePolicy]:
    sizes = (tables.n_states, tables.n_actions)
    return (StatePolicy(*sizes, generator(3), scale=1.0, n_features=n_features),
            StatePolicy(*sizes, generator(4), scale=1.0, n_features=n_features))


@pytest.mark.parametrize(("cls", "params"), [
    (GKD, {"divergence": "forward_kl"}), (OPD, {}), (DAgger, {"labels": "soft"})])
def test_r5_on_policy_distillation_is_no_gradient_field_and_teacher_driven_distillation_is_one(
        cls: type[Distiller], params: dict[str, Any]) -> None:
    """Czarnecki et al. 2019: with shared parameters, the expected update's Jacobian is symmetric only off-policy."""
    tables = corridor()
    student, teacher = shared_policies(tables, n_features=2)
    method = make(cls, **params)
    on_policy = jacobian(lambda: field(method, tables, student, teacher, student), student)
    off_policy = jacobian(lambda: field(method, tables, student, teacher, teacher), student)
    assert float((off_policy - off_policy.T).norm() / off_policy.norm()) < 1e-6
    assert float((on_policy - on_policy.T).norm() / on_policy.norm()) > 1e-2


def test_r5_in_a_table_both_fields_point_to_the_same_side() -> None:
    """With full support and independent states they never oppose each other; that is why on-policy works there."""
    tables = corridor()
    student, teacher = shared_policies(tables, n_features=None)
    for seed in range(10, 15):
        with torch.no_grad():
            student.table.normal_(generator=generator(seed))
        fields = [field(make(KD), tables, student, teacher, actor) for actor in (student, teacher)]
        assert float(fields[0] @ fields[1]) > 0


# ------------------------------------------------------------------------------------------------------- R9: DAgger


def walk(tables: Tables, policy: StatePolicy) -> list[int]:
    """The states of the greedy episode."""
    state, seen = tables.starts[0], []
    for _ in range(tables.horizon):
        seen.append(state)
        state = int(tables.next_sa[state, int(policy.table[state].argmax())])
    return seen


@pytest.mark.parametrize("seed", range(4))
def test_r9_tabular_dagger_agrees_with_its_teacher_in_at_most_states_plus_one_rounds(seed: int) -> None:
    """Deterministic world, teacher and student: every round with a disagreement labels at least one new state."""
    n_states, n_actions = 13, 3
    rng = np.random.default_rng(seed)
    tables = Tables(rng.integers(n_states, size=(n_states, n_actions)), np.zeros((n_states, n_actions)),
                    np.zeros((n_states, n_actions), bool), starts=[0], horizon=15)
    student = StatePolicy(n_states, n_actions, generator(seed), scale=1.0)
    teacher = StatePolicy(n_states, n_actions, generator(seed + 100), scale=1.0)
    world = ControlWorld(TabularTask(tables=tables), student, teacher, seed=seed)
    method = make(DAgger, beta="never", replay_ratio=200_000, minibatch=100_000)
    trainer = Trainer(method, context(world, lr=1.0, batch=1, horizon=15, temperature=1e-6))
    label_s, labelled, rounds = teacher.table.argmax(-1), set[int](), 0
    while any(student.table[state].argmax() != label_s[state] for state in walk(tables, student)):
        before = walk(tables, student)
        trainer.step()
        rounds += 1
        assert set(before) - labelled, "a labelled error was made again"
        labelled |= set(before)
        assert all(student.table[state].argmax() == label_s[state] for state in labelled)
    assert 0 < rounds <= n_states + 1


class AlwaysTeacher(DAgger):
    """beta_i = 1 in every round."""

    def teacher_share(self, round_: int) -> float:
        return 1.0


def test_r9_with_the_teacher_always_driving_the_data_are_those_of_behaviour_cloning_byte_for_byte() -> None:
    tables = corridor()
    student, teacher = shared_policies(tables, n_features=None)
    world = ControlWorld(TabularTask(tables=tables), student, teacher, seed=0)
    dagger = train(AlwaysTeacher, tables, teacher, student, rounds=4).method
    assert isinstance(dagger, DAgger)
    ctx, cloning = context(world, batch=4, horizon=tables.horizon), make(SFT)
    parts = []
    for ctx.ledger.steps in range(4):
        ctx.begin_step()
        parts.append(cloning.collect(ctx).flatten())
    aggregated, cloned = dagger.data.state_dict()["tensors"], Rollouts.cat(parts).tensors()
    assert cloned.keys() < aggregated.keys() and Rollouts.cat(parts).count(Source.TEACHER) == 4 * 4 * tables.horizon
    assert all(same_bits(aggregated[name], cloned[name]) for name in cloned)


@pytest.mark.parametrize("beta", ["linear", "exponential", "zero"])
def test_r9_the_first_round_is_the_teachers_under_every_schedule_that_starts_at_one(beta: str) -> None:
    tables = corridor()
    student, teacher = shared_policies(tables, n_features=None)
    collected = []
    for method in (make(DAgger, beta=beta), make(SFT)):
        ctx = context(ControlWorld(TabularTask(tables=tables), student, teacher, seed=0))
        collected.append(method.collect(ctx).tensors())
    assert all(same_bits(collected[0][name], collected[1][name]) for name in collected[0])


def test_r9_beta_schedules() -> None:
    """imitation's figures: linear reaches 0 at round 15, exponential is p^i; the paper's own is the indicator i = 0."""
    def shares(**params: Any) -> list[float]:
        method = make(DAgger, **params)
        assert isinstance(method, DAgger)
        return [method.teacher_share(round_) for round_ in (0, 1, 3, 14, 15, 40)]

    assert shares(beta="linear") == pytest.approx([1, 14 / 15, 12 / 15, 1 / 15, 0, 0])
    assert shares(beta="linear", beta_rounds=2) == pytest.approx([1, 0.5, 0, 0, 0, 0])
    assert shares(beta="exponential") == pytest.approx([1, 0.7, 0.7**3, 0.7**14, 0.7**15, 0.7**40])
    assert shares(beta="zero") == [1, 0, 0, 0, 0, 0]
    assert shares(beta="never") == [0] * 6


def test_dagger_labels_are_the_teachers_whoever_acts() -> None:
    """The action that was taken is kept beside the label, and never learnt from."""
    tables = corridor()
    student, teacher = shared_policies(tables, n_features=None)
    method = train(DAgger, tables, teacher, student, rounds=3, beta="never").method
    assert isinstance(method, DAgger)
    data = Rollouts.from_tensors(method.data.state_dict()["tensors"], frozenset({"teacher_action", "truncated"}))
    state_n = data.input_bt[:, 0].argmax(-1)
    assert torch.equal(data.columns["teacher_action"][:, 0], teacher.table.argmax(-1)[state_n])
    assert (data.action_bt != data.columns["teacher_action"]).any()
    ctx = context(ControlWorld(TabularTask(tables=tables), student, teacher, seed=0))
    other_actions = replace(data, action_bt=(data.action_bt + 1) % 3)
    losses = [method.loss(make_rows(ctx, rows), ctx).value_n for rows in (data, other_actions)]
    assert near(losses[0], losses[1])
