"""The shipped tiny tasks tell everything that these methods tell their teachers, so that each of them runs here."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from opdbench import registry
from opdbench.context import Context
from opdbench.distiller import Needs
from opdbench.errors import UserError
from opdbench.ledger import Ledger
from opdbench.lm.bridge import BridgedWorld
from opdbench.lm.model import load
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.world import LanguageWorld
from opdbench.loop import Trainer
from opdbench.rows import TEACHER_FEATURES
from opdbench.schema.spec import Budget, Execution, Training
from opdbench.task import Example, LanguageTask
from tests.enumerable import make

ROOT = Path(__file__).resolve().parents[2]
TASKS = ["chain-sum", "number-sorting", "base-conversion", "text-maze"]
METHODS = ["opsd", "sdpo", "rlsd", "ptd-po", "sdft", "vicur", "oprd", "opdvr", "typhoon-s", "safesteer", "dpca"]
OURS = ["ogls-sd", "aopd", "adwin", "mopd-peers", "dispo", "vold", "lgr"]


@cache
def task_of(name: str) -> LanguageTask:
    task: LanguageTask = registry.load("task", name)()
    return task


@cache
def model(name: str, dtype: torch.dtype) -> LanguagePolicy:
    return load(ROOT / "tasks" / "models" / name, dtype=dtype)


def trainer(method: str, task: str, *, teacher: str = "teacher", horizon: int = 28, dtype: torch.dtype = torch.float32,
            **params: Any) -> Trainer:
    """On the shipped models, which stay as they are."""
    student, other = (deepcopy(model(f"{task}/{role}", dtype)) for role in ("student", teacher))
    kind = LanguageWorld if teacher == "teacher" else BridgedWorld
    settings = Training(batch=16, horizon=horizon, lr=1e-3)
    ctx = Context(kind(task_of(task), student, other, seed=0), settings, Budget(steps=2), Execution(), Ledger(), 0)
    return Trainer(make(registry.load("method", method), **params), ctx)


@pytest.mark.parametrize("name", TASKS)
def test_a_tiny_task_tells_everything(name: str) -> None:
    task = task_of(name)
    for example in task.examples("train")[:20]:
        notes = task.notes(example)
        assert set(notes) == {"solution", "answer", "hint", "cues"} and all(notes.values())
        assert notes["hint"] != example.answer and example.solution is not None
        assert set("".join(notes.values())) <= set(task.alphabet)  # type: ignore[attr-defined]
        assert task.informed(example, {}) == example.prompt
        assert task.informed(example, {"hint": "1", "success": "2"}) == f"1$2${example.prompt}"
        assert task.feedback(example, example.solution) is not None
    marks = [task.marks(example) for example in task.examples("train")[:12]]
    assert True in marks and False in marks


def test_feedback_says_how_far_an_attempt_was_right() -> None:
    task = task_of("chain-sum")
    example = Example("chain-sum-train-0", "4+1+7=", "12", "5;12:12")
    assert task.feedback(example, "5;13:13$") == "5;1" and task.feedback(example, "6") is None
    assert task.notes(example) == {"solution": "5;12:12", "answer": "12", "hint": "5", "cues": "3"}


def test_other_tasks_put_it_into_words() -> None:
    class Spoken(LanguageTask):
        def examples(self, split):  # type: ignore[no-untyped-def]
            return []

        def grade(self, example, completion):  # type: ignore[no-untyped-def]
            return {}

        def checksum(self) -> str:
            return ""

    task, notes = Spoken(), {"solution": "x = 2", "feedback": "no"}
    spoken = task.informed(Example("1", [{"role": "system", "content": "s"}, {"role": "user", "content": "x?"}], "2"),
                           notes)  # type: ignore[arg-type]
    assert spoken[0] == {"role": "system", "content": "s"}
    content = spoken[1]["content"]  # type: ignore[index]
    assert content.startswith("x?\n\n") and content.index("x = 2") < content.index("no") < content.index("Now solve")
    plain = task.informed(Example("1", "x?", "2"), notes)  # type: ignore[arg-type]
    assert isinstance(plain, str) and plain.endswith("x?") and "x = 2" in plain


@pytest.mark.parametrize("method", [*METHODS, *OURS])
def test_every_method_takes_steps_on_chain_sum(method: str) -> None:
    it = trainer(method, "chain-sum")
    for _ in range(2):
        figures = it.step()
    assert "loss" in figures or figures["empty_minibatches"] >= 1  # no sibling was right, or no prompt marked


@pytest.mark.parametrize("method", ["opsd", "sdpo", "ptd-po", "oprd", "ogls-sd"])
def test_and_where_an_environment_takes_part(method: str) -> None:
    it = trainer(method, "text-maze", horizon=8)
    figures = it.step()
    assert "loss" in figures or figures["empty_minibatches"] >= 1


def test_below_another_prompt_a_real_model_reads_what_it_would_read() -> None:
    """Against the model asked about the text itself, token by token, the environment's tokens among them."""
    for task in ("chain-sum", "text-maze"):
        it = trainer("opsd", task, horizon=8, dtype=torch.float64)
        ctx, method = it.ctx, it.method
        ctx.begin_step()
        rollouts = method.collect(ctx)
        scored = method.prepare(rollouts, ctx)
        problems = ctx.prompts.problems(rollouts)
        tokenizer = ctx.world.tokenizer  # type: ignore[attr-defined]
        for index in range(4):
            prompt = tokenizer.encode(f"{problems[index].solution}${problems[index].prompt}")
            steps, length = rollouts.mask_bt[index].nonzero()[:, 0].tolist(), int(rollouts.length_b[index])
            tokens = torch.tensor([prompt + rollouts.action_bt[index, steps[0]:length].tolist()])
            features_th = ctx.student.features(tokens, torch.tensor([tokens.shape[1]]))[0].detach()
            for step in steps:
                there = len(prompt) - 1 + step - steps[0]
                torch.testing.assert_close(scored.columns[TEACHER_FEATURES][index, step], features_th[there])


