"""One student of several games: how states say which game they are of, what is shared and what is each game's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean

import numpy as np
import pytest
import torch

from opdbench import registry, run, untrusted
from opdbench.actors import EpsilonGreedy, Student, Teacher
from opdbench.baselines.actor_mimic import ActorMimic
from opdbench.baselines.policy_distillation import PolicyDistillation
from opdbench.conformance.compare import differences
from opdbench.conformance.harness import make_rows
from opdbench.conformance.tabular import StatePolicy
from opdbench.errors import UserError
from opdbench.loop import Trainer
from opdbench.regrade import Grader
from opdbench.replay import Replays
from opdbench.report.runs import read_run
from opdbench.report.summary import summary
from opdbench.resolve import Request, resolve
from opdbench.rl.convolutional import RUSU
from opdbench.rl.games import Form
from opdbench.rl.games_policy import GamesPolicy
from opdbench.rl.games_world import fresh_games_student
from opdbench.rl.load import load_policy
from opdbench.rl.world import evaluate
from opdbench.rollouts import Rollouts
from opdbench.store import pack, task_folder, unpack
from tests.enumerable import context, generator, interrupted, make, near
from tests.rl.games import Both, counting, right_pays, student, world
from tests.test_run import Watcher


def played(here: object, n: int = 4, actor: object = None, **keywords: object) -> Rollouts:
    return here.rollout(actor or Student(), n=n, horizon=6, generator=generator(5), **keywords)  # type: ignore


# ------------------------------------------------------------------------------------------------------- marked states


def test_a_marked_state_says_its_game_and_is_otherwise_what_the_game_shows() -> None:
    form = Form(((2,), (2, 3)), (2, 4), 0)
    for game, shape in enumerate(form.shapes):
        own_k = np.arange(5 * np.prod(shape), dtype=np.float32).reshape(5, *shape) + 1
        marked_k = torch.from_numpy(form.mark(own_k, game))
        assert marked_k.shape == (5, *form.shape) == (5, 7)
        assert form.game_of(marked_k).tolist() == [game] * 5
        assert np.array_equal(form.own(marked_k, game).numpy(), own_k)
        assert not form.common(marked_k)[:, np.prod(shape):].any()


def test_a_stack_of_frames_has_its_game_in_one_more_row_of_pixels() -> None:
    form = Form(((4, 84, 84),) * 3, (3, 3, 6), 4)
    own_k = np.full((2, 4, 84, 84), 7, np.uint8)
    marked_k = form.mark(own_k, 2)
    marked_k[:, :3] = 0  # before the episode there are blank frames, without a mark
    marked = torch.from_numpy(marked_k)
    assert marked.shape == (2, 4, 85, 84) and marked.dtype == torch.uint8
    assert form.game_of(marked).tolist() == [2, 2] and form.own(marked, 2)[:, 3].eq(7).all()


# -------------------------------------------------------------------------------------------------- shared and separate


def test_r3_the_student_of_three_atari_games_has_rusus_number_of_parameters() -> None:
    form = Form(((4, 84, 84),) * 3, (3, 3, 6), 4)
    assert GamesPolicy(form, RUSU["multi-3"]).n_parameters() == 1_882_668


@pytest.mark.parametrize("controller", [4, None])
def test_states_of_several_games_in_one_batch_are_read_as_each_alone(controller: int | None) -> None:
    policy = student(Both(right_pays(), counting()), controller=controller)
    state_n, one_n = torch.rand(8, 6), torch.ones(8, dtype=torch.int64)
    state_n[:, -1] = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
    logits_na = policy.project(policy.features(state_n[:, None], one_n)[:, 0])
    assert logits_na.shape == (8, 3)
    for row, game in enumerate(state_n[:, -1].long().tolist()):
        alone_na = policy.network.heads[game](policy.network.features(state_n[row:row + 1, :-1], game))
        assert near(logits_na[row, :alone_na.shape[-1]], alone_na[0])
    assert logits_na[state_n[:, -1] == 1, 2].eq(-torch.inf).all()  # counting has two actions
    distilled = torch.distributions.Categorical(logits=logits_na).entropy()
    assert distilled.isfinite().all()


def test_a_games_gradient_moves_the_body_and_its_own_head_alone() -> None:
    here = world(right_pays(), counting())
    ctx, method = context(here, batch=4, horizon=6), make(PolicyDistillation, tau=1.0)
    ctx.begin_step()
    method.prepare(ctx.score(method.collect(ctx), method.requires()), ctx)
    for game in (0, 1):
        minibatch = method.data.sample(50, Random(0), game=game)
        here.student.zero_grad()
        method.loss(make_rows(ctx, minibatch), ctx).value_n.mean().backward()
        network = here.student.network  # type: ignore[attr-defined]
        own, other = (sum(float(parameter.grad.abs().sum()) for part in (network.controllers[number],
                                                                         network.heads[number])
                          for parameter in part.parameters() if parameter.grad is not None)
                      for number in (game, 1 - game))
        assert own > 1e-3 and other == 0
        assert network.layers[0].weight.grad.abs().sum() > 0 and network.layers[0].weight.grad.isfinite().all()


def test_a_student_is_read_back_as_it_was_stored_and_other_games_are_refused(tmp_path: Path) -> None:
    task = Both(right_pays(), counting())
    policy = fresh_games_student(task, 3)
    policy.save(tmp_path)
    again = load_policy(tmp_path)
    assert isinstance(again, GamesPolicy) and again.form == policy.form and again.architecture == policy.architecture
    assert all(value.equal(again.state_dict()[name]) for name, value in policy.state_dict().items())
    assert again.state_dict()["network.layers.0.weight"].equal(
        fresh_games_student(task, 3).state_dict()["network.layers.0.weight"])
    with pytest.raises(UserError, match="these have"):
        again.check_fits(Form.of(Both().games()), "student")
    stored = (tmp_path / "policy.json").read_text()
    (tmp_path / "policy.json").write_text(stored.replace('"hidden": [', '"hidden": [0,'))
    with pytest.raises(UserError, match="cannot be read"):
        load_policy(tmp_path)


# ----------------------------------------------------------------------------------------------------------- the world


def test_a_rollout_has_as_many_trajectories_of_every_game_and_they_are_the_games_own() -> None:
    here = world(right_pays(), counting())
    rollouts = played(here)
    assert rollouts.columns["game"].tolist() == [0, 0, 1, 1] == rollouts.columns["example"].tolist()
    assert len(set(rollouts.columns["group"].tolist())) == 4
    assert here.form.game_of(rollouts.input_bt.flatten(0, 1)).view(4, 6)[:, 0].tolist() == [0, 0, 1, 1]
    counted = here.form.own(rollouts.input_bt[2:].flatten(0, 1), 1)[:, 1].view(2, 6)
    assert counted[:, 0].eq(0).all() and (rollouts.reward_bt[2:] == counted + 1).all()
    with pytest.raises(UserError, match="divided evenly"):
        played(here, n=3)


def test_a_random_action_is_one_that_the_game_has() -> None:
    rollouts = played(world(right_pays(), counting()), n=40, actor=EpsilonGreedy("student", 1.0))
    assert set(rollouts.action_bt[:20].flatten().tolist()) == {0, 1, 2}
    assert set(rollouts.action_bt[20:].flatten().tolist()) == {0, 1}
    assert near(rollouts.behaviour_logp_bt[20:].exp(), 0.5, 1e-6)


def test_games_can_be_chosen_and_go_on_after_a_resume() -> None:
    original, resumed = world(right_pays(), counting()), world(right_pays(), counting())
    for here in (original, resumed):
        assert played(here, n=3, problems=[1, 1, 1]).columns["game"].tolist() == [1, 1, 1]
    resumed = world(right_pays(), counting())
    resumed.load_state_dict(unpack(pack(original.state_dict())))
    assert not list(differences(played(original).tensors(), played(resumed).tensors()))


def test_scores_lie_between_random_play_and_the_yardstick_and_returns_are_kept() -> None:
    here = world(right_pays(), counting())
    outcomes = here.evaluate(here.student, split="test", mode="greedy", n=3, seed=0)
    assert [outcome.id for outcome in outcomes] == [f"{game}/episode-{k}" for game in ("right", "counting")
                                                    for k in range(3)]
    for outcome in outcomes[3:]:
        assert outcome.score == 10 * outcome.extra["sum.counting.hits"] and outcome.extra["sum.right.of"] == 0


def test_a_teacher_of_each_game_scores_what_it_scores_alone() -> None:
    teachers = [StatePolicy(5, 3, generator(seed), scale=4.0) for seed in (1, 2)]
    here = world(teachers=teachers)
    assert here.teacher is not None
    together = here.evaluate(here.teacher, split="test", mode="sampled", n=8, seed=3)
    for number, (game, teacher) in enumerate(zip(here.games, teachers, strict=True)):
        alone = evaluate(game, teacher, split="test", mode="sampled", n=8, seed=3)
        assert [outcome.score for outcome in together[8 * number:8 * number + 8]] == [
            100 * outcome.score for outcome in alone]


# --------------------------------------------------------------------------------------------------------- the methods


def test_rusus_minibatches_are_of_one_game_all_equally_likely_and_actor_mimics_of_all() -> None:
    here = world()
    ctx = context(here, batch=8, horizon=16)
    seen = []
    for cls in (PolicyDistillation, ActorMimic):
        method = make(cls, steps_per_update=0.5)
        method.build(ctx)
        ctx.begin_step()
        rollouts = method.prepare(ctx.score(method.collect(ctx), method.requires()), ctx)
        seen.append([batch.columns["game"] for batch in method.minibatches(rollouts, ctx)])
    shares = [float(game_b.double().mean()) for game_b in seen[0]]
    assert set(shares) == {0.0, 1.0} and abs(fmean(shares) - 0.5) < 4 * 0.5 / len(shares) ** 0.5
    assert all(game_b.bincount().tolist() == [16, 16] for game_b in seen[1])


def test_actor_mimic_reads_each_teachers_features_with_its_own_projection() -> None:
    here = world()
    ctx, method = context(here, batch=4, horizon=6), make(ActorMimic)
    method.build(ctx)
    ctx.begin_step()
    rollouts = method.prepare(ctx.score(method.collect(ctx), method.requires()), ctx)
    width = here.student.n_features
    torch.nn.init.normal_(method.projector.weight, generator=generator(3))
    weight_ghh = method.projector.weight.detach().view(2, width, width)
    rows = make_rows(ctx, rollouts)
    error_n = method.loss(rows, ctx).scalars["feature_error"]
    for row in (0, len(rows) - 1):
        game = int(rows.columns["game"][row])
        guess_h = (weight_ghh[game] @ rows.features_nh[row])[:-1]
        assert near(error_n[row], (guess_h - rows.columns["teacher_features"][row, :-1]).square().sum(), 1e-9)


def test_a_store_of_one_game_is_an_aggregate_draw_by_draw() -> None:
    rollouts = played(world(), n=4)
    bare = replace(rollouts, columns={})
    store = Replays()
    store.add(bare)
    for rng_of in (store.sample, store.sample_each):
        assert rng_of(2, Random(1)).input_bt.equal(bare.select(Random(1).sample(range(4), 2)).input_bt)


@pytest.mark.parametrize("cls", [PolicyDistillation, ActorMimic])
def test_a_run_that_was_resumed_ends_as_the_one_that_was_not(cls: type) -> None:
    def trainer() -> Trainer:
        return Trainer(make(cls), context(world(right_pays(), counting()), batch=4, horizon=6))

    whole, half, resumed = interrupted(trainer)
    assert near(flat(whole), flat(resumed), 1e-300)
    assert not near(flat(whole), flat(half), 1e-3)


def flat(trainer: Trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.ctx.student.parameters()])


# -------------------------------------------------------------------------------------------------- from a command line


def plan_of(*settings: str, task: str = "several:cartpole+acrobot", method: str = "gkd", **request: object) -> object:
    always = ("batch=4", "horizon=8", "evaluation.examples=2", "evaluation.sampled=false", "curve_points=0")
    return resolve(Request(method=method, task=task, budget=("steps=2",),
                           settings=(*always, *settings), **request))  # type: ignore[arg-type]


def test_a_student_of_two_games_learns_from_the_teachers_that_they_ship_and_is_read_again(tmp_path: Path) -> None:
    plan = plan_of()
    assert plan.spec.recipe.teacher.reference == "route:game:cartpole=cartpole/teacher,acrobot=acrobot/teacher"
    record = run.execute(plan, run.run_folder(tmp_path, plan.spec.recipe), Watcher())
    assert record.status == "completed" and record.ledger["student_tokens"] == 64
    graded = Grader().regrade(read_run(run.run_folder(tmp_path, plan.spec.recipe).path / "record.json"))
    assert graded.problem == "episodes leave no text to grade again" and not graded.wrong
    shown = summary(record, "here")
    assert "of the teacher's".upper() in shown and "cartpole" in shown
    greedy = record.teacher["greedy"]
    assert greedy.metric == "normalised" and greedy.extra["cartpole"] == 500 and -150 < greedy.extra["acrobot"] < -60
    expected = fmean([(500 - 21.9) / 478.1, (greedy.extra["acrobot"] + 499.2) / 417.5])
    assert greedy.mean == pytest.approx(100 * expected)
    again = plan_of("controller=8", student=str(run.run_folder(tmp_path, plan.spec.recipe).student))
    ended = run.execute(again, run.run_folder(tmp_path, again.spec.recipe), Watcher())
    assert ended.before["greedy"] == record.after["greedy"]


@pytest.mark.parametrize(("task", "says"), [
    ("several:cartpole", "two different"), ("several:cartpole+cartpole", "two different"),
    ("several:cartpole+chain-sum", "no single control task"), ("several:cartpole+pendulum", "random play"),
    ("several:cartpole+acrobott", "acrobott"), ("several", "needs to be told which")])
def test_what_cannot_be_one_task_is_refused(task: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        registry.load("task", task)


@pytest.mark.parametrize(("teacher", "says"), [
    ("route:game:cartpole=cartpole/teacher", "one teacher for each"), ("route:level:1=cartpole/teacher", "by game"),
    ("route:game:cartpole=acrobot/teacher,acrobot=cartpole/teacher", "teacher on cartpole"),
    ("cartpole/teacher", "plays one game alone"), ("mix:cartpole/teacher=0.5,acrobot/teacher=0.5", "not mixed"),
    ("route:game:cartpole=student,acrobot=acrobot/teacher", "no policy of that game")])
def test_a_teacher_that_does_not_fit_is_refused_with_what_would(teacher: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says) as refused:
        plan = plan_of(teacher=teacher)
        run.worlds.build(plan)
    assert refused.value.fix


def test_a_student_of_several_games_is_refused_by_one_of_them(tmp_path: Path) -> None:
    fresh_games_student(registry.load("task", "several:cartpole+acrobot")(), 0).save(tmp_path)
    with pytest.raises(UserError, match="cannot play cartpole@1 alone"):
        run.worlds.build(plan_of(task="cartpole", student=str(tmp_path)))


def test_the_form_with_the_track_behind_an_at_can_be_written_for_every_game() -> None:
    pytest.importorskip("ale_py.vector_env", reason="the extra `atari` is not installed")
    task = registry.load("task", "several:atari/pong@v5-sticky+atari/breakout@v5-sticky")
    assert task().id == "several:atari-v5-sticky:pong+breakout@1" == registry.load("task", task().id)().id
    with pytest.raises(UserError, match="mixes atari-v4-nosticky and atari-v5-sticky"):
        registry.load("task", "several:atari-v5-sticky:pong+atari-v4-nosticky:breakout")
    assert task_folder(task().id) == "several-atari-v5-sticky-pong+breakout"  # no colon, which Windows forbids
    assert [game.name for game in task().games()] == ["atari-v5-sticky:pong", "atari-v5-sticky:breakout"]
    assert untrusted.TASK_NAME.fullmatch(task().id) and task.Params().controller == 128
    assert [game.params.max_frames for game in task(params=task.Params(max_frames=40)).games()] == [40, 40]
    with pytest.raises(UserError, match="cannot see"):
        Form.of([*task().games(), registry.load("task", "cartpole")()])


def test_teachers_act_and_are_asked_in_their_own_games() -> None:
    teachers = [StatePolicy(5, 3, generator(seed), scale=4.0) for seed in (1, 2)]
    here = world(teachers=teachers)
    rollouts = played(here, actor=Teacher())
    assert here.teacher is not None
    features_nh = here.teacher_features(rollouts)[rollouts.mask_bt]
    said_na = here.teacher.project(features_nh)
    for row, game in ((0, 0), (len(said_na) - 1, 1)):
        own_n1 = here.form.own(rollouts.input_bt[rollouts.mask_bt][row:row + 1], game)[:, None]
        alone = teachers[game].project(teachers[game].features(own_n1, torch.ones(1, dtype=torch.int64))[:, 0])
        assert near(said_na[row], alone[0])
