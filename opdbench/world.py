"""A task, a student and a teacher, bound together: what the loop needs from a domain, and nothing else.

`opdbench.lm.world` and `opdbench.rl.world` implement this. The loop and every method see only this protocol.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from torch import Generator, Tensor

from opdbench.actors import Actor
from opdbench.oracle import Oracle
from opdbench.pieces import Bridge
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts
from opdbench.scores import Outcome as Outcome
from opdbench.task import Example, Prompt, Split, Task


class Prompts(Protocol):
    """Where states are texts below prompts: what they are about, and the same texts below other prompts."""

    def problems(self, rollouts: Rollouts) -> list[Example]:
        """The training problem of every trajectory."""

    def written(self, rollouts: Rollouts) -> list[str]:
        """What the grader read of every trajectory: all after the prompt, environment turns included."""

    def below(self, rollouts: Rollouts, prompts: Sequence[Prompt], *, thinking: bool = False) -> Rollouts:
        """The same completions below other prompts, one a trajectory: its k-th row is the k-th row of `rollouts`.

        Raises:
            UserError: a prompt with its completion is longer than the models' context.
        """

    def features(self, policy: Policy, rollouts: Rollouts) -> Tensor:
        """What any policy of the student's vocabulary computes in every state, [B, T, H]."""


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

    @property
    def prompts(self) -> Prompts | None:
        """How to read the same trajectories below other prompts; None in control tasks."""

    def rollout(self, actor: Actor, *, n: int, horizon: int, generator: Generator, repeat: int = 1,
                problems: Sequence[int] | None = None) -> Rollouts:
        """`n` trajectories of at most `horizon` steps, made by `actor` from the next training prompts or states.

        What is drawn depends on `generator` (on the CPU) alone, and neither on the device nor on how many trajectories
        are written together: hand actors their rows of an `actors.uniform_table`.

        With `repeat` > 1 every prompt is used that many times (`n` counts trajectories); column `group` [B] tells
        which trajectories share a prompt, and column `example` [B] is the index of the training problem.

        Args:
            problems: indices of n / `repeat` training problems to write about in place of the next ones.

        Raises:
            UserError: control tasks have no problems to choose from, and cannot repeat a state.
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
