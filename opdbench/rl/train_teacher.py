"""Train the teachers that ship with the control tasks, with Stable-Baselines3, and export them as plain tensors.

The recipe of a task is the class attribute `teacher_recipe`; `opdbench teacher train TASK` runs it. Training writes a
checkpoint beside the output folder (`<out>.training/`) and continues from there when it was interrupted, or when it is
asked for another number of steps than before: the learning rate then falls over what is left.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from opdbench.errors import UserError

if TYPE_CHECKING:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv

    from opdbench.policy import Policy
    from opdbench.rl.conv_policy import ConvPolicy
    from opdbench.rl.policy import ControlPolicy
    from opdbench.task import ControlTask

Progress = Callable[[int, int, float], None]  # steps done, steps in all, mean return of the last 100 training episodes

CHECKPOINT_EVERY = 50_000  # environment steps
SCORED_EPISODES = 100
IDENTITY = "identity.json"  # beside a checkpoint: which training it is of
Plan = dict[str, int]  # "steps": how many environment steps in all; "from": the step at which that was decided
SCORE_SEED = 0  # the evaluation seed that a manifest's score is measured at


@dataclass(frozen=True)
class TeacherRecipe:
    """How a teacher is trained with PPO.

    Attributes:
        steps: environment steps in all.
        n_envs: environments stepped together.
        hidden: widths of the policy network; the value network has the same.
        normalize: learn on observations and rewards divided by running statistics; the exported policy keeps the
            observations' statistics.
        learning_rate: at the start; it falls linearly to zero, so that the last policy is a settled one.
        activation: "tanh" or "relu", of both networks.
        network: Rusu's name of a convolutional policy, in place of a perceptron of `hidden`.
        bfloat16: compute its convolutions in bfloat16 while learning; the teacher is scored as it is stored.
        ppo: further arguments of `stable_baselines3.PPO`; `policy`: of its policy.
        source: where the values come from.
    """

    steps: int
    n_envs: int
    hidden: tuple[int, ...]
    learning_rate: float
    source: str
    normalize: bool = False
    activation: str = "tanh"
    network: str | None = None
    bfloat16: bool = False
    ppo: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaughtRecipe:
    """How a teacher is made from a player that sees more (`opdbench.rl.taught`).

    Attributes:
        guide: name of the shipped policy that is imitated.
        steps: environment steps in all.
        network: Rusu's name of the network that learns.
        method: the method that teaches it, with the parameters `params` besides its defaults.
        training: the shared settings (`opdbench.schema.spec.Training`).
        source: where the values come from.
    """

    guide: str
    steps: int
    network: str
    method: str
    source: str
    params: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


class Learnt(NamedTuple):
    """What a training ends with."""

    policy: ControlPolicy | ConvPolicy
    algorithm: str
    environment_steps: int
    plans: list[Plan]


def train(task: ControlTask, out_folder: Path, *, steps: int | None = None, seed: int = 0,
          progress: Progress | None = None) -> dict[str, Any]:
    """Train `task`'s teacher and write policy.json, policy.safetensors (float16) and manifest.json to `out_folder`.

    Args:
        task: a control task with a `teacher_recipe`.
        out_folder: where the teacher goes; replaced when training has finished, never before.
        steps: environment steps, the recipe's when None. A checkpoint of the same training goes on where it was planned
            for another number; the manifest's `plans` then has each plan and the step it was made at.
        seed: of initialisation, environments and minibatches.
        progress: called after every rollout.

    Returns:
        The manifest, with the score over 100 greedy and 100 sampled episodes of opdbench's own evaluator.

    Raises:
        UserError: Stable-Baselines3 is missing, the task has no recipe, the folder cannot be written, or the checkpoint
            is beyond `steps`.
    """
    recipe = _recipe(task)
    steps = recipe.steps if steps is None else steps
    out_folder = out_folder.resolve()
    _claim(out_folder, "manifest.json")
    if isinstance(recipe, TaughtRecipe):
        return _export(task, recipe, _learn_from_guide(task, recipe, steps, seed, progress), out_folder, seed)
    work = out_folder.with_name(out_folder.name + ".training")
    _claim(work, IDENTITY)
    manifest = _export(task, recipe, _learn_with_ppo(task, recipe, work, steps, seed, progress), out_folder, seed)
    shutil.rmtree(work)
    return manifest


def _learn_with_ppo(task: ControlTask, recipe: TeacherRecipe, work: Path, steps: int, seed: int,
                    progress: Progress | None) -> Learnt:
    model, plans = _resume_or_start(task, recipe, work, steps, seed)
    if model.num_timesteps < steps:
        model.learn(steps - model.num_timesteps, callback=_checkpointing(work, steps, progress),
                    reset_num_timesteps=False)
        _save(model, work)
    return Learnt(_control_policy(model, recipe.activation), "PPO", model.num_timesteps, plans)


def _learn_from_guide(task: ControlTask, recipe: TaughtRecipe, steps: int, seed: int,
                      progress: Progress | None) -> Learnt:
    """Without checkpoints: the method's data would be most of what is kept, and it takes minutes."""
    from opdbench.rl.taught import learn

    policy, done = learn(task, recipe, steps=steps, seed=seed, progress=progress)
    return Learnt(policy, f"{recipe.method} of {recipe.guide}", done, [{"from": 0, "steps": steps}])


