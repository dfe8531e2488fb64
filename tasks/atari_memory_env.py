"""Atari games whose memory can be read: numbers from the console's 128 bytes, alone or beside the picture.

The picture is made here as ale-py's native vector environment makes it, since that one does not show the memory: to the
bit in Pong, and but for one level of grey in a pixel now and then in Breakout (a test measures both).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from ale_py import ALEInterface, LoggerMode, roms
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from opdbench.tasks.atari_env import FRAMES_A_STEP, MOST_SEEDS, SIDE, STACK, Rules

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.float32]


def _pong(memory_nsc: Bytes) -> Numbers:
    """Positions of both paddles and the ball, how they moved in the last three steps, and how far the ball is above or
    below the player's paddle, twice: coarsely, and finely where it is close."""
    place_nsc = memory_nsc.astype(np.float32)
    now_nc = place_nsc[:, -1]
    moved_nk = (np.diff(place_nsc, axis=1) / 8).clip(-4, 4).reshape(len(now_nc), -1)  # a new ball appears far away
    apart_n1 = now_nc[:, 3:4] - now_nc[:, 0:1] - 8
    return np.concatenate([(now_nc - 128) / 64, moved_nk, (apart_n1 / 16).clip(-4, 4), (apart_n1 / 4).clip(-2, 2)], 1)


def _breakout(memory_nsc: Bytes) -> Numbers:
    """Positions of paddle and ball, how they moved in the last three steps, how far the ball is to the right of the
    paddle, twice, and whether there is one."""
    place_nsc = memory_nsc.astype(np.float32)
    now_nc = place_nsc[:, -1]
    moved_nk = (np.diff(place_nsc, axis=1) / 8).clip(-4, 4).reshape(len(now_nc), -1)
    apart_n1 = now_nc[:, 1:2] - now_nc[:, 0:1]
    return np.concatenate([(now_nc - 128) / 64, moved_nk, (apart_n1 / 16).clip(-4, 4), (apart_n1 / 48).clip(-4, 4),
                           (now_nc[:, 2:] > 0).astype(np.float32)], 1)


class Memory(NamedTuple):
    """What is read of a game's memory.

    Attributes:
        cells: addresses, as Anand et al. 2019 (arXiv 1906.08226, the Atari Annotated RAM Interface) list them.
        numbers: what a player sees of their last `STACK` values: uint8 [N, STACK, cells] to float32 [N, width].
        width: how many numbers.
        blur: standard deviation, in the console's pixels, of what a learner misjudges places by.
    """

    cells: tuple[int, ...]
    numbers: Callable[[Bytes], Numbers]
    width: int
    blur: float = 0.0

    def blurred(self, memory_sc: Bytes, rng: np.random.Generator) -> Bytes:
        """Places as who sees pictures would judge them; 0 is nowhere, and stays it."""
        place_sc = memory_sc + np.rint(rng.normal(0, self.blur, memory_sc.shape)).astype(np.int64)
        return np.where(memory_sc > 0, place_sc.clip(1, 255), 0).astype(np.uint8)


MEMORY: Mapping[str, Memory] = {
    "breakout": Memory((72, 99, 101), _breakout, 15),  # the paddle across, the ball across and down
    # The player's paddle, the opponent's, the ball across and down. A player that learns from exact places relies on
    # them: misjudged by one pixel each it falls from 18.9 to 15.8. Who imitates it from pictures samples 7.2, and 10.0
    # where it learnt from blurred places.
    "pong": Memory((51, 50, 49, 54), _pong, 18, blur=1.5),
}


