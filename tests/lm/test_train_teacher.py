"""Training a small model: from scratch, interrupted and resumed, and what its folder says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from opdbench.errors import UserError
from opdbench.lm import train_teacher
from opdbench.lm.lessons import Recipe
from opdbench.lm.model import load
from opdbench.tasks.gsm8k import GSM8K
from opdbench.tasks.reasoning import ChainSum

RECIPE = Recipe(hidden=16, layers=1, heads=2, intermediate=32, steps=6, batch=4, lr=6e-3)


class TinySum(ChainSum):
    name = "tiny-sum"
    sizes = {"train": 20, "validation": 2, "test": 4}  # noqa: RUF012
    recipes = {"teacher": RECIPE, "student": RECIPE}  # noqa: RUF012


class Interrupted(Exception):
    pass


def stop_after(updates: int):
    def progress(done: int, total: int, loss: float) -> None:
        if done > updates:
            raise Interrupted

    return progress


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder).state_dict()


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_teacher, "CHECKPOINT_EVERY", 2)
    train_teacher.train(TinySum(), "teacher", tmp_path / "whole")
    with pytest.raises(Interrupted):
        train_teacher.train(TinySum(), "teacher", tmp_path / "parts", progress=stop_after(4))
    seen = []
    train_teacher.train(TinySum(), "teacher", tmp_path / "parts", progress=lambda done, total, loss: seen.append(done))
    assert seen == [5, 6]
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]  # nothing is left behind


def test_a_checkpoint_of_another_command_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_teacher, "CHECKPOINT_EVERY", 2)
    with pytest.raises(Interrupted):
        train_teacher.train(TinySum(), "teacher", tmp_path / "model", progress=stop_after(4))
    seen = []
    train_teacher.train(TinySum(), "teacher", tmp_path / "model", seed=1,
                        progress=lambda done, total, loss: seen.append(done))
    assert seen == [1, 2, 3, 4, 5, 6]


def test_the_loss_falls(tmp_path: Path) -> None:
    losses = []
    train_teacher.train(TinySum(), "teacher", tmp_path / "model", steps=60,
                        progress=lambda done, total, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_folder_is_transformers_own_and_says_how_it_was_made(tmp_path: Path) -> None:
    manifest = train_teacher.train(TinySum(), "student", tmp_path / "model", seed=3)
    assert json.loads((tmp_path / "model/manifest.json").read_text()) == manifest
    assert manifest["command"] == "opdbench teacher train tiny-sum --role student --seed 3"
    assert manifest["score"]["examples"] == 4
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    ours = load(tmp_path / "model")
    tokens = torch.tensor([ours.tokenizer.encode("4+1+7=5;12:12")])
    logits = ours.project(ours.features(tokens, torch.tensor([tokens.shape[1]])))
    assert torch.allclose(theirs(tokens).logits, logits, atol=1e-5)


def test_what_cannot_be_trained_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe for a teacher"):
        train_teacher.train(GSM8K(), "teacher", tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        train_teacher.train(TinySum(), "teacher", tmp_path / "file" / "model")
