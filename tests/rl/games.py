"""Two small games for tests, given by tables: in one the right end pays, in the other the left one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from opdbench.conformance.tabular import TabularTask, corridor
from opdbench.policy import Policy
from opdbench.rl.games import Form
from opdbench.rl.games_policy import GamesPolicy, TeacherOfEach, VectorArchitecture
from opdbench.rl.games_world import GamesWorld
from opdbench.task import ControlTask
from tests.enumerable import generator
from tests.rl.small_tasks import CountingTask

STATES = 5


def right_pays() -> TabularTask:
    task = TabularTask(tables=corridor(STATES))
    task.name, task.yardstick = "right", (0.0, 1.0)  # type: ignore[misc]
    return task


def left_pays() -> TabularTask:
    ends_sa = np.zeros((STATES, 3), np.bool_)
    ends_sa[:2, 0], ends_sa[0, 1] = True, True
    tables = replace(corridor(STATES), reward_sa=ends_sa.astype(float), end_sa=ends_sa, starts=range(1, STATES))
    task = TabularTask(tables=tables)
    task.name, task.yardstick = "left", (0.0, 1.0)  # type: ignore[misc]
    return task


def counting() -> CountingTask:
    """With fewer numbers to see and fewer actions than the corridors."""
    task = CountingTask()
    task.name, task.yardstick = "counting", (0.0, 10.0)  # type: ignore[misc]
    return task


class Both(TabularTask):
    """One task of several games."""

    student_hidden = (6,)

    def __init__(self, *games: ControlTask) -> None:
        super().__init__()
        self.members = games or (right_pays(), left_pays())

    def games(self) -> Sequence[ControlTask]:
        return self.members


def student(task: Both, seed: int = 1, controller: int | None = 4) -> GamesPolicy:
    form = Form.of(task.games())
    policy = GamesPolicy(form, VectorArchitecture(form.width, (6,), form.actions, controller),
                         generator=generator(seed))
    return policy.double()


def world(*games: ControlTask, teachers: Sequence[Policy] | None = None, seed: int = 0) -> GamesWorld:
    """A student, and a teacher of each game with opinions: another student's."""
    task = Both(*games)
    teacher = student(task, 2)
    for head in teacher.network.heads:  # type: ignore[union-attr]
        head.weight.data.mul_(100)
    return GamesWorld(task, student(task), teacher if teachers is None else TeacherOfEach(teachers, teacher.form),
                      seed=seed)
