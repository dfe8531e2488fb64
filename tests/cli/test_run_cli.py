"""`opdbench run` as a user meets it: real processes, real signals, real files, and what is said of bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from opdbench.cli import main as cli
from opdbench.schema.record import Record
from opdbench.store import CHECKPOINT, RECORD, read_outcomes, read_record
from tests.lm import models

SMALL = ("--set", "examples=4", "--set", "curve_examples=2", "--set", "batch=4", "--set", "horizon=8")
CARTPOLE = ("run", "--task", "cartpole", *SMALL)
FAILED, USAGE, INTERRUPTED = 1, 2, 130
SECONDS = 180  # before a process that should have ended is given up

# A method in one file: it learns, or with `bad_step` its loss stops being a number there.
PLUGIN = '''
"""Reverse KL on the student's own states, until a step that goes wrong."""

from opdbench.actors import Student
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import reverse_kl


class Fragile(Distiller):
    """A loss can stop being a number."""

    name = "fragile"
    paper = "none"
    needs = Needs.FULL

    class Params(Distiller.Params):
        bad_step: int = -1

    def collect(self, ctx):
        return ctx.rollout(Student(ctx.training.temperature))

    def loss(self, rows, ctx):
        value_n = reverse_kl(rows.teacher, rows.student)
        return Loss(value_n * float("nan") if ctx.step == self.params.bad_step else value_n)
