"""The loop: equal trajectories however memory cuts a batch, schedules, clipping, divergence, and honest draws."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opdbench import run
from opdbench.actors import Student
from opdbench.baselines.dagger import DAgger
from opdbench.baselines.gkd import GKD
from opdbench.baselines.kd import KD
from opdbench.baselines.opd import OPD
from opdbench.baselines.sft import SFT
from opdbench.conformance.compare import differences
from opdbench.conformance.harness import ALL, gradient
from opdbench.context import Context, mean_context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.errors import DivergedError
from opdbench.ledger import Ledger
from opdbench.lm.generate import Completion, to_rollouts
from opdbench.loop import Trainer
from opdbench.optimizer import Optimizer, learning_rate
from opdbench.resolve import Request, resolve
from opdbench.rl.policy import Architecture, ControlPolicy
from opdbench.rl.world import ControlWorld
from opdbench.rows import Rows
from opdbench.schema.spec import Budget, Execution, Training
from opdbench.store import RunFolder
from opdbench.tasks.control import CartPole
from opdbench.world import World
from tests.enumerable import context, generator, make, small_language

METHODS: list[tuple[type[Distiller], dict[str, Any]]] = [
    (SFT, {}), (KD, {}), (GKD, {"lmbda": 0.5}), (OPD, {}), (OPD, {"estimator": "sampled"}),
    (DAgger, {"replay_ratio": 2, "minibatch": 6}),
    (DAgger, {"labels": "soft", "beta": "linear", "replay_ratio": 2, "minibatch": 6})]
CUTS = [(1, ALL), (ALL, 1), (3, 5), (2, 2)]


def cartpole() -> ControlWorld:
    architecture = Architecture((4,), 2, (8,))
    student, teacher = (ControlPolicy(architecture, generator=generator(seed)).double() for seed in (1, 2))
    return ControlWorld(CartPole(), student, teacher, seed=0)


def trajectory(method: Distiller, world: World, *, micro_batch: int, row_chunk: int, reduction: str = "token",
               steps: int = 4) -> Tensor:
    """Losses of a few steps followed by all weights."""
    execution = Execution(dtype="float64", teacher_dtype="float64", micro_batch=micro_batch, row_chunk=row_chunk)
    trainer = Trainer(method, context(world, execution=execution, reduction=reduction, batch=6, horizon=3))
    losses = [trainer.step()["loss"] for _ in range(steps)]
    weights = [parameter.detach().flatten() for parameter in trainer.optimizer.parameters]
    return torch.cat([torch.tensor(losses, dtype=torch.float64), *weights])


@pytest.mark.parametrize(("cls", "params"), METHODS, ids=[f"{cls.name}-{params}" for cls, params in METHODS])
def test_l10_l13_losses_and_weights_do_not_depend_on_micro_batches_and_chunks(cls: type[Distiller],
                                                                              params: dict[str, Any]) -> None:
    """Gradient accumulation is one big batch: in float64, over several steps of the real loop, in both worlds."""
    for world in (lambda: small_language(echo=True), cartpole):
        whole = trajectory(make(cls, **params), world(), micro_batch=ALL, row_chunk=ALL)
        for micro_batch, row_chunk in CUTS:
            cut = trajectory(make(cls, **params), world(), micro_batch=micro_batch, row_chunk=row_chunk)
            assert (whole - cut).abs().max() < 1e-10


class Silent:
    """Watches a run and says nothing."""

    def phase(self, name: str) -> None: ...

    def step(self, progress: float, figures: dict[str, float], ledger: Ledger) -> None: ...


@pytest.mark.parametrize(("method", "task"), [("gkd", "chain-sum"), ("dagger", "text-maze"), ("dagger", "cartpole")])
def test_two_executions_of_one_recipe_have_one_loss_trajectory(method: str, task: str, tmp_path: Path) -> None:
    """As users run it: what a profile may change leaves the recipe's digest, and in float64 the curve, as they are."""
    recipe = ("examples=3", "curve_points=0", "batch=6", "dtype=float64", "teacher_dtype=float64")
    records = []
    for execution in (("micro_batch=64", "row_chunk=8192", "generation_batch=64"),
                      ("micro_batch=2", "row_chunk=7", "generation_batch=4", "teacher_batch=3")):
        plan = resolve(Request(method=method, task=task, settings=(*recipe, *execution), budget=("steps=4",)))
        records.append(run.execute(plan, RunFolder(tmp_path / execution[0]), Silent()))
    whole, cut = records
    assert whole.status == cut.status == "completed"
    assert whole.recipe_sha256 == cut.recipe_sha256 and whole.execution != cut.execution
    losses = [[entry["loss"] for entry in record.curve] for record in records]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize("reduction", ["token", "sequence", "sum"])
