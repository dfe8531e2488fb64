"""Atari 2600 games: 104 of them, each on two tracks that never mix, with tasks, records and boards of their own.

    atari/pong@v5-sticky      (the task atari-v5-sticky:pong) the headline, with sticky actions: Machado et al. 2018
    atari/pong@v4-nosticky    (the task atari-v4-nosticky:pong) to compare with Stable-Baselines3, CleanRL and PPD

What stands behind an @ is a version everywhere else, and results, suites and boards take a task's versions together. So
the track is a part of the task's name, and the form with the @ is another way to write it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from opdbench.errors import unknown
from opdbench.rl.train_teacher import TaughtRecipe, TeacherRecipe
from opdbench.task import ControlTask, Guided, Task
from opdbench.tasks.atari_memory import GAMES as REMEMBERED
from opdbench.tasks.atari_scores import RANDOM_HUMAN, human_normalised

if TYPE_CHECKING:
    import gymnasium
    from stable_baselines3.common.vec_env import VecEnv

    from opdbench.rl.simulators import Simulators
    from opdbench.tasks.atari_env import Rules


class Atari(ControlTask):
    """What the tracks share: 4 frames a step, the maximum of the last two as 84 x 84 grey pixels, the last 4 of them
    seen (blank before the episode), whole episodes of at most 108,000 frames, rewards as the game gives them."""

    argument = "GAME"
    version = 1
    source = "the Arcade Learning Environment (Bellemare et al. 2013, arXiv 1207.4708), ale-py"
    license = "GPL-2.0 (ale-py, which is not part of opdbench; the games' rights are their owners')"
    teacher = None  # opdbench teacher train atari/GAME@TRACK, or a network of Stable-Baselines3's CnnPolicy
    student = None
    env_id = "ALE"
    max_episode_steps = 27_000
    parallel_episodes: ClassVar[int | None] = 16
    student_hidden: ClassVar[Sequence[int]] = (64,)  # of net3; `network` chooses
    training: ClassVar[Mapping[str, Any]] = {"lr": 5e-4, "schedule": "linear", "batch": 8, "horizon": 32}
    budget: ClassVar[Mapping[str, float]] = {"steps": 4_000}  # a million steps of the game
    teacher_recipe = TeacherRecipe(
        steps=2_500_000, n_envs=8, hidden=(256,), learning_rate=4e-4, network="net1", bfloat16=True,
        ppo={"n_steps": 128, "batch_size": 256, "n_epochs": 3, "clip_range": 0.1, "vf_coef": 0.5, "ent_coef": 0.01},
        source="Schulman et al. 2017 (arXiv 1707.06347), table 5, with a fixed clip range, the value loss weighted as "
               "in RL Baselines3 Zoo, a network of a quarter of the size, 2.5 million steps in place of 10, and a "
               "larger learning rate for both; not tuned")
    sticky: ClassVar[float]
    noops: ClassVar[int]
    fire: ClassVar[bool]

    class Params(ControlTask.Params):
        network: Literal["net1", "net2", "net3", "teacher"] = Field(
            "net3", description="the fresh student: Rusu et al.'s networks (25%, 7% and 4% of the teacher's size)")
        actions: Literal["minimal", "full"] = Field(
            "minimal", description="those that do something in the game, or all 18; a teacher must have the same")
        max_frames: int = Field(108_000, ge=4, description="limit of an episode; the protocol's is 108,000")

    @classmethod
    def named(cls, argument: str) -> type[Task]:
        from opdbench.tasks.atari_env import games

        game = argument.replace("_", "-")
        if game not in (known := games()):
            raise unknown("Atari game", argument, known)
        found = super().named(game)
        found.yardstick = RANDOM_HUMAN.get(game)  # type: ignore[attr-defined]
        if game in REMEMBERED:
            found.teacher = f"atari-{game}/teacher"  # it learnt with sticky actions, and plays on both tracks
        return found

    def rules(self) -> Rules:
        """Of evaluation and rollouts."""
        from opdbench.tasks.atari_env import Rules

        rom = self.name.partition(":")[2].replace("-", "_")
        return Rules(rom, self.sticky, self.noops, self.fire, self.params.actions == "full", self.params.max_frames)

    def make(self) -> gymnasium.Env[Any, Any]:
        from opdbench.tasks.atari_env import AtariGame

        game: gymnasium.Env[Any, Any] = AtariGame(self.rules())
        return game

    def simulators(self) -> Simulators:
        from opdbench.tasks.atari_env import AtariSimulators

        simulators: Simulators = AtariSimulators(self.rules())
        return simulators

    def training_env(self, n: int, seed: int) -> VecEnv:
        from opdbench.tasks.atari_training import AtariVecEnv

        env: VecEnv = AtariVecEnv(self.rules(), n, seed)
        return env

    def further(self, score: float) -> dict[str, float]:
        game = self.name.partition(":")[2]
        return {"human_normalised": human_normalised(game, score)} if game in RANDOM_HUMAN else {}

    def student_network(self) -> str:
        return str(self.params.network)

    def checksum(self) -> str:
        # The emulator and the games live in ale-py; its version is in the record's provenance.
        return sha256(f"{self.id}/{tuple(self.rules())}".encode()).hexdigest()


def _taught(game: str) -> TaughtRecipe:
    return TaughtRecipe(
        guide=f"atari-memory-{game}/teacher", steps=400_000, network="net1", method="dagger",
        params={"labels": "soft", "replay_ratio": 4.0, "minibatch": 128},
        training={"lr": 1e-3, "schedule": "linear", "batch": 16, "horizon": 32},
        source="learning by cheating (Chen et al. 2019, arXiv 1912.12294); the values are chosen here, and not tuned")


class AtariSticky(Atari):
    """Machado et al.'s protocol: chance comes from sticky actions alone."""

    name = "atari-v5-sticky"
    summary = "an Atari game with sticky actions, such as atari/pong@v5-sticky (84 x 84 x 4 pixels seen)"
    protocol = ("Unclipped return of full episodes (a lost life ends none), cut off at 108,000 frames. In every frame "
                "the last action goes on with probability 0.25 (Machado et al. 2018, arXiv 1709.06009); no no-op "
                "starts, nobody presses FIRE for the player; the game's minimal actions unless `actions=full`. Greedy: "
                "the largest logit; sampled: a draw at temperature 1; no epsilon. Episode k has the same seed in every "
                "run, and counts once.")
    sticky, noops, fire = 0.25, 0, False


    @classmethod
    def named(cls, argument: str) -> type[Task]:
        found = super().named(argument)
        if argument in REMEMBERED:
            found.teacher_recipe = _taught(argument)  # type: ignore[attr-defined]
        return found

    def guided(self) -> Guided:
        import torch

        from opdbench.rl.simulators import GymSimulators
        from opdbench.tasks.atari_env import STACK, require

        require()
        from opdbench.tasks.atari_memory_env import MEMORY, MemoryGame

        def game() -> MemoryGame:
            return MemoryGame(self.rules(), pictures=True)

        simulators, memory = GymSimulators(game, game()), MEMORY[self.rules().rom]
        simulators.stack = STACK
        return Guided(simulators, lambda seen_n: torch.from_numpy(
            memory.numbers(seen_n[:, :, -1, :len(memory.cells)].numpy())))


class AtariNoSticky(Atari):
    """The older protocol of Mnih et al., as Stable-Baselines3 and CleanRL have it."""

    name = "atari-v4-nosticky"
    summary = "an Atari game with no-op starts, such as atari/pong@v4-nosticky (84 x 84 x 4 pixels seen)"
    protocol = ("Unclipped return of full episodes (a lost life ends none), cut off at 108,000 frames. Actions are "
                "never sticky; episodes begin with up to 29 no-op frames; FIRE is pressed at the start and in the "
                "first step after a lost life, in games that have it; the game's minimal actions unless "
                "`actions=full`. Greedy: the largest logit; sampled: a draw at temperature 1; no epsilon. Episode k "
                "always starts from the same state, and counts once.")
    sticky, noops, fire = 0.0, 30, True
