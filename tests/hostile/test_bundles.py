"""Bundles that no honest submitter sends: each is one sentence, nothing is executed, nothing is written elsewhere."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opdbench import untrusted
from opdbench.cli.main import main
from opdbench.errors import UserError
from opdbench.report.runs import read_run, with_outcomes
from opdbench.schema.record import Record
from opdbench.scores import Outcome, scores
from opdbench.submissions.bundle import opened, pack
from opdbench.submissions.verify import Verdict, verify
from tests.hostile import samples

Files = dict[str, bytes]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("submission")


@pytest.fixture(scope="module")
def sound(root: Path) -> Files:
    return samples.write_submission(root)


@pytest.fixture
def check(root: Path, tmp_path: Path) -> Callable[[bytes], Verdict]:
    def check(content: bytes) -> Verdict:
        path = tmp_path / "bundle.zip"
        path.write_bytes(content)
        with opened(path) as bundle:
            return verify(bundle, samples.place(root))
    return check


def refusal(check: Callable[[bytes], Verdict], content: bytes) -> str:
    """Why a bundle is refused, whichever check refuses it."""
    try:
        verdict = check(content)
    except UserError as error:
        assert error.exit_code == 3
        return error.problem
    failed = [found.message for found in verdict.checks if not found.passed]
    assert failed
    return failed[0]


def test_the_sound_one_passes(sound: Files, check: Callable[[bytes], Verdict]) -> None:
    verdict = check(samples.bundle(sound))
    assert verdict.passed, verdict.checks
    assert "re-graded" in verdict.comparison and pack(sound) == pack(dict(reversed(sound.items())))


# ------------------------------------------------------------------------------------------------------------- the zip


def zipped(entries: list[tuple[zipfile.ZipInfo | str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return target.getvalue()


def symlink(path: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(path)
    entry.external_attr = 0o120777 << 16
    return entry


@pytest.mark.parametrize("path", [
    "../../../../tmp/evil.py", "/etc/cron.d/evil", "results/../../evil/record.json", "submissions/mine/../../evil.py",
    "results/text-maze/mine/s0-000000000000/../../../../x", "submissions/mine/__init__", "C:\\evil.py", "results\\x",
    "submissions/mine/evil\x1b[31m.py", "submissions/mine/\u202eyp.py", "submissions/mine/<script>.py", "evil.so",
    "results/text-maze/mine/trust.json", "results/text-maze/mine/s0-000000000000/trust.json", "conftest.py",
    ".github/workflows/ci.yml", "results/./x/s0-000000000000/record.json", "submissions/mine/", "submissions/mine/a/",
    "results/.git/hooks/s0-000000000000/record.json", "x" * 5000,
])
def test_paths_have_three_forms(sound: Files, check: Callable[[bytes], Verdict], tmp_path: Path, path: str) -> None:
    before = set(tmp_path.rglob("*"))
    said = refusal(check, zipped([*sound.items(), (path, b"print('evil')")]))
    assert "submissions have none of that name" in said and not untrusted.HIDDEN.search(said) and len(said) < 500
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "bundle.zip"}


def test_links_doubles_and_strange_packing(sound: Files, check: Callable[[bytes], Verdict]) -> None:
    record = next(path for path in sound if path.endswith("record.json"))
    others = [(path, content) for path, content in sound.items() if path != record]
    assert "no regular file" in refusal(check, zipped([*others, (symlink(record), b"/etc/passwd")]))
    with pytest.warns(UserWarning, match="Duplicate"):
        assert "two files of one name" in refusal(check, zipped([*sound.items(), (record, b"{}")]))
    assert "other than deflate" in refusal(check, zipped(list(sound.items()), zipfile.ZIP_BZIP2))
    encrypted = bytearray(samples.bundle(sound))
    place = encrypted.find(b"PK\x01\x02")
    encrypted[place + 8] |= 1
    assert "encrypted" in refusal(check, bytes(encrypted))


def claiming(content: bytes, size: int) -> bytes:
    """A zip whose directory says that every file is of this size."""
    parts = content.split(b"PK\x01\x02")
    return b"PK\x01\x02".join([parts[0], *(part[:20] + struct.pack("<I", size) + part[24:] for part in parts[1:])])


def test_a_bomb_is_not_unpacked(sound: Files, check: Callable[[bytes], Verdict]) -> None:
    folder = "results/text-maze/mine/s0-{:012x}/"
    outcomes = zipped([(folder.format(0) + "after.jsonl.gz", b"a" * 100_000)])
    assert "larger than 64 MiB" in refusal(check, claiming(outcomes, untrusted.OUTCOMES_BYTES + 1))
    many = zipped([(folder.format(index) + "record.json", b"") for index in range(300)])
    assert "256 MiB when unpacked" in refusal(check, claiming(many, untrusted.MIB))
    # More in the stream than the directory says: what is stated is all that is read.
    assert re.search("another size|damaged", refusal(check, claiming(outcomes, 10)))


def test_outcomes_that_unpack_to_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "OUTCOMES_UNPACKED", untrusted.MIB)
    folder = samples.write_run(tmp_path, samples.recipe("0" * 64, 0)).path
    good, record = (folder / "after.jsonl.gz").read_bytes(), json.loads((folder / "record.json").read_text())
    for content, says in ((gzip.compress(bytes(2 * untrusted.MIB)), "larger than 1 MiB when unpacked"),
                          (gzip.compress(b"\n" * 999_999), "not JSON"), (good[:-3], "cut short"),
                          (good + b"x", "behind its end"), (good * 2, "behind its end"),
                          (b"no gzip", "damaged"), (b"", "cut short"), (gzip.compress(b""), "not JSON")):
        record["outcomes"]["after"]["sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "record.json").write_text(json.dumps(record))
        (folder / "after.jsonl.gz").write_bytes(content)
        assert says in str(with_outcomes(read_run(folder / "record.json")).problem)


def test_a_thousand_million_examples_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "OUTCOMES", 1000)
    with pytest.raises(untrusted.RefusedError, match="more than 1,000 lines"):
        untrusted.parse_lines(b"{}\n" * 1001)


def test_a_directory_of_millions_is_not_read(check: Callable[[bytes], Verdict]) -> None:
    entry = b"PK\x01\x02" + bytes(42)
    directory = entry * 100_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 0, 0)
    assert "more than 4,000 files" in refusal(check, directory + end)
    assert "not a plain zip" in refusal(check, directory + b"PK\x06\x07" + bytes(16) + end)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip" * 100, b"PK\x05\x06" + bytes(18)])
def test_what_is_no_zip(check: Callable[[bytes], Verdict], content: bytes) -> None:
    assert "zip" in refusal(check, content) or "0 manifests" in refusal(check, content)


def test_every_cut_of_a_bundle_is_refused(sound: Files, check: Callable[[bytes], Verdict]) -> None:
    content = samples.bundle(sound)
    for length in range(0, len(content), len(content) // 40):
        assert refusal(check, content[:length])


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "link.zip").symlink_to("/etc/passwd")
    for name, says in (("pipe.zip", "no regular file"), ("link.zip", "symbolic link")):
        with pytest.raises(UserError, match=says), opened(tmp_path / name):
            pass
    with pytest.raises(UserError, match="cannot read"), opened(tmp_path / "none.zip"):
        pass


# -------------------------------------------------------------------------------------------------------- the manifest


@pytest.mark.parametrize(("change", "says"), [
    ({"name": "../x"}, "manifest that is none"), ({"name": "other"}, "calls itself otherwise"),
    ({"format": 2}, "manifest that is none"), ({"division": "mine"}, "manifest that is none"),
    ({"more": 1}, "manifest that is none"), ({"method_file": "/etc/passwd"}, "does not bring its method's file"),
    ({"contact": "\x1b[2J"}, "control characters"), ({"contact": "\u202ecba"}, "turn the direction"),
    ({"license": "<script>"}, "manifest that is none"), ({"method": "gkd"}, "another method"),
    ({"method_sha256": "0" * 64}, "another method"), ({"method_sha256": 5}, "manifest that is none"),
    ({"contact": float("nan")}, "NaN"), ({"files": []}, "manifest that is none"),
    ({"files": [{"path": "/etc/passwd", "sha256": "0" * 64, "bytes": 1}]}, "does not bring its method's file"),
])
def test_manifests(sound: Files, check: Callable[[bytes], Verdict], change: dict[str, Any], says: str) -> None:
    path = "submissions/mine/manifest.json"
    assert says in refusal(check, pack({**sound, path: json.dumps({**json.loads(sound[path]), **change}).encode()}))


def test_files_are_what_the_manifest_says(sound: Files, check: Callable[[bytes], Verdict]) -> None:
    for path in sound:
        others = {name: content for name, content in sound.items() if name != path}
        if path.endswith("manifest.json"):
            assert "0 manifests" in refusal(check, pack(others))
        else:
            assert "another" in refusal(check, pack({**sound, path: sound[path] + b" "}))
            assert "does not bring" in refusal(check, pack(others))
    assert "does not name" in refusal(check, pack({**sound, "submissions/mine/more.py": b""}))
    assert "2 manifests" in refusal(check, pack({**sound, "submissions/two/manifest.json": b"{}"}))


# ---------------------------------------------------------------------------------------------------- what it contains


def test_code_is_parsed_and_never_run(sound: Files, check: Callable[[bytes], Verdict], tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode()
    method = "submissions/mine/mine.py"
    for source in (trap + sound[method], trap, b"(" * 100_000, b"\xff\xfe", b"def (", b"x" * 300_000):
        said = refusal(check, samples.bundle({**sound, method: source}))
        assert "mine.py" in said or "damaged" in said
    assert not (tmp_path / "ran").exists() and "mine" not in sys.modules


def forged(files: Files, change: Callable[[dict[str, Any], list[Outcome]], list[Outcome]]) -> Files:
    """Change the outcomes after of one run, and make its record agree: scores, gap, checksums."""
    path = sorted(path for path in files if path.endswith("record.json"))[0]
    folder = path.removesuffix("record.json")
    record = json.loads(files[path])
    outcomes = change(record, [Outcome(**json.loads(line)) for line in untrusted.gunzip(
        files[folder + "after.jsonl.gz"], untrusted.MIB).splitlines()])
    content = samples.packed([outcome._asdict() for outcome in outcomes])
    record["outcomes"]["after"].update(sha256=hashlib.sha256(content).hexdigest(), n=len(outcomes))
    record["after"] = {mode: score.model_dump() for mode, score in scores(outcomes, "success").items()}
    whole = Record.model_validate(record)
    from opdbench.schema.record import gap_recovered
    record["gap_recovered"] = {mode: gap_recovered(whole.before[mode], whole.teacher[mode], whole.after[mode])
                               for mode in whole.after if mode in whole.before}
    return {**files, path: json.dumps(record).encode(), folder + "after.jsonl.gz": content}


FORGERIES: list[tuple[Callable[[dict[str, Any], list[Outcome]], list[Outcome]], str]] = [
    (lambda record, outcomes: [outcome._replace(score=1.0) for outcome in outcomes], "is graded 0"),
    (lambda record, outcomes: [outcome._replace(extra={"spl": 1.0}) for outcome in outcomes], "is recorded with"),
    (lambda record, outcomes: [outcome for outcome in outcomes if outcome.score], "same examples"),
    (lambda record, outcomes: [*outcomes, outcomes[0]], "1 times, greedy"),
    (lambda record, outcomes: [outcome._replace(id="text-maze-test-0") for outcome in outcomes], "same examples"),
    (lambda record, outcomes: [outcome._replace(output=None) for outcome in outcomes], "is missing"),
    (lambda record, outcomes: [outcome for outcome in outcomes if outcome.mode == "greedy"], "same modes"),
    (lambda record, outcomes: record["ledger"].update(steps=3) or outcomes, "stopped before"),
    (lambda record, outcomes: record["ledger"].update(steps=40) or outcomes, "its budget is 4"),
    (lambda record, outcomes: record["ledger"].pop("seconds") and outcomes, "has no seconds"),
    (lambda record, outcomes: record.update(status="cancelled") or outcomes, "is cancelled"),
    (lambda record, outcomes: record["provenance"].update(dirty=True) or outcomes, "no commit holds"),
    (lambda record, outcomes: record["recipe"]["teacher"].update(reference="x") or outcomes, "another teacher"),
]


@pytest.mark.parametrize(("change", "says"), FORGERIES, ids=range(len(FORGERIES)))
def test_forgeries_that_agree_with_themselves(sound: Files, check: Callable[[bytes], Verdict], change: Any, says: str
                                              ) -> None:
    assert says in refusal(check, samples.bundle(forged(sound, change)))


@pytest.mark.parametrize(("changes", "says"), [
    ([{"seed": seed} for seed in range(1, 6)], "first of the published list"),
    ([{"seed": seed} for seed in range(4)], "asks for 5 seeds"),
    ([{"seed": seed, "budget": {"steps": 5}} for seed in range(5)], "another budget"),
    ([{"seed": seed, "teacher": {"reference": "text-maze/teacher", "sha256": "0" * 64}} for seed in range(5)],
     "had another model"),
    ([{"seed": seed, "training": {**samples.task().training, "batch": 480, "horizon": 60}} for seed in range(5)],
     "batch is 480"),
    ([{"seed": seed, "task_sha256": "0" * 64} for seed in range(5)], "its problems are not those"),
    ([{"seed": seed, "task": "lm-eval:evil@1"} for seed in range(5)], "no closed board of lm-eval:evil@1"),
])
def test_runs_that_break_a_rule_of_the_closed_division(
        sound: Files, check: Callable[[bytes], Verdict], tmp_path: Path, changes: list[dict[str, Any]],
        says: str) -> None:
    from opdbench.report.runs import read_records
    from opdbench.submissions.make import About, files_of
    from opdbench.submissions.method import code_sha256

    method = samples.write_method(tmp_path)
    base = samples.recipe(code_sha256(method, "mine"), 0).model_dump()
    for change in changes:
        samples.write_run(tmp_path / "results", type(samples.recipe("0" * 64, 0))(**{**base, **change}))
    files = files_of(read_records(tmp_path / "results")[0], About("MIT", "me@example.org", plugins=(str(method),)))
    verdict = check(samples.bundle(files))
    assert not verdict.passed
    assert says in " ".join(found.message for found in verdict.checks if not found.passed)


def test_two_records_of_one_run(sound: Files, check: Callable[[bytes], Verdict]) -> None:
    first = sorted(path for path in sound if path.endswith("record.json"))[0]
    copy = re.sub(r"s0-[0-9a-f]{12}", "s0-000000000000", first)
    assert "is not where a run" in refusal(check, samples.bundle({**sound, copy: sound[first]}))


def test_failed_runs_belong_to_a_submission(sound: Files, root: Path, check: Callable[[bytes], Verdict]) -> None:
    """A run that diverged is shown, and its seed counts."""
    path = sorted(path for path in sound if path.endswith("record.json"))[2]
    record = json.loads(sound[path])
    record.update(status="diverged", reason="the loss is nan", after={}, gap_recovered={})
    del record["outcomes"]["after"]
    files = {**sound, path: json.dumps(record).encode()}
    del files[path.replace("record.json", "after.jsonl.gz")]
    verdict = check(samples.bundle(files))
    assert verdict.passed and "1 of them failed" in verdict.checks[1].message


def test_the_command_line(sound: Files, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.zip").write_bytes(samples.bundle(sound))
    (tmp_path / "evil.zip").write_bytes(samples.bundle(sound)[:-1])
    places = ["--results", str(root / "none"), "--leaderboards", str(root / "leaderboards")]
    assert main(["submissions", "verify", str(tmp_path / "good.zip"), *places]) == 0
    assert "every check passed" in capsys.readouterr().out
    assert main(["submissions", "verify", str(tmp_path / "evil.zip"), "--json", *places]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 3
    assert main(["submissions", "verify", str(tmp_path / "none.zip"), *places]) == 1
