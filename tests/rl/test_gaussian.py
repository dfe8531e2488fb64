"""Methods on a task whose actions are vectors of real numbers: what they learn, how they resume, and who is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from opdbench import registry
from opdbench.actors import Actor, EpsilonGreedy, Mixture, Student, Teacher
from opdbench.baselines.bc import BehaviourCloning
from opdbench.baselines.dagger import DAgger
from opdbench.baselines.dqn import DQN
from opdbench.baselines.exit import ExIt
from opdbench.baselines.gkd import GKD
from opdbench.baselines.kd import KD
from opdbench.baselines.kickstarting import Kickstarting
from opdbench.baselines.opd import OPD
from opdbench.baselines.policy_distillation import PolicyDistillation
from opdbench.baselines.ppd import PPD
from opdbench.baselines.ppo import PPO
from opdbench.baselines.qdagger import QDagger
from opdbench.baselines.sft import SFT
from opdbench.baselines.student_distill import StudentDistill
from opdbench.conformance.compare import same_bits
from opdbench.distiller import Distiller, Needs
from opdbench.distributions import Gaussian
from opdbench.errors import UserError
from opdbench.loop import Trainer
from opdbench.rl.load import load_policy
from opdbench.rl.policy import Architecture, ControlPolicy
from opdbench.rl.simulators import make_simulators
from opdbench.rl.world import EVALUATION_STREAM, ControlWorld, evaluate, fresh_student
from opdbench.rollouts import Rollouts, Source
from opdbench.schema.spec import Budget
from opdbench.seeds import derive
from opdbench.store import pack, unpack
from opdbench.task import ControlTask
from opdbench.tasks.continuous_control import HalfCheetah, Hopper, Pendulum
from opdbench.tasks.control import CartPole
from opdbench.teachers import Mixture as Mixed
from tests.enumerable import context, generator, make, near

ARCHITECTURE = Architecture((3,), 1, (8,), continuous=True)


def teacher_policy() -> ControlPolicy:
    """Narrower than a fresh student, and with something to say."""
    policy = ControlPolicy(ARCHITECTURE, generator=generator(5))
    with torch.no_grad():
        policy.head.weight.mul_(100)
        policy.log_std.fill_(-0.7)
    return policy.double()


def world(seed: int = 0) -> ControlWorld:
    return ControlWorld(Pendulum(), fresh_student(Pendulum(), 0).double(), teacher_policy(), seed=seed)


def trainer(method: Distiller, here: ControlWorld | None = None, **training: Any) -> Trainer:
    settings = {"batch": 4, "horizon": 16, "lr": 0.02, **training}
    return Trainer(method, context(here or world(), budget=Budget(steps=100), **settings))


def rolled(actor: Actor, *, n: int = 3, horizon: int = 8, here: ControlWorld | None = None) -> Rollouts:
    return (here or world()).rollout(actor, n=n, horizon=horizon, generator=generator(1))


# ---------------------------------------------------------------------------------------------------- rollouts, storage


def test_a_rollout_holds_vectors_and_their_density_before_clipping() -> None:
    here = world()
    rollouts = rolled(Student(), here=here, horizon=50)
    assert rollouts.action_bt.shape == (3, 50, 1) and rollouts.action_bt.dtype == torch.float32
    said = here.student.distribution(here.student.features(rollouts.input_bt, rollouts.length_b).flatten(0, 1))
    expected_n = said.logp(rollouts.action_bt.flatten(0, 1)).detach()
    assert near(rollouts.behaviour_logp_bt.flatten().double(), expected_n, 1e-5)
    assert rollouts.action_bt.abs().max() > 2  # beyond the bounds, and kept so
    scored = context(here, horizon=8).score(rollouts, Needs.ACTION)
    label_bt, says = scored.columns["teacher_action"], teacher_policy()
    assert label_bt.shape == (3, 50, 1)
    assert near(label_bt, says.head(says.features(rollouts.input_bt, rollouts.length_b)).detach())


def test_the_environment_is_given_what_lies_within_its_bounds() -> None:
    seen: list[Any] = []

    class Watching(gymnasium.ActionWrapper[Any, Any, Any]):
        def action(self, action: Any) -> Any:
            seen.append(action)
            return action

    class Watched(Pendulum):
        def make(self) -> gymnasium.Env[Any, Any]:
            return Watching(super().make())

    simulators = make_simulators(Watched())
    simulators.grow(2)
    for index in range(2):
        simulators.reset(index, 0)
    simulators.step(np.array([0, 1]), np.array([[-7.0], [0.5]], np.float32))
    assert np.array_equal(np.array(seen), [[-2.0], [0.5]])
    with pytest.raises(UserError, match="not a number"):
        simulators.step(np.array([0]), np.array([[np.nan]], np.float32))


def test_a_segment_goes_on_and_other_environments_do_not_matter() -> None:
    few, many = (rolled(Teacher(0.0), n=n) for n in (2, 6))
    assert near(few.action_bt, many.action_bt[:2], 1e-5) and near(few.input_bt, many.input_bt[:2], 1e-4)
    whole, here, again = rolled(Mixture(0.5)), world(), generator(1)
    parts = [here.rollout(Mixture(0.5), n=3, horizon=4, generator=again) for _ in range(2)]
    assert all(torch.equal(torch.cat([getattr(part, name) for part in parts], 1), getattr(whole, name))
               for name in ("input_bt", "action_bt", "source_bt", "reward_bt"))
    assert 0 < whole.count(Source.TEACHER) < whole.n_rows


def test_evaluation_is_repeatable_and_greedy_takes_the_mean() -> None:
    def scores(mode: Any, n: int = 3, seed: int = 1) -> list[float]:
        return [outcome.score for outcome in evaluate(Pendulum(), teacher_policy(), mode=mode, n=n, seed=seed)]

    assert scores("greedy") == pytest.approx(scores("greedy", 5, 2)[:3], rel=1e-3)
    assert scores("sampled") == scores("sampled") != scores("sampled", seed=2) != scores("greedy")
    simulators, policy, total = make_simulators(Pendulum()), teacher_policy(), 0.0
    simulators.grow(1)
    observation = simulators.reset(0, derive(EVALUATION_STREAM, "pendulum@1", "test", 0))
    for _ in range(200):
        mean = policy.head(policy.features(torch.from_numpy(observation)[None, None], torch.ones(1)))[0, 0]
        after = simulators.step(np.array([0]), mean.detach().float().numpy()[None])
        observation, total = after.observation_k[0], total + after.reward_k[0]
    assert total == pytest.approx(scores("greedy")[0], rel=1e-3)


def test_is_the_same_after_storing_and_categoricals_are_stored_as_before(tmp_path: Path) -> None:
    policy = teacher_policy().float()
    policy.save(tmp_path / "policy")
    stored = load_policy(tmp_path / "policy")
    assert isinstance(stored, ControlPolicy) and stored.architecture == ARCHITECTURE and stored.continuous
    assert torch.equal(stored.log_std, policy.log_std) and torch.equal(stored.head.weight, policy.head.weight)
    ControlPolicy(Architecture((3,), 2, (8,))).save(tmp_path / "other")
    assert "continuous" not in json.loads((tmp_path / "other" / "policy.json").read_text())


def test_policies_that_do_not_fit_are_refused() -> None:
    counted = ControlPolicy(Architecture((3,), 1, (8,)))
    with pytest.raises(UserError, match=r"1 actions, the environment has .* vectors of 1 real numbers"):
        ControlWorld(Pendulum(), counted, None, seed=0)
    with pytest.raises(UserError, match=r"vectors of 1 real numbers, the environment has .* and 2 actions"):
        ControlWorld(CartPole(), teacher_policy(), None, seed=0)
    with pytest.raises(UserError, match="no Gaussian"):
        Mixed([teacher_policy(), teacher_policy()], torch.zeros(1, 1, 3), [0.5, 0.5])


# -------------------------------------------------------------------------------------------------------------- methods


LEARN = {"kd": (KD, {}), "gkd, forward": (GKD, {"divergence": "forward_kl"}),
         "gkd, reverse": (GKD, {"divergence": "reverse_kl", "lmbda": 0.5}), "opd": (OPD, {}),
         "opd, sampled": (OPD, {"estimator": "sampled"}), "dagger": (DAgger, {"minibatch": 16}),
         "dagger, soft": (DAgger, {"labels": "soft", "minibatch": 16}), "sft": (SFT, {}), "bc": (BehaviourCloning, {}),
         "bc, mode": (BehaviourCloning, {"labels": "mode"}), "student-distill": (StudentDistill, {"minibatches": 4}),
         "ppd": (PPD, {"weight": 20.0}), "kickstarting": (Kickstarting, {"weight": 20.0, "decay": "constant"})}


@pytest.mark.parametrize("name", LEARN)
def test_methods_move_towards_the_teacher(name: str) -> None:
    """Measured as what all of them change: the distance of the means, in units of the teacher's deviation."""
    cls, params = LEARN[name]
    here = world()
    states = rolled(Teacher(), n=8, horizon=20)

    def distance() -> float:
        with torch.no_grad():
            mean, label = (side.head(side.features(states.input_bt, states.length_b))
                           for side in (here.student, here.teacher))
        return float((mean - label).square().mean())

    before, run = distance(), trainer(make(cls, **params), here)
    figures = [run.step() for _ in range(12)]
    assert distance() < 0.8 * before
    assert all(np.isfinite(list(step.values())).all() for step in figures)
    if cls in (KD, GKD, OPD, StudentDistill):
        assert figures[-1]["reverse_kl"] < figures[0]["reverse_kl"] and "agreement" not in figures[0]


