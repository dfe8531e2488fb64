"""A teacher with another tokenizer: it reads, scores and writes text in its own tokens.

`BridgedWorld` is a `LanguageWorld` in which each model keeps its tokenizer, its chat template and its vocabulary. What
the student wrote is read by the teacher as it would cut that text itself, below the prompt as its own template renders
it; what the teacher writes is read by the student likewise. `TextBridge` puts what the teacher says beside the tokens
of the student, piece by piece (opdbench.pieces; opdbench.lm.alignment finds the pieces).

A piece is compared when the teacher's tokens spell its bytes, the student (or the data) chose all of it, and the
teacher's context holds it. End tokens are matched with each other and with nothing else. What the student wrote and the
teacher cannot (a special token amid the text, half a character) has probability zero to the teacher, and is compared
as such: left out, it would be a way around the teacher, which on-policy training soon finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

from opdbench.actors import Actor
from opdbench.errors import UserError
from opdbench.lm.alignment import Reading, Speller, align
from opdbench.lm.generate import Completion, completion_of
from opdbench.lm.policy import LanguagePolicy, Speaker, pad_right
from opdbench.lm.world import LanguageWorld
from opdbench.oracle import Oracle
from opdbench.pieces import (
    IMPOSSIBLE,
    OPEN_PREFIX,
    PIECE_HEAD,
    PIECE_START,
    PIECE_TOKENS,
    SINCE_HEAD,
    TEACHER_REST_LOGP,
    TEACHER_TOKEN,
    Head,
    Scored,
    Vocabularies,
)
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import TEACHER_FEATURES
from opdbench.task import Example, LanguageTask, Split
from opdbench.world import Outcome

PROJECTED_AT_ONCE = 1024  # of the teacher's states, whose logits exist at one time


class _Compared(NamedTuple):
    """A piece, its tokens numbered from the completions' starts."""

    left: range
    right: range
    possible: bool = True  # whether the teacher can write it


class _Text(NamedTuple):
    """One trajectory, on both sides."""

    first: int  # step of the completion's first token
    tokens: list[int]  # the teacher's, the prompt's among them
    prompt: int  # how many those are
    pieces: list[_Compared]
    prefixes: list[tuple[int, int, int]]  # step, number of the prefix that stands before it, steps since its head


