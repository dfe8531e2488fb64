"""Many copies of one environment, stepped together, with clear errors; no automatic reset.

`GymSimulators` steps any gymnasium environment with discrete actions, or with actions that are vectors within bounds.
What is chosen beyond the bounds is clipped to them on its way into the environment, as Stable-Baselines3 does, and kept
as it was chosen everywhere else: a policy's density is that of its Gaussian before the clipping. `CartPoleSimulators`
does all copies at once in numpy, bit for bit like gymnasium's CartPole-v1 (a test proves it), some 20 times faster.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from opdbench.errors import UserError

if TYPE_CHECKING:
    import gymnasium

    from opdbench.task import ControlTask

Observations = NDArray[Any]  # [K, *observation], of the environment's own dtype
Actions = NDArray[Any]  # int64 [K], or float32 [K, D]


class Transition(NamedTuple):
    """What K actions led to, before any reset. The arrays are the caller's own."""

    observation_k: Observations
    reward_k: NDArray[np.float64]
    terminated_k: NDArray[np.bool_]  # the environment ended the episode
    truncated_k: NDArray[np.bool_]  # the time limit cut it off


class EnvSpaces(Protocol):
    """What is seen and done in an environment: gymnasium's two spaces."""

    @property
    def observation_space(self) -> gymnasium.Space[Any]: ...

    @property
    def action_space(self) -> gymnasium.Space[Any]: ...


