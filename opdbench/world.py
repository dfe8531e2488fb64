"""A task, a student and a teacher, bound together: what the loop needs from a domain, and nothing else.

`opdbench.lm.world` and `opdbench.rl.world` implement this. The loop and every method see only this protocol.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from torch import Generator, Tensor

from opdbench.actors import Actor
from opdbench.oracle import Oracle
from opdbench.pieces import Bridge
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts
from opdbench.scores import Outcome as Outcome
from opdbench.task import Split, Task


class World(Protocol):
    """One task with its student and its teacher.

    Every random draw comes from an argument (`generator`, `seed`), and everything that moves between calls (position
    in the data, environments in the middle of an episode) is in `state_dict`, so that a resumed run repeats exactly.
    """

    @property
    def domain(self) -> Literal["lm", "rl"]: ...

    @property
    def task(self) -> Task: ...

    @property
    def student(self) -> Policy: ...

    @property
    def teacher(self) -> Policy | None: ...

    @property
    def oracle(self) -> Oracle | None:
        """The teacher, when it is asked and not run; then `teacher` is None."""

    @property
    def bridge(self) -> Bridge | None:
        """How to ask a teacher whose actions are not the student's; None where both have the same."""

    def rollout(self, actor: Actor, *, n: int, horizon: int, generator: Generator, repeat: int = 1) -> Rollouts:
        """`n` trajectories of at most `horizon` steps, made by `actor` from the next training prompts or states.

        What is drawn depends on `generator` (on the CPU) alone, and neither on the device nor on how many trajectories
        are written together: hand actors their rows of an `actors.uniform_table`.

        With `repeat` > 1 every prompt is used that many times (`n` counts trajectories); column `group` [B] tells
        which trajectories share a prompt, and column `example` [B] is the index of the training problem.
        """

    def demonstrations(self, *, n: int, generator: Generator) -> Rollouts:
        """The next `n` reference solutions of the training data, as rollouts of source DATA.

        Raises:
            UserError: the task has no reference solutions.
        """

    def separable(self, rollouts: Rollouts) -> Rollouts:
        """The smallest units that can be trained on alone: whole trajectories for language models (the identity); for
        control tasks every row as a trajectory of length one."""

    def teacher_features(self, rollouts: Rollouts) -> Tensor:
        """What the teacher computes in every state, [B, T, H_teacher]; `teacher.project` makes logits of it."""

    def evaluate(self, policy: Policy | Oracle, *, split: Split, mode: Literal["greedy", "sampled"], n: int | None,
                 seed: int) -> list[Outcome]:
        """Outcomes on the first `n` problems of a split (all when None), or on `n` episodes; draws depend on the seed
        alone, as those of `rollout` do."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that moves between calls, as JSON values and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
