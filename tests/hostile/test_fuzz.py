"""Thousands of mutated records, raw outcomes and bundles: none crashes a reader, none is accepted that says something
else than what was run."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from opdbench.errors import UserError
from opdbench.regrade import Grader
from opdbench.report.entries import select
from opdbench.report.runs import read_records
from opdbench.report.tables import render
from opdbench.schema.board import Board
from opdbench.store import read_record
from opdbench.submissions.bundle import opened
from opdbench.submissions.verify import verify
from tests.hostile import samples

VALUES = ["", "x", "<script>alert(1)</script>", "\x1b[31m", "\u202e", "../../etc/passwd", "\ud800", "a" * 5000, 0, 1,
          -1, 0.5, 1e308, -1e308, 10 ** 400, 10 ** 9, float("nan"), float("inf"), True, False, None, [], {}, [[]],
          [None], {"a": 1}, "1", "NaN", "completed", "greedy", "gkd", [1e300], {"": {}}]
# What nobody can recompute from raw outcomes, and what no score, rank or checksum depends on.
FREE = {"execution", "origins", "command", "scorer", "ledger", "validation", "curve", "provenance", "hardware", "times",
        "stopped_by", "reason"}
GRADED = {"status", "before", "teacher", "after", "gap_recovered"}


class Place(NamedTuple):
    """A leaf or branch of a JSON value."""

    parent: Any
    key: Any


def places(value: Any) -> Iterator[Place]:
    todo = [value]
    while todo:
        node = todo.pop()
        for key, child in list(node.items() if isinstance(node, dict) else enumerate(node)):
            yield Place(node, key)
            if isinstance(child, dict | list):
                todo.append(child)


def replaced(content: Any, rng: random.Random) -> bytes:
    place = rng.choice(list(places(content)))
    place.parent[place.key] = copy.deepcopy(rng.choice(VALUES))
    return dumped(content)


def removed(content: Any, rng: random.Random) -> bytes:
    place = rng.choice(list(places(content)))
    del place.parent[place.key]
    return dumped(content)


def nudged(content: Any, rng: random.Random) -> bytes:
    numbers = [place for place in places(content) if isinstance(place.parent[place.key], int | float)]
    place = rng.choice(numbers)
    place.parent[place.key] = rng.choice([lambda x: x + 1, lambda x: x * 1.01 + 1e-6, lambda x: -x, lambda x: x / 2,
                                          lambda x: 10 * x, float])(place.parent[place.key])
    return dumped(content)


def swapped(content: Any, rng: random.Random) -> bytes:
    one, two = rng.sample(list(places(content)), 2)
    first, second = one.parent[one.key], two.parent[two.key]
    one.parent[one.key], two.parent[two.key] = copy.deepcopy(second), copy.deepcopy(first)
    return dumped(content)


def added(content: Any, rng: random.Random) -> bytes:
    place = rng.choice([place for place in places(content) if isinstance(place.parent, dict)])
    place.parent[rng.choice(["more", "", "greedy", "id", "\u202e", "__class__", "sum.x.hits"])] = rng.choice(VALUES)
    return dumped(content)


def doubled(content: Any, rng: random.Random) -> bytes:
    text = dumped(content)
    keys = [place.key for place in places(content) if isinstance(place.parent, dict)]
    key = f'"{rng.choice(keys)}": '.encode()
    return text.replace(key, key + b"0, " + key, 1)


def bytes_changed(content: Any, rng: random.Random) -> bytes:
    text = bytearray(dumped(content))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text))
        text[at:at + rng.choice([0, 1, 1, 9])] = rng.choice(
            [b"", b"\x00", b'"', b"}", b"[" * 5000, bytes([rng.randrange(256)])])
    return bytes(text)


def cut(content: Any, rng: random.Random) -> bytes:
    text = dumped(content)
    return text[:rng.randrange(len(text))]


MUTATIONS = (replaced, replaced, removed, nudged, nudged, swapped, added, doubled, bytes_changed, cut)


def dumped(content: Any) -> bytes:
    try:
        return json.dumps(content).encode()
    except (ValueError, RecursionError):
        return b"{}"


class Reader:
    """Everything that reads a folder of records, on one whose record and outcomes are mutated."""

    def __init__(self, place: Path) -> None:
        self.place, self.grader = place, Grader()
        self.folder = samples.write_run(place, samples.recipe("0" * 64, 0)).path
        self.record = (self.folder / "record.json").read_bytes()
        self.outcomes = {path.name: path.read_bytes() for path in self.folder.glob("*.gz")}
        self.changed: set[str] = set()
        self.sound = read_record(self.folder / "record.json").model_dump()
        self.board = Board(title="Fuzz", task=samples.task().id, budget={"steps": 4}, examples=samples.EXAMPLES,
                           division="open", min_seeds=2)

    def verdict(self) -> str:
        """ "unreadable", "refused", "failed" or "accepted"; what is accepted says what the sound record says."""
        runs, unreadable = read_records(self.place)
        if not runs:
            assert len(unreadable) == 1 and unreadable[0].problem.count("\n") == 0
            return "unreadable"
        found = self.grader.regrade(runs[0])
        try:
            files = render(self.board, select(self.board, runs).entries, "fuzz")
            assert json.loads(files["table.json"], parse_constant=pytest.fail)
        except UserError as error:
            assert error.problem
        if found.problem is not None:
            return "refused" if found.wrong else "failed"
        content = found.run.record.model_dump()
        content["gap_recovered"] = content["gap_recovered"] or self.sound["gap_recovered"]  # it may go unsaid
        assert all(same(content[name], self.sound[name]) for name in GRADED)
        assert unnamed(content["recipe"]) == unnamed(self.sound["recipe"])
        assert content["recipe_sha256"] == self.sound["recipe_sha256"] and content["id"] == self.sound["id"]
        return "accepted"

    def write(self, name: str, content: bytes) -> None:
        (self.folder / name).write_bytes(content)
        self.changed.add(name)

    def restore(self) -> None:
        for name in self.changed:
            (self.folder / name).write_bytes(self.outcomes.get(name, self.record))
        self.changed.clear()


def same(first: Any, second: Any) -> bool:
    """Equal, up to the rounding that readers forgive (1e-12)."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)
    return bool(first == second)


