"""Presets: named settings between a task's defaults and what the user says."""

from __future__ import annotations

import json

import pytest

from opdbench import registry
from opdbench.cli.main import main
from opdbench.errors import UsageError
from opdbench.resolve import Plan, Request, resolve


def plan(preset: str | None, *settings: str, method: str = "gkd") -> Plan:
    return resolve(Request(method=method, task="cartpole", preset=preset, settings=settings))


def test_a_preset_sets_parameters_and_training_and_says_so() -> None:
    spec = plan("trl").spec
    assert (spec.recipe.params["lmbda"], spec.recipe.training.temperature) == (0.5, 0.9)
    assert spec.origins["method.lmbda"] == spec.origins["training.temperature"] == "preset trl"


def test_the_user_has_the_last_word() -> None:
    spec = plan("trl", "lmbda=0.25").spec
    assert spec.recipe.params["lmbda"] == 0.25 and spec.origins["method.lmbda"] == "user"


def test_the_paper_preset_is_the_defaults_and_only_values_count_in_the_recipe() -> None:
    assert plan("paper").spec.recipe.digest() == plan(None).spec.recipe.digest()
    same = plan(None, "lmbda=0.5", "temperature=0.9").spec.recipe.digest()
    assert plan("trl").spec.recipe.digest() == same != plan(None).spec.recipe.digest()


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown preset of gkd: 'tlr'") as raised:
        plan("tlr")
    assert "did you mean 'trl'" in str(raised.value.fix)


def test_the_command_repeats_the_preset() -> None:
    assert "--preset trl" in plan("trl").request.command()


def test_show_lists_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "gkd", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["presets"]["trl"]["lmbda"] == 0.5
    assert main(["show", "gkd"]) == 0
    assert "--preset trl" in capsys.readouterr().out


PRESETS = [(name, preset) for name in registry.names("method") for preset in registry.load("method", name).presets]


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_every_preset_of_every_method_resolves(method: str, preset: str) -> None:
    task = "cartpole" if "rl" in registry.load("method", method).domains else "text-maze"
    resolve(Request(method=method, task=task, preset=preset))