class TextBridge:
    """What a teacher with another tokenizer says about what a student wrote.

    Args:
        eos_ids: the student's tokens that end a completion.
        problems: what some rollouts are about; prompts: their prompts in the teacher's tokens.
    """

    def __init__(self, student: LanguagePolicy, teacher: LanguagePolicy, *, eos_ids: frozenset[int], teacher_batch: int,
                 problems: Callable[[Rollouts], Sequence[Example]],
                 prompts: Callable[[Rollouts], Sequence[list[int]]]) -> None:
        self.student, self.teacher = Speller(student.tokenizer), Speller(teacher.tokenizer)
        self.eos_ids, self.teacher_batch = eos_ids, teacher_batch
        self._policy, self._problems, self._prompts = teacher, problems, prompts
        self.vocabularies, self._prefixes = correspond(self.student, student, self.teacher, teacher)

    @torch.no_grad()
    def score(self, rollouts: Rollouts, head: Head) -> Scored:
        """Ask the teacher about every piece; with `head="position"`, about the t-th of its own tokens at the t-th of
        the student's, as far as both texts go.

        Raises:
            UserError: none of what was written can be compared, so that there is nothing to learn from.
        """
        host = rollouts.to("cpu")
        texts = [self._text(*completion_of(host, index), prompt, head)
                 for index, prompt in enumerate(self._prompts(host))]
        if rollouts.n_rows and not any(text.pieces for text in texts):
            raise UserError(f"none of the {rollouts.n_rows} tokens written in this step can be compared: the teacher's "
                            "tokenizer changes or drops this text, or its context is too short for it",
                            "choose a teacher that reads what the student writes")
        columns, problems = _columns(rollouts, texts, head), self._problems(host)
        for start in range(0, len(texts), self.teacher_batch):
            part = range(start, min(start + self.teacher_batch, len(texts)))
            speaker = self._policy.on(problems[part.start:part.stop])
            self._score_part(texts, part, head, columns, speaker)
        return Scored(rollouts.with_columns(per_step=columns), sum(len(text.tokens) - text.prompt for text in texts),
                      torch.tensor([len(text.tokens) for text in texts]))

    def translate(self, completion: Completion, eos_ids: frozenset[int], horizon: int) -> Completion:
        """What the teacher wrote, in the student's tokens; cut at `horizon`. `eos_ids` are the teacher's. How likely
        the student's tokens were to the teacher is not known."""
        closed = _closed(completion, eos_ids)
        written = self.teacher.written(completion.tokens[:-1] if closed else completion.tokens)
        reading = self.student.read(written.text.decode())
        tokens, sources = list(reading.ids), [int(Source.NOBODY)] * len(reading.ids)
        for piece in align(written.end_of, reading.end_of):
            by_teacher = all(completion.sources[index] != Source.NOBODY for index in piece.left)
            for index in piece.right:
                sources[index] = int(Source.TEACHER if by_teacher else Source.NOBODY)
        if closed:
            tokens, sources = [*tokens, self.student.tokenizer.eos_id], [*sources, int(Source.TEACHER)]
        ended = completion.ended and len(tokens) <= horizon
        return Completion(tokens[:horizon], sources[:horizon], [float("nan")] * len(tokens[:horizon]), ended)

    def _text(self, completion: Completion, first: int, prompt: list[int], head: Head) -> _Text:
        closed = _closed(completion, self.eos_ids)
        written = self.student.written(completion.tokens[:-1] if closed else completion.tokens)
        reading = self.teacher.read(written.text.decode())
        n_written, n_read = len(written.ids), len(reading.ids)
        tokens = [*prompt, *reading.ids, *([self.teacher.tokenizer.eos_id] if closed else [])]
        tokens = tokens[:self._policy.context_length]
        if head == "position":
            pieces = [_Compared(range(index, index + 1), range(index, index + 1)) for index in
                      range(min(n_written, n_read) + (closed and n_written == n_read))]
        else:
            pieces = list(_same_text(written, reading))
            if closed:
                pieces.append(_Compared(range(n_written, n_written + 1), range(n_read, n_read + 1)))
        n_heard = len(tokens) - len(prompt)
        pieces = [piece for piece in pieces if piece.right.stop <= n_heard
                  and all(completion.sources[index] != Source.NOBODY for index in piece.left)]
        prefixes = [(first + index, number, index - piece.left.start) for piece in pieces
                    for index, number in self._open(written, piece)
                    if index < len(completion.tokens) and completion.sources[index] != Source.NOBODY]
        return _Text(first, tokens, len(prompt), pieces, prefixes if head == "first" else [])

    def _open(self, written: Reading, piece: _Compared) -> Iterator[tuple[int, int]]:
        """Where, in and after a piece that is one token of the teacher's, longer ones go on from what stands there:
        the student's position, and the number of the prefix before it."""
        if piece.possible and len(piece.right) == 1:
            text = b""
            for index in piece.left:
                text += (written.spelled[index] or b"") if index < len(written.spelled) else b""
                if text in self._prefixes:
                    yield index + 1, self._prefixes[text]

    def _score_part(self, texts: Sequence[_Text], part: range, head: Head, columns: dict[str, Tensor],
                    speaker: Speaker) -> None:
        """Fill in what the teacher says about the trajectories in `part`."""
        input_bt, length_b = pad_right([texts[index].tokens for index in part], self._policy.device)
        features_bth = speaker.features(input_bt, length_b)
        heads, rests = _Places(), _Places()
        for row, index in enumerate(part):
            text = texts[index]
            for piece in text.pieces:
                step = text.first + _head(piece.left, head)
                at = _head(piece.right, head)
                heads.add(index, step, row, text.prompt - 1 + at, max(_token(text, at), 0))
                for number in piece.right if piece.possible else ():
                    if number != at:
                        rests.add(index, step, row, text.prompt - 1 + number, _token(text, number))
        if TEACHER_FEATURES not in columns:
            columns[TEACHER_FEATURES] = features_bth.new_zeros(*columns[PIECE_HEAD].shape, features_bth.shape[-1])
        if heads.where:
            where, state = heads.indices()
            columns[TEACHER_FEATURES][where] = features_bth[state]
            columns[TEACHER_TOKEN][where] = torch.tensor(heads.tokens, device=columns[TEACHER_TOKEN].device)
        if rests.where:
            where, state = rests.indices()
            logp_n = self._logp(features_bth[state], torch.tensor(rests.tokens, device=features_bth.device))
            column_bt = columns[TEACHER_REST_LOGP].to(logp_n.dtype)
            columns[TEACHER_REST_LOGP] = column_bt.index_put(where, logp_n.to(column_bt.device), accumulate=True)

    def _logp(self, features_nh: Tensor, token_n: Tensor) -> Tensor:
        parts = [self._policy.project(features_nh[start:start + PROJECTED_AT_ONCE]).log_softmax(-1)
                 .gather(-1, token_n[start:start + PROJECTED_AT_ONCE, None])[:, 0]
                 for start in range(0, len(token_n), PROJECTED_AT_ONCE)]
        return torch.cat(parts)


