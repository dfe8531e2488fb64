"""How much the gradient of a batch is luck."""

from __future__ import annotations

import torch

from opdbench.gradients import gradient
from opdbench.probes.base import Look, Probe

PARTS = 8


class GradientVariance(Probe):
    """The method's gradient on eight parts of a batch (as in Revisiting OPD, 2603.25562): the mean squared distance of
    a part's gradient from their mean, that mean's squared length, and the ratio, noise over signal."""

    @torch.enable_grad()
    def figures(self, look: Look) -> dict[str, float]:
        n = look.rollouts.n_trajectories
        parts = [look.rollouts.select(range(first, n, PARTS)) for first in range(min(PARTS, n))]
        parts = [part for part in parts if part.n_rows]
        if len(parts) < 2:
            return {}
        gradient_gp = torch.stack([gradient(look.method, look.ctx, part).double() for part in parts])
        mean_p = gradient_gp.mean(0)
        noise = float((gradient_gp - mean_p).square().sum(-1).sum() / (len(parts) - 1))
        signal = float(mean_p.square().sum())
        return {"variance": noise, "squared_mean": signal, "noise_over_signal": noise / max(signal, 1e-30)}