def unnamed(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe by what its checksum covers: models by content; `submissions verify` looks at their names."""
    return {**recipe, **{role: recipe[role] and recipe[role]["sha256"] for role in ("teacher", "student")}}


def mutate_record(reader: Reader, rng: random.Random) -> None:
    reader.write("record.json", rng.choice(MUTATIONS)(json.loads(reader.record), rng))


def mutate_outcomes(reader: Reader, rng: random.Random) -> None:
    """Lines changed, dropped, doubled or turned around; half of the time with a record that has their checksum."""
    name = rng.choice(sorted(reader.outcomes))
    lines = [json.loads(line) for line in gzip.decompress(reader.outcomes[name]).splitlines()]
    index = rng.randrange(len(lines))
    kind = rng.randrange(5)
    if kind == 0:
        del lines[index]
    elif kind == 1:
        lines.append(lines[index])
    content = samples.packed(lines)
    if kind >= 2:
        texts = [json.dumps(line).encode() for line in lines]
        texts[index] = rng.choice(MUTATIONS)(lines[index], rng)
        content = gzip.compress(b"\n".join(texts) + b"\n", mtime=0)
    if kind == 4:
        content = bytes_changed_in(content, rng)
    reader.write(name, content)
    if rng.random() < 0.8:
        record = json.loads(reader.record)
        record["outcomes"][name.partition(".")[0]].update(sha256=hashlib.sha256(content).hexdigest())
        reader.write("record.json", dumped(record))


def bytes_changed_in(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    other = bytes([rng.randrange(256)])
    return rng.choice([content[:at], content[:at] + other + content[at + 1:], content + content[:at]])


def fuzz(place: Path, count: int, seed: int) -> Counter[str]:
    reader, rng, found = Reader(place), random.Random(seed), Counter[str]()
    assert reader.verdict() == "accepted"
    for _ in range(count):
        reader.restore()
        rng.choice([mutate_record, mutate_record, mutate_outcomes])(reader, rng)
        found[reader.verdict()] += 1
    return found


def fuzz_bundles(root: Path, count: int, seed: int) -> Counter[str]:
    """Zips whose bytes are changed, and sound zips of mutated files under a manifest that describes them."""
    files, rng, found = samples.write_submission(root), random.Random(seed), Counter[str]()
    sound = samples.bundle(files)
    for _ in range(count):
        content = bytes_changed_in(sound, rng)
        if rng.random() < 0.7:
            path = rng.choice(sorted(path for path in files if path.endswith(".json")))
            content = samples.bundle({**files, path: rng.choice(MUTATIONS)(json.loads(files[path]), rng)}
                                     if path.endswith("record.json") else files)
            content = content if path.endswith("record.json") else _with_manifest(files, path, rng)
        (root / "bundle.zip").write_bytes(content)
        found[bundle_verdict(root)] += 1
    return found


def _with_manifest(files: dict[str, bytes], path: str, rng: random.Random) -> bytes:
    from opdbench.submissions.bundle import pack

    return pack({**files, path: rng.choice(MUTATIONS)(json.loads(files[path]), rng)})


def bundle_verdict(root: Path) -> str:
    try:
        with opened(root / "bundle.zip") as bundle:
            verdict = verify(bundle, samples.place(root))
            if not verdict.passed:
                return "failed"
            for path in bundle.records:
                content = read_record(path).model_dump()
                sound = read_record(root / path.relative_to(bundle.root)).model_dump()
                assert all(content[name] == sound[name] for name in content.keys() - FREE)
            return "accepted"
    except UserError as error:
        assert error.exit_code == 3 and "\n" not in error.problem
        return "refused"


def test_a_thousand_mutated_records(tmp_path: Path) -> None:
    found = fuzz(tmp_path, 1000, seed=1)
    assert found.total() == 1000 and min(found[kind] for kind in ("unreadable", "refused", "accepted")) > 20
    print(f"{found.total()} mutated records: {dict(found)}")


def test_forty_mutated_bundles(tmp_path: Path) -> None:
    found = fuzz_bundles(tmp_path, 40, seed=2)
    assert found.total() == 40 and found["refused"] > 5
    print(f"{found.total()} mutated bundles: {dict(found)}")


@pytest.mark.slow
@pytest.mark.parametrize(("fuzzer", "count"), [(fuzz, 10_000), (fuzz_bundles, 1_000)])
def test_many_more(tmp_path: Path, fuzzer: Callable[..., Counter[str]], count: int) -> None:
    found = fuzzer(tmp_path, count, seed=3)
    assert found.total() == count
    print(f"{count} mutated by {fuzzer.__name__}: {dict(found)}")
