"""Atari 2600 games through ale-py's native vector environment: many copies in parallel, frames of 84 x 84 grey pixels.

Its automatic reset is never used, in which the step after an episode's last is none: whoever steps a copy on resets it
first. It would also go on with another seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from opdbench.errors import UserError
from opdbench.rl.simulators import Observations, Simulators, Spaces, Transition

if TYPE_CHECKING:
    from ale_py.vector_env import AtariVectorEnv

STACK, SIDE, FRAMES_A_STEP = 4, 84, 4
TWO_PLAYERS = frozenset({"combat", "joust", "maze_craze", "warlords"})  # without a mode for one
MOST_SEEDS = 2**31  # ALE's seeds are 32 bits wide
UNSEEDED = -1  # go on with the random numbers that are there
FOLLOW = -1  # among actions


class Rules(NamedTuple):
    """How a game is played.

    Attributes:
        rom: ale-py's name.
        sticky: probability, in every frame, that the last action goes on in place of the new one.
        noops: an episode begins with fewer frames of doing nothing than this, as many as its seed says.
        fire: FIRE, where there is one, is pressed for the player when an episode begins, and in the first step after a
            lost life, whatever was chosen there.
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
    require()
    from ale_py import roms

    return sorted(rom.replace("_", "-") for rom in roms.get_all_rom_ids() if rom not in TWO_PLAYERS)


class AtariSimulators(Simulators):
    """Copies of one game. Those that are made together take their steps together, in one native environment. One that
    others leave behind has lost its place; should it go on after all, it gets an environment of its own, in which all
    that it did since its seed is done again.

    Setting a seed loads the cartridge again, a hundred times the time of a step or more, so in rollouts several
    episodes follow one seed.

    Attributes:
        lives_n: lives left in every copy.
    """

    stack = STACK
    episodes_per_seed = 8

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._spare: list[_Block] = [_Block(rules, 1)]
        actions = self._spare[0].ale.get_action_set()
        super().__init__(Spaces(Box(0, 255, (STACK, SIDE, SIDE), np.uint8), Discrete(len(actions))),
                         f"Atari {rules.rom}")
        names = [action.name for action in actions]
        self._fire = names.index("FIRE") if rules.fire and "FIRE" in names else None
        self._blocks: list[_Block] = []
        self._block_n, self._slot_n, self.lives_n = (np.zeros(0, np.int64) for _ in range(3))
        self._lost_n, self._fires_n = np.zeros(0, np.bool_), np.zeros(0, np.bool_)
        self._done_n: list[list[int]] = []  # since the seed: actions, and FOLLOW where an episode began

    def _grow(self, missing: int) -> None:
        block = self._spare.pop() if missing == 1 and self._spare else _Block(self._rules, missing)
        self._block_n = np.concatenate([self._block_n, np.full(missing, len(self._blocks))])
        self._slot_n = np.concatenate([self._slot_n, np.arange(missing)])
        self._blocks.append(block)
        self.lives_n = np.concatenate([self.lives_n, np.zeros(missing, np.int64)])
        self._lost_n, self._fires_n = (np.concatenate([old, np.zeros(missing, np.bool_)])
                                       for old in (self._lost_n, self._fires_n))
        self._done_n += [[] for _ in range(missing)]

    def _reset(self, index: int, seed: int) -> Observations:
        self._done_n[index], self._lost_n[index] = [], False
        return self._first(index, seed % MOST_SEEDS)

    def _follow(self, index: int) -> Observations:
        self._find(np.array([index]))
        self._done_n[index].append(FOLLOW)
        return self._first(index, UNSEEDED)

    def _first(self, index: int, seed: int) -> Observations:
        observation, lives = self._blocks[self._block_n[index]].reset(int(self._slot_n[index]), seed)
        self.lives_n[index], self._fires_n[index] = lives, False
        return np.asarray(observation)

    def _step(self, index_k: NDArray[np.int64], action_k: NDArray[np.int64]) -> Transition:
        self._find(index_k)
        if self._fire is not None:
            action_k = np.where(self._fires_n[index_k], self._fire, action_k)
        for index, action in zip(index_k.tolist(), action_k.tolist(), strict=True):
            self._done_n[index].append(action)
        after = self._act(index_k, action_k)
        if self._fire is not None:
            self._fires_n[index_k] = after.lives_k < self.lives_n[index_k]
        self.lives_n[index_k] = after.lives_k
        return Transition(after.observation_k, after.reward_k, after.terminated_k,
                          after.truncated_k & ~after.terminated_k)

    def _act(self, index_k: NDArray[np.int64], action_k: NDArray[np.int64]) -> _After:
        if len(self._blocks) == 1 and len(index_k) == self.n:
            return self._blocks[0].step_all(action_k)
        block_k = self._block_n[index_k]
        parts: list[_After] = []
        rows: list[NDArray[np.int64]] = []
        for number in np.unique(block_k).tolist():
            row_r = np.flatnonzero(block_k == number)
            slot_r = self._slot_n[index_k[row_r]]
            after = self._blocks[number].step(slot_r, action_k[row_r])
            if not np.array_equal(slot_r, np.arange(self._blocks[number].n)):
                left_n = self._block_n == number
                left_n[index_k] = False
                self._lost_n |= left_n
                after = _After(*(column[slot_r] for column in after))
            parts.append(after)
            rows.append(row_r)
        if len(parts) == 1:
            return parts[0]
        order_k = np.argsort(np.concatenate(rows))
        return _After(*(np.concatenate(columns)[order_k] for columns in zip(*parts, strict=True)))

    def _find(self, index_k: NDArray[np.int64]) -> None:
        """Bring copies back to where they were before others went on without them."""
        if not self._lost_n.any():
            return
        for index in index_k[self._lost_n[index_k]].tolist():
            block = _Block(self._rules, 1)
            block.reset(0, self.seed_n[index] % MOST_SEEDS)
            for action in self._done_n[index]:
                if action == FOLLOW:
                    block.reset(0, UNSEEDED)
                else:
                    block.step(np.zeros(1, np.int64), np.array([action]))
            self._block_n[index], self._slot_n[index], self._lost_n[index] = len(self._blocks), 0, False
            self._blocks.append(block)