def test_l13_accumulation_is_exact_for_every_reduction(reduction: str) -> None:
    """Trap: averages of averages weigh the sequences of a short micro-batch more."""
    whole, cut = (trajectory(make(OPD), small_language(echo=True), micro_batch=micro_batch, row_chunk=row_chunk,
                             reduction=reduction) for micro_batch, row_chunk in ((ALL, ALL), (1, 2)))
    assert (whole - cut).abs().max() < 1e-10


def test_reductions_are_means_over_tokens_over_sequences_and_a_sum() -> None:
    world = small_language(echo=True)
    rollouts = world.completions()
    method, losses = make(OPD), {}
    for reduction in ("token", "sequence", "sum"):
        ctx = context(world, reduction=reduction)
        losses[reduction], _ = gradient(method, ctx, ctx.score(rollouts, method.requires()))
    n_tokens, n_sequences = rollouts.n_rows, rollouts.n_trajectories
    assert losses["sum"] == pytest.approx(losses["token"] * n_tokens)
    one_by_one = [gradient(method, ctx, ctx.score(rollouts.select([index]), method.requires()))[0] / int(count)
                  for index, count in enumerate(rollouts.mask_bt.sum(1))]
    assert losses["sequence"] == pytest.approx(sum(one_by_one) / n_sequences)


class Quadratic(Distiller):
    """A loss whose size the test chooses.

    Deviations from the paper: none.
    """

    name, paper, needs = "quadratic", "none", Needs.NOTHING
    factor = 1.0
    rows_seen: list[int]

    def collect(self, ctx: Context) -> Any:
        return ctx.rollout(Student())

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        self.rows_seen = [*getattr(self, "rows_seen", []), len(rows)]
        return Loss(self.factor * rows.student.logits_na.square().sum(-1))


def test_row_chunks_bound_the_rows_whose_logits_exist_at_one_time() -> None:
    method = make(Quadratic)
    trajectory(method, small_language(), micro_batch=2, row_chunk=3, steps=2)
    assert isinstance(method, Quadratic) and max(method.rows_seen) <= 3 and len(method.rows_seen) > 4


def test_a_method_that_is_not_row_wise_sees_whole_trajectories() -> None:
    class Whole(Quadratic):
        row_wise = False

    method = make(Whole)
    trajectory(method, small_language(), micro_batch=1, row_chunk=1, steps=1)
    world = small_language()
    rollouts = context(world, batch=6).rollout(Student())
    assert isinstance(method, Whole) and method.rows_seen == rollouts.mask_bt.sum(1).tolist()


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("cut", [ALL, 2])
def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_student_alone(factor: float, cut: int) -> None:
    world = small_language()
    method = make(Quadratic)
    execution = Execution(dtype="float64", teacher_dtype="float64", micro_batch=cut, row_chunk=cut)
    trainer = Trainer(method, context(world, execution=execution))
    trainer.step()
    before = {name: value.clone() for name, value in world.student.state_dict().items()}
    method.factor = factor  # type: ignore[attr-defined]
    with pytest.raises(DivergedError, match="step 2: loss"):
        trainer.step()
    assert not list(differences(before, dict(world.student.state_dict())))
    assert (trainer.ctx.ledger.steps, trainer.ctx.ledger.updates) == (1, 1)


def test_a_loss_of_the_wrong_shape_is_refused_by_name() -> None:
    class Mean(Quadratic):
        def loss(self, rows: Rows, ctx: Context) -> Loss:
            return Loss(super().loss(rows, ctx).value_n.mean())

    expected = r"quadratic\.loss must give one value a row: expected shape \(\d+,\), got \(\)"
    with pytest.raises(ValueError, match=expected):
        Trainer(make(Mean), context(small_language())).step()


def clipped(gradient_w: list[float], limit: float | None) -> tuple[float, Tensor]:
    """(norm before, gradient after) of one weight vector and another that has no gradient."""
    weight, idle = (torch.nn.Parameter(torch.zeros(len(gradient_w), dtype=torch.float64)) for _ in range(2))
    weight.grad = torch.tensor(gradient_w, dtype=torch.float64)
    norm = Optimizer([weight, idle], Training(grad_clip=limit)).clip()
    return norm, weight.grad