def test_dpca_bridges_and_a_batch_in_which_nothing_aligns_is_skipped() -> None:
    it = trainer("dpca", "chain-sum", teacher="bpe-teacher")
    figures = it.step()
    assert figures["compared"] > 0.5 and "loss" in figures
    short = trainer("dpca", "chain-sum", longest=1, horizon=2, teacher="bpe-teacher")
    assert 0 <= short.step()["compared"] < figures["compared"]
    it.method.advantage = lambda logq_n, logp_n, columns: (  # type: ignore[attr-defined]
        torch.zeros_like(logq_n), torch.zeros_like(logq_n, dtype=torch.bool))
    assert it.step()["empty_minibatches"] == 1


def test_a_teacher_with_another_tokenizer_is_not_told_anything() -> None:
    it = trainer("dpca", "chain-sum", teacher="bpe-teacher")
    rollouts = it.method.collect(it.ctx)
    with pytest.raises(UserError, match="another tokenizer"):
        it.ctx.score_under(rollouts, ["1"] * rollouts.n_trajectories, Needs.FULL)


def test_a_prompt_that_grows_beyond_the_context_is_refused() -> None:
    it = trainer("opsd", "chain-sum")
    rollouts = it.method.collect(it.ctx)
    with pytest.raises(UserError, match="models' context is 256"):
        it.ctx.score_under(rollouts, ["1+" * 150] * rollouts.n_trajectories, policy=it.ctx.student)


def test_layers_of_the_native_decoder_end_with_its_features() -> None:
    it = trainer("oprd", "chain-sum")
    rollouts = it.method.collect(it.ctx)
    features, layers = it.ctx.student.hidden(rollouts.input_bt, rollouts.length_b)
    plain = it.ctx.student.features(rollouts.input_bt, rollouts.length_b)
    assert layers.shape[2] == 2 and torch.equal(layers[:, :, -1], features) and torch.equal(features, plain)
