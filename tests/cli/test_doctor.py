"""`opdbench doctor`: what works, what is missing for what, and what is broken, without downloading anything."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from opdbench import models, registry
from opdbench.cli import doctor
from opdbench.cli.main import main


def findings(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[tuple[str, str], dict[str, str]]]:
    code = main(["doctor", "--json", *words])
    shown = json.loads(capsys.readouterr().out)
    assert shown["healthy"] == (code == 0)
    return code, {(finding["area"], finding["name"]): finding for finding in shown["findings"]}


def test_this_machine_is_healthy_and_what_is_missing_is_named(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)  # an `import Box2D` now fails, as where it is not installed
    for module in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, module)  # imported by an earlier test
    monkeypatch.setenv("OPDBENCH_DATA", str(tmp_path))
    code, found = findings(capsys, "--results", str(tmp_path / "results"))
    assert code == 0, [finding for finding in found.values() if finding["state"] == "broken"]
    for kind in registry.KINDS:
        assert {name for area, name in found if area == kind} == set(registry.names(kind))
    assert found["task", "cartpole"]["state"] == "ok"
    assert found["task", "lunarlander"]["state"] == "missing"
    assert "pip install" in found["task", "lunarlander"]["words"] and "box2d" in found["task", "lunarlander"]["words"]
    assert found["task", "gsm8k"]["state"] == "missing" and str(tmp_path) in found["task", "gsm8k"]["words"]
    assert found["model", "cartpole/teacher"]["words"].startswith("checksum verified")
    assert found["machine", "profile"]["words"].startswith("auto chooses ")
    assert not (tmp_path / "results").exists()


def test_the_table_ends_with_a_verdict(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = [doctor.Finding("task", "a", "missing", "needs b"), doctor.Finding("model", "c", "broken", "altered")]
    monkeypatch.setattr(doctor, "examine", lambda *_: iter(found))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.rstrip().endswith("1 broken: each line above says what and how to mend it")
    found.pop()
    assert main(["doctor"]) == 0
    assert "nothing is broken; 1 missing" in capsys.readouterr().out


def test_an_altered_model_is_found(tmp_path: Path) -> None:
    task = registry.load("task", "cartpole")()
    folder = shutil.copytree(models.shipped_models(task)["cartpole/teacher"], tmp_path / "teacher")
    assert doctor._verify("t", folder).state == "ok"
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    finding = doctor._verify("t", folder)
    assert finding.state == "broken" and "was altered" in finding.words
    (folder / "manifest.json").unlink()
    assert doctor._verify("t", folder).state == "broken"


def test_a_results_folder_that_cannot_be_written_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    finding = doctor._results(file / "results")
    assert finding.state == "broken" and "--results DIR" in finding.words
    assert doctor._results(tmp_path / "new" / "results").state == "ok"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
