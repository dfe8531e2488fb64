"""Runs whose teacher is behind a server: as with its weights, from its text alone, from what it said before, and on
after it left."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opdbench.distiller import Needs
from opdbench.errors import UserError
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.remote import RemoteTeacher
from opdbench.lm.remote_cache import Cache, read_manifest
from opdbench.lm.server import Server
from opdbench.schema.record import Record
from opdbench.store import RunFolder
from tests.lm.asking import TOLD, execute, planned, some_rollouts
from tests.lm.completions_server import MODEL, Running


def weights(folder: RunFolder) -> dict[str, Tensor]:
    return load_file(next(folder.student.glob("*.safetensors")))


class Whole(NamedTuple):
    """One finished run whose teacher was asked, and what it asked."""

    record: Record
    folder: RunFolder
    cache: Path
    n_requests: int


@pytest.fixture(scope="module")
def whole(process: Running, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    process.set()
    folder = tmp_path_factory.mktemp("whole")
    record, run_folder = execute("gkd", process.reference, folder, *TOLD, f"teacher_cache={folder / 'cache'}")
    return Whole(record, run_folder, folder / "cache", process.requests())


def same_weights(left: RunFolder, right: RunFolder) -> bool:
    return all(torch.equal(tensor, weights(right)[name]) for name, tensor in weights(left).items())


def losses(record: Record) -> Any:
    return pytest.approx([entry["loss"] for entry in record.curve], abs=1e-5)


def test_a_run_follows_the_one_with_the_teachers_weights(whole: Whole, tmp_path: Path) -> None:
    there, (here, _) = whole.record, execute("gkd", None, tmp_path, *TOLD)
    assert [entry["loss"] for entry in there.curve] == losses(here)
    assert there.ledger["teacher_scored"] == here.ledger["teacher_scored"] > 0 == there.ledger["teacher_cached"]
    assert there.teacher["greedy"] == here.teacher["greedy"]
    assert there.recipe.teacher is not None and there.recipe.teacher.reference.endswith(f"/v1#{MODEL}")


def test_so_does_one_on_sampled_tokens_in_the_other_dialect(server: Running, tmp_path: Path) -> None:
    server.set(dialect="openai")
    there, _ = execute("opd", server.reference, tmp_path / "there", "estimator=sampled")
    here, _ = execute("opd", None, tmp_path / "here", "estimator=sampled")
    assert [entry["loss"] for entry in there.curve] == losses(here)


def test_how_it_samples_is_compared_with_how_it_scores(server: Running, tmp_path: Path) -> None:
    record, _ = execute("gkd", server.reference, tmp_path, *TOLD, "lmbda=0")
    assert all(entry["teacher_gap"] < 1e-5 for entry in record.curve) and record.ledger["teacher_tokens"] > 0


def test_text_alone_is_enough_to_imitate(server: Running, tmp_path: Path) -> None:
    server.set(dialect="text")
    record, _ = execute("sft", server.reference, tmp_path)
    assert record.status == "completed" and record.ledger["teacher_tokens"] > 0 == record.ledger["teacher_scored"]
    assert record.teacher["greedy"].mean == 1.0


def test_a_cache_is_used_again(whole: Whole, server: Running, tmp_path: Path) -> None:
    again, folder = execute("gkd", server.reference, tmp_path, *TOLD, f"teacher_cache={whole.cache}")
    assert server.requests() < whole.n_requests  # none but who it is and whether its tokens are ours
    assert again.ledger["teacher_scored"] == 0
    assert again.ledger["teacher_cached"] == whole.record.ledger["teacher_scored"]
    assert again.recipe_sha256 == whole.record.recipe_sha256 and again.outcomes == whole.record.outcomes
    assert again.curve == whole.record.curve and same_weights(folder, whole.folder)


def test_a_cache_is_a_teacher_by_itself(whole: Whole, server: Running, tmp_path: Path) -> None:
    alone, folder = execute("gkd", str(whole.cache), tmp_path, *TOLD)
    assert server.requests() == 0
    assert alone.recipe_sha256 == whole.record.recipe_sha256 and alone.outcomes == whole.record.outcomes
    assert alone.curve == whole.record.curve and same_weights(folder, whole.folder)


def test_what_is_not_in_a_cache_is_an_error(whole: Whole, student: LanguagePolicy, tmp_path: Path) -> None:
    it = RemoteTeacher.open(whole.cache, student.tokenizer, n_actions=student.n_actions, top_k=4, cache=None,
                            examples=[])
    with pytest.raises(UserError, match="6 sequences that this run needs are not in the teacher cache") as raised:
        it.columns(some_rollouts(student), Needs.FULL, 4)
    assert f"#{MODEL} --set teacher_cache={whole.cache}" in str(raised.value.fix)
    with pytest.raises(UserError, match="holds the 8 most likely tokens of a position, and 9 are wanted"):
        execute("gkd", str(whole.cache), tmp_path, "support=teacher", "top_k=9")
    with pytest.raises(UserError, match=r"support=full"):
        execute("gkd", str(whole.cache), tmp_path)


def test_a_run_that_its_server_left_goes_on(whole: Whole, server: Running, tmp_path: Path) -> None:
    keeping = (*TOLD, f"teacher_cache={tmp_path / 'cache'}")
    server.set(fault="error-500", after=whole.n_requests - 1)
    with pytest.raises(UserError, match="answers 500: Internal Server Error") as raised:
        execute("gkd", server.reference, tmp_path, *keeping, "teacher_timeout=0.5")
    assert "goes on from its last checkpoint" in str(raised.value.fix)
    server.set()
    resumed, folder = execute("gkd", server.reference, tmp_path, *keeping)
    assert resumed.times.resumed == 1 and resumed.curve == whole.record.curve
    assert same_weights(folder, whole.folder)


def test_one_model_is_one_teacher_wherever_it_is(server: Running) -> None:
    first, again = Server(server.reference).identity(), Server(server.address).identity()
    assert first == again
    server.set(dialect="openai")
    assert Server(server.address).identity().matches(first)
    server.set(name="other")
    other = Server(server.address).identity()
    assert not other.matches(first) and other.sha256 != first.sha256


def test_a_cache_says_who_its_server_is_though_that_answers_a_little_otherwise(whole: Whole, server: Running,
                                                                              tmp_path: Path) -> None:
    """Half precision and other batches move what a server says; a checksum alone would make another teacher of it."""
    kept = read_manifest(whole.cache)
    moved = kept._replace(probe=tuple(logp - 0.02 for logp in kept.probe), teacher_sha256="1" * 64)
    Cache(tmp_path / "cache", moved)
    teacher = planned("gkd", server.reference, *TOLD, f"teacher_cache={tmp_path / 'cache'}").spec.recipe.teacher
    assert teacher is not None and teacher.sha256 == "1" * 64
    Cache(tmp_path / "other", kept._replace(probe=tuple(logp - 0.2 for logp in kept.probe)))
    with pytest.raises(UserError, match="the name is the same, the weights are others"):
        planned("gkd", server.reference, *TOLD, f"teacher_cache={tmp_path / 'other'}")
