"""Where the student and its teacher differ: in which candidates, tokens, positions and stretches."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from opdbench.context import Context
from opdbench.divergences import reverse_kl
from opdbench.probes.base import Look, TeacherProbe, mean, rows_of

TOP, ROCKS, WINDOW = 16, 100, 64


class Overlap(TeacherProbe):
    """Candidates that both find likely (Rethinking OPD, 2604.13016): the share of the top 16 in common, the advantage
    of what is, sum of p~ (log q~ - log p~) with both renormalised there (p the student), and the gap of entropies."""

    def figures(self, look: Look) -> dict[str, float]:
        rows, _ = rows_of(look)
        student, teacher = rows.student, rows.teacher
        k = min(TOP, student.logits_na.shape[-1])
        own_nk, others_nk = student.logits_na.topk(k, -1).indices, teacher.logits_na.topk(k, -1).indices
        common_nk = (own_nk[:, :, None] == others_nk[:, None, :]).any(-1)
        some_n = common_nk.any(-1)
        logp_nk, logq_nk = (side.logp_na.gather(-1, own_nk)[some_n].masked_fill(~common_nk[some_n], -torch.inf)
                            .log_softmax(-1) for side in (student, teacher))
        gap_nk = (logq_nk - logp_nk).masked_fill(~common_nk[some_n], 0.0)
        return {"overlap": mean(common_nk.double().mean(-1)),
                "overlap_advantage": mean((logp_nk.exp() * gap_nk).sum(-1)),
                "entropy_gap": mean((student.entropy() - teacher.entropy()).abs())}


class RockTokens(TeacherProbe):
    """Tokens that stay hard (2605.09253): R(v) = mean reverse KL where v was written x how often it was. The share of
    all distance that the 100 first of them have, and at the end which they are. (The paper also asks how R changes
    when v's context is disturbed, with thresholds that are not public: not here.)"""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.distance: dict[int, float] = defaultdict(float)
        self.count: dict[int, int] = defaultdict(int)

    def figures(self, look: Look) -> dict[str, float]:
        rows, _ = rows_of(look)
        distance_n = reverse_kl(rows.teacher, rows.student).double()
        sum_a, count_a = (torch.zeros(rows.student.logits_na.shape[-1], dtype=torch.float64, device=distance_n.device)
                          .index_add(0, rows.action_n, value_n)
                          for value_n in (distance_n, torch.ones_like(distance_n)))
        for token in count_a.nonzero()[:, 0].tolist():
            self.distance[token] += float(sum_a[token])
            self.count[token] += int(count_a[token])
        rocks = float(sum_a.topk(min(ROCKS, len(sum_a))).values.sum())
        return {"kinds": float((count_a > 0).sum()), "share_of_rocks": rocks / max(float(sum_a.sum()), 1e-12)}

    def summary(self, ctx: Context) -> dict[str, Any]:
        total = sum(self.count.values())
        first = sorted(self.distance, key=lambda token: (-self.distance[token], token))[:ROCKS]
        return {"rocks": [{"action": token, "score": self.distance[token] / total,
                           "mean_reverse_kl": self.distance[token] / self.count[token], "count": self.count[token]}
                          for token in first]}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "distance": [list(item) for item in self.distance.items()],
                "count": [list(item) for item in self.count.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.distance = defaultdict(float, {int(token): float(value) for token, value in state["distance"]})
        self.count = defaultdict(int, {int(token): int(value) for token, value in state["count"]})


class Fidelity(TeacherProbe):
    """How sure the teacher is, and how far off the student, by position in an answer: decisions 1, 2, 3-4, 5-8, ..."""

    def figures(self, look: Look) -> dict[str, float]:
        rows, few = rows_of(look)
        number_n = few.mask_bt.cumsum(1)[few.mask_bt]
        bin_n = (number_n.double()).log2().ceil().long()
        sure_n, distance_n = rows.teacher.p_na.max(-1).values, reverse_kl(rows.teacher, rows.student)
        found = {}
        for number in sorted(set(bin_n.tolist())):
            here_n = bin_n == number
            found[f"sure_to_{2**number}"] = mean(sure_n[here_n])
            found[f"reverse_kl_to_{2**number}"] = mean(distance_n[here_n])
        return found


class Agreement(TeacherProbe):
    """The stretch of 64 decisions in which the two agree most (the agreement trap, 2606.09471): quantiles over answers
    of the smallest mean reverse KL over a window; of the whole answer, where it is shorter."""

    def figures(self, look: Look) -> dict[str, float]:
        rows, few = rows_of(look)
        distances = torch.split(reverse_kl(rows.teacher, rows.student).double(), few.mask_bt.sum(1).tolist())
        lowest_b = torch.stack([lowest_window(distance_t, WINDOW) for distance_t in distances if len(distance_t)])
        low, middle, high = lowest_b.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64,
                                                           device=lowest_b.device)).tolist()
        return {"lowest_window_p10": low, "lowest_window_p50": middle, "lowest_window_p90": high}


def lowest_window(distance_t: Tensor, width: int) -> Tensor:
    """The smallest mean over `width` neighbours."""
    if len(distance_t) <= width:
        return distance_t.mean()
    return distance_t.unfold(0, width, 1).mean(-1).min()
