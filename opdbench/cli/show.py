"""Show a method, a task, a hardware profile, or the record of a run."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench import hardware, registry, unspecified
from opdbench.cli.arguments import add_json, add_plugin
from opdbench.cli.knobs import knob_table, knobs_of
from opdbench.errors import UserError, unknown
from opdbench.registry import Description
from opdbench.text import bold, fields, number, paragraph, print_json, table

if TYPE_CHECKING:
    from pydantic import BaseModel

    from opdbench.task import Task

RECORD = "record.json"
OFFLINE = "HF_HUB_OFFLINE"
MODES = ("greedy", "sampled")
STANDINGS = {"published": "", "from notes": "from notes: known from others' notes on the paper, and not from itself",
             "unspecified": "unspecified: parts of it are not public, and were chosen here"}
WORLDS = {"lm": "language models", "rl": "control"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME|RECORD",
                        help="a method, task or profile by name, or a run's folder or record file")
    parser.add_argument("--data", metavar="DIR", help="where a task's data are, for their sizes")
    add_plugin(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    with offline():
        content, as_text = _find(args)
    if args.json:
        print_json(content)
    else:
        print(as_text(content))
    return 0


@contextmanager
def offline() -> Iterator[None]:
    """Keep the Hugging Face hub from downloading anything: looking at something must not fetch it."""
    before = os.environ.get(OFFLINE)
    os.environ[OFFLINE] = "1"  # read when huggingface_hub is imported, which happens inside
    try:
        yield
    finally:
        if before is None:
            del os.environ[OFFLINE]
        else:
            os.environ[OFFLINE] = before


def _find(args: argparse.Namespace) -> tuple[dict[str, Any], Callable[[dict[str, Any]], str]]:
    """What NAME means: its content as JSON values, and the function that makes text of them."""
    name = args.name
    kinds = registry.kinds_of(name, args.plugin)
    if len(kinds) > 1:
        raise UserError(f"{name!r} is both a method and a task", "rename the plugin's")
    if kinds == ["method"]:
        return method_content(name, args.plugin), _method_text
    if kinds == ["task"]:
        return task_content(name, args.plugin, args.data), _task_text
    if (known := unspecified.read().get(name)) is not None:
        return {"name": name, "standing": "unspecified", **known._asdict()}, _unspecified_text
    if name in hardware.names():
        return profile_content(hardware.load(name)), _profile_text
    if name.endswith(".json") or os.sep in name or Path(name).is_dir():
        record = _read_record(Path(name).expanduser())
        return record.model_dump(mode="json"), lambda _: _record_text(record, name)
    valid = [*registry.names("method", args.plugin), *registry.names("task", args.plugin), *hardware.names()]
    raise unknown("name", name, valid, see="opdbench list")


# ------------------------------------------------------------------------------------------------------------ methods


def method_content(name: str, plugins: list[str]) -> dict[str, Any]:
    """What a method's file says, as JSON values."""
    from opdbench.page import read_page

    description = registry.describe("method", name, plugins)
    method = registry.load("method", name, plugins)
    page = read_page(method.__doc__)
    return {**description.as_json(), **page._asdict(), "parameters": parameters(method.Params),
            "presets": {name: dict(values) for name, values in method.presets.items()},
            "own_teacher": method.own_teacher, "knobs": knobs_of(description.name), "lines": _line_count(description)}


def parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    """Name, type, default, bounds and meaning of every field of a `Params` model."""
    return [{"name": name, "type": _type_name(field.annotation), "required": field.is_required(),
             "default": None if field.is_required() else field.default, "bounds": _bounds(field.metadata),
             "meaning": field.description or ""} for name, field in model.model_fields.items()]