def _claim(folder: Path, mark: str) -> None:
    """Make sure that `folder` may be replaced: it is missing, empty, or has the file that marks it as ours."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        contents = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", "choose another folder with --out") from error
    if contents and mark not in contents:
        raise UserError(f"{folder} holds other files, and a teacher's folder is replaced as a whole",
                        "choose another folder with --out")


def _recipe(task: ControlTask) -> TeacherRecipe | TaughtRecipe:
    recipe = getattr(task, "teacher_recipe", None)
    if not isinstance(recipe, TeacherRecipe | TaughtRecipe):
        raise UserError(f"task {task.id} has no recipe for a teacher",
                        "give the task class a `teacher_recipe`, or pass a trained policy with --teacher")
    return recipe


def _resume_or_start(task: ControlTask, recipe: TeacherRecipe, work: Path, steps: int,
                     seed: int) -> tuple[PPO, list[Plan]]:
    """The learner, from its checkpoint where there is one, and what it was planned for, from which step on."""
    try:
        from stable_baselines3 import PPO
    except ImportError as error:
        raise UserError("training a teacher needs Stable-Baselines3, which is not installed",
                        'pip install "opdbench[rl]"') from error
    identity = {"task": task.id, "seed": seed, "recipe": json.loads(json.dumps(asdict(recipe)))}
    checkpoint = work / "model.zip"
    if checkpoint.exists() and (plans := _plans(work, identity)):
        # Our own checkpoint of the same training: the one place where SB3's pickles are read.
        model = PPO.load(checkpoint, env=_training_env(task, recipe, work, seed), device="cpu")
        done = model.num_timesteps
        if steps < done and steps != plans[-1]["steps"]:  # the last rollout may pass the planned number
            raise UserError(f"the training in {work} has {done:,} steps, more than the {steps:,} that are asked for",
                            f"say --steps {plans[-1]['steps']} to finish it, or another --out for a new one")
        if steps != plans[-1]["steps"]:
            plans.append({"from": done, "steps": steps})
            _write_identity(work, identity, plans)
        return model, plans
    shutil.rmtree(work, ignore_errors=True)
    plans = [{"from": 0, "steps": steps}]
    try:
        work.mkdir()
        _write_identity(work, identity, plans)
    except OSError as error:
        raise UserError(f"cannot write to {work}: {error.strerror}", "choose another folder with --out") from error
    kind = "MlpPolicy" if recipe.network is None else "CnnPolicy"
    model = PPO(kind, _training_env(task, recipe, work, seed), learning_rate=_falling(recipe.learning_rate),
                policy_kwargs=_policy_arguments(recipe), seed=seed, device="cpu", **recipe.ppo)
    return model, plans


def _plans(work: Path, identity: Mapping[str, Any]) -> list[Plan]:
    """What the checkpoint in `work` was planned for; nothing where it is another training's, or cannot be told."""
    try:
        stored = json.loads((work / IDENTITY).read_text())
        plans: list[Plan] = stored.pop("plans")
    except (OSError, ValueError, KeyError):
        return []
    return plans if stored == identity else []


def _write_identity(work: Path, identity: Mapping[str, Any], plans: list[Plan]) -> None:
    """At once or not at all: without it a checkpoint is lost."""
    new = work / "identity.new.json"
    new.write_text(json.dumps({**identity, "plans": plans}))
    new.replace(work / IDENTITY)


def _policy_arguments(recipe: TeacherRecipe) -> dict[str, Any]:
    from torch import nn

    if recipe.network is not None:
        from opdbench.rl.training_network import RusuExtractor

        return {"net_arch": [], "features_extractor_class": RusuExtractor,
                "features_extractor_kwargs": {"network": recipe.network, "bfloat16": recipe.bfloat16}, **recipe.policy}
    activation = {"tanh": nn.Tanh, "relu": nn.ReLU}[recipe.activation]
    return {"net_arch": list(recipe.hidden), "activation_fn": activation, **recipe.policy}


