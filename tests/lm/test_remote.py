"""A teacher behind a server (a real process on loopback) says and writes what it would in process, in both dialects
and, as far as that goes, as text only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from opdbench.actors import Blend, Mixture, Teacher, uniform_table
from opdbench.context import Context
from opdbench.distiller import Needs
from opdbench.distributions import Categorical
from opdbench.divergences import forward_kl, reverse_kl
from opdbench.errors import UserError
from opdbench.ledger import Ledger
from opdbench.lm.generate import generate
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.tokenizer import Tokenizer
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_ACTION, TEACHER_LOGP, TEACHER_TOPK_ID, TEACHER_TOPK_LOGP
from opdbench.schema.spec import Budget, Execution, Training
from opdbench.support import Comparison, TopK
from opdbench.task import Example, Reply, Turns
from opdbench.tasks.reasoning import ChainSum
from tests.lm.asking import TASK, remote, some_rollouts, world
from tests.lm.completions_server import Running


@pytest.mark.parametrize("dialect", ["vllm", "openai"])
def test_it_says_what_the_model_says_in_process(server: Running, student: LanguagePolicy, teacher: LanguagePolicy,
                                                dialect: str) -> None:
    server.set(dialect=dialect)
    rollouts = some_rollouts(student)
    mask_bt = rollouts.mask_bt
    logp_na = teacher.project(teacher.features(rollouts.input_bt, rollouts.length_b)[mask_bt]).log_softmax(-1)
    it = remote(server, student)
    answer = it.columns(rollouts, Needs.FULL, 5)
    assert (answer.n_asked, answer.n_cached) == (rollouts.n_rows, 0)
    expected = logp_na.topk(5)
    assert torch.equal(answer.columns[TEACHER_TOPK_ID][mask_bt], expected.indices)
    close(answer.columns[TEACHER_TOPK_LOGP][mask_bt], expected.values)
    close(answer.columns[TEACHER_LOGP][mask_bt], logp_na.gather(-1, rollouts.action_bt[mask_bt][:, None])[:, 0])
    assert torch.isneginf(answer.columns[TEACHER_TOPK_LOGP][~mask_bt]).all()
    assert torch.equal(it.columns(rollouts, Needs.ACTION, 5).columns[TEACHER_ACTION][mask_bt], logp_na.argmax(-1))
    close(it.columns(rollouts, Needs.SAMPLED, 5).columns[TEACHER_LOGP], answer.columns[TEACHER_LOGP])


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dialect", ["vllm", "openai", "text"])
def test_greedy_text_is_what_the_model_writes_in_process(server: Running, student: LanguagePolicy,
                                                         teacher: LanguagePolicy, dialect: str) -> None:
    server.set(dialect=dialect)
    prompts = [student.tokenizer.encode(str(example.prompt)) for example in TASK.examples("test")[:5]]
    how: Any = {"max_new_tokens": 20, "eos_ids": student.tokenizer.eos_ids, "turns": None,
                "uniform_tbd": uniform_table(5, 20, torch.Generator())}
    here = generate(Teacher(0.0), None, teacher, prompts, **how)
    there = remote(server, student, top_k=0).write(Teacher(0.0), prompts, **how)
    assert [(one.tokens, one.sources, one.ended) for one in there] == [(one.tokens, one.sources, one.ended)
                                                                       for one in here]


def test_sampled_text_repeats_and_its_log_probabilities_are_the_scores(server: Running, student: LanguagePolicy
                                                                       ) -> None:
    it, its_world = remote(server, student), world(student)
    its_world.oracle = it

    def draw(temperature: float, seed: int) -> Rollouts:
        its_world.load_state_dict({"cursor": 0})
        return its_world.rollout(Teacher(temperature), n=4, horizon=12, repeat=2,
                                 generator=torch.Generator().manual_seed(seed))

    hot, again, other = draw(3.0, 1), draw(3.0, 1), draw(3.0, 2)
    assert torch.equal(hot.action_bt, again.action_bt) and not torch.equal(hot.action_bt, other.action_bt)
    assert not torch.equal(hot.action_bt[0], hot.action_bt[1])  # one prompt, two draws
    first = draw(1.0, 1)
    mask_bt = first.mask_bt
    close(it.columns(first, Needs.SAMPLED, 0).columns[TEACHER_LOGP][mask_bt], first.behaviour_logp_bt[mask_bt])
    assert hot.behaviour_logp_bt[hot.mask_bt].isnan().all()  # servers do not tell those of a tempered distribution


class Answering(ChainSum):
    """The environment repeats every token; "$" is answered and goes on."""

    stop_at_eos = False

    def turns(self, examples: Sequence[Example], tokenizer: Tokenizer, rngs: Sequence[Random], *,
              evaluating: bool) -> Turns:
        class Echoes:
            def reply(self, index: int, token: int) -> Reply:
                return Reply([token], done=False)

        return Echoes()


@pytest.mark.parametrize("dialect", ["vllm", "openai"])
def test_an_environment_may_answer_after_every_token(server: Running, student: LanguagePolicy, teacher: LanguagePolicy,
                                                     dialect: str) -> None:
    server.set(dialect=dialect)
    task = Answering()
    examples = task.examples("test")[:3]
    prompts = [student.tokenizer.encode(str(example.prompt)) for example in examples]
    how: Any = {"max_new_tokens": 7, "eos_ids": frozenset(), "uniform_tbd": uniform_table(3, 7, torch.Generator())}
    turns = [task.turns(examples, student.tokenizer, [], evaluating=False) for _ in range(2)]
    here = generate(Teacher(0.0), None, teacher, prompts, turns=turns[0], **how)
    there = remote(server, student, top_k=0).write(Teacher(0.0), prompts, turns=turns[1], **how)
    assert [(one.tokens, one.sources, one.ended) for one in there] == [(one.tokens, one.sources, one.ended)
                                                                       for one in here]


def test_actors_that_need_both_models_are_refused(server: Running, student: LanguagePolicy) -> None:
    it = world(student)
    it.oracle = remote(server, student)
    for actor in (Mixture(0.5), Blend(lambda left, right: left)):
        with pytest.raises(UserError, match="writes whole completions"):
            it.rollout(actor, n=2, horizon=4, generator=torch.Generator())
    assert it.rollout(Mixture(1.0), n=2, horizon=4, generator=torch.Generator()).n_rows > 0


def test_padding_gives_no_nan(server: Running, student: LanguagePolicy) -> None:
    """A server that tells fewer tokens than were asked for: -inf in the columns, finite losses and gradients."""
    answer = remote(server, student).columns(some_rollouts(student, 2), Needs.FULL, 4)
    id_nk, logp_nk = (answer.columns[name].flatten(0, 1)[-3:].clone() for name in (TEACHER_TOPK_ID, TEACHER_TOPK_LOGP))
    id_nk[:, 2:], logp_nk[:, 2:] = 0, -torch.inf
    for divergence in (forward_kl, reverse_kl):
        logits_na = torch.randn(3, student.n_actions, requires_grad=True)
        pair = Comparison("teacher", 4).pair(TopK(id_nk, logp_nk), Categorical(logits_na))
        divergence(pair.teacher, pair.student).sum().backward()
        assert logits_na.grad is not None and logits_na.grad.isfinite().all()


def test_what_is_asked_once_is_counted_once(server: Running, student: LanguagePolicy, tmp_path: Path) -> None:
    it = world(student)
    it.oracle = remote(server, student, cache=tmp_path)
    ctx = Context(it, Training(support="teacher", top_k=8), Budget(steps=1), Execution(), Ledger(), 0)
    rollouts = some_rollouts(student, 3)
    twice = Rollouts.cat([rollouts, rollouts])
    scored = ctx.score(twice, Needs.FULL)
    assert (ctx.ledger.teacher_scored, ctx.ledger.teacher_cached) == (rollouts.n_rows, rollouts.n_rows)
    assert torch.equal(scored.columns[TEACHER_TOPK_ID][:3], scored.columns[TEACHER_TOPK_ID][3:])
    assert ctx.score(scored, Needs.FULL) is scored  # replayed rollouts carry the answer
    before = server.requests()
    again = ctx.score(rollouts, Needs.FULL)
    assert server.requests() == before and ctx.ledger.teacher_cached == 2 * rollouts.n_rows
    horizon = again.input_bt.shape[1]
    assert torch.equal(again.columns[TEACHER_TOPK_LOGP], scored.columns[TEACHER_TOPK_LOGP][:3, :horizon])


def test_a_most_likely_token_that_cannot_be_told_is_no_label(server: Running, student: LanguagePolicy) -> None:
    """Two tokens of one text, as parts of characters have: in the dialect that names tokens by text."""
    server.set(dialect="openai")
    it, rollouts = remote(server, student), some_rollouts(student, 2)
    labels = it.columns(rollouts, Needs.ACTION, 1).columns[TEACHER_ACTION][rollouts.mask_bt]
    lost = it.names._written[int(labels[0])]
    it.names._ids.pop(lost)
    with pytest.raises(UserError, match="by a text that several tokens have"):
        it.columns(rollouts, Needs.ACTION, 1)
