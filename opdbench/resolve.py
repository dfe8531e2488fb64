"""From a request to a plan: every value settled, every name found, every mismatch refused, nothing started."""

from __future__ import annotations

import ast
import hashlib
import inspect
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from opdbench import hardware, probes, references, registry
from opdbench.distiller import Distiller, Needs
from opdbench.errors import UsageError, UserError, unknown
from opdbench.lm import remote_reference
from opdbench.lm.remote_reference import Remote
from opdbench.lm.server import is_address
from opdbench.schema.spec import Evaluation, Execution, ModelRef, Recipe, Spec, Training
from opdbench.settings import Layers, locate, parse_budget, parse_sets, validate
from opdbench.source import bare_code
from opdbench.task import ControlTask, LanguageTask, Task

PAPER = "paper"


@dataclass(frozen=True)
class Request:
    """What a user asked for, as typed."""

    method: str
    task: str
    profile: str = hardware.AUTO
    seed: int = 0
    budget: Sequence[str] = ()
    settings: Sequence[str] = ()
    student: str | None = None
    teacher: str | None = None
    data: str | None = None
    plugins: Sequence[str] = ()
    trust_pickle: bool = False
    preset: str | None = None
    probes: Sequence[str] = ()

    def command(self) -> str:
        """The command line that asks for the same, wherever its results go."""
        words = ["opdbench", "run", "--method", self.method, "--task", self.task, "--seed", str(self.seed)]
        for flag, value in (("--student", self.student), ("--teacher", self.teacher), ("--data", self.data)):
            words += [flag, value] if value is not None else []
        if self.profile != hardware.AUTO:
            words += ["--profile", self.profile]
        words += ["--preset", self.preset] if self.preset is not None else []
        for flag, values in (("--budget", self.budget), ("--set", self.settings), ("--plugin", self.plugins),
                             ("--probe", self.probes)):
            for value in values:
                words += [flag, value]
        words += ["--trust-pickle"] if self.trust_pickle else []
        return shlex.join(words)


class Plan(NamedTuple):
    """Everything that a run needs, resolved."""

    spec: Spec
    method_class: type[Distiller]
    params: Any  # an instance of the method's Params
    task: Task
    teacher: references.Teacher | None
    student: Path | None  # None: a fresh network, initialised from the seed
    profile_reason: str
    request: Request
    remote: Remote | None = None  # the teacher, when it is asked and not run

    def new_method(self) -> Distiller:
        """The method with its parameters and no memory: every execution of a plan starts with its own."""
        return self.method_class(self.params)

    @property
    def needs(self) -> Needs:
        """What the teacher must reveal."""
        return self.new_method().requires()


def resolve(request: Request) -> Plan:
    """Settle everything.

    Raises:
        UserError: an unknown name, key or value; a model or data that is not there; a teacher that cannot reveal what
            the method needs; a method that does not exist in the task's world.
    """
    method_class = registry.load("method", request.method, request.plugins)
    task_class = registry.load("task", request.task, request.plugins)
    if task_class.domain not in method_class.domains:
        raise UserError(f"{method_class.name} does not run on {task_class.name}: it is for "
                        f"{' and '.join(sorted(method_class.domains))} tasks", "opdbench list tasks")
    if request.data is not None and not task_class.reads_data:
        raise UsageError(f"{task_class.name} reads no data: --data {request.data} means nothing to it", "leave it out")
    choice = hardware.choose(request.profile)
    sections = {"method": method_class.Params, "training": Training, "evaluation": Evaluation,
                "task": task_class.Params, "execution": Execution}
    layers = Layers()
    layers.put("training", _task_training(task_class), "task")
    profile_origin = f"profile {choice.profile.name}"
    layers.put("execution", choice.profile.execution().model_dump(), profile_origin)
    for key, value in _preset(method_class, request.preset).items():
        section, name = locate(key, sections)
        layers.put(section, {name: value}, f"preset {request.preset}")
    if request.probes:
        probes.check(request.probes)
        layers.put("execution", {"probes": tuple(request.probes)}, "user")
    for section, key, value in parse_sets(request.settings, sections):
        layers.put(section, {key: value}, "user")
    settled = {section: validate(model, layers.values[section], section) for section, model in sections.items()}
    budget, budget_origin = parse_budget(request.budget, task_class.budget)
    task = task_class(data=request.data, params=settled["task"])
    method = method_class(settled["method"])
    _check_solutions(method, task)
    _check_standing(method)
    _check_notes(method, task)
    _check_comparison(method, settled["training"])
    _check_adapters(task, settled["training"])
    teacher_name = _teacher_name(request, task, method, choice.profile)
    student, student_path = _student(request, task, choice.profile)
    teacher, named_teacher, remote = _teacher(teacher_name, task, method, student, settled)
    _check_cache(remote, settled["execution"], layers.origins)
    recipe = Recipe(
        method=method_class.name, method_sha256=_code_sha256(method_class), params=settled["method"].model_dump(),
        task=task.id, task_params=settled["task"].model_dump(), task_sha256=task.checksum(), teacher=teacher,
        student=student, budget=budget, training=settled["training"], evaluation=settled["evaluation"],
        seed=request.seed)
    origins = {**layers.origins, "budget": budget_origin,
               "teacher": "user" if request.teacher else "task" if task.teacher else profile_origin,
               "student": "user" if request.student else "task" if task.student or student_path is None
               else profile_origin}
    return Plan(Spec(recipe=recipe, execution=settled["execution"], origins=origins), method_class,
                settled["method"], task, named_teacher, student_path, choice.reason, request, remote)


