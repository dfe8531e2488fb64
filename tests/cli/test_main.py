"""The command line answers at once, names the nearest valid word, and ends with the right exit code."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import textwrap
import time
from importlib.metadata import version

import pytest

from opdbench.cli import main as cli
from opdbench.errors import UserError

SECONDS = 0.8  # of CPU, within which `--help` and `list` must have answered: twice what reading a hundred classes takes


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "opdbench", *words], capture_output=True, text=True)


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "methods"], ["list", "tasks", "--json"],
                                   ["list", "profiles"], ["run", "--help"], ["--version"]])
def test_help_and_list_answer_at_once(words: list[str]) -> None:
    """The wall time where that is short; on a busy machine, where it measures the neighbours, the CPU time."""
    shortest = float("inf")
    for _ in range(5):
        wall, cpu = time.perf_counter(), children_seconds()
        assert run(*words).returncode == 0
        shortest = min(shortest, time.perf_counter() - wall, children_seconds() - cpu)
    assert shortest < SECONDS


@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "--json"], ["run", "--help"], ["doctor", "--help"]])
def test_help_and_list_import_nothing_heavy(words: list[str]) -> None:
    script = f"""
        import sys
        from opdbench.cli.main import main
        try:
            main({words!r})
        except SystemExit:
            pass
        heavy = {{"torch", "transformers", "pydantic", "numpy", "gymnasium", "reasoning_gym", "datasets", "rich"}}
        print("imported:", sorted(heavy & set(sys.modules)), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.stderr.strip() == "imported: []"


def test_every_verb_has_a_module_that_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as done:
            cli.main([verb, "--help"])
        assert done.value.code == 0
        assert f"usage: opdbench {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "problem", "fix"), [
    (["lst"], "unknown command 'lst'", "'list'"),
    (["list", "method"], "unknown choice 'method'", "'methods'"),
    (["run", "--metod", "gkd"], "'--metod'", "'--method'"),
    (["run", "--method"], "expected one argument", "opdbench run --help"),
    (["run", "--meth", "gkd", "--task", "x"], "'--meth'", "'--method'"),
    (["--jsn"], "'--jsn'", "--version"),
    (["show"], "required: NAME|RECORD", "opdbench show --help"),
    (["show", "a", "b"], "unrecognized arguments: b", "opdbench show --help"),
    (["show", "gdk"], "unknown name 'gdk'", "'gkd'"),
])
def test_a_wrong_word_is_a_usage_error_with_the_nearest_right_one(
        capsys: pytest.CaptureFixture[str], words: list[str], problem: str, fix: str) -> None:
    assert cli.main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second = shown.err.strip().split("\n")
    assert first.startswith("opdbench: ") and problem in first
    assert second.startswith("  fix: ") and fix in second


def test_with_json_an_error_is_an_object_on_stdout_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "gdk", "--json"]) == 2
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert error["problem"] == "unknown name 'gdk'" and "'gkd'" in error["fix"] and error["exit_code"] == 2
    assert "Traceback" not in shown.err


def test_no_verb_prints_the_help_and_counts_as_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: opdbench VERB" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0 and capsys.readouterr().out == f"opdbench {version('opdbench')}\n"


def test_an_errors_own_exit_code_is_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> int:
        raise UserError("no", exit_code=3)

    monkeypatch.setattr("opdbench.cli.list.execute", fail)
    assert cli.main(["list"]) == 3


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("opdbench.cli.list.execute", interrupt)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "opdbench: interrupted\n"


def test_a_reader_that_stops_reading_is_no_error() -> None:
    # A pipe without a reader: the first write fails, as after `| head`.
    process = subprocess.Popen([sys.executable, "-m", "opdbench", "list", "--json"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == b""
