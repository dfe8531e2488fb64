"""The gradient of a method's loss as one vector: to compare with another batch's, or another part's of the same."""

from __future__ import annotations

import torch
from torch import Tensor

from opdbench.context import Context, mean_context
from opdbench.distiller import Distiller
from opdbench.rollouts import Rollouts
from opdbench.rows import RowTable, row_weights, visited


def gradient(method: Distiller, ctx: Context, rollouts: Rollouts) -> Tensor:
    """Of the loss on these trajectories, reduced as the run reduces it, in all trained weights of the student [P].

    In micro-batches, and metered as training. Zero where there is no row.
    """
    weights = [weight for weight in ctx.student.parameters() if weight.requires_grad]
    total_p = torch.zeros(sum(weight.numel() for weight in weights), device=weights[0].device)
    weight_n, first = row_weights(rollouts, ctx.training.reduction), 0
    for start in range(0, rollouts.n_trajectories, ctx.execution.micro_batch):
        part = rollouts.select(range(start, min(start + ctx.execution.micro_batch, rollouts.n_trajectories)))
        rows = part.n_rows
        if rows:
            features_nh, layers_nlh = visited(ctx.student, part)
            table = RowTable(part, ctx.student, ctx.teacher, ctx.comparison)
            value_n = method.loss(table.chunk(features_nh, 0, rows, layers_nlh), ctx).value_n
            loss = (value_n * weight_n[first:first + rows].to(value_n.dtype)).sum()
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            total_p = total_p + torch.cat([(torch.zeros_like(weight) if grad is None else grad).flatten()
                                           for weight, grad in zip(weights, found, strict=True)])
        first += rows
    ctx.ledger.add_flops("student_train", ctx.student.train_flops(int(rollouts.length_b.sum()), mean_context(rollouts)))
    return total_p
