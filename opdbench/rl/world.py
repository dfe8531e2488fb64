"""The control world: a gymnasium task, a student and a teacher, behind the protocol that the loop sees."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from opdbench import seeds
from opdbench.actors import Actor, Decision, draw, uniform_table
from opdbench.distributions import Categorical, Gaussian
from opdbench.errors import UserError
from opdbench.frames import FrameLog
from opdbench.oracle import Oracle
from opdbench.policy import Policy
from opdbench.rl.conv_policy import ConvPolicy
from opdbench.rl.environments import Environments
from opdbench.rl.policy import Architecture, ControlPolicy
from opdbench.rl.simulators import Simulators, make_simulators
from opdbench.rl.table import TablePolicy
from opdbench.rollouts import Rollouts
from opdbench.task import ControlTask, Split
from opdbench.world import Outcome

EVALUATION_STREAM = 2_011  # apart from every run's seed: episode k is the same problem in every run
FRESH_CLIP = 10.0  # on observations that a task scales; VecNormalize's
PARALLEL_EPISODES = 128
READ_TOGETHER = 8  # states a policy reads at a time in evaluation, where the task asks for one size: see `_padded`
_SHAPED = (ControlPolicy, TablePolicy, ConvPolicy)  # policies that know which observations and actions they are for


class ControlWorld:
    """`World` for control tasks. Rollouts are segments of `n` environments that go on from call to call."""

    domain: Literal["lm", "rl"] = "rl"
    bridge: None = None
    oracle: None = None
    prompts: None = None

    def __init__(self, task: ControlTask, student: Policy, teacher: Policy | None, *, seed: int,
                 make: Callable[[ControlTask], Simulators] = make_simulators) -> None:
        """
        Args:
            task: what is controlled.
            student, teacher: policies over the task's observations and actions.
            seed: the run's seed, which the episodes of rollouts derive from.
            make: the simulators of the task.

        Raises:
            UserError: a policy does not fit the task.
        """
        self.task = task
        self.student = student
        self.teacher = teacher
        self._seed, self._make = seeds.derive(seed, "rollout", "environments"), make
        self._start()
        for role, policy in (("student", student), ("teacher", teacher)):
            if isinstance(policy, _SHAPED):
                check_fits(policy, self._environments.simulators, f"{role} on {task.id}")

    @torch.no_grad()
    def rollout(self, actor: Actor, *, n: int, horizon: int, generator: Generator, repeat: int = 1,
                problems: Sequence[int] | None = None) -> Rollouts:
        """`horizon` further steps of environments 0 to n-1. See `World.rollout`.

        Besides `group` and `example` (here the number of the environment), the step column `truncated` tells
        which of the ends in `done_bt` were the time limit's.
        """
        if problems is not None:
            raise UserError("control tasks have no problems to return to", "choose a language task")
        if repeat != 1:
            raise UserError(f"control tasks go on from state to state and cannot repeat one {repeat} times",
                            "leave the number of samples per state at 1")
        self._environments.grow(n)
        numbers = uniform_table(n, horizon, generator, _draws(self._environments.simulators))
        segment = self._play_segment(self._decider(actor), numbers)
        return segment.to(_device(self.student))

    def _play_segment(self, decide: Callable[[Tensor, Tensor], Decision], uniform_tbd: Tensor) -> Rollouts:
        environments, (horizon, n) = self._environments, uniform_tbd.shape[:2]
        seen_t, steps, decisions = [], [], []
        for t in range(horizon):
            observation_b = environments.observation_n[:n]
            if self._frames is None:
                observation_b = observation_b.copy()
                seen_t.append(observation_b)
            else:
                seen_t.append(self._frames.write(observation_b, environments.simulators.step_n[:n]))
            decisions.append(decide(torch.from_numpy(observation_b), uniform_tbd[t]))
            steps.append(environments.step(decisions[-1].action_b.numpy(force=True)))
        truncated_tb = np.stack([step.truncated_b for step in steps])
        done_bt = _by_trajectory(truncated_tb | np.stack([step.terminated_b for step in steps]))
        index_b, seen_bt = torch.arange(n), _by_trajectory(np.stack(seen_t))
        rollouts = Rollouts(
            input_bt=seen_bt if self._frames is None else self._frames.stacks(seen_bt),
            action_bt=torch.stack([decision.action_b for decision in decisions], 1).cpu(),
            source_bt=torch.stack([decision.source_b for decision in decisions], 1).cpu(),
            behaviour_logp_bt=torch.stack([decision.logp_b for decision in decisions], 1).float().cpu(),
            reward_bt=_by_trajectory(np.stack([step.reward_b for step in steps])).float(),
            done_bt=done_bt, length_b=torch.full((n,), horizon), truncated_b=~done_bt[:, -1])
        return rollouts.with_columns(per_trajectory={"group": index_b, "example": index_b},
                                     per_step={"truncated": _by_trajectory(truncated_tb)})

    def demonstrations(self, *, n: int, generator: Generator) -> Rollouts:
        """Control tasks have none."""
        raise UserError(f"task {self.task.id} has no reference solutions",
                        "let the teacher act instead: choose teacher rollouts as the method's data")

    def separable(self, rollouts: Rollouts) -> Rollouts:
        """Every row alone: an observation is a whole state."""
        return rollouts.flatten()

    @torch.no_grad()
    def teacher_features(self, rollouts: Rollouts) -> Tensor:
        if self.teacher is None:
            raise UserError(f"this run on {self.task.id} has no teacher", "pass one with --teacher")
        device = _device(self.teacher)
        return self.teacher.features(rollouts.input_bt.to(device), rollouts.length_b.to(device))

    def evaluate(self, policy: Policy | Oracle, *, split: Split, mode: Literal["greedy", "sampled"], n: int | None,
                 seed: int) -> list[Outcome]:
        assert isinstance(policy, Policy)
        return evaluate(self.task, policy, split=split, mode=mode, n=n, seed=seed)

    def twin(self, seed: int) -> ControlWorld:
        """The same task and teacher, with a copy of the student, and environments that begin elsewhere."""
        return ControlWorld(self.task, deepcopy(self.student), self.teacher, seed=seed)

    def state_dict(self) -> dict[str, Any]:
        return self._environments.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start()
        self._environments.load_state_dict(state)

    def _start(self) -> None:
        simulators = self._make(self.task)
        self._environments = Environments(simulators, self._seed)
        self._frames = FrameLog(simulators.stack) if simulators.stack else None

    def _decider(self, actor: Actor) -> Callable[[Tensor, Tensor], Decision]:
        """A function from observations [B, ...] and uniform numbers [B, D] to the actor's decision; it runs only the
        models that the actor uses."""
        if actor.uses_teacher and self.teacher is None:
            raise UserError(f"the teacher is to act on {self.task.id}, but there is none", "pass one with --teacher")
        if self._environments.simulators.continuous and not getattr(actor, "continuous", False):
            raise UserError(f"whoever acts in this method chooses among finitely many actions, and those of "
                            f"{self.task.id} are vectors of real numbers",
                            "choose a task with discrete actions, or a method in which the student or the teacher acts "
                            "as it is")
        read_student = _reader(self.student) if actor.uses_student else _nothing
        read_teacher = _reader(self.teacher) if actor.uses_teacher and self.teacher else _nothing
        look = getattr(actor, "look", _nothing)  # see `Actor`

        def decide(observation_b: Tensor, uniform_bd: Tensor) -> Decision:
            look(observation_b)
            student, teacher = read_student(observation_b), read_teacher(observation_b)
            return actor.act(student, teacher, uniform_bd)  # type: ignore[arg-type]  # Gaussians too: see `Actor`

        return decide


@dataclass
class Watched:
    """An episode whose steps are kept as `evaluate` plays it.

    Attributes:
        number: which.
        action_t, reward_t: what was done and what it was paid, step by step.
    """

    number: int
    action_t: list[Any] = field(default_factory=list)
    reward_t: list[float] = field(default_factory=list)

    def step(self, number_k: NDArray[np.int64], action_k: NDArray[Any], reward_k: NDArray[np.float64]) -> None:
        """Episodes `number_k` take a step."""
        for row in np.flatnonzero(number_k == self.number).tolist():
            self.action_t.append(action_k[row].copy())
            self.reward_t.append(float(reward_k[row]))


def episode_seed(task: ControlTask, split: Split, number: int) -> int:
    """What an evaluation episode is reset with, in every run."""
    return seeds.derive(EVALUATION_STREAM, task.id, split, number)


@torch.no_grad()
def evaluate(task: ControlTask, policy: Policy, *, split: Split = "test", mode: Literal["greedy", "sampled"],
             n: int | None = None, seed: int = 0, watched: Watched | None = None,
             make: Callable[[ControlTask], Simulators] = make_simulators) -> list[Outcome]:
    """Play `n` full episodes (the task's own number when None), exactly one in each of n seeded environments.

    Args:
        split: which fixed episodes; no run trains on any of them.
        mode: the most likely action (the largest logit, the mean), or a draw at temperature 1.
        seed: of the draws; where episodes start depends on the split and their number alone.
        watched: an episode to see step by step. Where each stands alone (`parallel_episodes`) no other is played.
        make: the simulators of the task.

    Returns:
        One outcome an episode, in order; the score is the undiscounted return.
    """
    n = task.evaluation_episodes if n is None else n
    simulators = make(task)
    if isinstance(policy, _SHAPED):
        check_fits(policy, simulators, f"evaluation on {task.id}")
    temperature = 1.0 if mode == "sampled" else 0.0
    if task.parallel_episodes is not None:
        episodes = [_Episode(number, mode, episode_seed(task, split, number),
                             seeds.generator(seed, "evaluation", split, mode, number))
                    for number in (range(n) if watched is None else [watched.number])]
        outcomes = _play_in_turn(simulators, policy, episodes, temperature, min(n, task.parallel_episodes), watched)
    else:
        outcomes, generator = [], seeds.generator(seed, "evaluation", split, mode)
        for first in range(0, n, PARALLEL_EPISODES):
            numbers = range(first, min(n, first + PARALLEL_EPISODES))
            episode_seeds = [episode_seed(task, split, number) for number in numbers]
            returns_n, truncated_n = _play(simulators, policy, episode_seeds, temperature, generator, first, watched)
            outcomes += [
                Outcome(f"episode-{number}", mode, float(returns_n[row]), int(simulators.step_n[row]),
                        bool(truncated_n[row]), None, {})
                for row, number in enumerate(numbers)]
    return [outcome._replace(extra=task.further(outcome.score)) for outcome in outcomes]


def _play(simulators: Simulators, policy: Policy, episode_seeds: list[int], temperature: float, generator: Generator,
          first: int, watched: Watched | None) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """One episode for every seed, numbered from `first`; returns undiscounted returns [N] and whether the time limit
    cut them off [N].

    An environment that has ended takes no further step, so that short episodes do not count more than once; a step's
    uniform numbers are drawn for all N, so that an episode's do not depend on when the others end.
    """
    n = len(episode_seeds)
    simulators.grow(n)
    observation_n = np.stack([simulators.reset(index, seed) for index, seed in enumerate(episode_seeds)])
    returns_n, truncated_n = np.zeros(n), np.zeros(n, np.bool_)
    running_k = np.arange(n)
    read = _reader(policy)
    while len(running_k):
        uniform_nd = torch.rand(n, _draws(simulators), dtype=torch.float64, generator=generator)
        said_k = read(torch.from_numpy(observation_n[running_k]))
        action_k = draw(said_k, temperature, uniform_nd[torch.from_numpy(running_k)])[0].numpy()
        after = simulators.step(running_k, action_k)
        if watched is not None:
            watched.step(first + running_k, action_k, after.reward_k)
        observation_n[running_k] = after.observation_k
        returns_n[running_k] += after.reward_k
        truncated_n[running_k] = after.truncated_k & ~after.terminated_k
        running_k = running_k[~(after.terminated_k | after.truncated_k)]
    return returns_n, truncated_n


@dataclass
class _Episode:
    """One evaluation episode as it is played: its own seed and draws, what it has earned, how it ended."""

    number: int
    mode: Literal["greedy", "sampled"]
    seed: int
    generator: Generator
    score: float = 0.0
    length: int = 0
    truncated: bool = False

    def outcome(self) -> Outcome:
        return Outcome(f"episode-{self.number}", self.mode, self.score, self.length, self.truncated, None, {})


def _play_in_turn(simulators: Simulators, policy: Policy, episodes: Sequence[_Episode], temperature: float,
                  parallel: int, watched: Watched | None = None) -> list[Outcome]:
    """Every episode once, `parallel` at a time: as one ends the next begins in its place. Neither an episode's draws
    nor the rounding of its logits depend on which others are played beside it."""
    simulators.grow(parallel)
    waiting, playing = deque(episodes), dict[int, _Episode]()  # by copy
    observation_n = np.zeros((parallel, *simulators.observation_shape), simulators.observation_dtype)
    read = _padded(_reader(policy))

    def begin(index: int) -> None:
        if waiting:
            playing[index] = waiting.popleft()
            observation_n[index] = simulators.reset(index, playing[index].seed)

    for index in range(parallel):
        begin(index)
    while playing:
        index_k = np.array(sorted(playing))
        now = [playing[index] for index in index_k.tolist()]
        uniform_kd = torch.stack([torch.rand(_draws(simulators), dtype=torch.float64, generator=episode.generator)
                                  for episode in now])
        action_k = draw(read(torch.from_numpy(observation_n[index_k])), temperature, uniform_kd)[0].numpy()
        after = simulators.step(index_k, action_k)
        if watched is not None:
            watched.step(np.array([episode.number for episode in now]), action_k, after.reward_k)
        observation_n[index_k] = after.observation_k
        for row, (index, episode) in enumerate(zip(index_k.tolist(), now, strict=True)):
            episode.score += float(after.reward_k[row])
            episode.length += 1
            if after.terminated_k[row] or after.truncated_k[row]:
                episode.truncated = not after.terminated_k[row]
                del playing[index]
                begin(index)
    return [episode.outcome() for episode in episodes]


def _padded(read: Callable[[Tensor], Tensor | Gaussian]) -> Callable[[Tensor], Tensor]:
    """Reads any number of states in batches of exactly READ_TOGETHER, the last made up by blanks: a state's logits
    differ in their last bits between batches of different sizes, and a game turns a bit into another score."""

    def read_all(observation_b: Tensor) -> Tensor:
        missing = -len(observation_b) % READ_TOGETHER
        whole = torch.cat([observation_b, observation_b.new_zeros(missing, *observation_b.shape[1:])])
        parts = [read(whole[start:start + READ_TOGETHER]) for start in range(0, len(whole), READ_TOGETHER)]
        logits = [part for part in parts if isinstance(part, Tensor)]
        assert len(logits) == len(parts), "what is played one episode after the other has a finite set of actions"
        return torch.cat(logits)[:len(observation_b)]

    return read_all


def fresh_student(task: ControlTask, seed: int, hidden: Sequence[int] | None = None
                  ) -> ControlPolicy | TablePolicy | ConvPolicy:
    """The student of a task that ships none, initialised from the run's seed: a perceptron of these hidden layers; when
    None, the convolutional network that the task names, or one of `student_hidden`. A table where there are no layers.
    """
    simulators = make_simulators(task)
    if hidden is None and (network := task.student_network()) is not None:
        return ConvPolicy.named(network, simulators.n_actions, generator=seeds.generator(seed, "student"))
    hidden = task.student_hidden if hidden is None else hidden
    if not hidden:
        return TablePolicy.uniform(simulators.observation_shape[0], simulators.n_actions)
    architecture = Architecture(simulators.observation_shape, simulators.n_actions, tuple(hidden),
                                observation_clip=None if task.student_scale is None else FRESH_CLIP,
                                continuous=simulators.continuous)
    policy = ControlPolicy(architecture, generator=seeds.generator(seed, "student"))
    if task.student_scale is not None:
        policy.observation_scale.copy_(1 / torch.tensor(task.student_scale))
    return policy


def check_fits(policy: ControlPolicy | TablePolicy | ConvPolicy, simulators: Simulators, where: str) -> None:
    """Raise a UserError when the policy's observations or actions are not the environment's."""
    policy.check_fits(simulators.observation_shape, simulators.n_actions, where, continuous=simulators.continuous)


def _draws(simulators: Simulators) -> int:
    """Uniform numbers that one action takes."""
    return simulators.n_actions if simulators.continuous else 1


def _reader(policy: Policy) -> Callable[[Tensor], Tensor | Gaussian]:
    """A function from observations [B, ...] to logits [B, A] or to Gaussians, both on the CPU."""
    own_device, read_there = _device(policy), policy.reader()

    def read(observation_b: Tensor) -> Tensor | Gaussian:
        said = read_there(observation_b.to(own_device))
        return said.logits_na.cpu() if isinstance(said, Categorical) else said.cpu()

    return read


def _nothing(observation_b: Tensor) -> None:
    """What an actor sees of a model that it does not use."""


def _device(policy: Policy) -> torch.device:
    return next(policy.parameters()).device


def _by_trajectory(values_tb: NDArray[Any]) -> Tensor:
    """[T, B, ...] as [B, T, ...]."""
    return torch.from_numpy(np.ascontiguousarray(values_tb.swapaxes(0, 1)))
