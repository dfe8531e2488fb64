"""A stranger's path, as CONTRIBUTING.md gives it: its commands are typed here, with a budget that fits a test."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from opdbench import provenance
from opdbench.cli.main import main
from opdbench.provenance import Checkout

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text()
SMALL = ["--budget", "steps=2", "--set", "evaluation.examples=6", "--set", "curve_points=0"]


def command(name: str) -> list[str]:
    """The one line of the shell block below the comment that names it."""
    block = TEXT.partition(f"<!-- command: {name} -->\n```sh\n")[2].partition("\n```")[0]
    words = shlex.split(block)
    assert words[0] == "opdbench"
    return words[1:]


def git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a board, in which a stranger works; opdbench itself counts as committed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "checkout", lambda: Checkout("f" * 40, False))
    for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
        monkeypatch.setenv(name, "stranger@example.org")
    board = {"title": "Small", "task": "text-maze@1", "budget": {"steps": 2}, "examples": 6,
             "teacher": "text-maze/teacher", "student": "text-maze/student"}
    (tmp_path / "leaderboards" / "small").mkdir(parents=True)
    (tmp_path / "leaderboards" / "small" / "board.yaml").write_text(yaml.safe_dump(board))
    git("init", "-q", "-b", "trunk")
    git("add", ".")
    git("commit", "-qm", "A board")
    return tmp_path


def test_a_strangers_path(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("new")) == 0
    assert main(command("check")) == 0
    assert main([*command("run"), *SMALL]) == 0
    before = git("status", "--porcelain")
    assert main(command("submit")) == 0
    assert "every check passed" in capsys.readouterr().out
    assert main([*command("verify"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["passed"] and "mine (submitted)" in shown["comparison"] and "re-graded" in shown["comparison"]
    assert [check["message"] for check in shown["checks"] if check["name"] == "grades"] == [
        "180 texts graded again, all as recorded"]
    changed = set(git("status", "--porcelain").splitlines()) ^ set(before.splitlines())
    assert changed == {"?? mine.zip"}  # the branch was made beside the working tree
    _as_ci_sees_it(checkout, capsys)


def _as_ci_sees_it(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The branch, checked out elsewhere: sound as it is, refused when anything else is changed with it."""
    git("worktree", "add", "-q", "pull", "submission/mine")
    place = checkout / "pull"
    verify = ["submissions", "verify", str(place / "submissions" / "mine"), "--repository", str(place),
              "--results", str(place / "results"), "--leaderboards", str(place / "leaderboards"), "--base", "trunk"]
    assert main(verify) == 0
    record = next(place.glob("results/text-maze/mine/*/record.json"))
    tampering: list[tuple[str, Callable[[], object]]] = [
        ("another results/", lambda: record.write_text(record.read_text() + " ")),
        ("changes leaderboards/small/board.yaml", lambda: (place / "leaderboards/small/board.yaml").write_text("a: 1")),
        ("removes leaderboards/small/board.yaml", lambda: (place / "leaderboards/small/board.yaml").unlink()),
        ("adds results/trust.json", lambda: (place / "results" / "trust.json").write_text("{}")),
        ("which its manifest does not name", lambda: (place / "submissions/mine/more.py").write_text("")),
    ]
    for says, tamper in tampering:
        capsys.readouterr()
        tamper()
        assert main(verify) == 3
        shown = capsys.readouterr()
        assert says in shown.out + shown.err
        git("-C", str(place), "checkout", "-q", ".")
        git("-C", str(place), "clean", "-fdq")