def _falling(start: float) -> Callable[[float], float]:
    # The last rollout may pass the planned number of steps, where what remains is negative.
    return lambda remaining: start * max(0.0, remaining)


def _training_env(task: ControlTask, recipe: TeacherRecipe, work: Path, seed: int) -> VecEnv:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    own = task.training_env(recipe.n_envs, seed)
    env = own if own is not None else make_vec_env(task.make, recipe.n_envs, seed=seed)
    if not recipe.normalize:
        return env
    statistics = work / "normalize.pkl"
    if statistics.exists():
        return VecNormalize.load(str(statistics), env)
    return VecNormalize(env, gamma=recipe.ppo.get("gamma", 0.99))


def _checkpointing(work: Path, steps: int, progress: Progress | None) -> BaseCallback:
    from stable_baselines3.common.callbacks import BaseCallback

    class Checkpointing(BaseCallback):
        saved_at = 0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            episodes = self.model.ep_info_buffer
            mean = sum(episode["r"] for episode in episodes) / len(episodes) if episodes else float("nan")
            if progress is not None:
                progress(self.num_timesteps, steps, mean)
            if self.num_timesteps - self.saved_at >= CHECKPOINT_EVERY:
                self.saved_at = self.num_timesteps
                _save(self.model, work)

    return Checkpointing()


def _save(model: Any, work: Path) -> None:
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        normalize.save(str(work / "normalize.pkl"))
    model.save(work / "model.new.zip")
    (work / "model.new.zip").replace(work / "model.zip")


def _export(task: ControlTask, recipe: TeacherRecipe | TaughtRecipe, learnt: Learnt, out_folder: Path,
            seed: int) -> dict[str, Any]:
    import torch

    from opdbench.rl.load import load_policy

    new = out_folder.with_name(out_folder.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    learnt.policy.save(new, dtype=torch.float16)
    steps = learnt.plans[-1]["steps"]
    manifest = {
        "task": task.id,
        "algorithm": learnt.algorithm,
        "recipe": asdict(recipe) | {"steps": steps},
        "seed": seed,
        "environment_steps": learnt.environment_steps,
        "command": _command(task, recipe, steps, seed),
        **({"plans": learnt.plans} if len(learnt.plans) > 1 else {}),
        "versions": {name: version(name) for name in ("stable-baselines3", "gymnasium", "torch", "numpy")},
        # The score is measured on what was stored, after rounding to float16.
        "score": _score(task, load_policy(new)),
        "sha256": sha256((new / "policy.safetensors").read_bytes()).hexdigest(),
    }
    (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(out_folder, ignore_errors=True)
    new.replace(out_folder)
    return manifest


def _command(task: ControlTask, recipe: TeacherRecipe | TaughtRecipe, steps: int, seed: int) -> str:
    return " ".join(["opdbench teacher train", task.name, *([f"--steps {steps}"] if steps != recipe.steps else []),
                     *([f"--seed {seed}"] if seed else [])])


def _control_policy(model: PPO, activation: str) -> ControlPolicy | ConvPolicy:
    from opdbench.rl.policy import Normalization
    from opdbench.rl.sb3 import policy_from_tensors

    normalize = model.get_vec_normalize_env()
    normalization = None
    if normalize is not None:
        statistics = normalize.obs_rms
        assert not isinstance(statistics, dict)  # which it is for dictionaries of observations only
        normalization = Normalization.from_moments(statistics.mean, statistics.var, normalize.epsilon,
                                                   clip=normalize.clip_obs)
    return policy_from_tensors(model.policy.state_dict(), observation_shape=model.observation_space.shape,
                               activation=activation, normalization=normalization)


def _score(task: ControlTask, policy: Policy) -> dict[str, Any]:
    from statistics import fmean, stdev

    from opdbench.rl.world import evaluate

    scores: dict[str, Any] = {"episodes": SCORED_EPISODES, "seed": SCORE_SEED}
    for mode in ("greedy", "sampled"):
        returns = [outcome.score for outcome in evaluate(task, policy, mode=mode, n=SCORED_EPISODES, seed=SCORE_SEED)]
        scores[mode] = {"mean": fmean(returns), "std": stdev(returns), "min": min(returns), "max": max(returns)}
    return scores
