"""Atari 2600 games through ale-py's native vector environment: many copies in parallel, frames of 84 x 84 grey pixels.

Each copy is a vector environment of one, with a thread of its own: so any of them can take a step while the others
stand still, which a native one of many cannot. All actions are sent before the first frame is waited for. It gives
single frames, and stacks are made here. Its automatic reset is never used: whoever steps a copy resets it first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from opdbench.errors import UserError
from opdbench.rl.simulators import Observations, Simulators, Transition

if TYPE_CHECKING:
    from ale_py.vector_env import AtariVectorEnv

STACK, SIDE, FRAMES_A_STEP = 4, 84, 4
TWO_PLAYERS = frozenset({"combat", "joust", "maze_craze", "warlords"})  # without a mode for one
ONE = np.ones(1, np.float32)  # how far a paddle is turned


class Rules(NamedTuple):
    """How a game is played.

    Attributes:
        rom: ale-py's name.
        sticky: probability, in every frame, that the last action goes on in place of the new one.
        noops: an episode begins with fewer frames of doing nothing than this, as many as its seed says.
        fire: FIRE, where there is one, is pressed for the player when an episode begins and whenever a life is lost.
        full_actions: all 18 actions, and not only those that do something.
        max_frames: an episode's limit.
    """

    rom: str
    sticky: float
    noops: int
    fire: bool
    full_actions: bool = False
    max_frames: int = 108_000


def games() -> list[str]:
    """The names of all games for one player, with dashes."""
    _require()
    from ale_py import roms

    return sorted(rom.replace("_", "-") for rom in roms.get_all_rom_ids() if rom not in TWO_PLAYERS)


class AtariSimulators(Simulators):
    """Copies of one game. Setting a seed loads the cartridge again, a hundred times the time of a step or more, so in
    rollouts several episodes follow one seed.

    Attributes:
        lives_n: lives left in every copy.
    """

    stack = STACK
    episodes_per_seed = 8

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._spare = [_copy(rules)]
        actions = self._spare[0].ale.get_action_set()
        super().__init__(_Spaces(Box(0, 255, (STACK, SIDE, SIDE), np.uint8), Discrete(len(actions))),
                         f"Atari {rules.rom}")
        names = [action.name for action in actions]
        self._fire = names.index("FIRE") if rules.fire and "FIRE" in names else None
        self._copy_n: list[Any] = []
        self.lives_n: NDArray[np.int64] = np.zeros(0, np.int64)
        self._stack_n: Observations = np.zeros((0, STACK, SIDE, SIDE), np.uint8)

    def _grow(self, missing: int) -> None:
        self._copy_n += [(self._spare.pop() if self._spare else _copy(self._rules)).ale for _ in range(missing)]
        self.lives_n = np.concatenate([self.lives_n, np.zeros(missing, np.int64)])
        self._stack_n = np.concatenate([self._stack_n, np.zeros((missing, STACK, SIDE, SIDE), np.uint8)])

    def _reset(self, index: int, seed: int) -> Observations:
        return self._first(index, seed % 2**31)

    def _follow(self, index: int) -> Observations:
        return self._first(index, -1)

    def _first(self, index: int, seed: int) -> Observations:
        frame_1, info = self._copy_n[index].reset(np.zeros(1, np.int64), np.array([seed]))
        self.lives_n[index] = info["lives"][0]
        self._stack_n[index] = 0
        self._stack_n[index, -1] = frame_1[0, 0]
        first: Observations = self._stack_n[index]
        return first

    def _step(self, index_k: NDArray[np.int64], action_k: NDArray[np.int64]) -> Transition:
        after = self._act(index_k, action_k)
        if self._fire is not None:
            self._press_fire(index_k, after)
        self.lives_n[index_k] = after.lives_k
        # Fancy indexing copies, so that nothing is overwritten while it is read.
        self._stack_n[index_k, :-1] = self._stack_n[index_k, 1:]
        self._stack_n[index_k, -1] = after.frame_k
        truncated_k = after.truncated_k & ~after.terminated_k
        return Transition(self._stack_n[index_k], after.reward_k, after.terminated_k, truncated_k)

    def _press_fire(self, index_k: NDArray[np.int64], after: _After) -> None:
        """One more step for those that have just lost a life, and not the last one; its rewards count."""
        lost_k = (after.lives_k < self.lives_n[index_k]) & ~after.terminated_k & ~after.truncated_k
        if lost_k.any():
            fired = self._act(index_k[lost_k], np.full(int(lost_k.sum()), self._fire))
            after.reward_k[lost_k] += fired.reward_k
            after.frame_k[lost_k], after.lives_k[lost_k] = fired.frame_k, fired.lives_k
            after.terminated_k[lost_k], after.truncated_k[lost_k] = fired.terminated_k, fired.truncated_k

    def _act(self, index_k: NDArray[np.int64], action_k: NDArray[np.int64]) -> _After:
        copies = [self._copy_n[index] for index in index_k.tolist()]
        for copy, action_1 in zip(copies, action_k[:, None], strict=True):
            copy.send(action_1, ONE)
        frames, rewards, terminated, truncated, infos = zip(*(copy.recv() for copy in copies), strict=True)
        return _After(np.concatenate(frames)[:, 0], np.concatenate(rewards).astype(np.float64),
                      np.concatenate(terminated), np.concatenate(truncated),
                      np.concatenate([info["lives"] for info in infos]))


class AtariGame(gymnasium.Env[Any, Any]):
    """One copy, as gymnasium has it."""

    def __init__(self, rules: Rules) -> None:
        self._simulators = AtariSimulators(rules)
        self._simulators.grow(1)
        self.observation_space = Box(0, 255, self._simulators.observation_shape, np.uint8)
        self.action_space = Discrete(self._simulators.n_actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        own = int(self.np_random.integers(2**31)) if seed is None else seed
        return self._simulators.reset(0, own).copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        after = self._simulators.step(np.zeros(1, np.int64), np.array([int(action)]))
        return (after.observation_k[0], float(after.reward_k[0]), bool(after.terminated_k[0]),
                bool(after.truncated_k[0]), {})


class _After(NamedTuple):
    """What K actions led to."""

    frame_k: NDArray[np.uint8]  # [K, side, side]
    reward_k: NDArray[np.float64]
    terminated_k: NDArray[np.bool_]
    truncated_k: NDArray[np.bool_]
    lives_k: NDArray[np.int32]


class _Spaces(NamedTuple):
    observation_space: Box
    action_space: Discrete


def _copy(rules: Rules) -> AtariVectorEnv:
    _require()
    from ale_py.vector_env import AtariVectorEnv

    return AtariVectorEnv(
        rules.rom, 1, num_threads=1, max_num_frames_per_episode=rules.max_frames,
        repeat_action_probability=rules.sticky, full_action_space=rules.full_actions, img_height=SIDE, img_width=SIDE,
        stack_num=1, frameskip=FRAMES_A_STEP, noop_max=rules.noops, reward_clipping=False, use_fire_reset=rules.fire)


def _require() -> None:
    try:
        import ale_py.vector_env  # noqa: F401
    except ImportError as error:
        raise UserError("ale-py, which plays Atari games, is not installed or too old",
                        'pip install "opdbench[atari]"') from error
