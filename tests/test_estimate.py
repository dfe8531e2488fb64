"""The estimate of a plan against what a run then counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from opdbench import run
from opdbench.estimate import estimate, parameters
from opdbench.resolve import Plan, Request, resolve
from opdbench.schema.record import Record
from tests.lm import models
from tests.test_run import Watcher


def plan_of(task: str, *settings: str, **more: object) -> Plan:
    settings = ("examples=4", "curve_points=0", *settings)
    return resolve(Request(method="gkd", task=task, settings=settings, **more))  # type: ignore[arg-type]


def executed(plan: Plan, tmp_path: Path) -> Record:
    return run.execute(plan, run.run_folder(tmp_path, plan.spec.recipe), Watcher())


def test_it_is_exact_where_every_trajectory_is_as_long_as_the_horizon(tmp_path: Path) -> None:
    plan = plan_of("cartpole", "batch=4", "horizon=16", budget=("steps=5",))
    expected, ledger = estimate(plan), executed(plan, tmp_path).ledger
    assert (expected.steps, expected.tokens, expected.prompt_tokens) == (5, ledger["student_tokens"], 0)
    # Biases and the statistics of observations are parameters, but no products.
    assert expected.flops is not None
    assert ledger["total_flops"] <= expected.flops <= 1.3 * ledger["total_flops"]


def test_it_bounds_what_a_language_model_costs(tmp_path: Path) -> None:
    plan = plan_of("text-maze", "batch=8", budget=("steps=2",))
    expected, ledger = estimate(plan), executed(plan, tmp_path).ledger
    assert expected.tokens == 2 * 8 * 60 and expected.flops is not None
    assert ledger["student_tokens"] <= expected.tokens
    assert 0.2 * expected.flops <= ledger["total_flops"] <= expected.flops
    assert expected.memory_bytes / 3 <= ledger["peak_memory_bytes"] <= 3 * expected.memory_bytes


def test_a_budget_of_tokens_gives_the_steps_and_one_of_seconds_does_not() -> None:
    assert estimate(plan_of("cartpole", budget=("student_tokens=5000",))).steps == 5  # 1,024 a step
    unknown = estimate(plan_of("cartpole", budget=("seconds=5",)))
    assert (unknown.steps, unknown.tokens, unknown.flops, unknown.seconds) == (None, None, None, None)
    assert unknown.memory_bytes > 0


def test_time_on_a_device_that_is_not_here_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    expected = estimate(plan_of("cartpole", profile="gpu-80g"))
    assert expected.seconds is None and expected.flops is not None


def test_parameters_are_counted_from_the_headers(tmp_path: Path) -> None:
    model = models.make(tmp_path, "qwen3-untied-biases")
    assert parameters(tmp_path) == model.num_parameters()