def test_ppo_runs_without_a_teacher() -> None:
    run = trainer(make(PPO, entropy=0.01), ControlWorld(Pendulum(), fresh_student(Pendulum(), 0), None, seed=0))
    assert np.isfinite(run.step()["loss"]) and run.step()["importance_ratio"] > 0


@pytest.mark.parametrize("name", ["kd", "dagger", "opd, sampled", "kickstarting"])
def test_a_resumed_run_is_the_one_that_was_not_interrupted(name: str) -> None:
    cls, params = LEARN[name]
    whole, first, second = (trainer(make(cls, **params)) for _ in range(3))
    for _ in range(2):
        first.step()
        whole.step()
    second.load_state_dict(unpack(pack(first.state_dict())))
    assert whole.step() == second.step()
    assert all(same_bits(value, second.ctx.student.state_dict()[key])
               for key, value in whole.ctx.student.state_dict().items())


@pytest.mark.parametrize(("cls", "params", "says"), [
    (GKD, {}, "generalized_jsd has no closed form"), (DQN, {}, "finitely many"), (QDagger, {}, "finitely many"),
    (PolicyDistillation, {}, "finitely many"), (PolicyDistillation, {"target": "nll"}, "finitely many"),
    (ExIt, {}, "no rules to plan with")], ids=lambda value: getattr(value, "name", None))