def _type_name(annotation: Any) -> str:
    from typing import Literal, get_args, get_origin

    if get_origin(annotation) is Literal:
        return " | ".join(str(choice) for choice in get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _bounds(metadata: list[Any]) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return ", ".join(f"{sign} {getattr(item, name):g}" for item in metadata
                     for name, sign in signs.items() if hasattr(item, name))


def _line_count(description: Description) -> int:
    assert description.path is not None
    return len(description.path.read_text().splitlines())


def _method_text(method: dict[str, Any]) -> str:
    facts = fields([
        ("worlds", " and ".join(WORLDS.get(domain, domain) for domain in method["domains"])),
        ("teacher", "the student itself, told more" if method["own_teacher"] else f"must reveal: {method['needs']}"),
        ("paper", method["paper"]),
        ("standing", STANDINGS[method["standing"]]),
        ("deviations", method["deviations"]),
        *((f"--preset {name}", ", ".join(f"{key}={value}" for key, value in values.items()))
          for name, values in method["presets"].items()),
        ("file", f"{method['path']} ({method['lines']} lines, {method['package']})"),
    ])
    body = [block if block.startswith(" ") else paragraph(block) for block in method["body"]]
    parts = [bold(method["id"]) + "  " + method["claim"], *body, facts,
             _parameter_table(method["parameters"]), knob_table(method["knobs"]) if method["knobs"] else "",
             f"try it: opdbench run --method {method['name']} --task TASK"]
    return "\n\n".join(part for part in parts if part)


def _unspecified_text(method: dict[str, Any]) -> str:
    facts = fields([("paper", method["paper"]), ("known", method["known"]), ("missing", method["missing"])])
    return f"{bold(method['name'])}  {method['claim']}\n\n{facts}\n\nIt cannot be run: too little of it is public."


def _parameter_table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no parameters of its own"
    return table(["parameter", "default", "values", "meaning"],
                 [[row["name"], "required" if row["required"] else str(row["default"]),
                   " ".join(part for part in (row["type"], row["bounds"]) if part), row["meaning"]] for row in rows])


# -------------------------------------------------------------------------------------------------------------- tasks


def task_content(name: str, plugins: list[str], data: str | None) -> dict[str, Any]:
    """What a task says of itself, with its sizes and the measured score of its models, as JSON values."""
    description = registry.describe("task", name, plugins)
    task = registry.load("task", name, plugins)(data=data)
    models = {role: model_content(task, role) for role in ("teacher", "student")}
    return {**description.as_json(), "license": task.license, "protocol": task.protocol, "metric": task.metric,
            "size": _size(task), **models, "training": dict(task.training), "budget": dict(task.budget),
            "parameters": parameters(task.Params)}


def _size(task: Task) -> dict[str, Any]:
    from opdbench.task import ControlTask, LanguageTask

    if isinstance(task, ControlTask):
        return {"environment": task.env_id, "longest_episode": task.max_episode_steps,
                "evaluation_episodes": task.evaluation_episodes}
    assert isinstance(task, LanguageTask)
    sizes: dict[str, Any] = {"max_new_tokens": task.max_new_tokens}
    try:
        for split in ("train", "validation", "test"):
            sizes[split] = len(task.examples(split))
    except UserError as error:  # the data are not here; everything else about the task can still be shown
        sizes["missing"] = str(error)
    return sizes


def model_content(task: Task, role: str) -> dict[str, Any]:
    """The default model of a role: what it is called, where it comes from, and the score in its manifest."""
    from opdbench import models

    reference = getattr(task, role)
    if reference is None:
        if role == "student" and hasattr(task, "student_hidden"):
            widths = "x".join(str(width) for width in task.student_hidden)
            fresh = f"a fresh network with hidden layers of {widths}, initialised from the run's seed"
            return {"reference": None, "comes_from": fresh if widths else "a table, the uniform policy at first"}
        named = {profile.name: profile.models[role] for profile in hardware.profiles() if role in profile.models}
        return {"reference": None, "comes_from": "the hardware profile", "by_profile": named}
    if reference == "exact":
        return {"reference": reference, "comes_from": "computed from the task's own rules"}
    if task.games():
        return {"reference": reference, "comes_from": "each game's own"}
    folder = models.shipped_models(task).get(reference)
    if folder is None:
        return {"reference": reference, "comes_from": "not shipped: a folder or the hub"}
    return {"reference": reference, "comes_from": str(folder), "manifest": read_manifest(folder)}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest beside a shipped model, None when there is none.

    Raises:
        UserError: it is not JSON.
    """
    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"the manifest {path} cannot be read: {error}", "reinstall the package it came with") from error
    if not isinstance(content, dict):
        raise UserError(f"the manifest {path} is not a JSON object", "reinstall the package it came with")
    return content


def _task_text(task: dict[str, Any]) -> str:
    facts = fields([
        ("world", " and ".join(WORLDS.get(domain, domain) for domain in task["domains"])),
        ("protocol", task["protocol"]),
        ("score", task["metric"]),
        ("size", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in task["size"].items()
                           if name != "missing")),
        ("missing", task["size"].get("missing", "")),
        ("source", task["paper"]),
        ("licence", task["license"]),
        ("teacher", _model_text(task["teacher"])),
        ("student", _model_text(task["student"])),
        ("training", _pairs(task["training"])),
        ("budget", _pairs(task["budget"])),
        ("file", f"{task['path']} ({task['package']})"),
    ])
    settings = _parameter_table(task["parameters"]) if task["parameters"] else ""
    parts = [bold(task["id"]) + "  " + task["summary"], facts, settings,
             f"try it: opdbench run --method METHOD --task {task['name']}"]
    return "\n\n".join(part for part in parts if part)


def _model_text(model: dict[str, Any]) -> str:
    words = f"{model['reference']} ({model['comes_from']})" if model["reference"] else model["comes_from"]
    if model.get("by_profile"):
        words += ": " + _pairs(model["by_profile"])
    if manifest := model.get("manifest"):
        words += "\nmeasured: " + (score_words(manifest.get("score", {})) or "no score in its manifest")
        words += f"\nmade by: {manifest['command']}" if "command" in manifest else ""
    return words


def score_words(score: Any) -> str:
    """"greedy 99.2 (std 1.5), sampled ..." of a manifest's score; what is not known is given number by number."""
    modes = {mode: score[mode] for mode in MODES if mode in score} if isinstance(score, dict) else {}
    words = [f"{mode} " + _measured(value) for mode, value in modes.items()]
    rest = {name: value for name, value in score.items() if name not in modes} if isinstance(score, dict) else score
    return ", ".join([*words, *_leaves(rest)])


def _measured(value: Any) -> str:
    if not isinstance(value, dict) or "mean" not in value:
        return ", ".join(_leaves(value))
    spread = f" (std {number(value['std'])})" if value.get("std") else ""
    return number(value["mean"]) + spread


def _leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    """"greedy mean 500" for every number in a tree of dicts."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, f"{prefix}{name} ")
    elif isinstance(tree, int | float):
        yield f"{prefix}{number(tree)}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


# ------------------------------------------------------------------------------------------------- profiles, records


def profile_content(profile: hardware.Profile) -> dict[str, Any]:
    return {**profile.as_json(), "execution": profile.execution().model_dump(mode="json")}


def _profile_text(profile: dict[str, Any]) -> str:
    needed = f"{profile['gpus']} with {profile['gpu_memory_gib']:g} GiB or more" if profile["gpus"] else "none"
    facts = fields([("GPUs", needed), ("models", _pairs(profile["models"])), ("file", profile["path"])])
    settings = fields([(name, str(value)) for name, value in profile["execution"].items()])
    return "\n\n".join([bold(profile["name"]) + "  " + profile["summary"], facts, settings])


def _read_record(path: Path) -> Any:
    from opdbench.store import read_record

    file = path / RECORD if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no record at {path}", f"pass a run's folder, or its {RECORD}")
    return read_record(file)


def _record_text(record: Any, name: str) -> str:
    from opdbench.report.summary import details, summary

    return f"{summary(record, name)}\n\n{details(record)}"