class Spaces(NamedTuple):
    """Those of simulators that are no gymnasium environment."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]


class Simulators(ABC):
    """Copies 0 to n-1 of one environment; `index_k` chooses which of them take a step.

    Attributes:
        name: the environment's id, for messages.
        observation_shape, observation_dtype: what is observed.
        n_actions: how many actions there are; or how many numbers an action is.
        bounds: (lowest, highest) action [D] where actions are vectors of real numbers; None where they are counted.
        seed_n, step_n: the reset seed of every copy's episode, and the number of steps taken in it.
        stack: S, when an observation is the last S frames [S, *frame], blank before the episode; else 0.
        episodes_per_seed: how many episodes `follow` may make of one seed, where setting a seed is expensive.
    """

    stack: int = 0
    episodes_per_seed: int = 1

    def __init__(self, env: EnvSpaces, name: str | None = None) -> None:
        self.name = name or _name(env)
        self.observation_shape, self.observation_dtype = _observations(env, self.name)
        self.n_actions, self.bounds = _actions(env, self.name)
        self.seed_n: list[int] = []
        self.step_n: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def n(self) -> int:
        return len(self.seed_n)

    @property
    def continuous(self) -> bool:
        """Whether actions are vectors of real numbers."""
        return self.bounds is not None

    def no_actions(self, *shape: int) -> Actions:
        """Room for `shape` actions, all zero."""
        return np.zeros((*shape, self.n_actions), np.float32) if self.continuous else np.zeros(shape, np.int64)

    def random_actions(self, k: int, rng: np.random.Generator) -> Actions:
        """K actions, all equally likely."""
        if self.bounds is None:
            return rng.integers(self.n_actions, size=k)
        return rng.uniform(*self.bounds, size=(k, self.n_actions)).astype(np.float32)

    def grow(self, n: int) -> None:
        """Make sure that there are at least `n` copies; new ones must be reset before their first step."""
        missing = n - self.n
        if missing > 0:
            self._grow(missing)
            self.seed_n += [0] * missing
            self.step_n = np.concatenate([self.step_n, np.zeros(missing, np.int64)])

    def reset(self, index: int, seed: int) -> Observations:
        """Begin a new episode of one copy; returns its first observation."""
        self.seed_n[index] = seed
        return self._begin(index, lambda: self._reset(index, seed))

    def follow(self, index: int) -> Observations:
        """Begin the next episode of one copy with the random numbers that follow those of the last one, so that it
        depends on the seed and on all actions since; returns its first observation."""
        return self._begin(index, lambda: self._follow(index))

    def _begin(self, index: int, begin: Callable[[], Observations]) -> Observations:
        self.step_n[index] = 0
        try:
            observation = np.asarray(begin(), self.observation_dtype)
        except Exception as error:
            raise self._failure(index, f"raised {type(error).__name__}: {error}") from error
        if np.isnan(observation).any():
            raise self._failure(index, "returned an observation that is not a number")
        return observation

    def step(self, index_k: NDArray[np.int64], action_k: Actions) -> Transition:
        """Take one step in copies `index_k` (each at most once, in increasing order).

        Raises:
            UserError: an environment raised an exception, or returned an observation or reward that is not a number; or
                an action is not a number.
        """
        if self.continuous and np.isnan(action_k).any():
            raise UserError(f"an action for environment {self.name} is not a number (NaN)",
                            "look for NaN in the weights of the policy that acts")
        if len(index_k) == self.n:
            self.step_n += 1
        else:
            self.step_n[index_k] += 1
        transition = self._step(index_k, action_k)
        whole_numbers = self.observation_dtype.kind in "biu"
        if not np.isfinite(transition.reward_k).all() or (
                not whole_numbers and np.isnan(transition.observation_k).any()):
            wrong_k = ~np.isfinite(transition.reward_k) | np.isnan(
                transition.observation_k.reshape(len(index_k), -1)).any(1)
            raise self._failure(index_k[wrong_k.argmax()], "returned an observation or reward that is not a number")
        return transition

    def _failure(self, index: int, what: str) -> UserError:
        return UserError(f"environment {self.name} {what} (copy {index}, step {self.step_n[index]}, reset seed "
                         f"{self.seed_n[index]})", "mend the environment; the seed and step above repeat the failure")

    @abstractmethod
    def _grow(self, missing: int) -> None: ...

    @abstractmethod
    def _reset(self, index: int, seed: int) -> Observations: ...

    def _follow(self, index: int) -> Observations:
        raise NotImplementedError("there is one episode to a seed")

    @abstractmethod
    def _step(self, index_k: NDArray[np.int64], action_k: Actions) -> Transition: ...


class GymSimulators(Simulators):
    """Any gymnasium environment, one object a copy."""

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], first: gymnasium.Env[Any, Any]) -> None:
        super().__init__(first)
        self._make = make
        self._spare = [first]
        self._env_n: list[gymnasium.Env[Any, Any]] = []

    def _grow(self, missing: int) -> None:
        for _ in range(missing):
            self._env_n.append(self._spare.pop() if self._spare else self._make())

    def _reset(self, index: int, seed: int) -> Observations:
        observation, _ = self._env_n[index].reset(seed=seed)
        return np.asarray(observation)

    def _step(self, index_k: NDArray[np.int64], action_k: Actions) -> Transition:
        k = len(index_k)
        chosen_k = action_k.tolist() if self.bounds is None else list(np.clip(action_k, *self.bounds))
        observation_k = np.empty((k, *self.observation_shape), self.observation_dtype)
        reward_k, terminated_k, truncated_k = np.empty(k), np.empty(k, np.bool_), np.empty(k, np.bool_)
        for row, (index, action) in enumerate(zip(index_k.tolist(), chosen_k, strict=True)):
            try:
                observation_k[row], reward_k[row], terminated_k[row], truncated_k[row], _ = (
                    self._env_n[index].step(action))
            except Exception as error:
                raise self._failure(index, f"raised {type(error).__name__}: {error}") from error
        return Transition(observation_k, reward_k, terminated_k, truncated_k)


class CartPoleSimulators(Simulators):
    """gymnasium's CartPole-v1 (Barto, Sutton and Anderson, 1983), all copies in one array of float64.

    The order of operations is gymnasium's: another one rounds differently, and after some steps is another episode.
    """

    FORCE, TAU, GRAVITY, LENGTH, POLE_MASS, TOTAL_MASS = 10.0, 0.02, 9.8, 0.5, 0.1, 0.1 + 1.0
    POSITION_LIMIT, ANGLE_LIMIT = 2.4, 12 * 2 * np.pi / 360

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        assert env.spec is not None and env.spec.max_episode_steps is not None
        self._max_steps = env.spec.max_episode_steps
        self._state_4n = np.zeros((4, 0))

    def _grow(self, missing: int) -> None:
        self._state_4n = np.concatenate([self._state_4n, np.zeros((4, missing))], axis=1)

    def _reset(self, index: int, seed: int) -> Observations:
        from gymnasium.utils.seeding import np_random

        generator, _ = np_random(seed)
        self._state_4n[:, index] = generator.uniform(low=-0.05, high=0.05, size=(4,))
        return self._state_4n[:, index]

    def _step(self, index_k: NDArray[np.int64], action_k: Actions) -> Transition:
        x_k, x_dot_k, theta_k, theta_dot_k = self._state_4n[:, index_k]
        pole = self.POLE_MASS * self.LENGTH
        cos_k, sin_k = np.cos(theta_k), np.sin(theta_k)
        force_k = np.where(action_k == 1, self.FORCE, -self.FORCE)
        temp_k = (force_k + pole * np.square(theta_dot_k) * sin_k) / self.TOTAL_MASS
        theta_acc_k = (self.GRAVITY * sin_k - cos_k * temp_k) / (
            self.LENGTH * (4.0 / 3.0 - self.POLE_MASS * np.square(cos_k) / self.TOTAL_MASS))
        x_acc_k = temp_k - pole * theta_acc_k * cos_k / self.TOTAL_MASS
        x_k, x_dot_k = x_k + self.TAU * x_dot_k, x_dot_k + self.TAU * x_acc_k
        theta_k, theta_dot_k = theta_k + self.TAU * theta_dot_k, theta_dot_k + self.TAU * theta_acc_k
        state_4k = np.stack((x_k, x_dot_k, theta_k, theta_dot_k))
        self._state_4n[:, index_k] = state_4k
        terminated_k = (np.abs(x_k) > self.POSITION_LIMIT) | (np.abs(theta_k) > self.ANGLE_LIMIT)
        return Transition(state_4k.T.astype(np.float32), np.ones(len(index_k)), terminated_k,
                          self.step_n[index_k] >= self._max_steps)


def make_simulators(task: ControlTask) -> Simulators:
    """Simulators of a task's environment: its own if it brings some, else the fast ones where they are exact.

    Raises:
        UserError: the environment cannot be made, or its observations or actions are of a kind that is not supported.
    """
    try:
        own = task.simulators()
        if own is not None:
            return own
        env = task.make()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the environment of task {task.id} cannot be made: {error}") from error
    return CartPoleSimulators(env) if _is_plain_cartpole(env) else GymSimulators(task.make, env)


def _is_plain_cartpole(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether `env` is CartPole-v1 with its default rules, under no wrappers but those of `gymnasium.make`."""
    from gymnasium.envs.classic_control import CartPoleEnv
    from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

    spec, inner = env.spec, env
    while type(inner) in (OrderEnforcing, PassiveEnvChecker, TimeLimit):
        inner = inner.env  # type: ignore[attr-defined]
    return (type(inner) is CartPoleEnv and spec is not None and spec.id == "CartPole-v1"
            and spec.max_episode_steps is not None and not set(spec.kwargs) - {"render_mode"})