'''


def start(*words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "opdbench", *map(str, words)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def opdbench(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "opdbench", *map(str, words)], capture_output=True, text=True,
                          timeout=SECONDS)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Poll fast enough to catch a run between two steps."""
    give_up = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < give_up
        time.sleep(0.005)


def only_run(results: Path) -> Path:
    """The folder of the single run below a results folder."""
    (record,) = results.glob(f"*/*/*/{RECORD}")
    return record.parent


def checkpoint(results: Path) -> Path | None:
    return next(results.glob(f"*/*/*/{CHECKPOINT}"), None)


def kill_after_a_checkpoint(results: Path, words: tuple[str, ...]) -> Record:
    """`kill -9` as soon as a (new) checkpoint is there; the record that is left behind."""
    earlier = found.stat().st_mtime_ns if (found := checkpoint(results)) else 0
    process = start(*words, "--results", results)
    wait_until(lambda: (found := checkpoint(results)) is not None and found.stat().st_mtime_ns > earlier, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return read_record(only_run(results) / RECORD)


def trained(results: Path) -> bytes:
    """The bytes of the trained student's weights."""
    (weights,) = (only_run(results) / "student").glob("*.safetensors")
    return weights.read_bytes()


def assert_same_run(results: Path, other: Path) -> None:
    """Weights, scores, counts, curves and raw outcomes are equal, byte for byte where they are files."""
    first, second = (read_record(only_run(folder) / RECORD) for folder in (results, other))
    assert first.status == second.status == "completed"
    assert first.repeatable() == second.repeatable()
    assert trained(results) == trained(other)
    for phase in ("before", "teacher", "after"):
        assert read_outcomes(only_run(results), first.outcomes[phase]) == \
               read_outcomes(only_run(other), second.outcomes[phase])


# ------------------------------------------------------------------------------------------------ interruptions


def test_kill_9_and_again_is_as_if_nothing_had_happened_with_aggregated_data(tmp_path: Path) -> None:
    """DAgger carries its growing data, their labels, and environments in the middle of an episode."""
    words = (*CARTPOLE, "--method", "dagger", "--budget", "steps=40", "--set", "checkpoint_seconds=0", "--json")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli.main([*words, "--results", str(whole)]) == 0
    left_behind = kill_after_a_checkpoint(killed, words)
    assert left_behind.status == "started" and left_behind.before and not left_behind.after
    done = opdbench(*words, "--results", killed)
    assert done.returncode == 0 and "training goes on after step" in done.stderr
    assert read_record(only_run(killed) / RECORD).times.resumed == 1
    assert_same_run(whole, killed)


def test_ctrl_c_then_kill_9_then_to_the_end_on_a_task_with_turns(tmp_path: Path) -> None:
    words = ("run", "--method", "gkd", "--task", "text-maze", "--budget", "steps=8", "--set", "examples=6",
             "--set", "curve_examples=2", "--set", "batch=8", "--set", "checkpoint_seconds=0", "--json")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert cli.main([*words, "--results", str(whole)]) == 0

    process = start(*words, "--results", stopped)
    wait_until(lambda: checkpoint(stopped) is not None, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == INTERRUPTED and "Traceback" not in err
    shown = json.loads(out)
    assert shown["status"] == "cancelled" and "SIGINT" in shown["reason"]
    assert 0 < shown["ledger"]["steps"] < 8
    assert "type the same command again" in err
    assert read_record(Path(shown["record"])).status == "cancelled"

    assert kill_after_a_checkpoint(stopped, words).status == "started"
    assert opdbench(*words, "--results", stopped).returncode == 0
    assert read_record(only_run(stopped) / RECORD).times.resumed >= 1
    assert_same_run(whole, stopped)


# --------------------------------------------------------------------------------------------------- what is shown


def test_json_is_one_object_and_a_finished_run_is_not_run_again(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*CARTPOLE, "--method", "opd", "--budget", "steps=3", "--seeds", "0:2", "--json",
             "--results", str(tmp_path)]
    done = opdbench(*words)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["status"] == "completed" and len(shown["runs"]) == 2
    assert "evaluating: before" in done.stderr and "KL to teacher" in done.stderr and "steps/s" in done.stderr
    records = [Path(run["record"]) for run in shown["runs"]]
    assert [read_record(record).recipe.seed for record in records] == [0, 1]
    for run in shown["runs"]:
        assert {"status", "record", "before", "after", "teacher", "gap_recovered", "ledger"} <= set(run)
        assert run["ledger"]["student_tokens"] == 3 * 4 * 8
        assert set(run["before"]) == {"greedy", "sampled"}

    contents = [record.read_bytes() for record in records]
    assert cli.main(words) == 0
    again = capsys.readouterr()
    assert json.loads(again.out) == shown
    assert [record.read_bytes() for record in records] == contents
    assert "this run is finished" in again.err and "evaluating" not in again.err


def test_the_end_is_a_table_with_the_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*CARTPOLE, "--method", "gkd", "--budget", "steps=2", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    for row in ("before", "after", "teacher", "gap recovered", "sampled", "teacher scored", "compute", "record"):
        assert f"\n{row} " in shown.out
    next_command = shown.out.strip().rpartition("next: opdbench ")[2]
    assert cli.main(next_command.split()) == 0
    assert "gkd on cartpole@1, seed 0: completed" in capsys.readouterr().out


def test_a_dry_run_starts_nothing_and_says_where_each_value_came_from(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    words = ["run", "--method", "gkd", "--task", "cartpole", "--set", "beta=0.25", "--results", str(results),
             "--dry-run"]
    assert cli.main(words) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["method.beta"] == ["0.25", "user"]
    assert rows["training.lr"] == ["0.01", "task"]
    assert rows["training.grad_clip"] == ["1.0", "default"]
    assert rows["execution.device"][0] == "cpu" and rows["execution.device"][1] == "profile"
    assert all(label in rows for label in ("tokens", "compute", "memory", "time", "budget.steps"))
    assert cli.main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["status"] == "planned" and plan["estimate"]["tokens"] == 200 * 32 * 32
    assert not results.exists()


def test_a_dry_run_for_a_machine_with_a_gpu_works_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--method", "gkd", "--task", "cartpole", "--profile", "gpu-80g"]
    assert cli.main([*words, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["execution"]["device"] == "cuda" and plan["estimate"]["flops"] > 0


# ----------------------------------------------------------------------------------------------------- plugin files


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    file = tmp_path / "fragile.py"
    file.write_text(PLUGIN)
    return str(file)


def test_a_method_in_a_file_runs(tmp_path: Path, plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*CARTPOLE, "--plugin", plugin, "--method", "fragile", "--budget", "steps=3", "--results", str(tmp_path)]
    assert cli.main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["ledger"]["updates"] == 3
    assert read_record(Path(shown["record"])).recipe.params == {"bad_step": -1}


def test_a_loss_that_is_not_a_number_is_one_sentence(tmp_path: Path, plugin: str,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    words = [*CARTPOLE, "--plugin", plugin, "--method", "fragile", "--set", "bad_step=2", "--results", str(tmp_path)]
    assert cli.main([*words, "--json"]) == FAILED
    out, err = capsys.readouterr()
    shown = json.loads(out)
    assert shown["status"] == "diverged" and "step 3: loss nan" in shown["reason"]
    assert shown["before"] and not shown["after"] and shown["ledger"]["updates"] == 2
    problem, fix = err.strip().splitlines()[-2:]
    assert problem.startswith("opdbench: diverged: step 3") and "--set lr=0.001" in fix
    assert read_record(Path(shown["record"])).status == "diverged"


# -------------------------------------------------------------------------------------------------------- bad input


def fails(capsys: pytest.CaptureFixture[str], exit_code: int, *words: str | Path) -> str:
    """What stderr says of a command that must end with `exit_code`, one problem and one fix."""
    assert cli.main([str(word) for word in words]) == exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    problem, fix = shown.err.strip().splitlines()[-2:]
    assert problem.startswith("opdbench: ") and fix.startswith("  fix: ")
    return f"{problem}\n{fix}"


@pytest.mark.parametrize(("words", "problem", "fix"), [
    (("--method", "gdk"), "unknown method 'gdk'", "'gkd'"),
    (("--method", "gkd@2"), "gkd@2 does not exist", "gkd@1"),
    (("--task", "cartpol"), "unknown task 'cartpol'", "'cartpole'"),
    (("--profile", "gpu80"), "unknown profile 'gpu80'", "'gpu-80g'"),
    (("--set", "bta=0.5"), "unknown setting 'bta'", "'beta'"),
    (("--set", "beta"), "no value", "--set key=value"),
    (("--set", "beta=2"), "less than 1", "--set beta="),
    (("--set", "divergence=jd"), "'jsd'", "--set divergence="),
    (("--set", "lr=fast"), "valid number", "--set lr="),
    (("--set", "lr=[1"), "cannot be read", "YAML"),
    (("--set", "lr=2024-13-01"), "cannot be read", "YAML"),
    (("--set", "lr=.inf"), "finite number", "--set lr="),
    (("--set", "profile=gpu-80g"), "not a setting", "--profile gpu-80g"),
    (("--budget", "stps=5"), "unknown budget 'stps'", "'steps'"),
    (("--budget", "100"), "'100' is not an axis and a limit", "steps=100"),
    (("--budget", "steps=many"), "not a number", "--budget steps="),
    (("--budget", "steps=0"), "greater than 0", "--budget steps="),
    (("--budget", "steps=1.5"), "valid integer", "--budget steps="),
    (("--budget", "steps=inf"), "steps=inf", "--budget steps="),
    (("--budget", "seconds=nan"), "finite number", "--budget seconds="),
    (("--seed", "-1"), "negative", "positive"),
    (("--seeds", "3:3"), "not a range", "0:5"),
])
def test_a_wrong_word_names_the_right_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...],
                                          problem: str, fix: str) -> None:
    results = tmp_path / "results"
    said = fails(capsys, USAGE, "run", "--method", "gkd", "--task", "cartpole", "--results", results, *words)
    assert problem in said.splitlines()[0] and fix in said.splitlines()[1]
    assert not results.exists()


def test_a_usage_error_of_a_real_process_has_no_traceback() -> None:
    done = opdbench("run", "--method", "gkd", "--task", "cartpole", "--set", "lmbda=7", "--json")
    assert done.returncode == USAGE and "Traceback" not in done.stderr
    said = json.loads(done.stdout)
    assert said["status"] == "error" and "lmbda = 7" in said["error"]["problem"]


def test_a_missing_model_is_answered_with_what_to_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, FAILED, *CARTPOLE, "--method", "gkd", "--teacher", tmp_path / "gone", "--results", tmp_path)
    assert f"no teacher model '{tmp_path / 'gone'}'" in said and "pass --teacher" in said


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_model_that_was_cut_short_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                               dry: tuple[str, ...]) -> None:
    folder = tmp_path / "teacher"
    models.make(folder, "qwen3")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = fails(capsys, FAILED, "run", "--method", "gkd", "--task", "base-conversion", "--teacher", folder,
                 "--results", tmp_path / "results", *dry)
    assert str(weights) in said


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.make(tmp_path / "teacher", "qwen3")
    said = fails(capsys, FAILED, "run", "--method", "gkd", "--task", "base-conversion", "--teacher",
                 tmp_path / "teacher", "--results", tmp_path / "results")
    assert "tokenizers do not match" in said
    assert read_record(only_run(tmp_path / "results") / RECORD).status == "error"


def test_a_policy_for_another_environment_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, FAILED, *CARTPOLE, "--method", "gkd", "--teacher", "acrobot/teacher", "--results", tmp_path)
    assert "3 actions" in said and "2" in said


def test_solutions_are_not_asked_of_a_task_that_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    said = fails(capsys, FAILED, *CARTPOLE, "--method", "sft", "--set", "data=solutions", "--results", results)
    assert "cartpole@1 has none" in said and "--set data=teacher" in said
    assert not results.exists()


def test_a_real_task_without_models_says_what_to_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, FAILED, "run", "--method", "gkd", "--task", "gsm8k", "--profile", "cpu-2",
                 "--results", tmp_path)
    assert "ships no teacher" in said and "--teacher Qwen/Qwen3-8B" in said


def test_a_gpu_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    said = fails(capsys, FAILED, *CARTPOLE, "--method", "gkd", "--profile", "gpu-80g", "--results", tmp_path)
    assert "profile gpu-80g computes on a GPU" in said and "--profile cpu-2" in said


def test_a_results_folder_that_cannot_be_written_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, FAILED, *CARTPOLE, "--method", "gkd", "--results", "/proc/results")  # not even root may
    assert "cannot write /proc/results" in said and "--results DIR" in said


def test_an_altered_record_is_not_taken_for_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*CARTPOLE, "--method", "gkd", "--budget", "steps=1", "--results", str(tmp_path)]
    assert cli.main(words) == 0
    capsys.readouterr()
    record = only_run(tmp_path) / RECORD
    record.write_bytes(record.read_bytes()[:200])
    assert "--fresh" in fails(capsys, FAILED, *words)
    assert cli.main([*words, "--fresh"]) == 0
    assert read_record(record).status == "completed"