class Console:
    """One game, with the last `STACK` pictures and memories, blank before the episode.

    Attributes:
        picture_s: uint8 [STACK, SIDE, SIDE], where pictures are asked for.
        memory_sc: uint8 [STACK, cells].
    """

    def __init__(self, rules: Rules, cells: tuple[int, ...], *, pictures: bool) -> None:
        if rules.noops or rules.fire:
            raise ValueError("a console whose memory is read has no no-op starts, and presses FIRE for nobody")
        rom = roms.get_rom_path(rules.rom)
        assert rom is not None  # ale-py brings it
        self._rom = rom
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self._ale, self._rules, self._cells, self._pictures = ALEInterface(), rules, list(cells), pictures
        self._ale.setFloat("repeat_action_probability", rules.sticky)
        self._ale.setInt("max_num_frames_per_episode", rules.max_frames)
        self._load(0)
        self.actions = (self._ale.getLegalActionSet() if rules.full_actions else self._ale.getMinimalActionSet())
        self._last: list[Bytes] = []  # the two pictures whose brighter pixels are seen
        self.picture_s = np.zeros((STACK, SIDE, SIDE), np.uint8)
        self.memory_sc = np.zeros((STACK, len(cells)), np.uint8)

    def reset(self, seed: int | None) -> None:
        """Begin an episode; without a seed, with the random numbers that follow the last one's."""
        if seed is not None:
            self._load(seed)
        self._ale.reset_game()
        self.picture_s, self.memory_sc = np.zeros_like(self.picture_s), np.zeros_like(self.memory_sc)
        if self._pictures:
            self._last = [self._ale.getScreenGrayscale()] * 2
        self._see()

    def step(self, action: int) -> tuple[float, bool, bool]:
        """(reward, whether the game is over, whether its time is), after up to `FRAMES_A_STEP` frames."""
        reward = 0.0
        for left in reversed(range(FRAMES_A_STEP)):
            reward += self._ale.act(self.actions[action])
            if self._ale.game_over(with_truncation=True):
                break
            if self._pictures and left < len(self._last):
                self._last[left] = self._ale.getScreenGrayscale()
        self._see()
        return reward, self._ale.game_over(with_truncation=False), self._ale.game_truncated()

    def lives(self) -> int:
        left: int = self._ale.lives()
        return left

    def _load(self, seed: int) -> None:
        self._ale.setInt("random_seed", seed % MOST_SEEDS)
        self._ale.loadROM(self._rom)

    def _see(self) -> None:
        self.memory_sc = np.concatenate([self.memory_sc[1:], self._ale.getRAM()[None, self._cells]])
        if self._pictures:
            self.picture_s = np.concatenate([self.picture_s[1:], _shrunk(np.maximum(*self._last))[None]])


class MemoryGame(gymnasium.Env[Any, Any]):
    """A game that shows the numbers of its `Memory`, or with `pictures` what both see: [STACK, SIDE + 1, SIDE], the
    memory's cells at the start of a row below every picture.

    For whoever is `learning` by trial and error rewards are their signs, and a lost life is an end after which the
    game goes on, as in Mnih et al. 2015.
    """

    def __init__(self, rules: Rules, *, pictures: bool = False, learning: bool = False) -> None:
        self._memory, self._pictures, self._learning = MEMORY[rules.rom], pictures, learning
        self._goes_on = False
        self._console = Console(rules, self._memory.cells, pictures=pictures)
        self.observation_space = (Box(0, 255, (STACK, SIDE + 1, SIDE), np.uint8) if pictures
                                  else Box(-np.inf, np.inf, (self._memory.width,), np.float32))
        self.action_space = Discrete(len(self._console.actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if not self._goes_on or seed is not None:
            self._console.reset(seed)
        self._goes_on = False
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        lives = self._console.lives()
        reward, over, late = self._console.step(int(action))
        if self._learning:
            reward = float(np.sign(reward))
            self._goes_on = not over and not late and self._console.lives() < lives
        return self._observation(), reward, over or self._goes_on, late and not over, {}

    def _observation(self) -> Any:
        memory_sc = self._console.memory_sc
        if not self._pictures:
            if self._learning and self._memory.blur:
                memory_sc = self._memory.blurred(memory_sc, self.np_random)
            return self._memory.numbers(memory_sc[None])[0]
        seen = np.zeros(self.observation_space.shape or (), np.uint8)
        seen[:, :-1], seen[:, -1, :memory_sc.shape[1]] = self._console.picture_s, memory_sc
        return seen


def _shrunk(picture: Bytes) -> Bytes:
    """A picture as 84 x 84 pixels, each the mean of the area that it covers."""
    height, width = picture.shape
    return np.asarray(np.rint(_AREAS[height] @ picture.astype(np.float32) @ _AREAS[width].T), np.uint8)


def _areas(pixels: int) -> Numbers:
    """[SIDE, pixels]: how much of each of `SIDE` equal parts of a line each pixel is."""
    edge_p, size = np.arange(pixels), pixels / SIDE
    start_s1 = np.arange(SIDE)[:, None] * size
    overlap_sp = np.minimum(start_s1 + size, edge_p + 1) - np.maximum(start_s1, edge_p)
    areas_sp: Numbers = (overlap_sp.clip(0) / size).astype(np.float32)
    return areas_sp


_AREAS = {pixels: _areas(pixels) for pixels in (160, 210, 250)}  # the games' screens: 160 wide, 210 or 250 high
