"""Records and raw outcomes that no run wrote: refused in one sentence, wherever they are read, and never on a terminal
as they are."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opdbench import untrusted
from opdbench.cli.main import main
from opdbench.errors import UserError
from opdbench.report.runs import read_records, with_outcomes
from opdbench.store import read_record
from opdbench.untrusted import HIDDEN, RefusedError, parse_json, read
from tests.hostile import samples
from tests.report.synthetic import write_board, write_run

HOSTILE = ["<script>alert(1)</script>", "\x1b[31mred\x1b[0m", "\u202egnp.exe", "../../etc/passwd", "\x00", "=1+1",
           "a" * 100_000, "'; DROP TABLE runs; --", "\x9b2J", "`id`", "$(id)", "{{7*7}}"]


@pytest.mark.parametrize(("text", "says"), [
    (b'{"a": 1, "a": 2}', "key twice"), (b'{"a": {"b": 1, "b": 1}}', "key twice"), (b"[NaN]", "NaN"),
    (b"[-Infinity]", "-Infinity"), (b"[1e999]", "beyond 1e.300"), (b"[-1e999]", "beyond"), (b"1" * 400, "beyond"),
    (b"1" * 5000, "beyond"), (b"[" * 100_000, "not JSON"), (b'["\\u001b[31m"]', "control"), (b"[1" + b"0" * 350 +
     b".5]", "beyond"), ('["\u202e"]'.encode(), "direction"), (b'["\\u202e"]', "direction"), (b'{"\\b": 1}', "control"),
    (b"\xff", "not JSON"), (b"", "not JSON"), (b"{", "not JSON"), (b'"\x1b"', "not JSON"), (b'["\\ud800", "\\f"]',
                                                                                         "control"),
])
def test_json_is_strict(text: bytes, says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        parse_json(text)


@pytest.mark.parametrize("text", [b'["C:\\\\build", "\\ttab\\nline"]', b'[1e-300, -0.0, 1E+2, "\\u00e9\\\\u202e"]',
                                  '["日本語 עברית 😀"]'.encode(), b'["' + b"9" * 500 + b'"]'])
def test_what_people_write_is_read(text: bytes) -> None:
    assert parse_json(text) == json.loads(text)


PIECES = [b'"', b":", b" ", b"{", b"}", b"[", b"]", b",", b"\\", b"e", b"0", b"-", b".", b'"a": 1, ', b'"a" : 1,',
          b"NaN", b"1e999", b"1e305", b"9" * 320, b"Infinity", b"null", b"\x00", b"\x7f", b"\xff", b"\n", b"+1", b"01",
          b"1.", b"\xef\xbb\xbf", b'"\\ud800"', b'\\"', b'":', b"\r", "\u202e".encode()]


def mutated(rng: random.Random) -> bytes:
    text = bytearray(rng.choice([b'{"a": [1, 2.5, -0, -0.0, 1e5, {"b": "x:y", "c": null}], "d": "\\u00e9", "e": true}',
                                 b'{"a":{"b":{"a":1,"b":2e-7}},"c":":x"}', '{"é": "日本", "f": {}}'.encode()]))
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(text) + 1)
        text[at:at + rng.choice([0, 0, 1, 9])] = rng.choice([rng.choice(PIECES), bytes(text[at:at + 20]) * 2])
    return bytes(text)


def test_the_quick_parser_accepts_what_the_strict_one_does_and_nothing_else() -> None:
    rng, seen = random.Random(0), 0
    for _ in range(4000):
        text = mutated(rng)
        if (quick := untrusted._quick(text, [text])) is not None:
            seen += 1
            assert repr(quick[0]) == repr(untrusted._BOUNDED.decode(text.decode()))
    assert seen > 100


@pytest.mark.parametrize(("line", "says"), [
    (b'{"a": 1, "a": 2}', "key twice"), (b'{"a" : 1, "a": 2}', "key twice"), (b'{"a" : 1, "a": ":"}', "key twice"),
    (b'{"a":1,"a":2,"b":":"}', "key twice"), (b'{"a": NaN}', "NaN"), (b"[1", "not JSON"), (b"1, 2", "not JSON"),
    (b"", "not JSON"),
])
def test_lines_are_strict(line: bytes, says: str) -> None:
    with pytest.raises(RefusedError, match=says):
        untrusted.parse_lines(b'{"id": "x"}\n' + line + b"\n{}\n")


def test_files_are_regular_and_small(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(11))
    (tmp_path / "link").symlink_to("large")
    for name, says in (("large", "larger than"), ("link", "symbolic link"), (".", "no regular file")):
        with pytest.raises(RefusedError, match=says):
            read(tmp_path / name, 10)
    with pytest.raises(RefusedError):
        read(Path("/dev/zero"), 10)
    sparse = tmp_path / "record.json"
    with sparse.open("wb") as handle:
        handle.truncate(1 << 40)  # a tebibyte of nothing
    with pytest.raises(UserError, match="larger than 4 MiB"):
        read_record(sparse)


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "record.json").read_text())
    change(content)
    (folder / "record.json").write_text(json.dumps(content))


@pytest.mark.parametrize("change", [
    lambda record: record.update(schema_version=2), lambda record: record.update(schema_version="1"),
    lambda record: record.update(id=5), lambda record: record["times"].update(total_seconds="1"),
    lambda record: record["recipe"].update(seed=-1), lambda record: record["recipe"].update(seed=1.5),
    lambda record: record.update(ledger=[]), lambda record: record["ledger"].update(steps=-1),
    lambda record: record["ledger"].update(steps=True), lambda record: record["ledger"].update(steps=1e31),
    lambda record: record["ledger"].update(flops={"a": {"b": 1}}), lambda record: record["ledger"].update(flops="x"),
    lambda record: record["provenance"].update(commit=7), lambda record: record["provenance"].update(packages=["x"]),
    lambda record: record["hardware"].update(gpus=[{"name": 5, "memory_gib": 1}]),
    lambda record: record["hardware"].update(gpus="x"), lambda record: record.update(curve=[{"a": "b"}]),
    lambda record: record.update(more=1), lambda record: record.update(status="won"),
    lambda record: record.update(after={"greedy": 1}), lambda record: record.pop("recipe"),
], ids=range(21))
def test_what_is_no_record(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    folder = samples.write_run(tmp_path, samples.recipe("0" * 64, 0)).path
    edited(folder, change)
    with pytest.raises(UserError) as error:
        read_record(folder / "record.json")
    assert "\n" not in error.value.problem and len(error.value.problem) < 500


@pytest.mark.parametrize("change", [
    lambda record: record["recipe"].update(method="<script>"), lambda record: record["recipe"].update(task="../x@1"),
    lambda record: record["recipe"].update(task="a..b@1"), lambda record: record["recipe"].update(method="..")])
def test_names_that_are_none_have_no_score(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edited(samples.write_run(tmp_path, samples.recipe("0" * 64, 0)).path, change)
    (run,), _ = read_records(tmp_path)
    assert not run.usable and run.problem is not None


def test_a_future_record_says_what_to_install(tmp_path: Path) -> None:
    folder = samples.write_run(tmp_path, samples.recipe("0" * 64, 0)).path
    edited(folder, lambda record: record.update(schema_version=2, recipe={"new": 1}))
    with pytest.raises(UserError, match="schema version 2") as error:
        read_record(folder / "record.json")
    assert error.value.fix == "install a newer opdbench"


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_hostile_reaches_a_terminal_or_a_table(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    for seed in range(2):
        folder = write_run(tmp_path / "results", "one", seed).path
        edited(folder, lambda record: (record.update(command=text, stopped_by=text, scorer=text),
                                       record["hardware"].update(cpu=text), record["provenance"].update(commit=text),
                                       record["times"].update(finished=text)))
    failed = write_run(tmp_path / "results", "two", 0, status="error", reason=text).path
    leaderboards = write_board(tmp_path / "leaderboards").parent
    places = ["--results", str(tmp_path / "results"), "--leaderboards", str(leaderboards)]
    for words in (["board", "build", *places], ["show", str(folder)], ["show", str(folder), "--json"],
                  ["show", str(failed)], ["compare", "one", "two", *places[:2]],
                  ["results", "validate", *places[:2]], ["regrade", str(tmp_path / "results")]):
        main(words)
        shown = capsys.readouterr()
        assert not HIDDEN.search(shown.out + shown.err), words
    for file in (leaderboards / "toy").glob("table.*"):
        content = file.read_text()
        assert not HIDDEN.search(content) and "a" * 1000 not in content
        assert file.suffix != ".md" or "<script>" not in content


def test_a_folder_whose_name_is_hostile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "results", "one", 0)
    bad = tmp_path / "results" / "\x1b[2J\u202e"
    bad.mkdir()
    (bad / "record.json").write_text('{"\\u001b[31m": 1}')
    write_board(tmp_path / "boards")
    main(["board", "build", "--results", str(tmp_path / "results"), "--leaderboards", str(tmp_path / "boards")])
    assert main(["show", str(bad)]) == 1
    shown = capsys.readouterr()
    assert "not read" in shown.out and not HIDDEN.search(shown.out + shown.err)


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "elsewhere", "one", 0).path
    (tmp_path / "results" / "toy").mkdir(parents=True)
    (tmp_path / "results" / "toy" / "one").symlink_to(folder.parent)
    assert read_records(tmp_path / "results") == ([], [])
    secret = tmp_path / "secret"
    secret.write_bytes(gzip.compress(b"{}"))
    (folder / "after.jsonl.gz").unlink()
    (folder / "after.jsonl.gz").symlink_to(secret)
    (run,), _ = read_records(tmp_path / "elsewhere")
    assert "symbolic link" in str(with_outcomes(run).problem)


def test_a_diverged_run_whose_figures_were_infinite_can_be_read(tmp_path: Path) -> None:
    from opdbench.run import finite

    assert finite({"step": 1.0, "loss": float("inf"), "kl": float("nan")}) == {"step": 1.0}
    folder = samples.write_run(tmp_path, samples.recipe("0" * 64, 0), status="error", reason="\x1b[31mno\x1b[0m")
    assert read_record(folder.path / "record.json").reason == "\ufffd[31mno\ufffd[0m"


WRITER = """
import sys
from pathlib import Path
from opdbench.store import RunFolder, read_record
record = read_record(Path(sys.argv[1]))
for number in range(40):
    own = RunFolder(Path(sys.argv[2]) / f"{sys.argv[3]}-{number}")
    with own.lock():
        own.write_record(record)
    RunFolder(Path(sys.argv[2]) / "shared").write_record(record)
"""


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    source = write_run(tmp_path / "source", "one", 0).path / "record.json"
    target = tmp_path / "results"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(source), str(target), name]) for name in "ab"]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        if (target / "shared" / "record.json").exists():
            assert read_record(target / "shared" / "record.json") == read_record(source)  # never half of one
            reads += 1
    assert [writer.wait() for writer in writers] == [0, 0] and reads
    found = sorted(path.parent.name for path in target.glob("*/record.json"))
    assert found == sorted(["shared", *(f"{name}-{number}" for name in "ab" for number in range(40))])
    assert all(path.read_bytes() == source.read_bytes() for path in target.glob("*/record.json"))
    assert not list(target.rglob("*.part"))


def test_every_limit_lies_in_one_module() -> None:
    names = {name for name in vars(untrusted) if name.isupper() and isinstance(getattr(untrusted, name), int | float)}
    assert {"RECORD_BYTES", "OUTCOMES_BYTES", "OUTCOMES_UNPACKED", "OUTCOMES", "BUNDLE_BYTES", "BUNDLE_UNPACKED",
            "BUNDLE_FILES", "LARGEST"} <= names
