"""Everything that goes wrong with a server is a sentence, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from opdbench.actors import Teacher, uniform_table
from opdbench.distiller import Needs
from opdbench.errors import UserError
from opdbench.lm.agreement import TokenNames, check
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.remote import RemoteTeacher
from opdbench.lm.server import Server
from opdbench.lm.tokenizer import Tokenizer
from opdbench.task import Example
from tests.lm.asking import SERVED, TEMPLATE, TOLD, execute, planned, remote, some_rollouts
from tests.lm.completions_server import FAULTS, MODEL, Running


@pytest.mark.parametrize(("method", "settings", "options", "wrong", "fix"), [
    ("gkd", (), {}, r"compares whole distributions \(support=full\)", "--set support=teacher --set top_k=20"),
    ("gkd", ("support=union",), {"max_logprobs": 5}, "support=union", "--set support=teacher --set top_k=5"),
    ("gkd", ("support=teacher", "top_k=9"), {"max_logprobs": 5}, "tells at most 5 of its", "--set top_k=5, or let"),
    ("gkd", (*TOLD, "loss_temperature=2"), {}, "not known at loss_temperature=2", "--set tail=renormalise"),
    ("gkd", TOLD, {"dialect": "text"}, "tells only text", "learns from text"),
    ("opd", ("estimator=sampled",), {"dialect": "text"}, "tells only text", "learns from text"),
    ("ammd", (), {}, "needs its teacher's whole distribution; over HTTP", "pass the teacher's weights"),
    ("gkd", TOLD, {"name": "elsewhere"}, f"does not serve '{MODEL}'", "elsewhere"),
    ("gkd", TOLD, {"key": "sk-1"}, "wants a key, and none was given", "OPENAI_API_KEY"),
    ("gkd", TOLD, {"context": 40}, "exceeds the models' context of 39", "longer context"),
])
def test_what_cannot_work_is_refused_before_anything_starts(
        server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, settings: tuple[str, ...],
        options: dict[str, Any], wrong: str, fix: str) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.set(**options)
    with pytest.raises(UserError, match=wrong) as raised:
        execute(method, server.reference, tmp_path, *settings, "teacher_timeout=5")
    assert fix in str(raised.value.fix)


@pytest.mark.parametrize(("teacher", "settings", "wrong", "fix"), [
    (None, ("teacher_cache=answers",), "this run asks none", "--teacher http://HOST:PORT"),
    ("localhost:8000/v1", TOLD, "looks like the address of a server", "--teacher http://localhost:8000/v1"),
])
def test_what_is_meant_for_a_server_needs_one(teacher: str | None, settings: tuple[str, ...], wrong: str, fix: str
                                              ) -> None:
    with pytest.raises(UserError, match=wrong) as raised:
        planned("gkd", teacher, *settings)
    assert fix in str(raised.value.fix)


def test_a_server_is_no_part_of_a_mix(server: Running, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a server, which cannot be part of a mix or a route"):
        execute("gkd", f"mix:{server.reference}=0.5,chain-sum/teacher=0.5", tmp_path)


BAD = {"not-json": "not JSON", "fewer-choices": "choices for", "short": "entries for", "nan": "is nan",
       "positive": "a log-probability is", "raw-logits": "add up to more than 1", "missing": "are missing",
       "other-tokens": "other tokens were scored", "error-500": "answers 500", "error-429": "answers 429: Rate limit",
       "drop": "broke off", "drip": "no whole answer", "slow": "no whole answer", "cut": "broke off"}


def test_every_fault_is_tried() -> None:
    assert {*BAD} | {"none", "busy-once", "empty"} == {*FAULTS}


@pytest.mark.parametrize("fault", BAD)
def test_a_server_that_goes_bad_is_named(server: Running, student: LanguagePolicy, fault: str) -> None:
    it = RemoteTeacher(Server(server.reference), None, student.tokenizer, n_actions=student.n_actions, top_k=8)
    assert it.server is not None
    it.server.endpoint.attempts = 2
    it.server.endpoint.timeout = 0.3 if fault in ("slow", "drip") else 20.0
    server.set(fault=fault)
    with pytest.raises(UserError, match=BAD[fault]) as raised:
        it.columns(some_rollouts(student, 2), Needs.FULL, 8)
    assert raised.value.fix


@pytest.mark.parametrize("fault", ["nan", "positive", "raw-logits", "short"])
def test_so_is_one_of_the_other_dialect(server: Running, student: LanguagePolicy, fault: str) -> None:
    server.set(dialect="openai")
    it = RemoteTeacher(Server(server.reference), None, student.tokenizer, n_actions=student.n_actions, top_k=8)
    server.set(dialect="openai", fault=fault)
    with pytest.raises(UserError, match=BAD[fault]):
        it.columns(some_rollouts(student, 2), Needs.FULL, 8)


def test_a_server_that_is_starting_is_waited_for(server: Running, student: LanguagePolicy) -> None:
    server.set(fault="busy-once")
    assert remote(server, student).columns(some_rollouts(student, 2), Needs.SAMPLED, 0).n_asked > 0


def test_an_empty_completion_is_an_end_or_an_error(server: Running, student: LanguagePolicy) -> None:
    server.set(dialect="text")
    it = remote(server, student, top_k=0)
    server.set(dialect="text", fault="empty")
    how: Any = {"max_new_tokens": 3, "uniform_tbd": uniform_table(1, 3, torch.Generator()), "turns": None}
    (written,) = it.write(Teacher(), [[5, 6]], eos_ids=student.tokenizer.eos_ids, **how)
    assert written.tokens == [student.tokenizer.eos_id] and written.ended
    with pytest.raises(UserError, match="wrote an empty completion"):
        it.write(Teacher(), [[5, 6]], eos_ids=frozenset(), **how)


@pytest.mark.parametrize("dialect", ["vllm", "openai"])
def test_another_tokenizer_is_refused_with_what_differs(server: Running, dialect: str) -> None:
    server.set(dialect=dialect)
    known = Tokenizer.load(SERVED).vocabulary
    alphabet = "".join(sorted((token for token in known if len(token) == 1), reverse=True))
    other = Tokenizer.characters(alphabet[2:])
    with pytest.raises(UserError, match=r"do not share a tokenizer: \d+ of \d+ tokens differ, such as") as raised:
        check(Server(server.reference), other, TokenNames(other), [])
    assert "student" in str(raised.value.fix)


def test_another_chat_template_is_refused_with_what_differs(server: Running) -> None:
    tokenizer, example = Tokenizer.load(SERVED), Example("q1", [{"role": "user", "content": "4+1="}], answer="5")
    tokenizer.inner.chat_template = TEMPLATE
    check(Server(server.reference), tokenizer, TokenNames(tokenizer), [example])
    tokenizer.inner.chat_template = TEMPLATE + "5;"
    with pytest.raises(UserError, match=r"the chat templates .* differ: the prompt of q1 is 4 tokens there and 6 here"):
        check(Server(server.reference), tokenizer, TokenNames(tokenizer), [example])
