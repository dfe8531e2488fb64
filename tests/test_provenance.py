"""Provenance names commit, dirtiness and versions; outside a checkout it says nothing rather than something wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import opdbench
from opdbench import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit of something that looks like opdbench."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    (tmp_path / "opdbench").mkdir()
    (tmp_path / "opdbench" / "__init__.py").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    monkeypatch.setattr(opdbench, "__file__", str(tmp_path / "opdbench" / "__init__.py"))
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    assert provenance.checkout() == (git(checkout, "rev-parse", "HEAD"), False)


def test_results_do_not_make_a_checkout_dirty_and_code_does(checkout: Path) -> None:
    (checkout / "results").mkdir()
    (checkout / "results" / "record.json").write_text("{}")
    assert provenance.checkout().dirty is False
    (checkout / "opdbench" / "new.py").write_text("")
    assert provenance.checkout().dirty is True


def test_a_package_inside_somebody_elses_repository_has_no_commit(
        checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = checkout / "venv" / "site-packages" / "opdbench"
    site.mkdir(parents=True)
    monkeypatch.setattr(opdbench, "__file__", str(site / "__init__.py"))
    assert provenance.checkout() == (None, None)


def test_what_a_record_keeps_is_json_and_repeats() -> None:
    import torch

    found = provenance.collect()
    assert json.loads(json.dumps(found)) == found == provenance.collect()
    assert found["packages"]["torch"] == torch.__version__
    assert "no-such-package" not in found["packages"]
