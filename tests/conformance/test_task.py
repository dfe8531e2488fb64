"""The conformance suite passes tasks that are right, and names what is wrong with the others."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from opdbench import registry
from opdbench.conformance import Check, check_task
from opdbench.task import Task
from tests.conformance.bad_tasks import MISTAKES, GoodControl, GoodLanguage, Mistake

pytest_plugins = ["tests.hub_cache"]


def failures(cls: type[Task], data: str | None = None) -> list[Check]:
    return [check for check in check_task(cls, data=data) if not check.passed]


@pytest.mark.parametrize(
    "name", [one.name for one in registry.descriptions("task") if one.name != "gsm8k" and not one.argument])
def test_every_registered_task_passes_in_a_minute_or_three(name: str) -> None:
    if name in ("hopper", "halfcheetah"):
        pytest.importorskip("mujoco")
    began = time.process_time()
    assert failures(registry.load("task", name)) == []
    assert time.process_time() - began < 180  # under 60 on most machines


def test_gsm8k_passes_on_the_real_problems(shared_data: Path) -> None:
    checks = list(check_task(registry.load("task", "gsm8k"), data=str(shared_data / "gsm8k")))
    assert [check for check in checks if not check.passed] == []
    assert not any("data are at hand" in check.name and check.message for check in checks)


def test_a_task_whose_data_are_missing_is_not_judged_on_them(hub_cache: Path) -> None:
    checks = list(check_task(registry.load("task", "gsm8k")))
    assert all(check.passed for check in checks)
    assert checks[-1].name == "data are at hand" and checks[-1].message.startswith("skipped: ")


@pytest.mark.parametrize("cls", [GoodLanguage, GoodControl])
def test_a_good_task_passes_every_check(cls: type[Task]) -> None:
    checks = list(check_task(cls))
    assert [check for check in checks if not check.passed] == []
    assert len({check.name for check in checks}) == len(checks) >= 10


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.task.__name__)
def test_a_mistake_fails_its_check_with_a_message_that_says_what_is_wrong(mistake: Mistake) -> None:
    named = [check for check in failures(mistake.task) if check.name.startswith(mistake.check)]
    assert named, f"no check named {mistake.check!r} failed"
    assert mistake.message in named[0].message