class BridgedWorld(LanguageWorld):
    """A language world whose teacher has another tokenizer. Arguments are those of `LanguageWorld`.

    The teacher acts alone or not at all, and is asked only about whole texts. Its tokens and what they cost to write
    are counted as the student's tokens for the same text.
    """

    def __init__(self, task: LanguageTask, student: LanguagePolicy, teacher: LanguagePolicy, **settings: Any) -> None:
        super().__init__(task, student, None, **settings)
        self.teacher = teacher
        self._teachers = LanguageWorld(task, teacher, teacher, **settings)
        self._bridge = TextBridge(student, teacher, eos_ids=self.eos_ids, teacher_batch=self.teacher_batch,
                                  problems=self._asked, prompts=self._teacher_prompts)
        self.bridge = self._bridge

    def rollout(self, actor: Actor, *, n: int, horizon: int, generator: Generator, repeat: int = 1,
                problems: Sequence[int] | None = None) -> Rollouts:
        """See `opdbench.world.World`. The teacher writes at most `horizon` of its own tokens."""
        if not actor.uses_teacher:
            return super().rollout(actor, n=n, horizon=horizon, generator=generator, repeat=repeat, problems=problems)
        if actor.uses_student:
            raise UserError("the teacher has another tokenizer than the student, and the two cannot choose a token "
                            "together", "let one of them write alone, or choose two models of one family")
        self._teachers.load_state_dict(self.state_dict())
        theirs = self._teachers.rollout(actor, n=n, horizon=horizon, generator=generator, repeat=repeat,
                                        problems=problems).to("cpu")
        self.load_state_dict(self._teachers.state_dict())
        indices, group_b = theirs.columns["example"].tolist(), theirs.columns["group"]
        completions = [self._bridge.translate(completion_of(theirs, index)[0], self._teachers.eos_ids, horizon)
                       for index in range(n)]
        prompts = [self._render(self._problems[index], horizon, thinking=self._thinks(group))
                   for index, group in zip(indices, group_b.tolist(), strict=True)]
        return self._rollouts(indices, group_b, prompts, completions)

    def teacher_features(self, rollouts: Rollouts) -> Tensor:
        raise UserError("the teacher has another tokenizer than the student, and no states in common with it",
                        "ask about pieces of text (Context.score_pieces), or choose two models of one family")

    def evaluate(self, policy: Policy | Oracle, *, split: Split, mode: Literal["greedy", "sampled"], n: int | None,
                 seed: int) -> list[Outcome]:
        """See `opdbench.world.World`; the teacher reads and writes its own tokens."""
        if policy is self.teacher:
            return self._teachers.evaluate(policy, split=split, mode=mode, n=n, seed=seed)
        return super().evaluate(policy, split=split, mode=mode, n=n, seed=seed)

    def _asked(self, rollouts: Rollouts) -> list[Example]:
        return [self._problems[index] for index in rollouts.columns["example"].tolist()]

    def _teacher_prompts(self, rollouts: Rollouts) -> list[list[int]]:
        return [self._teachers._render(example, 0, thinking=self._thinks(group)) for example, group in
                zip(self._asked(rollouts), rollouts.columns["group"].tolist(), strict=True)]


def _closed(completion: Completion, eos_ids: frozenset[int]) -> bool:
    """Whether the last token is an end token that somebody chose."""
    return bool(completion.tokens) and completion.tokens[-1] in eos_ids and completion.sources[-1] != Source.NOBODY


def _same_text(written: Reading, reading: Reading) -> Iterator[_Compared]:
    """The pieces that can be compared; special tokens between two of them are a piece each."""
    for piece in align(written.end_of, reading.end_of):
        left = piece.left
        while left and written.spelled[left[0]] is None:
            yield _Compared(left[:1], piece.right[:0], possible=False)
            left = left[1:]
        trailing: list[range] = []
        while left and written.spelled[left[-1]] is None:
            trailing, left = [left[-1:], *trailing], left[:-1]
        if left and reading.spells(piece.right):
            yield _Compared(left, piece.right, written.spells(left))
        yield from (_Compared(special, range(piece.right.stop, piece.right.stop), possible=False)
                    for special in trailing)


def _head(tokens: range, head: Head) -> int:
    """The head's number; of no tokens, where they would be."""
    return tokens.stop - 1 if head == "last" and tokens else tokens.start


def _token(text: _Text, number: int) -> int:
    """One of the completion's tokens in the teacher's reading, -1 beyond its ends."""
    place = text.prompt + number
    return text.tokens[place] if number >= 0 and place < len(text.tokens) else -1