def test_methods_that_cannot_say_so(cls: type[Distiller], params: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        trainer(make(cls, **params)).step()
    assert caught.value.fix


def test_actors_that_know_no_gaussians_and_supports_are_refused() -> None:
    with pytest.raises(UserError, match="finitely many actions"):
        rolled(EpsilonGreedy("teacher", 0.1))
    with pytest.raises(UserError, match="finitely many"):
        trainer(make(KD), support="teacher", top_k=2).step()


@pytest.mark.parametrize("name", [description.name for description in registry.descriptions("method")
                                  if "rl" in description.domains])
def test_every_method_of_control_tasks_runs_or_says_why_not(name: str) -> None:
    cls = registry.load("method", name)
    params = {"approximate": True} if "approximate" in cls.Params.model_fields else {}
    try:
        assert np.isfinite(trainer(cls(cls.Params(**params)), horizon=4).step()["loss"])
    except UserError as error:
        assert error.fix


def test_the_whole_distribution_of_a_row_is_a_gaussian() -> None:
    here = world()
    said = here.teacher.distribution(torch.zeros(2, 8, dtype=torch.float64)) if here.teacher else None
    assert isinstance(said, Gaussian) and said.log_std_nd.shape == (2, 1)


# --------------------------------------------------------------------------------------------------------------- MuJoCo


@pytest.mark.parametrize(("cls", "numbers", "actions"), [(Hopper, 11, 3), (HalfCheetah, 17, 6)])
def test_mujoco_resumes_in_the_middle_of_an_episode(cls: type[ControlTask], numbers: int, actions: int) -> None:
    pytest.importorskip("mujoco")

    def here() -> ControlWorld:
        return ControlWorld(cls(), fresh_student(cls(), 0), None, seed=0)

    whole, resumed = here(), here()
    first = rolled(Student(), here=whole, n=2, horizon=30)
    assert first.input_bt.shape == (2, 30, numbers) and first.action_bt.shape == (2, 30, actions)
    resumed.load_state_dict(unpack(pack(whole.state_dict())))
    one, other = (rolled(Student(), here=world, n=2, horizon=20).tensors() for world in (whole, resumed))
    assert all(same_bits(value, other[name]) for name, value in one.items())


def test_without_mujoco_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", None)  # an `import mujoco` now fails, as where it is not installed
    for module in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(UserError, match="hopper needs a simulator") as caught:
        Hopper().make()
    assert "opdbench[mujoco]" in str(caught.value.fix)
