"""Ross and Bagnell's example of errors that compound, with episodes of any length: a path, and a cliff beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from opdbench.task import ControlTask, Task

if TYPE_CHECKING:
    import gymnasium

    from opdbench.policy import Policy

PATH = 0
ACTIONS = 4
ON = 0  # the action that goes on along the path
SURE = 30.0  # the teacher's logit of the right action, beside zeros


@dataclass(frozen=True)
class Cliff:
    """State 0 is the path; states 1 to `depth` are rungs of the way back up, from the bottom.

    Attributes:
        next_sa: int64 [S, 4], where an action leads; right_s: int64 [S], the teacher's action.
    """

    next_sa: NDArray[np.int64]
    right_s: NDArray[np.int64]
    start: int = PATH

    @property
    def n_states(self) -> int:
        return len(self.next_sa)

    def step(self, state: int, action: int, uniform_2: NDArray[np.float64]) -> tuple[int, float, bool]:
        """(next state, reward, False): a step costs one unless it begins and ends on the path. Nothing is random."""
        after = int(self.next_sa[state, action])
        return after, float(state == after == PATH) - 1.0, False

    def picture(self, state: int) -> NDArray[np.uint8]:
        """The path above, the rungs of the way back up below it, the bottom red; the walker blue."""
        from opdbench.tasks.pictures import BAD, FLOOR, GOOD, board

        places = [PATH, *range(self.n_states - 1, PATH, -1)]
        colour_h = np.array([GOOD, *[FLOOR] * (len(places) - 2), BAD])
        picture: NDArray[np.uint8] = board(colour_h[:, None], at=(places.index(state), 0))
        return picture


def cliff(depth: int) -> Cliff:
    """On rung k the action k mod 4 leads one up, the highest rung's to the path; all others lead to the bottom."""
    right_s = np.arange(depth + 1) % ACTIONS
    next_sa = np.ones((depth + 1, ACTIONS), np.int64)
    next_sa[np.arange(depth + 1), right_s] = [PATH, *range(2, depth + 1), PATH]
    return Cliff(next_sa, right_s)


class CliffChain(ControlTask):
    """A path that one action follows; any other falls off a cliff, and every step down there costs one. Who knows the
    way climbs back in `depth` steps; who has never been there takes hundreds.

    Errors cost a learner of demonstrations the rest of the episode: an imitator that errs with probability e a step
    pays about e T^2 / 2 in an episode of T steps. One that has learnt the way back pays e T (depth + 1). The path looks
    the same everywhere, so that equal steps of play teach as much about it whatever T is. Teacher: exact. Student: a
    table.
    """

    name: ClassVar[str] = "cliff-chain"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "follow a path beside a cliff, for episodes of any length (the place is seen, 4 actions)"
    source: ClassVar[str] = ("after Ross and Bagnell, AISTATS 2010, section 2, and Ross, Gordon and Bagnell, AISTATS "
                             "2011: the example of a quadratic cost; that a way leads back is ours")
    license: ClassVar[str] = "Apache-2.0"
    protocol: ClassVar[str] = ("Undiscounted return of episodes of `length` steps, minus one for each that does not "
                               "begin and end on the path. The first episode of each of the evaluation's seeds counts.")
    teacher: ClassVar[str | None] = "exact"
    student: ClassVar[str | None] = None
    student_hidden: ClassVar[Sequence[int]] = ()  # a table
    env_id: ClassVar[str] = "cliff-chain"
    max_episode_steps: ClassVar[int] = 64  # of an instance: its `length`
    deterministic: ClassVar[bool] = True
    training: ClassVar[Mapping[str, Any]] = {"lr": 0.1, "batch": 16, "horizon": 64, "schedule": "linear"}
    budget: ClassVar[Mapping[str, float]] = {"tokens": 8192}

    class Params(Task.Params):
        length: int = Field(64, ge=2, le=1000, description="steps of an episode: the horizon T")
        depth: int = Field(5, ge=1, le=20, description="steps of the way back from the bottom")

    def __init__(self, data: str | None = None, params: BaseModel | None = None) -> None:
        super().__init__(data, params)
        self.max_episode_steps: int = self.params.length  # type: ignore[misc]

    @cached_property
    def cliff(self) -> Cliff:
        return cliff(self.params.depth)

    def make(self) -> gymnasium.Env[Any, Any]:
        from opdbench.tasks.grid_world_env import GridWorldEnv

        env: gymnasium.Env[Any, Any] = GridWorldEnv(self.cliff, self.params.length)
        return env

    def exact_teacher(self) -> Policy:
        import torch

        from opdbench.rl.table import TablePolicy

        return TablePolicy(SURE * torch.eye(ACTIONS)[torch.from_numpy(self.cliff.right_s)])

    def checksum(self) -> str:
        return sha256(f"{self.id} {self.params.length} {self.params.depth} {SURE}".encode()
                      + self.cliff.next_sa.tobytes()).hexdigest()
