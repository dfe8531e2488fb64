"""`configs/knobs.yaml`: every parameter and setting that it names is ours, and every knob of TRL's is TRL's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from opdbench import registry
from opdbench.cli.knobs import knob_table, knobs_of, read_knobs
from opdbench.cli.main import main
from opdbench.schema.spec import Training

CONTENT = read_knobs()
KEYS = {"framework", "knob", "theirs", "note", "checked"}
ENTRIES = [(place, parameter, entry)
           for place, parameters in [*CONTENT["methods"].items(), ("training", CONTENT["training"])]
           for parameter, entries in parameters.items() for entry in entries]


@pytest.mark.parametrize("method", CONTENT["methods"])
def test_every_parameter_of_a_mapped_method_is_there_and_nothing_else(method: str) -> None:
    """An empty list says that it is nobody else's, so that a new parameter cannot be forgotten."""
    assert set(CONTENT["methods"][method]) == set(registry.load("method", method).Params.model_fields)


def test_the_methods_that_frameworks_have_and_the_settings_that_decide_are_mapped() -> None:
    assert {"gkd", "opd", "kd", "minillm", "distillm", "distillm2", "grpo", "seqkd", "gold", "uld"} <= set(
        CONTENT["methods"])
    decisive = {"temperature", "loss_temperature", "support", "top_k", "tail", "reduction", "lr"}
    assert decisive <= set(CONTENT["training"]) <= set(Training.model_fields)


@pytest.mark.parametrize(("place", "parameter", "entry"), ENTRIES,
                         ids=[f"{place}-{parameter}-{entry['framework']}" for place, parameter, entry in ENTRIES])
def test_an_entry_has_a_known_framework_and_only_text(place: str, parameter: str, entry: dict[str, str]) -> None:
    """Trap: a comma in a note that is not quoted ends it, and what follows becomes a key."""
    assert set(entry) <= KEYS and {"framework", "knob"} <= set(entry)
    assert all(isinstance(value, str) and value for value in entry.values())
    assert CONTENT["frameworks"][entry["framework"]]["checked"] in ("installed", "code", "notes")


@pytest.mark.parametrize("parameter", CONTENT["methods"]["gkd"])
def test_of_gkd_every_framework_says_what_it_calls_a_parameter_or_that_it_has_none(parameter: str) -> None:
    named = {entry["framework"] for entry in CONTENT["methods"]["gkd"][parameter]}
    assert named >= {"trl", "swift", "verl", "nemo", "liger", "kdflow", "distillm"}


def test_no_knob_is_said_with_what_is_done_instead(capsys: pytest.CaptureFixture[str]) -> None:
    assert all("note" in entry and "theirs" not in entry for _, _, entry in ENTRIES if entry["knob"] == "none")
    assert main(["show", "minillm"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["own_reward", "nobody", "none"] for line in lines)
    assert any("none" in line and "no MiniLLM trainer" in line for line in lines)


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed (pip install -e '.[test]')")
def test_trls_knobs_are_fields_of_its_configuration_classes_with_the_defaults_that_notes_give() -> None:
    """In a process of its own: importing TRL takes seconds and stays in memory."""
    entries = [entry for _, _, entry in ENTRIES if entry["framework"] == "trl" and entry["knob"] != "none"]
    assert len({entry["knob"] for entry in entries}) > 25
    done = subprocess.run([sys.executable, "-c", FIELDS], capture_output=True, text=True, check=True,
                          env={**os.environ, "TRL_EXPERIMENTAL_SILENCE": "1"})
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"] == CONTENT["frameworks"]["trl"]["version"]
    fields = {f"{name}.{field}": default for name, own in found["fields"].items() for field, default in own.items()}
    assert [entry["knob"] for entry in entries if entry["knob"] not in fields] == []
    stated = [(entry["knob"], float(match["after"] or match["before"])) for entry in entries
              if (match := DEFAULT.search(entry.get("note", "")))]
    assert len(stated) > 8 and stated == [(knob, fields[knob]) for knob, _ in stated]


DEFAULT = re.compile(r"default (is )?(?P<after>[\d.]*\d)|(?P<before>[\d.]+) by default")
FIELDS = """
import dataclasses, json, trl
from trl import DistillationConfig, GRPOConfig
from trl.experimental.async_distillation import AsyncDistillationConfig
from trl.experimental.gkd import GKDConfig
from trl.experimental.gold import GOLDConfig
from trl.experimental.sdpo import SDPOConfig
from trl.experimental.server_distillation import ServerDistillationConfig
classes = (DistillationConfig, GRPOConfig, AsyncDistillationConfig, GKDConfig, GOLDConfig, SDPOConfig,
           ServerDistillationConfig)
print(json.dumps({"version": trl.__version__, "fields": {cls.__name__: {
    field.name: field.default if isinstance(field.default, (int, float)) else None
    for field in dataclasses.fields(cls)} for cls in classes}}))
"""


def test_show_prints_them_beside_the_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "gkd"]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "--jsd_beta" in line)
    assert "KDFlow" in row and "1 - beta" in row
    assert main(["show", "gkd", "--json"]) == 0
    knobs = json.loads(capsys.readouterr().out)["knobs"]
    assert {"parameter": "beta", "framework": "KDFlow"}.items() <= next(
        knob for knob in knobs if knob["knob"] == "--jsd_beta").items()
    assert knobs == knobs_of("gkd") and knob_table(knobs) in text


def test_what_was_not_read_in_its_code_says_so_and_a_method_that_nobody_has_has_no_table(
        capsys: pytest.CaptureFixture[str]) -> None:
    doubtful = [row for row in knobs_of("distillm2") if row["framework"] == "DistiLLM-2"]
    assert doubtful and all("not checked" in knob_table([row]) for row in doubtful)
    assert "not checked" not in knob_table([row for row in knobs_of("gkd") if row["framework"] == "TRL"])
    assert knobs_of("ammd") == []
    assert main(["show", "ammd"]) == 0
    assert "THERE CALLED" not in capsys.readouterr().out
