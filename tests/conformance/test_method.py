"""The conformance suite passes what is right, and names what is wrong."""

from __future__ import annotations

import time

import pytest
import torch

from opdbench import registry
from opdbench.conformance import Check, check_method
from opdbench.distiller import Distiller
from tests.conformance.bad_methods import MISTAKES, Good, Mistake


def failures(cls: type[Distiller]) -> list[Check]:
    return [check for check in check_method(cls) if not check.passed]


@pytest.mark.parametrize("name", registry.names("method"))
def test_every_registered_method_passes_in_a_minute_or_three(name: str) -> None:
    began = time.process_time()
    assert failures(registry.load("method", name)) == []
    assert time.process_time() - began < 180  # under 60 on most machines


def test_a_good_method_passes_every_check_and_each_check_has_its_own_name() -> None:
    checks = list(check_method(Good))
    assert all(check.passed for check in checks)
    assert len({check.name for check in checks}) == len(checks) >= 15


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.method.__name__)
def test_a_mistake_fails_its_check_with_a_message_that_says_what_is_wrong(mistake: Mistake) -> None:
    named = [check for check in failures(mistake.method) if check.name.startswith(mistake.check)]
    assert named, f"no check named {mistake.check!r} failed"
    assert mistake.message in named[0].message


def test_the_global_random_state_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    list(check_method(Good))
    assert torch.equal(before, torch.get_rng_state())
