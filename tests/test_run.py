"""A run from request to record, in process: what is written, what repeats, and what survives an interruption."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from opdbench import run, sitting
from opdbench.errors import UsageError, UserError
from opdbench.ledger import Ledger
from opdbench.references import Model
from opdbench.resolve import Plan, Request, resolve
from opdbench.schema.record import Record
from opdbench.signals import Cancelled
from opdbench.store import CHECKPOINT, RECORD, RunFolder, pack, read_outcomes, read_record, unpack

QUICK = ("examples=5", "curve_examples=3", "batch=4", "horizon=8", "checkpoint_seconds=0")


class Watcher:
    """Calls `at_step` after every training step; counts phases."""

    def __init__(self, at_step: Callable[[int], None] = lambda step: None) -> None:
        self.phases: list[str] = []
        self._at_step = at_step

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def step(self, progress: float, figures: dict[str, float], ledger: Ledger) -> None:
        self._at_step(ledger.steps)


def plan_of(method: str, *settings: str, task: str = "cartpole", budget: str = "steps=12", **more: Any) -> Plan:
    return resolve(Request(method=method, task=task, settings=(*QUICK, *settings), budget=(budget,), **more))


def execute(plan: Plan, results: Path, watcher: Watcher | None = None, **more: Any) -> tuple[Record, RunFolder]:
    folder = run.run_folder(results, plan.spec.recipe)
    return run.execute(plan, folder, watcher or Watcher(), **more), folder


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(folder.student / "policy.safetensors")


def test_a_run_leaves_a_whole_record(tmp_path: Path) -> None:
    record, folder = execute(plan_of("gkd"), tmp_path)
    stored = read_record(folder.path / RECORD)
    assert stored == record
    assert record.status == "completed" and record.stopped_by == "steps"
    assert record.ledger["student_tokens"] == 12 * 4 * 8 == record.ledger["teacher_scored"]
    assert record.ledger["updates"] == 12 and record.ledger["teacher_tokens"] == 0
    assert [entry["step"] for entry in record.curve] == list(range(1, 13))
    assert len(record.validation) == 4
    for phase in ("before", "teacher", "after"):
        outcomes = read_outcomes(folder.path, record.outcomes[phase])
        assert len(outcomes) == 10  # five episodes, greedy and sampled
        greedy = [outcome["score"] for outcome in outcomes if outcome["mode"] == "greedy"]
        assert getattr(record, phase)["greedy"].mean == pytest.approx(sum(greedy) / 5)
    assert not (folder.path / CHECKPOINT).exists()


def test_equal_seeds_give_equal_records_and_other_seeds_do_not(tmp_path: Path) -> None:
    first, first_folder = execute(plan_of("opd"), tmp_path / "a")
    again, again_folder = execute(plan_of("opd"), tmp_path / "b")
    other, _ = execute(plan_of("opd", seed=1), tmp_path / "c")
    assert first.repeatable() == again.repeatable()
    for phase in ("before", "teacher", "after"):
        name = f"{phase}.jsonl.gz"
        assert (first_folder.path / name).read_bytes() == (again_folder.path / name).read_bytes()
    assert first.curve != other.curve


def test_a_finished_run_is_not_run_again_unless_asked(tmp_path: Path) -> None:
    first, _ = execute(plan_of("gkd"), tmp_path)
    watcher = Watcher()
    assert execute(plan_of("gkd"), tmp_path, watcher)[0] == first
    assert watcher.phases == []
    again, _ = execute(plan_of("gkd"), tmp_path, watcher, fresh=True)
    assert "training" in watcher.phases
    assert again.repeatable() == first.repeatable()


@pytest.mark.parametrize("method", ["gkd", "dagger"])
def test_a_run_that_died_goes_on_as_if_it_had_not(tmp_path: Path, method: str) -> None:
    """dagger carries its aggregated data and labels; both carry environments in the middle of an episode."""
    whole, whole_folder = execute(plan_of(method), tmp_path / "whole")

    def die(step: int) -> None:
        if step == 7:
            raise RuntimeError("the machine is gone")

    with pytest.raises(RuntimeError):
        execute(plan_of(method), tmp_path / "broken", Watcher(die))
    watcher = Watcher()
    resumed, resumed_folder = execute(plan_of(method), tmp_path / "broken", watcher)
    assert "evaluating: before" in watcher.phases and resumed.times.resumed == 1
    assert resumed.times.sitting == sitting.current()
    assert resumed.repeatable() == whole.repeatable()
    for name, tensor in weights(whole_folder).items():
        assert torch.equal(tensor, weights(resumed_folder)[name]), name


def test_a_run_is_of_the_sitting_that_trained_it(tmp_path: Path) -> None:
    """Also where another has begun it, and stopped before the first checkpoint."""
    plan = plan_of("opd", "checkpoint_seconds=1000")
    record, folder = execute(plan, tmp_path)
    record.times.sitting, record.status = "0" * 12, "started"
    folder.write_record(record)
    assert execute(plan, tmp_path)[0].times.sitting == sitting.current() != "0" * 12


def test_a_signal_stops_after_the_step_and_keeps_it(tmp_path: Path) -> None:
    def interrupt(step: int) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    plan = plan_of("opd", "checkpoint_seconds=1000")
    with pytest.raises(Cancelled):
        execute(plan, tmp_path, Watcher(interrupt))
    folder = run.run_folder(tmp_path, plan.spec.recipe)
    record = read_record(folder.path / RECORD)
    assert record.status == "cancelled" and "SIGTERM" in (record.reason or "")
    assert record.ledger["steps"] == 5
    steps: list[int] = []
    resumed, _ = execute(plan, tmp_path, Watcher(steps.append))
    assert steps[0] == 6 and resumed.status == "completed"


def test_a_loss_that_is_not_finite_is_recorded_as_diverged(tmp_path: Path) -> None:
    record, folder = execute(plan_of("gkd", "lr=3e38", "grad_clip=null"), tmp_path)
    assert record.status == "diverged" and "step" in (record.reason or "")
    assert read_record(folder.path / RECORD).status == "diverged"
    assert record.before and not record.after


@pytest.mark.parametrize("damage", ["cut", "altered", "not a checkpoint"])
def test_a_damaged_checkpoint_is_refused_with_the_way_out(tmp_path: Path, damage: str) -> None:
    def die(step: int) -> None:
        if step == 3:
            raise RuntimeError

    plan = plan_of("gkd")
    with pytest.raises(RuntimeError):
        execute(plan, tmp_path, Watcher(die))
    path = run.run_folder(tmp_path, plan.spec.recipe).path / CHECKPOINT
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[-1] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "altered": content, "not a checkpoint": b"{}"}[damage])
    with pytest.raises(UserError, match="--fresh"):
        execute(plan, tmp_path)
    record, _ = execute(plan, tmp_path, fresh=True)
    assert record.status == "completed"


def test_a_record_cut_short_is_refused_with_the_way_out(tmp_path: Path) -> None:
    plan = plan_of("gkd")
    _, folder = execute(plan, tmp_path)
    path = folder.path / RECORD
    path.write_text(path.read_text()[:500])
    with pytest.raises(UserError, match="--fresh"):
        execute(plan, tmp_path)


def test_outcomes_that_were_altered_are_noticed(tmp_path: Path) -> None:
    _, folder = execute(plan_of("gkd"), tmp_path)
    record = read_record(folder.path / RECORD)
    path = folder.path / record.outcomes["after"].file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="checksum"):
        read_outcomes(folder.path, record.outcomes["after"])


def test_an_unwritable_results_folder_is_one_sentence() -> None:
    with pytest.raises(UserError, match="--results"):
        execute(plan_of("gkd"), Path("/proc/results"))  # where not even root may write


def test_a_results_path_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(UserError, match="--results"):
        execute(plan_of("gkd"), tmp_path / "results")


def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path) -> None:
    """The kernel's own file-size limit stands in for a full disk: writes fail in the middle, as they would there."""
    plan = plan_of("dagger")
    folder = run.run_folder(tmp_path, plan.spec.recipe)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(step: int) -> None:
        if step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((folder.path / CHECKPOINT).stat().st_size - 1, hard))

    try:
        with pytest.raises(UserError, match="no space left"):
            execute(plan, tmp_path, Watcher(fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    record = read_record(folder.path / RECORD)
    assert record.status == "error" and "no space left" in (record.reason or "")
    assert unpack((folder.path / CHECKPOINT).read_bytes())["trainer"]["ledger"]["steps"] >= 5
    whole, _ = execute(plan, tmp_path / "whole")
    assert execute(plan, tmp_path)[0].repeatable() == whole.repeatable()


def test_two_processes_cannot_work_on_one_run(tmp_path: Path) -> None:
    plan = plan_of("gkd")
    folder = run.run_folder(tmp_path, plan.spec.recipe)
    with folder.lock(), pytest.raises(UserError, match="another process"):
        execute(plan, tmp_path)


def test_profiles_change_the_execution_and_never_the_recipe() -> None:
    plans = [plan_of("gkd", profile=name) for name in ("cpu-2", "gpu-24g", "gpu-80g", "gpu-141g", "gpu-8x80g")]
    assert len({plan.spec.recipe.digest() for plan in plans}) == 1
    assert len({plan.spec.execution.model_dump_json() for plan in plans}) > 1


def test_the_digest_follows_content_and_not_names(tmp_path: Path) -> None:
    from opdbench import models

    shipped = plan_of("gkd")
    copied = tmp_path / "copy"
    copied.mkdir()
    assert isinstance(shipped.teacher, Model)
    for file in shipped.teacher.path.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    by_path = plan_of("gkd", teacher=str(copied))
    assert models.checksum(copied) == shipped.spec.recipe.teacher.sha256  # type: ignore[union-attr]
    assert by_path.spec.recipe.digest() == shipped.spec.recipe.digest()
    assert plan_of("gkd", "lr=0.5").spec.recipe.digest() != shipped.spec.recipe.digest()


@pytest.mark.parametrize(("setting", "says"), [
    ("bta=0.5", "beta"), ("beta=2", "less than 1"), ("beta", "no value"), ("training.lrr=1", "lr"), ("lr=fast", "lr"),
    ("lmbda=nan", "lmbda")])
def test_a_wrong_setting_names_the_right_one(setting: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan_of("gkd", setting)


@pytest.mark.parametrize(("budget", "says"), [
    ("step=3", "steps"), ("steps=-1", "greater than 0"), ("steps=x", "not a number"), ("steps=1.5", "integer")])
def test_a_wrong_budget_says_what_is_right(budget: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan_of("gkd", budget=budget)


def test_a_token_budget_stops_the_run_at_the_first_step_that_reaches_it(tmp_path: Path) -> None:
    record, _ = execute(plan_of("gkd", budget="student_tokens=100,steps=50"), tmp_path)
    assert record.stopped_by == "student_tokens"
    assert record.ledger["student_tokens"] == 128  # four environments, eight steps, four rounds


def test_pack_keeps_integers_as_keys_and_tensors_as_they_were() -> None:
    tree = {"a": [1, 2.5, None, "x"], "empty": torch.zeros(0, 3),
            3: {"t": torch.arange(4, dtype=torch.int64), "b": torch.ones(2, dtype=torch.bool)}}
    back = unpack(pack(tree))
    assert back["a"] == tree["a"] and torch.equal(back[3]["t"], tree[3]["t"]) and back[3]["b"].dtype == torch.bool
    assert back["empty"].shape == (0, 3)


def test_the_record_is_plain_json_with_a_schema_version(tmp_path: Path) -> None:
    _, folder = execute(plan_of("sft"), tmp_path)
    content = json.loads((folder.path / RECORD).read_text())
    assert content["schema_version"] == 1 and list(content)[:3] == ["schema_version", "id", "status"]
    assert content["command"].startswith("opdbench run --method sft --task cartpole --seed 0")
