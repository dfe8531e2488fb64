"""What the tests of teachers over HTTP share: the models on both sides, and short runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opdbench import run
from opdbench.actors import Student
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.remote import RemoteTeacher
from opdbench.lm.server import Server
from opdbench.lm.world import LanguageWorld
from opdbench.models import shipped_models
from opdbench.resolve import Plan, Request, resolve
from opdbench.rollouts import Rollouts
from opdbench.schema.record import Record
from opdbench.store import RunFolder
from opdbench.tasks.reasoning import ChainSum
from tests.lm.completions_server import Running
from tests.test_run import Watcher

TASK = ChainSum()
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SERVED = shipped_models()["chain-sum/teacher"]
LOCAL = shipped_models()["chain-sum/student"]
TOLD = ("support=teacher", "top_k=8")
QUICK = ("examples=3", "curve_points=0", "batch=4", "checkpoint_seconds=0", "lr=0.0005")


def remote(server: Running, student: LanguagePolicy, *, top_k: int = 8, cache: Path | None = None) -> RemoteTeacher:
    """The server as the teacher of a student."""
    return RemoteTeacher.open(Server(server.reference, timeout=20), student.tokenizer, n_actions=student.n_actions,
                              top_k=top_k, cache=cache, examples=TASK.examples("train"))


def world(student: LanguagePolicy) -> LanguageWorld:
    return LanguageWorld(TASK, student, None, seed=0)


def some_rollouts(student: LanguagePolicy, n: int = 6) -> Rollouts:
    return world(student).rollout(Student(), n=n, horizon=12, generator=torch.Generator().manual_seed(3))


def planned(method: str, teacher: str | None, *settings: str, student: str | None = None) -> Plan:
    """Three steps on a few problems of chain-sum: drawing all 10,000 takes longer than such a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChainSum, "sizes", {"train": 100, "validation": 5, "test": 20})
        return resolve(Request(method=method, task="chain-sum", settings=(*QUICK, *settings), budget=("steps=3",),
                               teacher=teacher, student=student))


def execute(method: str, teacher: str | None, results: Path, *settings: str, student: str | None = None
            ) -> tuple[Record, RunFolder]:
    plan = planned(method, teacher, *settings, student=student)
    folder = run.run_folder(results, plan.spec.recipe)
    return run.execute(plan, folder, Watcher()), folder