def test_the_gradient_is_clipped_to_its_global_norm_and_small_ones_are_left_alone() -> None:
    norm, found = clipped([3.0, 4.0], 0.5)
    assert norm == pytest.approx(5.0) and found.tolist() == pytest.approx([0.3, 0.4], rel=1e-5)
    assert clipped([3.0, 4.0], None)[1].tolist() == [3.0, 4.0]
    assert clipped([0.03, 0.04], 0.5)[1].tolist() == [0.03, 0.04]


def test_warm_up_is_linear_from_the_first_step_and_multiplies_the_schedule() -> None:
    training = Training(lr=0.1, warmup_steps=4, schedule="linear")
    assert [learning_rate(training, step, 0.0) for step in range(6)] == pytest.approx(
        [0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert learning_rate(training, 1, 0.5) == pytest.approx(0.025)


@pytest.mark.parametrize("axis", ["steps", "student_tokens"])
def test_training_stops_at_its_budget(axis: str) -> None:
    trainer = Trainer(make(OPD), context(small_language(), budget=Budget(**{axis: 40})))
    while not trainer.finished:
        trainer.step()
    spent = trainer.ctx.ledger.spent(axis)
    assert spent == 40 if axis == "steps" else 40 <= spent < 40 + 8 * 3
    assert trainer.ctx.progress == 1


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_step_that_spends_the_whole_budget_is_learnt_from(schedule: str) -> None:
    """The schedule ends at zero after the last step, and a run of one step starts at the full rate."""
    trainer = Trainer(make(OPD), context(small_language(), budget=Budget(student_tokens=1), schedule=schedule, lr=0.1))
    before = [parameter.detach().clone() for parameter in trainer.optimizer.parameters]
    trainer.step()
    assert trainer.finished
    assert any(not torch.equal(old, new)
               for old, new in zip(before, trainer.optimizer.parameters, strict=True))
    assert learning_rate(trainer.ctx.training, 0, trainer.ctx.progress_before) == 0.1


def test_draws_repeat_within_their_purpose_and_step_and_differ_between_them() -> None:
    ctx, again = context(small_language(), seed=3), context(small_language(), seed=3)
    assert ctx.rng("one").random() == again.rng("one").random()
    draws = {ctx.rng("one").random(), ctx.rng("two").random(), context(small_language(), seed=4).rng("one").random()}
    ctx.ledger.steps += 1
    assert len(draws | {ctx.rng("one").random()}) == 4
    first, second = ctx.rollout(Student()), ctx.rollout(Student())
    assert not torch.equal(first.behaviour_logp_bt.nan_to_num(), second.behaviour_logp_bt.nan_to_num())


def test_two_methods_at_one_seed_see_the_same_prompts() -> None:
    """Common random numbers: what a pair of methods differs by is the method."""
    def prompts(cls: type[Distiller], **params: Any) -> list[int]:
        world = small_language()
        ctx = context(world, seed=5)
        return [int(index) for _ in range(3) for index in make(cls, **params).collect(ctx).columns["example"]]

    assert prompts(OPD) == prompts(GKD, lmbda=0.0) == prompts(SFT, data="solutions") == prompts(DAgger)


def test_mean_context_is_exact_for_causal_attention() -> None:
    rollouts = to_rollouts([[1], [1, 2]], [Completion([1, 2], [1, 1], [0.0, 0.0], False),
                                           Completion([1], [1], [0.0], False)])
    assert rollouts.length_b.tolist() == [2, 2]
    assert mean_context(rollouts) == (1 + 2 + 1 + 2) / 4
    assert math.isclose(mean_context(rollouts.select([0])), 1.5)


def test_diagnostics_of_a_step() -> None:
    """Trap: engines. The sampler's log-probabilities are the student's own, up to float32, until an update moves it."""
    figures = Trainer(make(OPD), context(small_language())).step()
    assert figures["sampler_gap"] < 1e-6
    assert figures["reverse_kl"] == pytest.approx(figures["loss"])
    assert figures["student_share"] == 1 and 1 <= figures["length"] <= 3
    assert 0 <= figures["agreement"] <= 1 and figures["entropy"] <= math.log(3)