class AtariGame(gymnasium.Env[Any, Any]):
    """One copy, as gymnasium has it."""

    render_mode = "rgb_array"

    def __init__(self, rules: Rules) -> None:
        self._seen = np.zeros((SIDE, SIDE), np.uint8)
        self._simulators = AtariSimulators(rules)
        self._simulators.grow(1)
        self.observation_space = Box(0, 255, self._simulators.observation_shape, np.uint8)
        self.action_space = Discrete(self._simulators.n_actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        own = int(self.np_random.integers(2**31)) if seed is None else seed
        observation = self._simulators.reset(0, own).copy()
        self._seen = observation[-1]
        return observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        after = self._simulators.step(np.zeros(1, np.int64), np.array([int(action)]))
        self._seen = after.observation_k[0, -1].copy()
        return (after.observation_k[0], float(after.reward_k[0]), bool(after.terminated_k[0]),
                bool(after.truncated_k[0]), {})

    def render(self) -> Any:
        """The last frame as players see it: grey. The game's own screen has 210 x 160 pixels in colour, which the
        native environment does not keep."""
        return np.repeat(self._seen[..., None], 3, axis=2)


class _After(NamedTuple):
    """What K actions led to."""

    observation_k: Observations
    reward_k: NDArray[np.float64]
    terminated_k: NDArray[np.bool_]
    truncated_k: NDArray[np.bool_]
    lives_k: NDArray[np.int64]


class _Block:
    """Copies in one native environment, which all take each of its steps."""

    def __init__(self, rules: Rules, n: int) -> None:
        self.ale, self.n, self._begun = _native(rules, n).ale, n, False
        self._strength_m = np.ones(n, np.float32)  # how far a paddle is turned

    def reset(self, slot: int, seed: int) -> tuple[Observations, int]:
        """The first observation of one copy's next episode, and its lives; the others stay where they are."""
        if not self._begun and self.n > 1:  # the native environment resets all together at first
            self.ale.reset(np.arange(self.n), np.full(self.n, UNSEEDED))
        self._begun = True
        observation_m, info = self.ale.reset(np.array([slot]), np.array([seed]))
        return observation_m[slot], int(info["lives"][slot])

    def step(self, slot_r: NDArray[np.int64], action_r: NDArray[np.int64]) -> _After:
        """One step of all copies, the others' wasted."""
        action_m = np.zeros(self.n, np.int64)
        action_m[slot_r] = action_r
        return self.step_all(action_m)

    def step_all(self, action_m: NDArray[np.int64]) -> _After:
        self.ale.send(action_m, self._strength_m)
        observation_m, reward_m, terminated_m, truncated_m, info = self.ale.recv()
        return _After(observation_m, reward_m.astype(np.float64), terminated_m, truncated_m,
                      info["lives"].astype(np.int64))


def _native(rules: Rules, n: int) -> AtariVectorEnv:
    require()
    from ale_py.vector_env import AtariVectorEnv

    return AtariVectorEnv(
        rules.rom, n, max_num_frames_per_episode=rules.max_frames, repeat_action_probability=rules.sticky,
        full_action_space=rules.full_actions, img_height=SIDE, img_width=SIDE, stack_num=STACK,
        frameskip=FRAMES_A_STEP, noop_max=rules.noops, reward_clipping=False, use_fire_reset=rules.fire)


def require() -> None:
    """
    Raises:
        UserError: ale-py is missing.
    """
    try:
        import ale_py.vector_env  # noqa: F401
    except ImportError as error:
        raise UserError("ale-py, which plays Atari games, is not installed or too old",
                        'pip install "opdbench[atari]"') from error