def _check_solutions(method: Distiller, task: Task) -> None:
    if not method.uses_solutions():
        return
    if not isinstance(task, LanguageTask) or task.examples("train")[0].solution is None:
        raise UserError(f"{method.name} is to learn from reference solutions, and {task.id} has none",
                        "let it learn from the teacher's own, such as --set data=teacher")


def _check_standing(method: Distiller) -> None:
    if method.standing == "unspecified" and not getattr(method.params, "approximate", False):
        raise UserError(f"{method.name} is known in its form alone: some of its constants are not public, and those "
                        "here are ours",
                        f"opdbench show {method.name} says which; --set approximate=true runs it with them")


def _check_notes(method: Distiller, task: Task) -> None:
    wanted = method.reads()
    if wanted and isinstance(task, LanguageTask):
        for kind in sorted(wanted - set(task.notes(task.examples("train")[0]))):
            raise UserError(f"{method.name} tells its teacher the {kind} of every problem, and {task.id} has none",
                            "choose another task (opdbench list tasks)")


def _check_comparison(method: Distiller, training: Training) -> None:
    """Settings that would silently do nothing are refused."""
    asked = {name: getattr(training, name) for name in ("support", "loss_temperature")
             if getattr(training, name) != Training.model_fields[name].default}
    if asked and not (method.compares and (method.own_teacher or method.requires() == Needs.FULL)):
        name, value = next(iter(asked.items()))
        raise UserError(f"{method.name}, with these settings, does not compare whole distributions: {name}={value} "
                        "would change nothing", f"leave {name} out; opdbench show {method.name} says what it compares")


def _check_adapters(task: Task, training: Training) -> None:
    if training.lora_rank and not isinstance(task, LanguageTask):
        raise UserError(f"lora_rank={training.lora_rank} adapts language models, and {task.id} is a control task",
                        "leave it out: a small network is trained whole")
    if not training.lora_rank and training.lora_alpha != Training.model_fields["lora_alpha"].default:
        raise UserError(f"lora_alpha={training.lora_alpha:g} would change nothing, since all weights are trained",
                        "add --set lora_rank=16, or leave lora_alpha out")


def _check_cache(remote: Remote | None, execution: Execution, origins: Mapping[str, str]) -> None:
    asks = remote is not None and is_address(remote.reference)
    if execution.teacher_cache is not None and origins.get("execution.teacher_cache") == "user" and not asks:
        raise UserError("teacher_cache keeps what a teacher over HTTP says, and this run asks none",
                        "leave it out, or pass --teacher http://HOST:PORT/v1#MODEL")


def _preset(method_class: type[Distiller], name: str | None) -> Mapping[str, Any]:
    """The settings of a method's preset. Every method has `paper`, which are its defaults."""
    presets = {PAPER: {}, **method_class.presets}
    if name is not None and name not in presets:
        raise unknown(f"preset of {method_class.name}:", name, presets, see=f"opdbench show {method_class.name}")
    return presets[name or PAPER]


def _task_training(task_class: type[Task]) -> dict[str, Any]:
    values = dict(task_class.training)
    if issubclass(task_class, LanguageTask):
        values.setdefault("horizon", task_class.max_new_tokens)
    return values


def _teacher_name(request: Request, task: Task, method: Distiller, profile: hardware.Profile) -> str | None:
    reference = request.teacher or task.teacher or profile.models.get("teacher")
    if reference is None and method.requires() != Needs.NOTHING:
        raise UserError(f"{task.name} ships no teacher and the profile {profile.name} names none",
                        "pass --teacher with a model folder or a hub id, such as --teacher Qwen/Qwen3-8B, or choose a "
                        "GPU profile (opdbench list profiles)")
    return reference


def _teacher(reference: str | None, task: Task, method: Distiller, student: ModelRef, settled: Mapping[str, Any]
             ) -> tuple[ModelRef | None, references.Teacher | None, Remote | None]:
    if reference is None:
        return None, None, None
    if remote_reference.is_remote(reference):
        ref, remote = remote_reference.teacher(reference, method, task, settled["training"], settled["execution"])
        return ref, None, remote
    return *references.teacher(reference, task, student), None


def _student(request: Request, task: Task, profile: hardware.Profile) -> tuple[ModelRef, Path | None]:
    reference = request.student or task.student or profile.models.get("student")
    new = references.is_fresh(request.student)
    if new and not isinstance(task, ControlTask):
        raise UserError(f"{request.student} is a small network, and {task.id} needs a language model",
                        "name a model, or leave --student out")
    own = isinstance(task, ControlTask) and not (request.student or task.student)
    if reference is not None and not new and not own:
        ref, model = references.model(reference, "student", task)
        return ref, model.path
    if isinstance(task, ControlTask):
        asked = references.fresh_widths(reference) if new and reference else None
        fresh = references.fresh(asked if asked is not None else task.student_network() or task.student_hidden)
        digest = hashlib.sha256(f"{fresh} seed {request.seed}".encode()).hexdigest()
        return ModelRef(reference=fresh, sha256=digest), None
    raise UserError(f"{task.name} ships no student and the profile {profile.name} names none",
                    "pass --student with a model folder or a hub id, such as --student Qwen/Qwen3-0.6B, or choose a "
                    "GPU profile (opdbench list profiles)")


def _code_sha256(method_class: type[Distiller]) -> str:
    """Of the method's module without comments and docstrings: editing the text of a method does not make its finished
    runs stale, editing what it computes does."""
    classes = [cls for cls in method_class.__mro__ if issubclass(cls, Distiller) and cls is not Distiller]
    modules = {cls.__module__: inspect.getmodule(cls) or cls for cls in classes}  # one may build on another
    code = "\n".join(bare_code(ast.parse(inspect.getsource(module))) for module in modules.values())
    return hashlib.sha256(code.encode()).hexdigest()
