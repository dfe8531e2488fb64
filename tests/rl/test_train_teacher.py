"""Training a teacher: the whole command on a few steps, and going on after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from opdbench.errors import UserError
from opdbench.rl import train_teacher
from opdbench.rl.policy import ControlPolicy
from opdbench.rl.train_teacher import train
from opdbench.rl.world import evaluate
from opdbench.tasks.control import CartPole
from tests.rl.small_tasks import CountingTask


class Quick(CartPole):
    """A few hundred steps, with running statistics of observations, so that these are exported too."""

    teacher_recipe = replace(CartPole.teacher_recipe, steps=512, hidden=(8,), normalize=True)


def test_exports_what_its_manifest_says(tmp_path: Path) -> None:
    seen: list[int] = []
    manifest = train(Quick(), tmp_path / "teacher", progress=lambda done, steps, mean: seen.append(done))
    assert json.loads((tmp_path / "teacher" / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    assert manifest["environment_steps"] == 512 == seen[-1]
    assert manifest["sha256"] == sha256((tmp_path / "teacher" / "policy.safetensors").read_bytes()).hexdigest()
    policy = ControlPolicy.load(tmp_path / "teacher")
    assert policy.architecture.observation_clip == 10 and policy.architecture.hidden == (8,)
    outcomes = evaluate(Quick(), policy, mode="sampled", n=100, seed=0)
    assert sum(outcome.score for outcome in outcomes) / 100 == pytest.approx(manifest["score"]["sampled"]["mean"])
    assert not (tmp_path / "teacher.training").exists()


def test_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_teacher, "CHECKPOINT_EVERY", 256)
    seen: list[int] = []

    def interrupt(done: int, steps: int, mean: float) -> None:
        seen.append(done)
        if done == 512 and len(seen) == 2:
            raise KeyboardInterrupt

    class Longer(Quick):
        teacher_recipe = replace(Quick.teacher_recipe, steps=1024)

    with pytest.raises(KeyboardInterrupt):
        train(Longer(), tmp_path / "teacher", progress=interrupt)
    assert train(Longer(), tmp_path / "teacher", progress=interrupt)["environment_steps"] == 1024
    assert seen == [256, 512, 512, 768, 1024]  # the checkpoint was taken at 256


def test_another_number_of_steps_continues_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_teacher, "CHECKPOINT_EVERY", 256)

    def interrupt(done: int, steps: int, mean: float) -> None:
        if done == 512:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Quick(), tmp_path / "teacher", steps=768, progress=interrupt)
    with pytest.raises(UserError, match="256 steps, more than the 128"):
        train(Quick(), tmp_path / "teacher", steps=128)
    manifest = train(Quick(), tmp_path / "teacher", steps=1024)
    assert manifest["plans"] == [{"from": 0, "steps": 768}, {"from": 256, "steps": 1024}]
    assert manifest["environment_steps"] == manifest["recipe"]["steps"] == 1024
    assert manifest["command"] == f"opdbench teacher train {Quick.name} --steps 1024"


def test_a_checkpoint_whose_identity_cannot_be_read_is_another_trainings(tmp_path: Path) -> None:
    work = tmp_path / "teacher.training"
    work.mkdir()
    (work / "model.zip").write_bytes(b"never read")
    (work / "identity.json").write_text('{"task": "cartp')
    assert train(Quick(), tmp_path / "teacher")["environment_steps"] == 512


def test_a_task_without_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="counting@1 has no recipe"):
        train(CountingTask(), tmp_path / "teacher")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        train(Quick(), tmp_path / "file" / "teacher")


@pytest.mark.parametrize("name", ["teacher", "teacher.training"])
def test_other_files_are_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds other files"):
        train(Quick(), tmp_path / "teacher")
    assert (tmp_path / name / "thesis.tex").read_text() == "precious"
