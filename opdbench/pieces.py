"""Comparing two models whose actions are not the same: over pieces of text that each wrote with tokens of its own.

A piece is the smallest stretch of text at whose ends both tokenizations break. With one tokenizer every token is a
piece. Otherwise a piece is some consecutive rows of the student and some tokens of the teacher. One token of each side
is its *head*, where whole distributions are looked at; of the others only the probability of what was written counts:

    P(v) = p(v | what precedes the head) * product over the piece's other tokens of p(that token | all before it)

At the token v that was written this is the probability of the piece's tokens, exactly, on both sides. Columns carry
what the teacher says, one entry a row, filled in by a world's `bridge` (`Context.score_pieces`).

A token of both vocabularies need not be the same event: where "12" is a token, a teacher's "1" is a number that ends
there. `beginnings` and `continuations` compare what is: how the text goes on, in the student's tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from opdbench.distributions import Categorical, Distribution
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows

PIECE_START = "piece_start"  # bool [B, T]: a piece begins in this row, or the row is in no piece
PIECE_HEAD = "piece_head"  # bool [B, T]: the head of a piece that is compared; there the teacher's features are its own
TEACHER_TOKEN = "teacher_token"  # int64 [B, T]: at heads, what the teacher reads as its head token
PIECE_TOKENS = "piece_tokens"  # int64 [B, T]: at heads, how many tokens the teacher has for the piece
OPEN_PREFIX = "open_prefix"  # int64 [B, T]: which of the prefixes in `Vocabularies` stands before this row; -1: none
SINCE_HEAD = "since_head"  # int64 [B, T]: and how many rows ago the head was, at which the prefix begins
TEACHER_REST_LOGP = "teacher_rest_logp"  # [B, T]: at heads, its log-probability of the piece's other tokens
IMPOSSIBLE = -69.0  # that column where the teacher cannot have written the piece: about log 1e-30, and finite

Head = Literal["first", "last", "position"]
"""Which token of each side is a piece's head; `position` makes no pieces and pairs the t-th tokens of both sides."""

_LEAST = 1e-30  # of "anything else", so that its logarithm is finite; far below what any sum of probabilities resolves


class Vocabularies(NamedTuple):
    """How the actions of both sides correspond. A and S are the numbers of the teacher's and of the student's.

    Attributes:
        teacher_m, student_m: shared actions, those that mean the same, int64 [M] each.
        beginning_a: with which of the student's actions each of the teacher's begins, int64 [A]; S: with none.
        beginning_s: likewise each of the student's: itself, where it begins any of the teacher's, int64 [S].
        first_g, n_g: prefixes of what only the teacher has in one action: where the list of what may follow each begins
            below, and how long it is, int64 [G].
        action_k, next_k: that list: the teacher's action, and which of the student's it goes on with after the prefix
            (S: it ends there), int64 [K].
    """

    teacher_m: Tensor
    student_m: Tensor
    beginning_a: Tensor
    beginning_s: Tensor
    first_g: Tensor
    n_g: Tensor
    action_k: Tensor
    next_k: Tensor


class Scored(NamedTuple):
    """Rollouts with the columns above and the teacher's features at heads, and what that took of the teacher."""

    rollouts: Rollouts
    states: int
    """Of its own tokens, those that it was asked about."""
    length_b: Tensor
    """Inputs that it read, int64 [B]."""


class Bridge(Protocol):
    """A teacher with actions of its own, asked about what the student wrote."""

    @property
    def vocabularies(self) -> Vocabularies: ...

    def score(self, rollouts: Rollouts, head: Head) -> Scored: ...


