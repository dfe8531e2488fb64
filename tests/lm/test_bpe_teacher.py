"""The teacher whose tokens are whole numbers: its tokenizer, how it is trained, and the one that is shipped."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from opdbench import models
from opdbench.lm import train_teacher
from opdbench.lm.lessons import SKIP, Lesson
from opdbench.lm.model import load
from opdbench.lm.tokenizer import Tokenizer
from opdbench.lm.world import LanguageWorld
from opdbench.tasks.reasoning import ChainSum
from tests.lm.test_train_teacher import RECIPE, TinySum


class Joined(TinySum):
    name = "tiny-sum-joined"
    recipes = {"bpe-teacher": replace(RECIPE, merges=12)}  # noqa: RUF012


def test_only_digits_join() -> None:
    tokenizer = Tokenizer.byte_pairs(["12+12+7=24;31:31", "12+24=36:36"] * 3, "0123456789+=;:", 4)
    tokens = tokenizer.encode("12+24=36:36")
    assert [tokenizer.decode([token]) for token in tokens] == ["12", "+", "24", "=", "36", ":", "36"]
    assert tokenizer.decode(tokens) == "12+24=36:36" and tokenizer.eos_id == 1
    joined = {token for token in tokenizer.vocabulary if len(token) > 1} - {"<pad>", "<eos>"}
    assert joined == {"12", "24", "31", "36"}


def test_a_lesson_is_cut_where_the_completion_begins() -> None:
    assert Lesson.of_completion("1+2=", "3#").halves() == ("1+2=", "3#")
    with pytest.raises(ValueError, match="something else than the text that follows"):
        Lesson("1+2=3", SKIP * 3 + "4#").halves()


def test_it_is_trained_on_its_own_tokens(tmp_path: Path) -> None:
    manifest = train_teacher.train(Joined(), "bpe-teacher", tmp_path / "model")
    assert manifest["command"].endswith("--role bpe-teacher") and manifest["score"]["examples"] == 4
    model = load(tmp_path / "model")
    assert len(Joined.alphabet) + 2 < model.n_actions <= len(Joined.alphabet) + 2 + 12
    losses: list[float] = []
    train_teacher.train(Joined(), "bpe-teacher", tmp_path / "longer", steps=60,
                        progress=lambda done, total, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_shipped_one_is_what_its_manifest_says() -> None:
    folder = models.shipped_models()["chain-sum/bpe-teacher"]
    manifest, task = json.loads((folder / "manifest.json").read_text()), ChainSum()
    assert sha256((folder / "model.safetensors").read_bytes()).hexdigest() == manifest["sha256"]
    assert (manifest["task"], manifest["task_sha256"]) == (task.id, task.checksum())
    teacher = load(folder)
    assert [len(teacher.tokenizer.encode(text)) for text in ("17", "10+17=")] == [1, 4]
    outcomes = LanguageWorld(task, teacher, None, seed=0).evaluate(teacher, split="test", mode="greedy", n=40, seed=0)
    assert sum(outcome.score for outcome in outcomes) / 40 > manifest["score"]["greedy"]["accuracy"] - 0.1