def _columns(rollouts: Rollouts, texts: Sequence[_Text], head: Head) -> dict[str, Tensor]:
    """Where pieces start and have their heads, what the teacher reads around them, and room for what it says."""
    shape, device = rollouts.mask_bt.shape, rollouts.input_bt.device
    start_bt, head_bt = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    prefix_bt, since_bt, rest_bt = torch.full(shape, -1), torch.zeros(shape, dtype=torch.int64), torch.zeros(shape)
    tokens_bt = torch.zeros_like(since_bt)
    for index, text in enumerate(texts):
        for left, right, possible in text.pieces:
            start_bt[index, text.first + left.start + 1:text.first + left.stop] = False
            at = index, text.first + _head(left, head)
            head_bt[at], tokens_bt[at], rest_bt[at] = True, len(right), 0.0 if possible else IMPOSSIBLE
        for step, prefix, since in text.prefixes:
            prefix_bt[index, step], since_bt[index, step] = prefix, since
    columns = {PIECE_START: start_bt, PIECE_HEAD: head_bt, OPEN_PREFIX: prefix_bt, SINCE_HEAD: since_bt,
               PIECE_TOKENS: tokens_bt, TEACHER_TOKEN: torch.zeros(shape, dtype=torch.int64),
               TEACHER_REST_LOGP: rest_bt}
    return {name: column.to(device) for name, column in columns.items()}


def correspond(student: Speller, student_policy: LanguagePolicy, teacher: Speller, teacher_policy: LanguagePolicy
               ) -> tuple[Vocabularies, dict[bytes, int]]:
    """How two vocabularies correspond, by the bytes that tokens spell, and the numbers of the prefixes of what only the
    teacher has. End tokens mean the same.

    Of several tokens that spell the same, the last one counts: sentencepiece lists its 256 bytes before the characters
    that it uses for the same text. What only one side has is cut into the longest tokens of the other, from the left.
    """
    n_student, n_teacher = student_policy.n_actions, teacher_policy.n_actions
    student_of, teacher_of = _by_text(student, student_policy), _by_text(teacher, teacher_policy)
    pairs = [(teacher.tokenizer.eos_id, student.tokenizer.eos_id)]
    pairs += [(teacher_of[text], index) for text, index in student_of.items() if text in teacher_of]
    beginning_a, beginning_s = torch.full((n_teacher,), n_student), torch.full((n_student,), n_student)
    teacher_m, student_m = torch.tensor(sorted(pairs)).unbind(1)
    beginning_a[teacher_m] = beginning_s[student_m] = student_m
    follow: dict[bytes, list[tuple[int, int]]] = {}  # after a prefix: (the teacher's token, the student's next one)
    for text, index in teacher_of.items():
        if text not in student_of and (cut := _cut(text, student_of)):
            beginning_a[index] = student_of[cut[0]]
            for number in range(1, len(cut)):
                follow.setdefault(b"".join(cut[:number]), []).append((index, student_of[cut[number]]))
    for prefix, entries in follow.items():
        if prefix in teacher_of:
            entries.append((teacher_of[prefix], n_student))
    for text, index in student_of.items():
        if text not in teacher_of and (cut := _cut(text, teacher_of)):
            beginning_s[index] = beginning_a[teacher_of[cut[0]]]
    begun = torch.zeros(n_student + 1, dtype=torch.bool)
    begun[beginning_a] = True
    beginning_s = torch.arange(n_student).where(begun[:-1], beginning_s)
    n_g = torch.tensor([len(entries) for entries in follow.values()], dtype=torch.int64)
    entries_k2 = torch.tensor([entry for entries in follow.values() for entry in entries],
                              dtype=torch.int64).reshape(-1, 2)
    tensors = (teacher_m, student_m, beginning_a, beginning_s, n_g.cumsum(0) - n_g, n_g, *entries_k2.unbind(1))
    return (Vocabularies(*(tensor.to(student_policy.device) for tensor in tensors)),
            {prefix: number for number, prefix in enumerate(follow)})


def _by_text(speller: Speller, policy: LanguagePolicy) -> dict[bytes, int]:
    return {text: index for index in range(policy.n_actions) if (text := speller.token(index))}


def _cut(text: bytes, known: Mapping[bytes, int]) -> list[bytes]:
    """Some bytes as the longest tokens that they begin with, one after the other; nothing where that fails."""
    cut: list[bytes] = []
    while text:
        length = next((length for length in range(len(text), 0, -1) if text[:length] in known), 0)
        if length == 0:
            return []
        cut, text = [*cut, text[:length]], text[length:]
    return cut


class _Places:
    """Tokens of the teacher: where they stand in the student's columns, and in a batch of the teacher's states."""

    def __init__(self) -> None:
        self.where: list[tuple[int, int]] = []
        self.state: list[tuple[int, int]] = []
        self.tokens: list[int] = []

    def add(self, trajectory: int, step: int, row: int, position: int, token: int) -> None:
        self.where.append((trajectory, step))
        self.state.append((row, position))
        self.tokens.append(token)

    def indices(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        return torch.tensor(self.where).unbind(1), torch.tensor(self.state).unbind(1)
