"""The cache of a teacher's answers: found again, by other processes too, and refused when it is not what it was."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opdbench.errors import UserError
from opdbench.lm.remote_cache import MANIFEST, Asked, Cache, Table, is_cache, key, read_manifest

ASKED = Asked("m", (-1.0, -2.5), "1" * 64, "2" * 64, top_k=2, context_length=128)


def rows(n: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    logp_nk = -rng.random((n, 2)).astype(np.float32)
    logp_nk[0, 1] = -math.inf
    return {"logp": -rng.random(n).astype(np.float32), "topk_id": rng.integers(0, 99, (n, 2)).astype(np.int32),
            "topk_logp": logp_nk}


def equal(left: Any, right: Any) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def entry(number: int) -> tuple[bytes, dict[str, Any], int]:
    return key("t", [number], first=0), rows(number % 5 + 1, number), number % 2


def filled(folder: Path, n: int = 7) -> Cache:
    cache = Cache(folder, ASKED)
    cache.scores.add([entry(number) for number in range(n)])
    return cache


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    filled(tmp_path)
    again = Cache(tmp_path, ASKED)
    for number in range(7):
        name, kept, flag = entry(number)
        found = again.scores.find(name)
        assert found is not None and equal(found[0], kept) and found[1] == flag
    assert again.scores.find(key("t", [99], first=0)) is None and len(again.scores) == 7
    assert is_cache(tmp_path) and read_manifest(tmp_path) == ASKED


def test_a_key_is_whom_what_and_how() -> None:
    keys = {key("t", [1, 2], first=0), key("u", [1, 2], first=0), key("t", [2, 1], first=0), key("t", [1, 2], first=1),
            key("t", [1, 2], seed=0)}
    assert len(keys) == 5 and key("t", [1, 2], first=0) in keys


def test_a_second_cache_sees_what_the_first_adds_and_nothing_is_kept_twice(tmp_path: Path) -> None:
    first, second = Cache(tmp_path, ASKED), Cache(tmp_path, ASKED)
    first.scores.add([entry(0)])
    assert second.scores.find(entry(0)[0]) is not None
    second.scores.add([entry(0), entry(1)])
    assert len(first.scores) == 2
    assert (tmp_path / "scores.index.bin").stat().st_size == 2 * 64


def add_all(folder: Path, worker: int) -> None:
    table = Cache(folder, ASKED).scores
    for number in range(8):
        table.add([entry(number), entry(1000 * worker + number)])


def test_processes_may_write_at_one_time(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=add_all, args=(tmp_path, worker)) for worker in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    table = Cache(tmp_path, ASKED).scores
    assert len(table) == 8 + 3 * 8
    for number in [*range(8), *(1000 * worker + index for worker in (1, 2, 3) for index in range(8))]:
        found = table.find(entry(number)[0])
        assert found is not None and equal(found[0], entry(number)[1])


def test_what_a_dying_process_left_is_cut_off(tmp_path: Path) -> None:
    """It dies between rows and entry, or in the middle of an entry."""
    filled(tmp_path, 3)
    for name in ("scores.logp.bin", "scores.topk_id.bin", "scores.index.bin"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"\x01\x02\x03\x04\x05")
    cache = Cache(tmp_path, ASKED)
    assert len(cache.scores) == 3
    cache.scores.add([entry(5)])
    again = Cache(tmp_path, ASKED).scores
    for number in (0, 1, 2, 5):
        found = again.find(entry(number)[0])
        assert found is not None and equal(found[0], entry(number)[1])


@pytest.mark.parametrize("name", ["scores.logp.bin", "scores.topk_id.bin", "scores.topk_logp.bin"])
def test_a_cut_file_is_refused(tmp_path: Path, name: str) -> None:
    filled(tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-3])
    cache = Cache(tmp_path, ASKED)
    with pytest.raises(UserError, match="is cut short") as raised:
        cache.scores.find(entry(6)[0])
    assert "delete the folder" in str(raised.value.fix)
    with pytest.raises(UserError, match="is cut short"):
        cache.scores.add([entry(8)])


@pytest.mark.parametrize("name", ["scores.logp.bin", "scores.topk_id.bin", "scores.topk_logp.bin", "scores.index.bin"])
def test_an_altered_file_is_refused(tmp_path: Path, name: str) -> None:
    filled(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[2 if name != "scores.index.bin" else 50] ^= 1  # of an entry: its checksum
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="is altered"):
        Cache(tmp_path, ASKED).scores.find(entry(0)[0])


@pytest.mark.parametrize("change", [lambda text: text[:-40], lambda text: text.replace('"top_k": 2', '"top_k": 1'),
                                    lambda text: text.replace('"version": 1', '"version": 2'), lambda text: "[]"])
def test_an_altered_manifest_is_refused(tmp_path: Path, change: Any) -> None:
    filled(tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(change(text))
    assert change(text) != text
    with pytest.raises(UserError, match=r"manifest .* is cut short, altered or of another version"):
        Cache(tmp_path, ASKED)


@pytest.mark.parametrize(("other", "wrong"), [
    ({"teacher": "n"}, "holds the answers of another teacher than 'n': 'm'"),
    ({"probe": (-1.0, -3.0)}, "another teacher than 'm': the name is the same, the weights are others"),
    ({"probe": ()}, "another teacher than 'm'"),
    ({"vocabulary_sha256": "3" * 64}, "was made with another tokenizer"),
    ({"top_k": 3}, "holds the 2 most likely tokens of a position, and 3 are wanted"),
])
def test_anothers_cache_is_refused(tmp_path: Path, other: dict[str, Any], wrong: str) -> None:
    filled(tmp_path)
    with pytest.raises(UserError, match=wrong):
        Cache(tmp_path, ASKED._replace(**other))


def test_a_cache_serves_who_wants_fewer_tokens(tmp_path: Path) -> None:
    filled(tmp_path)
    assert Cache(tmp_path, ASKED._replace(top_k=1)).asked.top_k == 2


def test_without_tokens_only_log_probabilities_are_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, ASKED._replace(top_k=0))
    cache.scores.add([(b"k" * 32, {"logp": np.zeros(3, np.float32), "topk_id": np.zeros((3, 0), np.int32)}, 0)])
    found = cache.scores.find(b"k" * 32)
    assert found is not None and list(found[0]) == ["logp"]
    assert not (tmp_path / "scores.topk_id.bin").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        Cache(tmp_path / "file" / "cache", ASKED)


def test_the_manifest_says_whose_answers_these_are(tmp_path: Path) -> None:
    filled(tmp_path)
    content = json.loads((tmp_path / MANIFEST).read_text())
    assert content["asked"]["teacher"] == "m" and content["asked"]["top_k"] == 2 and len(content["sha256"]) == 64
    assert isinstance(Cache(tmp_path, ASKED).completions, Table)
