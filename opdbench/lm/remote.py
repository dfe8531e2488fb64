"""A language model that is asked over HTTP, or whose answers lie in a cache, as the teacher of a run.

It reveals text, the log-probabilities of tokens, and the most likely tokens; never whole distributions or features. So
methods that learn from its text or from sampled tokens run unchanged, and divergences on `support=teacher`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opdbench.actors import ACTION, Actor, Mixture, Teacher
from opdbench.distiller import Needs
from opdbench.errors import UserError
from opdbench.lm import answers, remote_cache
from opdbench.lm.agreement import TokenNames, check
from opdbench.lm.answers import Written
from opdbench.lm.generate import Completion, Conversation
from opdbench.lm.remote_cache import Asked, Cache, Rows
from opdbench.lm.server import Server
from opdbench.lm.tokenizer import Tokenizer
from opdbench.oracle import Answer
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import TEACHER_ACTION, TEACHER_LOGP, TEACHER_TOPK_ID, TEACHER_TOPK_LOGP
from opdbench.task import Example, Turns

_SEEDS = 2**31 - 1


class _Span(NamedTuple):
    """One trajectory as a sequence that was or will be scored: rows `first` to the end of `tokens`."""

    tokens: list[int]
    first: int
    n_rows: int  # that somebody decided


class RemoteTeacher:
    """An `opdbench.oracle.Oracle` that writes, too.

    Args:
        server: None when there is only the cache.
        cache: None for none; every answer of the server is added to it.
        tokenizer: the local one, which is the student's.
        n_actions: the student's vocabulary; tokens beyond it are left out of what is revealed.
        top_k: most likely tokens a position; 0 when only those taken matter.
        context_length: the longest sequence that it reads; None where that is not known.
    """

    def __init__(self, server: Server | None, cache: Cache | None, tokenizer: Tokenizer, *, n_actions: int,
                 top_k: int, context_length: int | None = None) -> None:
        assert server is not None or cache is not None
        self.server, self.cache, self.tokenizer, self.n_actions = server, cache, tokenizer, n_actions
        self.names = TokenNames(tokenizer)
        self.context_length = context_length
        self._top_k = top_k if cache is None else cache.asked.top_k  # what is asked for, so that it can be kept

    @classmethod
    def open(cls, source: Server | Path, tokenizer: Tokenizer, *, n_actions: int, top_k: int, cache: Path | None,
             examples: Sequence[Example]) -> RemoteTeacher:
        """The teacher behind a server, or in the folder of a cache.

        Args:
            cache: where to keep what the server says.
            examples: of the task, to compare the tokens of.

        Raises:
            UserError: server and tokenizer do not agree; the cache is another's.
        """
        vocabulary = _vocabulary_sha256(tokenizer)
        if isinstance(source, Path):
            asked = remote_cache.read_manifest(source)._replace(vocabulary_sha256=vocabulary, top_k=top_k)
            return cls(None, Cache(source, asked), tokenizer, n_actions=n_actions, top_k=top_k,
                       context_length=asked.context_length)
        kept = None
        if cache is not None:
            who = source.identity()
            kept = Cache(cache, Asked(who.model, who.probe, who.sha256, vocabulary, top_k, source.longest))
        teacher = cls(source, kept, tokenizer, n_actions=n_actions, top_k=top_k, context_length=source.longest)
        check(source, tokenizer, teacher.names, examples)
        return teacher

    # ------------------------------------------------------------------------------------------------------- scoring

    def columns(self, rollouts: Rollouts, needs: Needs, top_k: int) -> Answer:
        """See `opdbench.oracle.Oracle`."""
        width = {Needs.FULL: top_k, Needs.ACTION: 1, Needs.SAMPLED: 0}.get(needs)
        if width is None or width > self._top_k:
            raise UserError(f"a teacher over HTTP was asked for {needs} (top_k {width}), and reveals {self._top_k} "
                            "tokens a position", "pass the teacher's weights, or --set support=teacher --set top_k=K")
        spans = [_span(rollouts, trajectory) for trajectory in range(rollouts.n_trajectories)]
        shape = rollouts.mask_bt.shape
        logp_bt = torch.zeros(shape)
        topk_id_btk = torch.zeros(*shape, width, dtype=torch.int64)
        topk_logp_btk = torch.full((*shape, width), -math.inf)
        asked = 0
        for index, rows, was_cached in self._scores(spans):
            steps = slice(spans[index].first, len(spans[index].tokens) - 1)
            logp_bt[index, steps] = torch.from_numpy(rows["logp"])
            if width:
                topk_id_btk[index, steps] = torch.from_numpy(rows["topk_id"][:, :width].astype(np.int64))
                topk_logp_btk[index, steps] = torch.from_numpy(rows["topk_logp"][:, :width])
            asked += 0 if was_cached else spans[index].n_rows
        if needs == Needs.ACTION:
            if torch.isneginf(topk_logp_btk[..., 0])[rollouts.mask_bt.cpu()].any():
                raise UserError(f"the server at {self._url} names its most likely token by a text that several tokens "
                                "have", "serve the teacher with vLLM, which names tokens by their ids")
            columns = {TEACHER_ACTION: topk_id_btk[..., 0]}
        elif needs == Needs.SAMPLED:
            columns = {TEACHER_LOGP: logp_bt}
        else:
            columns = {TEACHER_LOGP: logp_bt, TEACHER_TOPK_ID: topk_id_btk, TEACHER_TOPK_LOGP: topk_logp_btk}
        device = rollouts.input_bt.device
        return Answer({name: column.to(device) for name, column in columns.items()}, asked, rollouts.n_rows - asked)

    def _scores(self, spans: Sequence[_Span]) -> Iterator[tuple[int, Rows, bool]]:
        """(index, rows, whether they were known before) of every span with rows. Equal spans are asked about once."""
        first_of: dict[bytes, int] = {}
        copies: dict[int, list[int]] = {}
        for index, span in enumerate(spans):
            key = self._key(span.tokens, first=span.first)
            if not span.n_rows:
                continue
            if key in first_of:
                copies[first_of[key]].append(index)
                continue
            kept = None if self.cache is None else self.cache.scores.find(key)
            if kept is not None:
                yield index, kept[0], True
            else:
                first_of[key], copies[index] = index, []
        missing = {index: key for key, index in first_of.items()}
        for index, rows in self._ask_scores({index: spans[index] for index in missing}, missing):
            yield index, rows, False
            yield from ((copy, rows, True) for copy in copies[index])

    def _ask_scores(self, spans: dict[int, _Span], keys: dict[int, bytes]) -> Iterator[tuple[int, Rows]]:
        if not spans:
            return
        server = self._require_server(len(spans), "sequences")
        order = sorted(spans, key=lambda index: len(spans[index].tokens))
        batch: list[tuple[bytes, Rows, int]] = []
        try:
            for place, scores in server.score([spans[index].tokens for index in order], self._top_k, self.names.id_of,
                                              self.n_actions):
                index = order[place]
                first = spans[index].first
                rows = {"logp": scores.logp_n[first:], "topk_id": scores.topk_id_nk[first:],
                        "topk_logp": scores.topk_logp_nk[first:]}
                batch.append((keys[index], rows, 0))
                yield index, rows
        finally:
            # Also when the server dies in between: what it has said is kept.
            if self.cache is not None and batch:
                self.cache.scores.add(batch)

    # ------------------------------------------------------------------------------------------------------- writing

    def write(self, actor: Actor, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, eos_ids: frozenset[int],
              uniform_tbd: Tensor, turns: Turns | None) -> list[Completion]:
        """Completions by the teacher alone; see `opdbench.lm.generate.generate`. With an environment that answers after
        every token, one token is asked for at a time.

        Raises:
            UserError: the actor mixes teacher and student; the server fails.
        """
        temperature = _temperature(actor)
        seed_tb = (uniform_tbd[..., ACTION] * _SEEDS).long().tolist()
        if turns is not None:
            return self._converse(prompts, max_new_tokens, temperature, eos_ids, seed_tb, turns)
        found: dict[int, Completion] = {}
        for index, rows, ended in self._completions(prompts, max_new_tokens, temperature, seed_tb[0], eos_ids):
            tokens = rows["token"].tolist()
            found[index] = Completion(tokens, [int(Source.TEACHER)] * len(tokens), rows["logp"].tolist(), ended)
        return [found[index] for index in range(len(prompts))]

    def _converse(self, prompts: Sequence[Sequence[int]], horizon: int, temperature: float, eos_ids: frozenset[int],
                  seed_tb: list[list[int]], turns: Turns) -> list[Completion]:
        if self.server is not None and self.server.way.dialect == "text":
            raise UserError("this task's environment answers after every token, and the server does not say which "
                            "tokens it writes", "serve the teacher with vLLM, or pass its weights")
        conversations = [Conversation(index, horizon) for index in range(len(prompts))]
        while alive := [conversation for conversation in conversations if not conversation.over]:
            prefixes = [[*prompts[each.index], *each.tokens] for each in alive]
            seeds = [seed_tb[len(each.tokens)][each.index] for each in alive]
            for place, rows, _ in self._completions(prefixes, 1, temperature, seeds, eos_ids):
                conversation = alive[place]
                choice = int(rows["token"][0]), float(rows["logp"][0]), int(Source.TEACHER)
                conversation.advance(choice, turns, eos_ids)
                while conversation.forced and not conversation.over:
                    conversation.advance(None, turns, eos_ids)
        return [conversation.completion() for conversation in conversations]

    def _completions(self, prompts: Sequence[Sequence[int]], horizon: int, temperature: float, seeds: Sequence[int],
                     eos_ids: frozenset[int]) -> Iterator[tuple[int, Rows, bool]]:
        """(index, tokens with their log-probabilities, whether it ended by itself) of every prompt; never empty."""
        keys = [self._key(prompt, horizon=horizon, temperature=temperature, stop=sorted(eos_ids),
                          seed=seed if temperature > 0 else 0)
                for prompt, seed in zip(prompts, seeds, strict=True)]
        missing = []
        for index, key in enumerate(keys):
            kept = None if self.cache is None else self.cache.completions.find(key)
            if kept is None:
                missing.append(index)
            else:
                yield index, kept[0], bool(kept[1])
        if not missing:
            return
        server = self._require_server(len(missing), "completions")
        batch: list[tuple[bytes, Rows, int]] = []
        asked = [prompts[index] for index in missing]
        texts = [str(self.tokenizer.inner.decode(list(prompt), skip_special_tokens=False)) for prompt in asked]
        try:
            for place, written in server.complete(asked, texts, max_tokens=horizon, temperature=temperature,
                                                  seeds=[seeds[index] for index in missing], stop_ids=sorted(eos_ids)):
                rows, ended = self._tokens(written, horizon, temperature, eos_ids)
                batch.append((keys[missing[place]], rows, int(ended)))
                yield missing[place], rows, ended
        finally:
            if self.cache is not None and batch:
                self.cache.completions.add(batch)

    def _tokens(self, written: Written, horizon: int, temperature: float, eos_ids: frozenset[int]) -> tuple[Rows, bool]:
        """A completion in local tokens, closed by the local end token where it ended by itself. Its log-probabilities
        are the sampler's only at temperature 1: servers tell those of the untempered distribution."""
        ids = None if written.names is None else [self._id(name) for name in written.names]
        if ids is None or None in ids:
            tokens, logps = self.tokenizer.encode(written.text), None
        else:
            tokens, logps = [token for token in ids if token is not None], written.logps
        ended = written.ended
        if ended and eos_ids and not (tokens and tokens[-1] in eos_ids):
            own = 1 if tokens and tokens[-1] in self.tokenizer.inner.all_special_ids else 0  # an end token of its own
            n = len(tokens) - own
            tokens, logps = [*tokens[:n], self.tokenizer.eos_id], None if logps is None else [*logps[:n], math.nan]
        ended = ended and len(tokens) <= horizon
        tokens = tokens[:horizon]
        if not tokens:
            raise UserError(f"the server at {self._url} wrote an empty completion, and nothing may end one here",
                            "serve the teacher with vLLM, which can be told to go on, or pass its weights")
        known = logps is not None and temperature == 1
        logp_n = np.array(logps[:horizon] if known and logps is not None else [math.nan] * len(tokens), np.float32)
        return {"token": np.array(tokens, np.int32), "logp": logp_n}, ended

    def _id(self, name: str) -> int | None:
        if name.startswith(answers.BY_ID):
            return answers.id_in_name(name)
        return self.names.id_of(name)

    # -------------------------------------------------------------------------------------------------------- common

    def _key(self, tokens: Sequence[int], **question: float | list[int]) -> bytes:
        return remote_cache.key("" if self.cache is None else self.cache.asked.teacher_sha256, tokens, **question)

    def _require_server(self, n: int, what: str) -> Server:
        if self.server is not None:
            return self.server
        assert self.cache is not None
        raise UserError(f"{n} {what} that this run needs are not in the teacher cache {self.cache.folder}",
                        f"let the server answer them: --teacher http://HOST:PORT/v1#{self.cache.asked.teacher} "
                        f"--set teacher_cache={self.cache.folder}")

    @property
    def _url(self) -> str:
        return "" if self.server is None else self.server.url


def _temperature(actor: Actor) -> float:
    if isinstance(actor, Teacher):
        return actor.temperature
    if isinstance(actor, Mixture) and not actor.uses_student:
        return actor.teacher_temperature
    raise UserError("this method lets teacher and student choose tokens in turn or together, and a teacher over HTTP "
                    "writes whole completions", "choose settings in which one of them writes alone "
                                                "(opdbench show METHOD), or pass the teacher's weights")


def _span(rollouts: Rollouts, trajectory: int) -> _Span:
    """The trajectory's tokens, from the first input to the last action, and its rows."""
    length = int(rollouts.length_b[trajectory])
    decided = rollouts.mask_bt[trajectory, :length].nonzero()[:, 0]
    if not len(decided):
        return _Span([], 0, 0)
    inputs, actions = rollouts.input_bt[trajectory, :length].tolist(), rollouts.action_bt[trajectory, :length].tolist()
    return _Span([*inputs, actions[-1]], int(decided[0]), len(decided))


def _vocabulary_sha256(tokenizer: Tokenizer) -> str:
    """What gives token ids their meaning: students of one family share it, whatever their chat templates."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.vocabulary.items())).encode()).hexdigest()
