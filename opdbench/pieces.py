"""Comparing two models whose actions are not the same: over pieces of text that each wrote with tokens of its own.

A piece is the smallest stretch of text at whose ends both tokenizations break. With one tokenizer every token is a
piece. Otherwise a piece is some consecutive rows of the student and some tokens of the teacher. One token of each side
is its *head*, where whole distributions are looked at; of the others only the probability of what was written counts:

    P(v) = p(v | what precedes the head) * product over the piece's other tokens of p(that token | all before it)

At the token v that was written this is the probability of the piece's text, exactly, on both sides. Columns carry what
the teacher says, one entry a row, filled in by a world's `bridge` (`Context.score_pieces`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from opdbench.distributions import Categorical
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows

PIECE_START = "piece_start"  # bool [B, T]: a piece begins in this row, or the row is in no piece
PIECE_HEAD = "piece_head"  # bool [B, T]: the head of a piece that is compared; there the teacher's features are its own
PIECE_SINGLE = "piece_single"  # bool [B, T]: at heads, one token of each side is the whole piece
TEACHER_TOKEN = "teacher_token"  # int64 [B, T]: at heads, what the teacher reads as its head token
TEACHER_REST_LOGP = "teacher_rest_logp"  # [B, T]: at heads, its log-probability of the piece's other tokens
IMPOSSIBLE = -69.0  # that column where the teacher cannot have written the piece: about log 1e-30, and finite

Head = Literal["first", "last", "position"]
"""Which token of each side is a piece's head; `position` makes no pieces and pairs the t-th tokens of both sides."""


class Shared(NamedTuple):
    """Actions of both sides that mean the same, int64 [M] each."""

    teacher_m: Tensor
    student_m: Tensor


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
    def shared(self) -> Shared: ...

    def score(self, rollouts: Rollouts, head: Head) -> Scored: ...


@dataclass(frozen=True)
class Pieces:
    """C compared pieces of N rows.

    Attributes:
        row_c: the row of each one's head on the student's side.
        teacher, student: distributions over its own actions [C, A] at the head; differentiable in the student.
        teacher_token_c, student_token_c: what was written there, int64.
        teacher_rest_c, student_rest_c: log-probability of the piece's other tokens.
        single_c: bool, the head is the whole piece on both sides.
    """

    n_rows: int
    row_c: Tensor
    teacher: Categorical
    student: Categorical
    teacher_token_c: Tensor
    student_token_c: Tensor
    teacher_rest_c: Tensor
    student_rest_c: Tensor
    single_c: Tensor

    @property
    def teacher_logp_c(self) -> Tensor:
        """The teacher's log-probability of each piece's text, as it would write it [C]."""
        return self.teacher.logp(self.teacher_token_c) + self.teacher_rest_c

    @property
    def student_logp_c(self) -> Tensor:
        """The student's, likewise, with its gradient [C]."""
        return self.student.logp(self.student_token_c) + self.student_rest_c

    def texts(self) -> tuple[Categorical, Categorical]:
        """(teacher, student) over two events [C, 2]: the piece's text, and any other."""
        return tuple(_with_rest(logp_c[:, None], -torch.expm1(logp_c))  # type: ignore[return-value]
                     for logp_c in (self.teacher_logp_c, self.student_logp_c))

    def matched(self, shared: Shared) -> tuple[Categorical, Categorical]:
        """(teacher, student) over the merged probabilities P(v) of the shared actions, and one event for all else
        [C, M + 1]: the other actions, and what the piece's other tokens might have been instead."""
        sides = ((self.teacher, self.teacher_rest_c, shared.teacher_m),
                 (self.student, self.student_rest_c, shared.student_m))
        return tuple(_with_rest(side.logp_na[:, index_m] + rest_c[:, None],  # type: ignore[return-value]
                                rest_c.exp() * _others(side.p_na, index_m).sum(-1) - torch.expm1(rest_c))
                     for side, rest_c, index_m in sides)

    def unmatched(self, shared: Shared | None) -> tuple[Tensor, Tensor]:
        """(teacher, student): merged probabilities P(v) of the actions that are not shared [C, ...]; of all actions when
        `shared` is None."""
        sides = ((self.teacher, self.teacher_rest_c, shared and shared.teacher_m),
                 (self.student, self.student_rest_c, shared and shared.student_m))
        return tuple((side.p_na if index_m is None else _others(side.p_na, index_m))  # type: ignore[return-value]
                     * rest_c.exp()[:, None] for side, rest_c, index_m in sides)

    def where(self, chosen_c: Tensor) -> Pieces:
        """Some of the pieces (bool [C]), of the same rows."""
        return Pieces(self.n_rows, self.row_c[chosen_c], Categorical(self.teacher.logits_na[chosen_c]),
                      Categorical(self.student.logits_na[chosen_c]), self.teacher_token_c[chosen_c],
                      self.student_token_c[chosen_c], self.teacher_rest_c[chosen_c], self.student_rest_c[chosen_c],
                      self.single_c[chosen_c])

    def spread(self, value_c: Tensor) -> Tensor:
        """One value a row [N]: a piece's at its head, and zero elsewhere."""
        return value_c.new_zeros(self.n_rows).index_put((self.row_c,), value_c)


def pieces_of(rows: Rows) -> Pieces:
    """The pieces in rows that hold whole trajectories (`row_wise = False`)."""
    student, action_n = rows.student, rows.action_n
    if PIECE_HEAD not in rows.columns:
        row_c, nothing_c = torch.arange(len(rows), device=action_n.device), torch.zeros_like(student.logits_na[:, 0])
        return Pieces(len(rows), row_c, rows.teacher, student, action_n, action_n, nothing_c, nothing_c,
                      torch.ones_like(action_n, dtype=torch.bool))
    columns, head_n = rows.columns, rows.columns[PIECE_HEAD]
    row_c = head_n.nonzero()[:, 0]
    piece_n = columns[PIECE_START].cumsum(0) - 1
    rest_n = student.logp(action_n).masked_fill(head_n, 0.0)
    student_rest_p = rest_n.new_zeros(len(rows)).index_add(0, piece_n, rest_n)
    return Pieces(
        len(rows), row_c, rows.teacher_at(row_c), Categorical(student.logits_na[row_c]),
        columns[TEACHER_TOKEN][row_c], action_n[row_c],
        columns[TEACHER_REST_LOGP][row_c].to(rest_n.dtype), student_rest_p[piece_n[row_c]],
        columns[PIECE_SINGLE][row_c])


_LEAST = 1e-30  # of "anything else", so that its logarithm is finite; far below what any sum of probabilities resolves


def _others(p_ca: Tensor, index_m: Tensor) -> Tensor:
    """Probabilities of the actions that are not in `index_m`."""
    keep_a = torch.ones(p_ca.shape[-1], dtype=torch.bool, device=p_ca.device)
    keep_a[index_m] = False
    return p_ca[:, keep_a]


def _with_rest(logp_cm: Tensor, rest_c: Tensor) -> Categorical:
    """Some events, and a last one with the probability that is left."""
    return Categorical(torch.cat([logp_cm, rest_c.clamp(min=_LEAST).log()[:, None]], -1))