def _name(env: EnvSpaces) -> str:
    spec = getattr(env, "spec", None)
    return str(spec.id) if spec is not None else type(getattr(env, "unwrapped", env)).__name__


def _observations(env: EnvSpaces, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type."""
    from gymnasium.spaces import Box

    seen = env.observation_space
    if not isinstance(seen, Box):
        raise UserError(f"environment {name} has observations of kind {type(seen).__name__}, not an array",
                        "wrap it in gymnasium.wrappers.FlattenObservation in the task's `make`")
    return tuple(seen.shape), seen.dtype


def _actions(env: EnvSpaces, name: str) -> tuple[int, tuple[Actions, Actions] | None]:
    """How many there are, or how many numbers one is; and its bounds, float32, where it is numbers."""
    from gymnasium.spaces import Box, Discrete

    space = env.action_space
    if isinstance(space, Box) and len(space.shape) == 1 and space.is_bounded() and space.dtype in (np.float32,
                                                                                                   np.float64):
        return space.shape[0], (space.low.astype(np.float32), space.high.astype(np.float32))
    if not isinstance(space, Discrete) or space.start != 0:
        raise UserError(f"environment {name} has actions {space}; only Discrete ones that begin at 0, and bounded "
                        "vectors of real numbers (Box), are supported",
                        "choose a task with discrete actions, or wrap its actions in the task's `make`")
    return int(space.n), None
