"""Pong and Breakout as the console remembers them: where pixels show a ball, the memory has its place as a number.

A player of these numbers learns in minutes what takes one of pixels hours, and is then the teacher of pixels' network
(`opdbench.rl.taught`): learning by cheating (Chen et al. 2019, arXiv 1912.12294).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

from opdbench.errors import unknown
from opdbench.rl.train_teacher import TeacherRecipe
from opdbench.task import ControlTask, Task

if TYPE_CHECKING:
    import gymnasium
    from stable_baselines3.common.vec_env import VecEnv

    from opdbench.tasks.atari_env import Rules

GAMES = ("breakout", "pong")  # whose memory `opdbench.tasks.atari_memory_env` understands


class AtariMemory(ControlTask):
    """A game with sticky actions, of which places and speeds are seen in place of pixels."""

    name = "atari-memory"
    argument = "GAME"
    version = 1
    summary = "an Atari game with sticky actions, seen as numbers of its memory: atari-memory:pong, :breakout"
    source = ("the Arcade Learning Environment (Bellemare et al. 2013, arXiv 1207.4708), ale-py; addresses of Anand et "
              "al. 2019 (arXiv 1906.08226)")
    license = "GPL-2.0 (ale-py, which is not part of opdbench; the games' rights are their owners')"
    protocol = ("As `atari-v5-sticky`: unclipped return of full episodes, cut off at 108,000 frames; in every frame "
                "the last action goes on with probability 0.25. Episode k has the same seed in every run, and counts "
                "once.")
    teacher = None
    student = None
    env_id = "ALE memory"
    max_episode_steps = 27_000
    student_hidden: ClassVar[Sequence[int]] = (64, 64)
    training: ClassVar[Mapping[str, Any]] = {"lr": 3e-3, "schedule": "linear", "batch": 16, "horizon": 64}
    budget: ClassVar[Mapping[str, float]] = {"steps": 100}
    teacher_recipe = TeacherRecipe(
        steps=2_000_000, n_envs=16, hidden=(128, 128), learning_rate=1e-3, activation="relu",
        ppo={"n_steps": 256, "batch_size": 512, "n_epochs": 6, "clip_range": 0.2, "ent_coef": 0.005},
        source="chosen for this task: of two sets of numbers seen, the one that learnt faster in 100,000 steps")

    @classmethod
    def named(cls, argument: str) -> type[Task]:
        if argument not in GAMES:
            raise unknown("Atari game whose memory is understood", argument, GAMES)
        found = super().named(argument)
        found.teacher = f"atari-memory-{argument}/teacher"
        return found

    def rules(self) -> Rules:
        from opdbench.tasks.atari_env import Rules

        return Rules(self.name.partition(":")[2] or GAMES[0], 0.25, 0, False)

    def make(self) -> gymnasium.Env[Any, Any]:
        from opdbench.tasks.atari_env import require

        require()
        from opdbench.tasks.atari_memory_env import MemoryGame

        game: gymnasium.Env[Any, Any] = MemoryGame(self.rules())
        return game

    def training_env(self, n: int, seed: int) -> VecEnv:
        from stable_baselines3.common.env_util import make_vec_env

        from opdbench.tasks.atari_memory_env import MemoryGame

        env: VecEnv = make_vec_env(partial(MemoryGame, self.rules(), learning=True), n, seed=seed)
        return env

    def checksum(self) -> str:
        # The emulator and the game live in ale-py; its version is in the record's provenance.
        return sha256(f"{self.id}/{tuple(self.rules())}".encode()).hexdigest()
