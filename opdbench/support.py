"""On which actions, and at which temperature, a teacher and a student are compared.

Over all of 150,000 tokens a divergence costs memory, and a teacher behind a server reveals only its most likely ones.
A support is a choice of actions S in every row; what is outside S has to go somewhere, and that changes the gradient:

    bucket         one more event, "anything else", with the rest of each side's probability. A true divergence, never
                   above the full one, and equal to it when S is everything.
    renormalise    both sides divided by their mass in S: blind to how much mass is outside, so nothing keeps the
                   student from moving its own there.
    stop_gradient  as if the teacher agreed about what is outside: its "anything else" is the student's own, held
                   constant. For the reverse KL the gradient is sum_S grad q (log q - log p), which is the plain sum
                   over S (without a tail) less the gradient of the student's mass in S.

S is the k most likely actions of the teacher, of the student, of either (union) or of both (intersection). The mass
that each side has in S is logged by the loop for every method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from opdbench.distributions import Categorical, Distribution
from opdbench.errors import UserError

Kind = Literal["full", "teacher", "student", "union", "intersection"]
Tail = Literal["bucket", "renormalise", "stop_gradient"]

# A teacher's tail known only as 1 - (sum of rounded probabilities) is not known below this.
TAIL_FLOOR = 1e-7


class TopK(NamedTuple):
    """A teacher's most likely actions, as a server reveals them: at temperature 1, and nothing about the others."""

    id_nk: Tensor  # int64
    logp_nk: Tensor  # float32, downwards; -inf where the server gave fewer