@dataclass(frozen=True)
class Pieces:
    """C compared pieces of N rows.

    Attributes:
        every: the student's distributions in all rows.
        row_c: the row of each one's head on the student's side.
        teacher, student: distributions over its own actions at the head, [C, A] and [C, S].
        teacher_token_c, student_token_c: what was written there, int64.
        teacher_rest_c, student_rest_c: log-probability of the piece's other tokens.
        prefix_n, since_n: the columns OPEN_PREFIX and SINCE_HEAD.
    """

    every: Distribution
    row_c: Tensor
    teacher: Distribution
    student: Distribution
    teacher_token_c: Tensor
    student_token_c: Tensor
    teacher_rest_c: Tensor
    student_rest_c: Tensor
    prefix_n: Tensor
    since_n: Tensor

    @property
    def teacher_logp_c(self) -> Tensor:
        """The teacher's log-probability of each piece's tokens, as it would write it [C]."""
        return self.teacher.logp(self.teacher_token_c) + self.teacher_rest_c

    @property
    def student_logp_c(self) -> Tensor:
        """The student's, likewise, with its gradient [C]."""
        return self.student.logp(self.student_token_c) + self.student_rest_c

    @property
    def possible_c(self) -> Tensor:
        """bool [C]: False where the teacher cannot have written the piece."""
        return self.teacher_rest_c > IMPOSSIBLE / 2

    def spread(self, value_c: Tensor) -> Tensor:
        """One value a row [N]: a piece's at its head, and zero elsewhere."""
        return value_c.new_zeros(len(self.every.logits_na)).index_put((self.row_c,), value_c)

    def texts(self) -> tuple[Categorical, Categorical]:
        """(teacher, student) over two events [C, 2]: the piece's tokens, and any other."""
        return _event(self.teacher_logp_c), _event(self.student_logp_c)

    def matched(self, both: Vocabularies) -> tuple[Categorical, Categorical]:
        """(teacher, student) over the merged probabilities P(v) of the shared actions, and one event for all else
        [C, M + 1]: the other actions, and what the piece's other tokens might have been instead."""
        sides = ((self.teacher, self.teacher_rest_c, both.teacher_m),
                 (self.student, self.student_rest_c, both.student_m))
        teacher, student = (_with_rest(side.logp_na[:, index_m] + rest_c[:, None],
                                       rest_c.exp() * _others(side.p_na, index_m).sum(-1) - torch.expm1(rest_c))
                            for side, rest_c, index_m in sides)
        return teacher, student

    def unmatched(self, both: Vocabularies) -> tuple[Tensor, Tensor]:
        """(teacher, student): merged probabilities P(v) of the actions that are not shared [C, ...]."""
        return (_others(self.teacher.p_na, both.teacher_m) * self.teacher_rest_c.exp()[:, None],
                _others(self.student.p_na, both.student_m) * self.student_rest_c.exp()[:, None])

    def merged(self) -> tuple[Tensor, Tensor]:
        """(teacher, student): merged probabilities P(v) of all actions."""
        return (self.teacher.p_na * self.teacher_rest_c.exp()[:, None],
                self.student.p_na * self.student_rest_c.exp()[:, None])

    def beginnings(self, both: Vocabularies) -> tuple[Categorical, Categorical]:
        """(teacher, student) over the student's action with which the text goes on, at the head [C, S + 1].

        Given that what stands before is complete: an action that would lengthen it is left out (`continuations`).
        """
        n_student = self.student.logits_na.shape[-1]
        open_cs = ~_lengthens(self.prefix_n[self.row_c], both, n_student)
        p_cs = _summed(self.teacher.p_na, both.beginning_a, n_student)
        q_cs = _summed(self.student.p_na * open_cs, both.beginning_s, n_student)
        return _normalised(torch.cat([p_cs[:, :-1] * open_cs, p_cs[:, -1:]], -1)), _normalised(q_cs)

    def continuations(self, both: Vocabularies) -> tuple[Tensor, Categorical, Categorical]:
        """(rows [R], teacher, student): inside pieces, and after them, where the teacher has an action that goes on
        from what stands there since the head: over the student's actions that it may go on with, and one event for "it
        ends here" [R, S + 1]. The teacher's are those at the head, given the prefix."""
        row_r = (self.prefix_n >= 0).nonzero()[:, 0]
        prefix_r, n_student = self.prefix_n[row_r], self.every.logits_na.shape[-1]
        piece_r = torch.searchsorted(self.row_c, row_r - self.since_n[row_r])
        row_k, entry_k = _entries(prefix_r, both)
        p_rs = self.teacher.logits_na.new_zeros(len(row_r), n_student + 1, dtype=self.teacher.logp_na.dtype)
        p_rs.index_put_((row_k, both.next_k[entry_k]), self.teacher.p_na[piece_r[row_k], both.action_k[entry_k]],
                        accumulate=True)
        longer_rs = _lengthens(prefix_r, both, n_student)
        q_rs = self.every.logp_na[row_r].exp()
        q_rs = torch.cat([q_rs * longer_rs, (q_rs * ~longer_rs).sum(-1, keepdim=True)], -1)
        return row_r, _normalised(p_rs), _normalised(q_rs)

    def rests(self, both: Vocabularies) -> tuple[Tensor, Categorical, Categorical]:
        """(rows [R], teacher, student): at the heads of pieces that take the teacher several tokens: over two events
        [R, 2], given how the piece begins (`beginnings`): it goes on as it was written, or not.

        A student that began it with other tokens than its usual ones is not asked; what the teacher cannot have written
        is one event from its beginning on.
        """
        begin_c, own_c = both.beginning_a[self.teacher_token_c], both.beginning_s[self.student_token_c]
        piece_r = ((self.teacher_rest_c < 0) & ((begin_c == own_c) | ~self.possible_c)).nonzero()[:, 0]
        begin_r1 = own_c[piece_r, None]
        teacher_r = self.teacher_logp_c[piece_r] - self._begun(self.teacher, piece_r, both.beginning_a == begin_r1)
        student_r = self.student_logp_c[piece_r] - self._begun(self.student, piece_r, both.beginning_s == begin_r1)
        return self.row_c[piece_r], _event(teacher_r), _event(student_r)

    def _begun(self, side: Distribution, piece_r: Tensor, same_ra: Tensor) -> Tensor:
        """Log-probability [R] of the actions with the same beginning; 0 for what the teacher cannot have written."""
        logp_r = side.logp_na[piece_r].masked_fill(~same_ra, -math.inf).logsumexp(-1)
        return logp_r.where(self.possible_c[piece_r], 0.0)


