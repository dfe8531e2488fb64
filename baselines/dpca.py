"""Chunk-wise credit across tokenizers (DPCA): what two models say of one stretch of text, shared out over tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.advantages import clipped
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.pieces import IMPOSSIBLE, PIECE_HEAD, PIECE_START, PIECE_TOKENS, TEACHER_REST_LOGP, TEACHER_TOKEN
from opdbench.policy_gradient import importance_sampled
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP, Rows


class DPCA(Distiller):
    """Where two tokenizers break a text alike, events agree: a chunk's log-ratio is well defined, a token's is not.

        chunk c: the smallest stretch of text at whose ends both tokenizations break
        L_S = sum_{i in c} log q(y_i),   L_T = sum_{j in c} log p(y_j),   A_i = (L_T / L_S - 1) log q(y_i)

    in a policy gradient. A token has a share of L_T in proportion to its own log-probability, so the chunk's advantages
    sum to L_T - L_S; where L_S is zero they are equal. A chunk of more than `longest` tokens on either side, or with a
    token that the teacher cannot write, has none. With one tokenizer every token is a chunk: A = log p - log q, OPD.

    Deviations from the paper:
        Chunks are found on bytes (opdbench.pieces) and not on text in normal form NFC. End tokens are compared, so that
        stopping is taught; the official code leaves all special tokens out. A batch in which nothing aligns makes no
        update, and counts.
    """

    name: ClassVar[str] = "dpca"
    paper: ClassVar[str] = "DPCA 2026 (arXiv 2606.09456), chunk-level advantages; official code"
    needs: ClassVar[Needs] = Needs.SAMPLED
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})
    bridges: ClassVar[bool] = True

    class Params(Distiller.Params):
        longest: int = Field(6, ge=1, description="tokens of a chunk, on either side, beyond which it is left out")
        clip: float = Field(10.0, gt=0, description="the largest advantage")

    def asks(self, ctx: Context) -> Needs:
        return Needs.SAMPLED if ctx.world.bridge is None else Needs.TEXT  # `prepare` asks, on the teacher's own tokens

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask_bt = rollouts.mask_bt
        rollouts = ctx.score_pieces(rollouts) if ctx.world.bridge is not None else rollouts
        logps_n2 = ctx.per_row(rollouts, _logps)[mask_bt]
        columns = {name: value[mask_bt] for name, value in rollouts.columns.items() if name in rollouts.step_columns}
        advantage_n, compared_n = self.advantage(logps_n2[:, 0], logps_n2[:, 1], columns)
        ctx.note("compared", float(compared_n.double().mean()))
        advantage_bt = torch.zeros_like(mask_bt, dtype=advantage_n.dtype)
        advantage_bt[mask_bt] = advantage_n
        rollouts = rollouts.with_columns(per_step={"advantage": advantage_bt})
        return rollouts if compared_n.any() else rollouts.select([])

    def advantage(self, logq_n: Tensor, logp_n: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A [N], and whether each row is in a chunk that is compared; `logp_n` counts where a chunk has its head."""
        if PIECE_HEAD not in columns:
            return clipped(logp_n - logq_n, self.params.clip), torch.ones_like(logq_n, dtype=torch.bool)
        head_n, chunk_n = columns[PIECE_HEAD], columns[PIECE_START].cumsum(0) - 1
        zero_c = logq_n.new_zeros(int(chunk_n.max()) + 1)
        length_c = torch.zeros_like(zero_c).index_add(0, chunk_n, torch.ones_like(logq_n))
        rest_n = columns[TEACHER_REST_LOGP].to(logq_n.dtype)
        good_n = head_n & (rest_n > IMPOSSIBLE / 2) & (columns[PIECE_TOKENS] <= self.params.longest)
        good_c = (zero_c.index_add(0, chunk_n, good_n.to(zero_c.dtype)) > 0) & (length_c <= self.params.longest)
        teacher_c = zero_c.index_add(0, chunk_n, torch.where(head_n, logp_n + rest_n, 0.0))
        shared_n = shared_out(logq_n, chunk_n, teacher_c)
        return clipped(torch.where(good_c[chunk_n], shared_n, 0.0), self.params.clip), good_c[chunk_n]

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        logq_n, advantage_n = rows.student.logp(rows.action_n), rows.columns["advantage"]
        return Loss(importance_sampled(logq_n, rows.behaviour_logp_n, advantage_n), {"log_ratio": advantage_n})


def shared_out(logq_n: Tensor, chunk_n: Tensor, teacher_c: Tensor) -> Tensor:
    """A_i [N] of rows that lie in chunks `chunk_n`, whose text the teacher gives log-probability `teacher_c`."""
    student_c = torch.zeros_like(teacher_c).index_add(0, chunk_n, logq_n)
    length_c = torch.zeros_like(teacher_c).index_add(0, chunk_n, torch.ones_like(logq_n))
    certain_n = (student_c.abs() < 1e-8)[chunk_n]
    equal_n = ((teacher_c - student_c) / length_c.clamp(min=1))[chunk_n]
    return torch.where(certain_n, equal_n, (teacher_c / student_c - 1)[chunk_n] * logq_n)


def _logps(rows: Rows) -> Tensor:
    """The student's of the token, the teacher's of its own head token (or of the same token) [N, 2]."""
    if TEACHER_LOGP in rows.columns:
        teacher_n: Any = rows.columns[TEACHER_LOGP]
    else:
        teacher_n = rows.teacher.logp(rows.columns[TEACHER_TOKEN])
    logq_n = rows.student.logp(rows.action_n)
    return torch.stack([logq_n, teacher_n.to(logq_n.dtype)], -1)
