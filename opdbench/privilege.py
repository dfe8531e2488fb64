"""What a teacher may know that the student does not: reference solutions, hints, and what became of other attempts.

A method says what is told (`LanguageTask.notes`, or attempts of siblings), a task puts it into words
(`LanguageTask.informed`), and `Context.score_under` asks a teacher that reads them about the student's completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from opdbench.advantages import masked
from opdbench.context import Context
from opdbench.rollouts import Rollouts
from opdbench.task import LanguageTask, NoteKind, Prompt


class Siblings(NamedTuple):
    """Other attempts at the same prompt, as numbers of trajectories."""

    successes: list[int]
    failures: list[int]


def outcome(rollouts: Rollouts) -> Tensor:
    """The verifier's verdict on every trajectory [B]."""
    return masked(rollouts.reward_bt, rollouts.mask_bt).sum(1)


def siblings(outcome_b: Tensor, group_b: Tensor, threshold: float) -> list[Siblings]:
    """For every trajectory the others of its group, by whether their outcome reaches `threshold`."""
    right, groups = (outcome_b >= threshold).tolist(), group_b.tolist()
    found = []
    for index, group in enumerate(groups):
        others = [other for other, its in enumerate(groups) if its == group and other != index]
        found.append(Siblings([other for other in others if right[other]],
                              [other for other in others if not right[other]]))
    return found


def told(ctx: Context, rollouts: Rollouts, *kinds: NoteKind) -> list[Prompt]:
    """Every trajectory's prompt, for a teacher that is told what the task can tell about the problem."""
    task = _task(ctx)
    known = [task.notes(example) for example in ctx.prompts.problems(rollouts)]
    return [prompt for prompt in informed(ctx, rollouts, [{kind: notes[kind] for kind in kinds} for notes in known])
            if prompt is not None]


def informed(ctx: Context, rollouts: Rollouts, notes_b: Sequence[Mapping[NoteKind, str] | None]
             ) -> list[Prompt | None]:
    """Every trajectory's prompt, for a teacher that is told these notes; None where there are None."""
    task = _task(ctx)
    return [None if notes is None else task.informed(example, notes)
            for example, notes in zip(ctx.prompts.problems(rollouts), notes_b, strict=True)]


def feedback(ctx: Context, rollouts: Rollouts) -> list[str | None]:
    """What the task says to every attempt."""
    task = _task(ctx)
    return [task.feedback(example, text) for example, text in
            zip(ctx.prompts.problems(rollouts), ctx.prompts.written(rollouts), strict=True)]


def _task(ctx: Context) -> LanguageTask:
    assert isinstance(ctx.world.task, LanguageTask)  # methods that tell are for language tasks
    return ctx.world.task
