"""The methods of control tasks: what each reduces to, and the pieces that they share. Names say which check (R3 to R12)
of the reference list a test is.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from opdbench import advantages
from opdbench.actors import EpsilonGreedy
from opdbench.baselines.actor_mimic import ActorMimic
from opdbench.baselines.bc import BehaviourCloning
from opdbench.baselines.dagger import DAgger
from opdbench.baselines.dqn import DQN
from opdbench.baselines.kickstarting import Kickstarting
from opdbench.baselines.kickstarting_pbt import KickstartingPBT
from opdbench.baselines.policy_distillation import PolicyDistillation
from opdbench.baselines.ppd import PPD
from opdbench.baselines.ppo import PPO
from opdbench.baselines.qdagger import QDagger
from opdbench.baselines.student_distill import StudentDistill
from opdbench.conformance.compare import same_bits
from opdbench.conformance.harness import Unrewarded, make_rows
from opdbench.conformance.tabular import StatePolicy, TabularTask, corridor
from opdbench.context import Context
from opdbench.distiller import Distiller
from opdbench.distributions import Categorical
from opdbench.divergences import forward_kl
from opdbench.episodes import EpisodeReturns
from opdbench.errors import UserError
from opdbench.loop import Trainer
from opdbench.rl.world import ControlWorld
from opdbench.rollouts import Rollouts, Source
from opdbench.schema.spec import Budget
from opdbench.teachers import Mixture
from tests.enumerable import context, flat_gradient, generator, make, near, random_logits
from tests.test_diagnostics import WATCHED


def policy(seed: int, scale: float = 1.0) -> StatePolicy:
    return StatePolicy(5, 3, generator(seed), scale=scale, n_features=4)


def world(*, student: int = 1, teacher: int = 2, scale: float = 1.0) -> ControlWorld:
    """The corridor, with policies that disagree."""
    return ControlWorld(TabularTask(tables=corridor()), policy(student), policy(teacher, scale), seed=0)


def in_context(here: Any, steps: int = 100, **training: Any) -> Context:
    return context(here, budget=Budget(steps=steps), **{"horizon": 6, "batch": 8, **training})


def first_minibatch(method: Distiller, ctx: Context) -> Rollouts:
    """Of the first step, collected, scored and prepared as the loop does."""
    method.build(ctx)
    ctx.begin_step()
    needs = method.asks(ctx)
    return next(iter(method.minibatches(method.prepare(ctx.score(method.collect(ctx), needs), ctx), ctx)))


def gradient(method: Distiller, ctx: Context, minibatch: Rollouts) -> Tensor:
    return flat_gradient(method.loss(make_rows(ctx, minibatch), ctx).value_n.mean(), ctx.student)


def trained(cls: type[Distiller], steps: int = 3, **params: Any) -> dict[str, Tensor]:
    here = world()
    trainer = Trainer(make(cls, **params), in_context(here))
    for _ in range(steps):
        trainer.step()
    return {name: value.detach() for name, value in here.student.state_dict().items()}


# --------------------------------------------------------------------------------------------------- R3: Rusu's targets


def distilled(q_na: Tensor, logits_na: Tensor, target: str, tau: float) -> tuple[Tensor, Tensor]:
    """Rusu's loss [N] and its gradient in the student's logits."""
    method, ctx = make(PolicyDistillation, target=target, tau=tau), in_context(world())
    rows = make_rows(ctx, first_minibatch(method, ctx))
    leaf_na = logits_na.clone().requires_grad_()
    rows.__dict__.update(teacher=Categorical(q_na), student=Categorical(leaf_na),
                         columns={"teacher_action": q_na.argmax(-1)})
    value_n = method.loss(rows, ctx).value_n
    (found,) = torch.autograd.grad(value_n.sum(), leaf_na)
    return value_n.detach(), found


@pytest.mark.parametrize("target", ["kl", "nll"])
def test_r3_a_constant_added_to_a_states_q_values_changes_nothing(target: str) -> None:
    q_na, logits_na = random_logits(6, 4, seed=1), random_logits(6, 4, seed=2)
    shifted_na = q_na + 10 * random_logits(6, 1, seed=3)
    for one, other in zip(distilled(q_na, logits_na, target, 0.1), distilled(shifted_na, logits_na, target, 0.1),
                          strict=True):
        assert near(one, other, 1e-9)
    assert not near(distilled(q_na, logits_na, "mse", 1.0)[1], distilled(shifted_na, logits_na, "mse", 1.0)[1], 1.0)


def test_r3_a_vanishing_temperature_makes_the_kl_the_likelihood_of_the_best_action() -> None:
    q_na, logits_na = random_logits(6, 4, seed=1), random_logits(6, 4, seed=2)
    for one, other in zip(distilled(q_na, logits_na, "kl", 1e-4), distilled(q_na, logits_na, "nll", 1.0), strict=True):
        assert near(one, other, 1e-9)
    warm_n, _ = distilled(q_na, logits_na, "kl", 1.0)
    assert near(warm_n, forward_kl(Categorical(q_na), Categorical(logits_na)))


def test_r3_the_temperature_is_on_the_teachers_side_alone_and_mse_sums_over_actions() -> None:
    q_na, logits_na = random_logits(6, 4, seed=1), random_logits(6, 4, seed=2)
    p_na, logq_na = (q_na / 0.5).softmax(-1), logits_na.log_softmax(-1)
    assert near(distilled(q_na, logits_na, "kl", 0.5)[0], (p_na * (p_na.log() - logq_na)).sum(-1))
    assert near(distilled(q_na, logits_na, "mse", 1.0)[0], (q_na - logits_na).square().sum(-1))
    assert near(distilled(q_na, logits_na, "mse", 1.0)[1], 2 * (logits_na - q_na))


# --------------------------------------------------------------------------- R4: without the teacher's weight, the base


@pytest.mark.parametrize(("cls", "params", "base", "base_params"), [
    (Kickstarting, {"weight": 0.0}, PPO, {}),
    (KickstartingPBT, {"weight": 0.0}, PPO, {}),
    (PPD, {"weight": 0.0}, PPO, {"discount": 0.999, "gae": 0.9, "minibatches": 2}),
    (QDagger, {"coefficient": 0.0, "pretraining": 0.0}, DQN,
     {"n_step": 3, "epsilon": 0.01, "exploration": 0.0, "target_update": 8000}),
])
def test_r4_without_the_teachers_weight_parameters_are_those_of_the_base_to_the_bit(
        cls: type[Distiller], params: dict[str, Any], base: type[Distiller], base_params: dict[str, Any]) -> None:
    """The teacher is there, is asked where the method stores its answers, and touches no random number."""
    mine, theirs, start = trained(cls, **params), trained(base, **base_params), policy(1).state_dict()
    assert all(same_bits(mine[name], theirs[name]) for name in mine)
    assert max(float((mine[name] - start[name]).abs().max()) for name in mine) > 1e-2
    assert not all(same_bits(trained(cls)[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("cls", [Kickstarting, PPD])
def test_r4_without_rewards_the_gradient_is_the_weight_times_student_distills(cls: type[Distiller]) -> None:
    ctx = in_context(Unrewarded(world()))
    method = make(cls, weight=0.7, minibatches=1, epochs=1)
    batch = first_minibatch(method, ctx)
    exact = gradient(make(StudentDistill), ctx, batch)
    found = gradient(method, ctx, batch)
    if cls is Kickstarting:
        assert near(found, 0.7 * exact)
    else:  # where KL * rho also pushes on the actions that happened to be sampled; on average that is nothing: R12
        assert float(torch.cosine_similarity(found, exact, dim=0)) > 0.5


def test_kickstartings_weight_falls_and_at_zero_the_teacher_is_not_asked() -> None:
    here = world()
    trainer = Trainer(make(Kickstarting, weight=2.0, until=0.5), in_context(here, steps=8))
    weights = []
    for _ in range(8):
        weights.append(trainer.method.teacher_weight(trainer.ctx))  # type: ignore[attr-defined]
        trainer.step()
    assert weights == pytest.approx([2.0, 1.5, 1.0, 0.5, 0, 0, 0, 0])
    assert trainer.ctx.ledger.teacher_scored == 4 * 48 == trainer.ctx.ledger.student_tokens / 2
    slow = make(Kickstarting, decay="exponential", rate=0.5)
    trainer.ctx.ledger.steps = 3
    assert slow.teacher_weight(trainer.ctx) == pytest.approx(0.125)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------- R10, R12: teachers and ratios


def mixed(parts: list[StatePolicy], weights: list[float]) -> Mixture:
    return Mixture(parts, torch.zeros(1, 1, 5), weights)


def test_r10_kickstarting_from_several_teachers_is_the_sum_of_each_ones_gradient_in_any_order() -> None:
    parts = [policy(2), policy(3)]
    found = {}
    cases = (("mix", mixed(parts, [0.7, 0.3]), 2.0), ("turned", mixed(parts[::-1], [0.3, 0.7]), 2.0),
             ("first", parts[0], 1.4), ("second", parts[1], 0.6))
    for name, teacher, weight in cases:
        ctx = in_context(Unrewarded(ControlWorld(TabularTask(tables=corridor()), policy(1), teacher, seed=0)))
        method = make(Kickstarting, weight=weight)
        found[name] = gradient(method, ctx, first_minibatch(method, ctx))
    assert near(found["mix"], found["first"] + found["second"]) and near(found["mix"], found["turned"])
    assert float((found["first"] - found["second"]).norm()) > 0.1


def test_r12_ppds_weight_is_the_ratio_down_to_its_limit_and_constant_below() -> None:
    ctx, method = in_context(Unrewarded(world())), make(PPD, weight=1.0, clip=0.2)
    rows = make_rows(ctx, first_minibatch(method, ctx))
    distance_n = forward_kl(*rows.pair())
    rows.behaviour_logp_n = rows.student.logp(rows.action_n).detach()  # a first pass, in float64
    assert near(method.loss(rows, ctx).value_n, distance_n)
    rows.behaviour_logp_n = rows.behaviour_logp_n - math.log(1.5)  # since when actions have become likelier
    assert near(method.loss(rows, ctx).value_n, 1.5 * distance_n)
    rows.behaviour_logp_n = rows.behaviour_logp_n + math.log(1.5) + math.log(2.0)  # or rarer
    assert near(method.loss(rows, ctx).value_n, 0.8 * distance_n)
    assert near(flat_gradient(method.loss(rows, ctx).value_n.sum(), ctx.student, retain_graph=True),
                0.8 * flat_gradient(distance_n.sum(), ctx.student))


# ----------------------------------------------------------------------------------- what PPO, DQN and QDagger minimise


def test_ppos_gradient_is_that_of_the_whitened_advantages_and_of_the_critics_error() -> None:
    ctx, method = in_context(world()), make(PPO, gae=1.0, minibatches=1, epochs=1, entropy=0.1)
    batch = first_minibatch(method, ctx)
    rows = make_rows(ctx, batch)
    score_n = batch.columns["advantage"][batch.mask_bt] * rows.student.logp(rows.action_n)
    entropy_n = -(rows.student.p_na * rows.student.logp_na).sum(-1)
    exact = flat_gradient(-(score_n + 0.1 * entropy_n).mean(), ctx.student)
    assert near(gradient(method, ctx, batch), exact, 1e-6) and float(exact.norm()) > 0.01  # behaviour: float32
    assert isinstance(method, PPO)
    value_n = method.loss(make_rows(ctx, batch), ctx).value_n
    error_n = (method.critic(batch.input_bt[batch.mask_bt]) - batch.columns["return"][batch.mask_bt]).square()
    (found,), (by_hand,) = (torch.autograd.grad(total.sum(), method.critic.head) for total in (value_n, 0.5 * error_n))
    assert near(found, by_hand) and float(found.norm()) > 0.01
    advantage_n = batch.columns["advantage"][batch.mask_bt]
    assert near(advantage_n.mean(), 0.0, 1e-6) and near(advantage_n.std(correction=0), 1.0, 1e-4)


def test_dqns_gradient_is_that_of_the_huber_error_against_the_lagging_copy() -> None:
    ctx, method = in_context(world()), make(DQN, discount=0.9)
    batch = first_minibatch(method, ctx)
    next_logits_na = policy(1).project(policy(1).features(batch.columns["next_input"], batch.length_b)[:, 0])
    target_n = (batch.columns["return"] + batch.columns["weight"] * next_logits_na.max(-1).values[:, None])[:, 0]
    rows = make_rows(ctx, batch)
    q_n = rows.student.logits_na.gather(-1, rows.action_n[:, None])[:, 0]
    exact = flat_gradient(smooth_l1_loss(q_n, target_n.detach()), ctx.student)
    assert near(gradient(method, ctx, batch), exact, 1e-9) and float(exact.norm()) > 0.01
    ended_n = batch.done_bt[:, 0]
    assert (batch.columns["weight"][:, 0] == torch.where(ended_n, 0.0, 0.9)).all()


def test_qdaggers_gradient_is_dqns_and_the_teachers() -> None:
    ctx, method = in_context(world()), make(QDagger, coefficient=3.0, tau=0.5)
    batch = first_minibatch(method, ctx)
    rows = make_rows(ctx, batch)
    p_na, logq_na = (rows.teacher.logits_na / 0.5).softmax(-1), (rows.student.logits_na / 0.5).log_softmax(-1)
    exact = flat_gradient((p_na * (p_na.log() - logq_na)).sum(-1).mean(), ctx.student)
    alone = gradient(make(QDagger, coefficient=0.0), ctx, batch)
    assert near(gradient(method, ctx, batch), alone + 3 * exact, 1e-9) and float(exact.norm()) > 0.01


def test_qdagger_at_its_teacher_is_dqn() -> None:
    ctx = in_context(world(teacher=1))
    method = make(QDagger)
    batch = first_minibatch(method, ctx)
    assert near(gradient(method, ctx, batch), gradient(make(QDagger, coefficient=0.0), ctx, batch), 1e-9)


def test_dqns_target_network_lags_and_is_renewed_after_so_many_steps() -> None:
    here = world()
    trainer = Trainer(make(DQN, target_update=96, steps_per_update=8), in_context(here))  # a copy every 12 updates
    copies = []
    for _ in range(5):  # of 48 environment steps, and 6 updates, each
        trainer.step()
        copies.append(trainer.method.target.of(here.student).table.clone())  # type: ignore[attr-defined]
    assert torch.equal(copies[0], policy(1).table) and torch.equal(copies[0], copies[1])
    assert not torch.equal(copies[1], copies[2]) and torch.equal(copies[2], copies[3])
    assert not torch.equal(copies[3], copies[4]) and not torch.equal(copies[4], here.student.table)


def test_qdaggers_weight_follows_returns_and_ends() -> None:
    method = make(QDagger, until=0.8, window=4)
    assert isinstance(method, QDagger) and method.next_weight(0.5) == 1  # nobody has finished an episode
    for side, returns in ((method.teacher_returns, [8.0, 12.0]), (method.student_returns, [-10.0, 20.0])):
        side.load_state_dict({**side.state_dict(), "last": returns, "lowest": min(returns)})
    assert method.next_weight(0.5) == pytest.approx(1 - (5 + 10) / (10 + 10))
    assert method.next_weight(0.8) == 0
    table = make(QDagger, random_return=0.0)
    assert isinstance(table, QDagger)
    table.load_state_dict({**method.state_dict(), "weight": 1.0})
    assert table.next_weight(0.5) == pytest.approx(0.5)
    linear = make(QDagger, decay="linear", pretraining=0.2, until=0.7)
    assert isinstance(linear, QDagger)
    assert [linear.next_weight(at) for at in (0.2, 0.45, 0.7, 0.9)] == pytest.approx([1, 0.5, 0, 0])


# ----------------------------------------------------------------------------------------------------- shared pieces


def test_generalised_advantages_by_hand() -> None:
    """One episode that ends, then one that the segment cuts off."""
    reward_bt, value_bt = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.5, 1.0, 1.5, 2.0]])
    mask_bt, done_bt = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[False, True, False, False]])
    unseen_bt = advantages.unseen_ahead(mask_bt, done_bt)
    assert unseen_bt.tolist() == [[False, False, False, True]]
    found = advantages.generalised(reward_bt, value_bt, mask_bt, done_bt, unseen_bt, discount=0.9, decay=0.8)
    errors = [1 + 0.9 * 1.0 - 0.5, 2 - 1.0, 3 + 0.9 * 2.0 - 1.5, 0.0]
    assert near(found, torch.tensor([[errors[0] + 0.72 * errors[1], errors[1], errors[2], 0.0]]), 1e-6)
    limit_bt = torch.tensor([[False, True, False, False]])  # had the time limit ended it, its value would stand
    unseen_bt = advantages.unseen_ahead(mask_bt, done_bt, limit_bt)
    found = advantages.generalised(reward_bt, value_bt, mask_bt, done_bt, unseen_bt, discount=0.9, decay=0.8)
    assert near(found, torch.tensor([[errors[0], 0.0, errors[2], 0.0]]), 1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_generalised_advantages_of_exact_values_average_to_nothing(decay: float) -> None:
    """In a deterministic episode exact values leave no advantage, whatever the decay; and at decay 1 an advantage is
    the return less the value."""
    reward_bt = random_logits(3, 6, seed=1)
    mask_bt, done_bt = torch.ones(3, 6, dtype=torch.bool), torch.zeros(3, 6, dtype=torch.bool)
    done_bt[:, -1] = True
    return_bt = advantages.reward_to_go(reward_bt, mask_bt, done_bt, discount=0.9)
    unseen_bt = advantages.unseen_ahead(mask_bt, done_bt)
    found = advantages.generalised(reward_bt, return_bt, mask_bt, done_bt, unseen_bt, discount=0.9, decay=decay)
    assert near(found, 0.0)
    value_bt = random_logits(3, 6, seed=2)
    found = advantages.generalised(reward_bt, value_bt, mask_bt, done_bt, unseen_bt, discount=0.9, decay=1.0)
    assert near(found, return_bt - value_bt)


def test_n_step_returns_stop_at_ends_and_where_nothing_is_seen() -> None:
    reward_bt = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]])
    done_bt = torch.tensor([[False, True, False, False, False]])
    unseen_bt = advantages.unseen_ahead(torch.ones_like(done_bt), done_bt)
    found = advantages.n_step_returns(reward_bt, done_bt, unseen_bt, n=3, discount=0.5)
    assert found.return_bt.tolist() == [[1 + 1, 2, 4 + 4, 8, 0]]
    assert found.weight_bt.tolist() == [[0, 0, 0.25, 0.5, 1]]
    assert found.at_bt.tolist()[0][2:] == [4, 4, 4]
    one = advantages.n_step_returns(reward_bt, done_bt, unseen_bt, n=1, discount=0.5)
    assert one.return_bt.tolist() == [[1, 2, 4, 8, 0]] and one.weight_bt.tolist() == [[0.5, 0, 0.5, 0.5, 1]]


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_an_epsilon_greedy_actor_explores_as_often_as_it_says(who: Any) -> None:
    logits_ba, uniform_bd = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).expand(20_000, 4), torch.rand(
        20_000, 2, dtype=torch.float64, generator=generator())
    actor = EpsilonGreedy(who, 0.2)
    sides = (logits_ba, None) if who == "student" else (None, logits_ba)
    decision = actor.act(*sides, uniform_bd)
    share_a = torch.bincount(decision.action_b, minlength=4) / 20_000
    assert torch.allclose(share_a, torch.tensor([0.05, 0.85, 0.05, 0.05]), atol=0.01)
    assert torch.allclose(decision.logp_b.exp(), torch.tensor([0.05, 0.85, 0.05, 0.05])[decision.action_b])
    assert set(decision.source_b.tolist()) == {Source.STUDENT if who == "student" else Source.TEACHER}
    assert actor.uses_student != actor.uses_teacher == (who == "teacher")


def test_returns_of_episodes_are_followed_across_segments() -> None:
    here = ControlWorld(TabularTask(tables=corridor()), policy(1), None, seed=0)
    ctx, parts = in_context(here, batch=2, horizon=4), []
    seen, late = EpisodeReturns(100), EpisodeReturns(100)
    for ctx.ledger.steps in range(12):
        ctx.begin_step()
        parts.append(make(PPO).collect(ctx))
        seen.add(parts[-1])
    whole = [torch.cat([getattr(part, name) for part in parts], 1) for name in ("reward_bt", "done_bt")]
    expected = []
    for reward_t, done_t in zip(*whole, strict=True):
        running = 0.0
        for reward, done in zip(reward_t.tolist(), done_t.tolist(), strict=True):
            running += reward
            if done:
                expected.append(running)
                running = 0.0
    assert len(expected) > 10 and seen.mean == pytest.approx(sum(expected) / len(expected))
    assert seen.lowest == min(expected)
    late.join(parts[0])
    for part in parts:
        late.add(part)
    assert len(late.state_dict()["last"]) == len(expected) - 2  # the first episode of each was somebody else's


def test_bc_keeps_its_demonstrations_and_is_dagger_whose_teacher_always_drives() -> None:
    class AlwaysTeacher(DAgger):
        def teacher_share(self, round_: int) -> float:
            return 1.0

    shared = {"replay_ratio": 1.0, "minibatch": 8}
    mine = trained(BehaviourCloning, labels="mode", entropy=0.0, **shared)
    theirs = trained(AlwaysTeacher, **shared)
    assert all(same_bits(mine[name], theirs[name]) for name in mine)


def test_actor_mimics_projector_reads_the_teachers_features_and_teaches_the_students() -> None:
    here = world()
    trainer = Trainer(make(ActorMimic, beta=1.0), in_context(here))
    errors = [trainer.step()["feature_error"] for _ in range(15)]
    assert errors[-1] < 0.5 * errors[0]
    with_features, without = trained(ActorMimic, beta=1.0), trained(ActorMimic, beta=0.0)
    assert not near(with_features["table"], without["table"], 1e-3)


def test_actor_mimic_without_features_is_student_distill_on_the_same_states() -> None:
    ctx, method = in_context(world()), make(ActorMimic, beta=0.0)
    batch = first_minibatch(method, ctx)
    assert near(gradient(method, ctx, batch), gradient(make(StudentDistill), ctx, batch))


def test_q_learning_without_a_successor_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to bootstrap from"):
        Trainer(make(DQN), in_context(world(), horizon=1, batch=1)).step()


METHODS = [BehaviourCloning, PolicyDistillation, ActorMimic, StudentDistill, PPO, PPD, Kickstarting, KickstartingPBT,
           DQN, QDagger]


@pytest.mark.parametrize("cls", METHODS)
def test_every_step_logs_what_a_collapse_shows_in(cls: type[Distiller]) -> None:
    trainer = Trainer(make(cls), in_context(world(), top_k=2))
    for figures in (trainer.step(), trainer.step()):
        assert figures.keys() >= WATCHED and all(math.isfinite(figures[name]) for name in WATCHED)


@pytest.mark.parametrize("cls", [cls for cls in METHODS if cls not in (PPO, DQN)])
def test_a_teacher_that_is_not_a_number_ends_the_run_with_a_sentence(cls: type[Distiller]) -> None:
    here = world(scale=float("nan"))
    before = here.student.table.clone()  # type: ignore[operator]
    with pytest.raises(UserError, match=r"logits are not numbers \(NaN\)"):
        Trainer(make(cls), in_context(here)).step()
    assert torch.equal(before, here.student.table)  # type: ignore[arg-type]