class Pair(NamedTuple):
    """Both sides on one set of events, and the probability [N] that each has inside the support."""

    teacher: Distribution
    student: Distribution
    teacher_mass_n: Tensor | None = None
    student_mass_n: Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """How `rows.pair` compares: the settings `support`, `top_k`, `tail` and `loss_temperature` of a run."""

    support: Kind = "full"
    top_k: int = 64
    tail: Tail = "bucket"
    temperature: float = 1.0

    def pair(self, teacher: Distribution | TopK, student: Distribution) -> Pair:
        """The two distributions to hand to a divergence; differentiable in the student.

        Raises:
            UserError: the teacher reveals only its top k, and that is not enough for these settings; or actions are
                vectors, among which there are no most likely few.
        """
        student = student.tempered(self.temperature)
        if isinstance(teacher, TopK):
            return self._restrict(self._from_top_k(teacher), student)
        teacher = teacher.tempered(self.temperature)
        if self.support == "full" or self.top_k >= student.logits_na.shape[-1]:
            return Pair(teacher, student)
        return self._restrict(teacher, student)

    def inside(self, teacher: Distribution, student: Distribution) -> tuple[Tensor, Tensor, Tensor]:
        """(which candidates are in the support [N, M], the teacher's and the student's log-probabilities of them): as
        they are, neither renormalised nor with a tail, and at temperature 1."""
        everything = min(self.top_k, student.logits_na.shape[-1])
        id_nm, inside_nm, logp_nm = replace(self, top_k=everything)._actions(teacher, student)
        return inside_nm, logp_nm, student.logp_na.gather(-1, id_nm)

    def _from_top_k(self, teacher: TopK) -> TopK:
        if self.support != "teacher":
            raise UserError("this teacher reveals only its most likely actions, and the student cannot be compared "
                            f"with it on support={self.support}", "--set support=teacher")
        if (revealed := teacher.id_nk.shape[-1]) < self.top_k:
            raise UserError(f"this teacher revealed {revealed} actions a state, and top_k is {self.top_k}",
                            f"--set top_k={revealed}, or let the server reveal more")
        if self.temperature != 1 and self.tail != "renormalise":
            raise UserError(f"what a top-k teacher gives to other actions is not known at loss_temperature="
                            f"{self.temperature}", "--set tail=renormalise, or --set loss_temperature=1")
        return TopK(teacher.id_nk[:, :self.top_k], teacher.logp_nk[:, :self.top_k] / self.temperature)

    def _restrict(self, teacher: Distribution | TopK, student: Distribution) -> Pair:
        id_nm, inside_nm, logp_nm = self._actions(teacher, student)
        logq_nm = student.logp_na.gather(-1, id_nm)
        logp_nm, logq_nm = (side.masked_fill(~inside_nm, -math.inf) for side in (logp_nm, logq_nm))
        masses = logp_nm.exp().sum(-1), logq_nm.detach().exp().sum(-1)
        if self.tail == "renormalise":
            # Where a side has nothing inside (an empty intersection) nothing is compared: two equal constants.
            nothing_n1 = torch.stack(masses, -1).min(-1, keepdim=True).values == 0
            return Pair(Categorical(logp_nm.masked_fill(nothing_n1, 0.0)),
                        Categorical(logq_nm.masked_fill(nothing_n1, 0.0)), *masses)
        student_tail_n = _log_outside(student, id_nm, inside_nm)
        if self.tail == "stop_gradient":
            teacher_tail_n = student_tail_n.detach()
        elif isinstance(teacher, TopK):
            teacher_tail_n = torch.log1p(-masses[0].clamp(max=1 - TAIL_FLOOR))
        else:
            teacher_tail_n = _log_outside(teacher, id_nm, inside_nm)
        return Pair(Categorical(torch.cat([logp_nm, teacher_tail_n[:, None]], -1)),
                    Categorical(torch.cat([logq_nm, student_tail_n[:, None]], -1)), *masses)

    def _actions(self, teacher: Distribution | TopK, student: Distribution) -> tuple[Tensor, Tensor, Tensor]:
        """Candidate actions [N, M], which of them are in the support, and the teacher's log-probabilities of them."""
        if isinstance(teacher, TopK):
            return teacher.id_nk, teacher.logp_nk > -math.inf, teacher.logp_nk
        with torch.no_grad():
            own = {side: source.logits_na.topk(self.top_k, -1).indices
                   for side, source in (("teacher", teacher), ("student", student))
                   if self.support in (side, "union", "intersection")}
        if len(own) == 1:
            id_nm = next(iter(own.values()))
            inside_nm = torch.ones_like(id_nm, dtype=torch.bool)
        else:
            in_both_nk = (own["student"][:, :, None] == own["teacher"][:, None, :]).any(-1)
            if self.support == "intersection":
                id_nm, inside_nm = own["student"], in_both_nk
            else:
                id_nm = torch.cat([own["teacher"], own["student"]], -1)
                inside_nm = torch.cat([torch.ones_like(in_both_nk), ~in_both_nk], -1)
        return id_nm, inside_nm, teacher.logp_na.gather(-1, id_nm)


def top_k_forward_kl(teacher: Distribution, student: Distribution, k: int) -> Tensor:
    """sum_S p~ (log p~ - log q) [N] over the teacher's `k` most likely actions S, p~ the teacher renormalised on them
    and q as it is: KL(p~ || q~) - log q(S), so it also asks for the student's mass in S, and is at least -log of it."""
    with torch.no_grad():
        logits_nk, id_nk = teacher.logits_na.topk(min(k, teacher.logits_na.shape[-1]), -1)
        logp_nk = Categorical(logits_nk).logp_na
    return (logp_nk.exp() * (logp_nk - student.logp_na.gather(-1, id_nk))).sum(-1)


def _log_outside(side: Distribution, id_nm: Tensor, inside_nm: Tensor) -> Tensor:
    """log of the probability [N] of all actions outside the support; -inf, without a gradient, where there is none.

    Summed over those actions: one minus the sum over the others would lose a small tail to rounding.
    """
    logp_na = side.logp_na
    counted_na = torch.zeros(logp_na.shape, dtype=torch.int8, device=logp_na.device)
    counted_na.scatter_add_(-1, id_nm, inside_nm.to(torch.int8))
    outside_na = (counted_na == 0) & (logp_na > -math.inf)
    any_n1 = outside_na.any(-1, keepdim=True)
    log_n = logp_na.masked_fill(~outside_na & any_n1, -math.inf).logsumexp(-1)
    return log_n.masked_fill(~any_n1[:, 0], -math.inf)