def pieces_of(rows: Rows) -> Pieces:
    """The pieces in rows that hold whole trajectories (`row_wise = False`)."""
    student, action_n = rows.student, rows.action_n
    if PIECE_HEAD not in rows.columns:
        row_c, nothing_c = torch.arange(len(rows), device=action_n.device), torch.zeros_like(student.logits_na[:, 0])
        none_c = torch.full_like(action_n, -1)
        return Pieces(student, row_c, rows.teacher, student, action_n, action_n, nothing_c, nothing_c, none_c, none_c)
    columns, head_n = rows.columns, rows.columns[PIECE_HEAD]
    row_c = head_n.nonzero()[:, 0]
    piece_n = columns[PIECE_START].cumsum(0) - 1
    rest_n = student.logp(action_n).masked_fill(head_n, 0.0)
    student_rest_p = rest_n.new_zeros(len(rows)).index_add(0, piece_n, rest_n)
    return Pieces(student, row_c, rows.teacher_at(row_c), Categorical(student.logits_na[row_c]),
                  columns[TEACHER_TOKEN][row_c], action_n[row_c], columns[TEACHER_REST_LOGP][row_c].to(rest_n.dtype),
                  student_rest_p[piece_n[row_c]], columns[OPEN_PREFIX], columns[SINCE_HEAD])


def _entries(prefix_r: Tensor, both: Vocabularies) -> tuple[Tensor, Tensor]:
    """What may follow each prefix: pairs of a row's number and a place in the list, int64 [sum of n_g] each."""
    n_r = both.n_g[prefix_r]
    row_k = torch.arange(len(prefix_r), device=n_r.device).repeat_interleave(n_r)
    within_k = torch.arange(len(row_k), device=n_r.device) - (n_r.cumsum(0) - n_r)[row_k]
    return row_k, both.first_g[prefix_r][row_k] + within_k


def _lengthens(prefix_r: Tensor, both: Vocabularies, n_student: int) -> Tensor:
    """bool [R, S]: whether the teacher has an action that begins with the prefix (-1: no prefix) and goes on so."""
    longer_rs = torch.zeros(len(prefix_r), n_student + 1, dtype=torch.bool, device=prefix_r.device)
    open_r = (prefix_r >= 0).nonzero()[:, 0]
    row_k, entry_k = _entries(prefix_r[open_r], both)
    longer_rs[open_r[row_k], both.next_k[entry_k]] = True
    return longer_rs[:, :-1]


def _others(p_ca: Tensor, index_m: Tensor) -> Tensor:
    """Probabilities of the actions that are not in `index_m`."""
    keep_a = torch.ones(p_ca.shape[-1], dtype=torch.bool, device=p_ca.device)
    keep_a[index_m] = False
    return p_ca[:, keep_a]


def _summed(p_ca: Tensor, beginning_a: Tensor, size: int) -> Tensor:
    """Probabilities by what the actions begin with [C, size + 1]."""
    return p_ca.new_zeros(len(p_ca), size + 1).index_add(1, beginning_a, p_ca)


def _normalised(p_ca: Tensor) -> Categorical:
    """Events with these weights."""
    return Categorical(p_ca.clamp(min=_LEAST).log())


def _event(logp_c: Tensor) -> Categorical:
    """An event and its opposite."""
    return _with_rest(logp_c[:, None], -torch.expm1(logp_c))


def _with_rest(logp_cm: Tensor, rest_c: Tensor) -> Categorical:
    """Some events, and a last one with the probability that is left."""
    return Categorical(torch.cat([logp_cm, rest_c.clamp(min=_LEAST).log()[:, None]], -1))
