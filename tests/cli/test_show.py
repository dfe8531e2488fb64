"""`opdbench show`: what a method, a task, a profile and a record say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench import registry
from opdbench.cli.main import main
from opdbench.cli.show import read_manifest
from opdbench.errors import UserError
from opdbench.page import read_page


def show(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["show", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", registry.names("method"))
def test_a_method_shows_everything_that_its_page_must_hold(capsys: pytest.CaptureFixture[str], name: str) -> None:
    shown = json.loads(show(capsys, name, "--json"))
    method = registry.load("method", name)
    for part in ("claim", "equation", "deviations", "paper", "needs", "domains", "path"):
        assert shown[part], part
    assert shown["lines"] == len(Path(shown["path"]).read_text().splitlines())
    assert [row["name"] for row in shown["parameters"]] == list(method.Params.model_fields)
    assert all(row["meaning"] and not row["required"] for row in shown["parameters"])


def test_a_methods_text_gives_parameters_with_default_bounds_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, "gkd")
    field = registry.load("method", "gkd").Params.model_fields["lmbda"]
    row = next(line for line in text.splitlines() if line.startswith("lmbda "))
    assert " ".join(row.split()) == f"lmbda {field.default} float >= 0, <= 1 {field.description}"
    assert "jsd | forward_kl | reverse_kl" in text


def test_a_language_task_shows_its_protocol_sizes_models_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(show(capsys, "text-maze", "--json"))
    task = registry.load("task", "text-maze")()
    assert shown["id"] == task.id and shown["protocol"] == task.protocol and shown["license"] == task.license
    assert shown["size"] == {"max_new_tokens": task.max_new_tokens,
                             **{split: len(task.examples(split)) for split in ("train", "validation", "test")}}
    assert shown["budget"] == dict(task.budget) and shown["training"] == dict(task.training)
    assert shown["teacher"]["reference"] == task.teacher


def test_a_control_task_shows_its_teachers_measured_score(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(show(capsys, "cartpole@1", "--json"))
    score = shown["teacher"]["manifest"]["score"]["greedy"]["mean"]
    assert score > 475
    text = show(capsys, "cartpole")
    assert f"greedy {score:.4g}" in text
    assert "made by: opdbench teacher train cartpole" in text


def test_a_task_whose_data_are_not_here_says_how_to_get_them(
        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPDBENCH_DATA", raising=False)
    shown = json.loads(show(capsys, "gsm8k", "--data", str(tmp_path), "--json"))
    assert str(tmp_path) in shown["size"]["missing"] and "fix:" in shown["size"]["missing"]
    assert shown["teacher"]["by_profile"]["gpu-80g"] == "Qwen/Qwen3-8B"


def test_a_profile_shows_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(show(capsys, "gpu-80g", "--json"))
    assert shown["execution"]["device"] == "cuda" and shown["execution"]["profile"] == "gpu-80g"
    assert "generation_batch" in show(capsys, "gpu-80g")


def test_a_run_is_shown_by_its_folder_and_by_its_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--method", "gkd", "--task", "cartpole", "--budget", "steps=1", "--set", "batch=2",
                 "--set", "horizon=4", "--set", "evaluation.examples=2", "--set", "evaluation.curve_points=0",
                 "--results", str(tmp_path), "--json"]) == 0
    record = Path(json.loads(capsys.readouterr().out)["record"])
    stored = json.loads(record.read_text())
    assert json.loads(show(capsys, str(record), "--json")) == stored
    assert json.loads(show(capsys, str(record.parent), "--json")) == stored
    assert "gkd on cartpole@1, seed 0: completed" in show(capsys, str(record))
    record.write_text(record.read_text()[:-40])
    assert main(["show", str(record)]) == 1
    assert "not a whole record" in capsys.readouterr().err


def test_what_is_no_record_is_refused_clearly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tmp_path)]) == 1
    assert f"there is no record at {tmp_path}" in capsys.readouterr().err
    assert main(["show", str(tmp_path / "absent.json")]) == 1
    assert "there is no record" in capsys.readouterr().err


def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    for content in ("{", "[1]"):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(UserError, match="manifest"):
            read_manifest(tmp_path)


def test_a_page_is_split_where_its_indentation_says() -> None:
    page = read_page("""A claim.

        L = a
          + b

    Some text
    over two lines.

        M = c

    Deviations from the paper:
        One thing.

        Another.
    """)
    assert page == ("A claim.", "L = a\n  + b\n\nM = c", "Some text over two lines.", "One thing.\n\nAnother.",
                    ("    L = a\n      + b", "Some text over two lines.", "    M = c"))
    assert read_page("Only a claim.") == ("Only a claim.", "", "", "", ())
    assert read_page(None) == ("", "", "", "", ())
