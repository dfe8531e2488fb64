"""The one training loop: collect, score, prepare, update, meter. Every method is measured by this code.

The loop owns the optimizer, the budget and the clock. It cuts a batch into micro-batches of trajectories and chunks of
rows as the execution asks, with an exact backward: a loss is a weighted sum over rows, and the weights are fixed on the
whole minibatch before it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from opdbench.context import Context, mean_context
from opdbench.copies import averages
from opdbench.diagnostics import SAMPLE, StepMeter
from opdbench.distiller import Distiller
from opdbench.errors import DivergedError, UserError
from opdbench.optimizer import Optimizer
from opdbench.output_layer import summed_in_place
from opdbench.policy import Policy
from opdbench.probes.base import Look, Probe
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_FEATURES, Rows, RowTable, row_weights, visited


class Trainer:
    """Applies one method to one world. `step` runs one round and returns what it measured."""

    def __init__(self, method: Distiller, ctx: Context, probes: Sequence[Probe] = ()) -> None:
        self.method = method
        self.ctx = ctx
        method.build(ctx)
        modules = nn.ModuleDict({"student": ctx.student, **method.modules()})
        self.optimizer = Optimizer([parameter for parameter in modules.parameters() if parameter.requires_grad],
                                   ctx.training)
        self._averages = averages(ctx.world.teacher)
        self.probes = list(probes)
        for probe in self.probes:
            probe.begin(ctx)

    @property
    def finished(self) -> bool:
        return self.ctx.progress >= 1

    @property
    def student(self) -> Policy:
        return self.ctx.student

    def adopt(self, other: Trainer) -> None:
        """Take over what another trainer of the same method has learnt: weights, and the optimizer's moments."""
        self.ctx.student.load_state_dict(other.ctx.student.state_dict())
        theirs = other.method.modules()
        for name, module in self.method.modules().items():
            module.load_state_dict(theirs[name].state_dict())
        self.optimizer.load_state_dict(deepcopy(other.optimizer.state_dict()))

    def step(self) -> dict[str, float]:
        """One round on the clock.

        Returns:
            The step's mean loss and diagnostics, by name.

        Raises:
            DivergedError: the loss or the gradient is not finite; the student is left as it was before that update.
            UserError: there is nothing to learn from, or what the teacher says is not a number.
        """
        method, ctx = self.method, self.ctx
        ctx.begin_step()
        meter = StepMeter()
        with ctx.ledger.clock():
            needs = method.asks(ctx)
            collected = ctx.score(method.collect(ctx), needs)
            if not collected.n_rows:
                raise UserError(f"step {ctx.step + 1} has a batch of {collected.n_trajectories} trajectories in which "
                                "nobody decided anything: there is not a row to learn from",
                                "look at the task's turns and solutions")
            meter.add_rollouts(collected)
            rollouts = method.prepare(collected, ctx)
        for probe in self.probes:
            probe.watch(Look(method, rollouts, ctx))
        with ctx.ledger.clock():
            for minibatch in method.minibatches(rollouts, ctx):
                self._update(minibatch, meter)
            method.after_step(ctx)
            for average in self._averages:
                average.follow(ctx.student)
            ctx.ledger.steps += 1
        if ctx.world.teacher is not None and ctx.world.bridge is None and not meter.knows_distance:
            self._measure_distance(collected, ctx.world.teacher, meter)
        return {**meter.summary(), **ctx.notes}

    @torch.no_grad()
    def _measure_distance(self, rollouts: Rollouts, teacher: Policy, meter: StepMeter) -> None:
        """The distance to a teacher whose whole distribution the method does not ask for: on a few trajectories, off
        the clock and the ledger, since it is watched and not learnt from."""
        enough = int((rollouts.mask_bt.sum(1).cumsum(0) < SAMPLE).sum()) + 1
        few = rollouts.select(range(min(enough, rollouts.n_trajectories)))
        few = few.with_columns(per_step={TEACHER_FEATURES: self.ctx.world.teacher_features(few)})
        features_nh = self.ctx.student.features(few.input_bt, few.length_b)[few.mask_bt]
        table = RowTable(few, self.ctx.student, teacher, self.ctx.comparison)
        meter.add_distance(table.chunk(features_nh[:SAMPLE], 0, min(SAMPLE, len(features_nh))))

    def _update(self, minibatch: Rollouts, meter: StepMeter) -> None:
        """One optimizer step on one minibatch, in micro-batches. One that a method has left no row in is counted, and
        moves nothing: neither the weights nor the optimizer's moments."""
        if not minibatch.n_rows:
            self.ctx.note("empty_minibatches", 1)
            return
        self.optimizer.zero_grad()
        weight_n = row_weights(minibatch, self.ctx.training.reduction)
        for micro, micro_weight_n in self._micro_batches(minibatch, weight_n):
            self._accumulate(micro, micro_weight_n, meter)
        self._check_finite(meter.pop_update_loss(), self.optimizer.clip(), minibatch)
        self.optimizer.step(self.ctx.step, self.ctx.progress_before)
        self.ctx.ledger.updates += 1
        self.ctx.ledger.trained_rows += minibatch.n_rows
        flops = self.ctx.student.train_flops(int(minibatch.length_b.sum()), mean_context(minibatch))
        self.ctx.ledger.add_flops("student_train", flops)

    def _micro_batches(self, minibatch: Rollouts, weight_n: Tensor) -> Iterator[tuple[Rollouts, Tensor]]:
        size = self.ctx.execution.micro_batch
        if minibatch.n_trajectories <= size:
            yield minibatch, weight_n
            return
        first_row = 0
        for start in range(0, minibatch.n_trajectories, size):
            micro = minibatch.select(range(start, min(start + size, minibatch.n_trajectories)))
            yield micro, weight_n[first_row:first_row + micro.n_rows]
            first_row += micro.n_rows

    def _accumulate(self, micro: Rollouts, weight_n: Tensor, meter: StepMeter) -> None:
        """Add one micro-batch's gradient. With several chunks of rows, features are a leaf in between: each chunk's
        backward stops there, and the student's body is differentiated once, with the summed gradient."""
        if not len(weight_n):
            return
        student, teacher = self.ctx.student, self.ctx.teacher
        features_nh, layers_nlh = visited(student, micro)
        table = RowTable(micro, student, teacher, self.ctx.comparison)
        chunk = self.ctx.execution.rows_at_once(student.n_actions) if self.method.row_wise else len(weight_n)
        if len(weight_n) <= chunk:
            self._backward(table.chunk(features_nh, 0, len(weight_n), layers_nlh), weight_n, meter)
            return
        assert layers_nlh is None, "a loss on layers needs row_wise = False"
        leaf_nh = features_nh.detach().requires_grad_()
        with summed_in_place():
            for start in range(0, len(weight_n), chunk):
                stop = min(start + chunk, len(weight_n))
                self._backward(table.chunk(leaf_nh[start:stop], start, stop), weight_n[start:stop], meter)
        torch.autograd.backward(features_nh, leaf_nh.grad)

    def _backward(self, rows: Rows, weight_n: Tensor, meter: StepMeter) -> None:
        loss = self.method.loss(rows, self.ctx)
        if loss.value_n.shape != weight_n.shape:
            raise ValueError(f"{self.method.name}.loss must give one value a row: expected shape "
                             f"{tuple(weight_n.shape)}, got {tuple(loss.value_n.shape)}")
        total = (loss.value_n * weight_n.to(loss.value_n.dtype)).sum()
        torch.autograd.backward(total)
        meter.add_chunk(rows, loss, total)

    def _check_finite(self, loss: float, gradient_norm: float, minibatch: Rollouts) -> None:
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return
        self.ctx.check_teacher(minibatch)
        raise DivergedError(f"step {self.ctx.step + 1}: loss {loss}, gradient norm {gradient_norm} over "
                            f"{minibatch.n_rows} rows; the student keeps its weights from before this update")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs besides the recipe."""
        return {"student": self.ctx.student.state_dict(), "modules": {name: module.state_dict() for name, module in
                                                                     self.method.modules().items()},
                "optimizer": self.optimizer.state_dict(), "method": self.method.state_dict(),
                "teacher": [average.state_dict() for average in self._averages],
                "world": self.ctx.world.state_dict(), "ledger": self.ctx.ledger.as_dict(),
                "probes": {probe.name: probe.state_dict() for probe in self.probes}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ctx.student.load_state_dict(state["student"])
        for name, module in self.method.modules().items():
            module.load_state_dict(state["modules"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(state["method"])
        for average, saved in zip(self._averages, state["teacher"], strict=True):
            average.load_state_dict(saved)
        self.ctx.world.load_state_dict(state["world"])
        for probe in self.probes:  # one that was added since has not seen what came before
            if (saved := state.get("probes", {}).get(probe.name)) is not None:
                probe.load_state_dict(saved)
        self.ctx.ledger.__dict__.update(type(self.ctx.ledger).from_dict(state["ledger"]).__dict__)
