"""Look at this machine and say what works, what is missing for what, and what is broken. Downloads nothing."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from opdbench import hardware, provenance, registry
from opdbench.cli.arguments import add_json, add_plugin
from opdbench.cli.show import offline, read_manifest
from opdbench.errors import UserError
from opdbench.text import print_json, table

if TYPE_CHECKING:
    from opdbench.models import Role
    from opdbench.task import Task

GIB = 2**30


class Finding(NamedTuple):
    """One thing that was looked at. `missing` limits what can be run here; `broken` should not be like that."""

    area: str
    name: str
    state: Literal["ok", "missing", "broken"]
    words: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", default="results", metavar="DIR", help="the results folder to look at")
    parser.add_argument("--data", metavar="DIR", help="where the tasks' data are")
    add_plugin(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    with offline():
        findings = list(examine(args.results, args.data, args.plugin))
    broken = [finding for finding in findings if finding.state == "broken"]
    if args.json:
        print_json({"healthy": not broken, "findings": [finding._asdict() for finding in findings],
                    "machine": hardware.probe().as_json(), "provenance": provenance.collect()})
    else:
        print(table(["", "what", "state", "in words"], [[f.area, f.name, f.state, f.words] for f in findings]))
        print(f"\n{_verdict(findings)}")
    return 1 if broken else 0


def examine(results: str, data: str | None, plugins: list[str]) -> Iterator[Finding]:
    """Look at everything; nothing that goes wrong keeps the rest from being looked at."""
    yield from _machine()
    yield _results(Path(results).expanduser())
    yield from _methods(plugins)
    for description in registry.descriptions("task", plugins):
        if description.argument:
            yield Finding("task", description.name, "ok", f"stands for many: {description.id.partition('@')[0]}")
        else:
            yield from _task(description.name, data, plugins)


def _verdict(findings: list[Finding]) -> str:
    broken = sum(finding.state == "broken" for finding in findings)
    missing = sum(finding.state == "missing" for finding in findings)
    if broken:
        return f"{broken} broken: each line above says what and how to mend it"
    return f"nothing is broken; {missing} missing, needed only for what they name" if missing else "everything works"


# ------------------------------------------------------------------------------------------------------- the machine


def _machine() -> Iterator[Finding]:
    machine = hardware.probe()
    yield Finding("machine", "hardware", "ok", machine.in_words())
    yield Finding("machine", "software", "ok", f"Python {platform.python_version()}, {machine.platform}")
    yield Finding("machine", "packages", "ok", ", ".join(f"{name} {version}" for name, version
                                                        in provenance.packages().items()))
    if machine.driver_problem:
        yield Finding("machine", "GPU driver", "broken", machine.driver_problem)
    choice = hardware.choose(machine=machine)
    yield Finding("machine", "profile", "ok", f"auto chooses {choice.profile.name}: {choice.reason}")
    yield _torch(choice.profile.gpus)


def _torch(gpus: int) -> Finding:
    try:
        import torch
    except Exception as error:  # a broken binary raises OSError, a missing one ImportError
        return Finding("machine", "torch", "broken", f"cannot be imported: {error}: pip install torch")
    if gpus and not torch.cuda.is_available():
        return Finding("machine", "torch", "broken", "a GPU is there, but torch cannot use it: update its driver, or "
                       "install the torch build for it; until then add --profile cpu-2")
    return Finding("machine", "torch", "ok", f"can be imported, and computes on {'the GPU' if gpus else 'the CPU'}")


def _results(folder: Path) -> Finding:
    """Whether records can be written there; a folder that does not exist yet is tried where it would be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            free = shutil.disk_usage(place).free / GIB
    except OSError as error:
        return Finding("machine", "results", "broken",
                       f"{folder} cannot be written ({error.strerror}): choose another folder with --results DIR")
    return Finding("machine", "results", "ok", f"{folder} can be written, {free:.0f} GiB free")


# ----------------------------------------------------------------------------------------------- methods, tasks, models


def _methods(plugins: list[str]) -> Iterator[Finding]:
    for name in registry.names("method", plugins):
        try:
            yield Finding("method", name, "ok", registry.load("method", name, plugins).paper)
        except UserError as error:
            yield Finding("method", name, "broken", _one_line(error))


def _task(name: str, data: str | None, plugins: list[str]) -> Iterator[Finding]:
    try:
        task = registry.load("task", name, plugins)(data=data)
    except UserError as error:
        yield Finding("task", name, "broken", _one_line(error))
        return
    yield _problems(task)
    yield from _model(task, "teacher")
    yield from _model(task, "student")


def _problems(task: Task) -> Finding:
    """Whether the task's problems or its environment can be had here."""
    try:
        return Finding("task", task.name, "ok", _open(task))
    except UserError as error:
        return Finding("task", task.name, "missing", _one_line(error))
    except Exception as error:  # whatever an environment raises when something it needs is not there
        return Finding("task", task.name, "missing", f"{type(error).__name__}: {' '.join(str(error).split())}")


def _open(task: Task) -> str:
    from opdbench.task import ControlTask, LanguageTask

    if task.games():
        return "; ".join(map(_open, task.games()))
    if isinstance(task, ControlTask):
        task.make().close()
        return f"{task.env_id} can be made"
    assert isinstance(task, LanguageTask)
    return f"{len(task.examples('test')):,} test problems"


def _model(task: Task, role: Role) -> Iterator[Finding]:
    """Whether a task's default model is there and whole; nothing for a task that names none."""
    from opdbench import models

    reference = getattr(task, role)
    if reference is None:
        return
    shipped = models.shipped_models(task)
    if reference in shipped:
        yield _verify(reference, shipped[reference])
    elif reference == f"{task.name}/{role}":  # the name of a shipped model, and it is not there
        yield Finding("model", reference, "broken", "did not come with the package: reinstall it, or make the model "
                      f"with `opdbench teacher train {task.name} --role {role}`")
    else:
        yield _elsewhere(task, role, reference)


def _elsewhere(task: Task, role: Role, reference: str) -> Finding:
    """A default model that is a folder or lies on the hub."""
    from opdbench import models

    try:
        return Finding("model", reference, "ok", f"at {models.resolve(reference, role=role, task=task)}")
    except UserError as error:
        return Finding("model", reference, "missing", _one_line(error))


def _verify(reference: str, folder: Path) -> Finding:
    """A shipped model's bytes against its manifest."""
    from opdbench import models

    try:
        manifest: dict[str, Any] = read_manifest(folder) or {}
    except UserError as error:
        return Finding("model", reference, "broken", _one_line(error))
    weights = sorted(folder.glob("*.safetensors"))
    if "sha256" not in manifest or len(weights) != 1:
        return Finding("model", reference, "broken", f"{folder} has no manifest with the checksum of its weights")
    if models.checksum(weights[0]) != manifest["sha256"]:
        return Finding("model", reference, "broken", f"{weights[0]} was altered (its checksum is not the manifest's): "
                       "reinstall the package it came with")
    return Finding("model", reference, "ok", f"checksum verified, {os.path.getsize(weights[0]) / 1e6:.2f} MB")


def _one_line(error: UserError) -> str:
    return " ".join(f"{error.problem}: {error.fix}".split()) if error.fix else error.problem
