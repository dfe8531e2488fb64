"""`opdbench results`: faults are found, questions answered from a table alone, formats are as others read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from opdbench.cli.main import main
from opdbench.report.index import INDEX, query
from tests.hostile import samples

duckdb = pytest.importorskip("duckdb")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for seed in range(3):
        samples.write_run(tmp_path / "results", samples.recipe("0" * 64, seed))
    return tmp_path / "results"


def test_validate(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "validate", "--results", str(results)]) == 0
    assert "3 records, no faults" in capsys.readouterr().out
    first, second, third = sorted(results.glob("*/*/s*"))
    shutil.copytree(first, first.with_name("copy"))
    (second / "record.json").write_text("{")
    (third / "after.jsonl.gz").unlink()
    assert main(["results", "validate", str(results), "--json"]) == 3
    said = " ".join(fault["problem"] for fault in json.loads(capsys.readouterr().out)["faults"])
    for words in ("belongs into", "another record of this run", "not a whole record", "cannot read"):
        assert words in said


def test_query(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ask(sql: str, *words: str) -> int:
        return main(["results", "query", sql, "--results", str(results), *words])

    assert ask("SELECT method, count(*) AS n, min(seed) AS first FROM runs GROUP BY method", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"method": "mine", "n": 3, "first": 0}]
    assert ask("SELECT seed, after_greedy FROM runs ORDER BY seed") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["SEED", "AFTER_GREEDY"]


def test_the_index_follows_the_records(results: Path) -> None:
    counting = "SELECT status, count(*) FROM runs GROUP BY status ORDER BY status"
    assert query(results, counting).rows == [("completed", 3)]
    written = (results / INDEX).stat().st_mtime_ns
    assert query(results, counting).rows == [("completed", 3)] and (results / INDEX).stat().st_mtime_ns == written
    first, second, _ = sorted(results.glob("*/*/*/record.json"))
    first.write_text("{}")
    second.unlink()
    samples.write_run(results, samples.recipe("0" * 64, 7), status="error", reason="'; DROP TABLE runs; --")
    assert query(results, counting).rows == [("completed", 1), ("error", 1), ("unreadable", 1)]
    (results / INDEX).write_bytes(b"no parquet")
    assert query(results, counting).rows == [("completed", 1), ("error", 1), ("unreadable", 1)]


@pytest.mark.parametrize("sql", [
    "SELECT * FROM read_csv('/etc/passwd')", "COPY runs TO 'x.csv'", "ATTACH 'x.db'", "INSTALL httpfs", "SELCT",
    "SET enable_external_access = true", "SELECT nothing FROM runs", "SELECT * FROM '/etc/passwd'"])
def test_a_query_sees_the_table_alone(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                      monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["results", "query", sql, "--results", str(results)]) == 1
    assert "cannot be answered" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_export_for_the_hub(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import parse_eval_result_entries

    record = str(sorted(results.glob("*/*/s*"))[0])
    assert main(["results", "export", record, "--to", "hf", "--dataset", "me/maze", "--source", "https://example.org",
                 "--out", str(tmp_path)]) == 0
    (entry,) = parse_eval_result_entries(yaml.safe_load((tmp_path / ".eval_results" / "text-maze.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.source_name) == ("me/maze", "text-maze", "opdbench")
    assert entry.value == json.loads((Path(record) / "record.json").read_text())["after"]["greedy"]["mean"]
    assert main(["results", "export", record, "--to", "hf"]) == 2 and "--dataset" in capsys.readouterr().err
    assert main(["results", "export", str(results), "--to", "hf", "--dataset", "a/b"]) == 1


def test_export_for_every_eval_ever(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fields that its schema 0.3.0 requires, and of their types (the whole was held to it once, by hand)."""
    record = str(sorted(results.glob("*/*/s*"))[0])
    words = ["results", "export", record, "--to", "eee", "--organization", "me", "--model"]
    assert main([*words, "me/maze"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"schema_version", "evaluation_id", "retrieved_timestamp", "source_metadata", "eval_library", "model_info",
            "evaluation_results"} <= content.keys()
    assert content["schema_version"] == "0.3.0" and content["retrieved_timestamp"].isdecimal()
    for result in content["evaluation_results"]:
        assert {"evaluation_name", "source_data", "metric_config", "score_details"} <= result.keys()
        assert isinstance(result["score_details"]["score"], float)
    for details in (content["model_info"], content["eval_library"], content["source_metadata"]):
        assert all(isinstance(value, str) for value in details["additional_details"].values())
    assert main([*words, "../x"]) == 1 and "names no model" in capsys.readouterr().err


def test_wrong_words(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "query"]) == 2 and "needs a question" in capsys.readouterr().err
    assert main(["results", "exprot"]) == 2 and "did you mean 'export'" in capsys.readouterr().err
    assert main(["results", "export", str(results)]) == 2 and "--to" in capsys.readouterr().err
