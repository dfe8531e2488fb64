"""From a plan to a world: loads the models of a task's domain. The heavy imports of a run happen here."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench import hardware, references, registry, seeds, teachers
from opdbench.allocator import keep_freed_memory
from opdbench.distiller import Needs
from opdbench.errors import UserError
from opdbench.resolve import Plan
from opdbench.schema.spec import Execution, Spec
from opdbench.task import ControlTask, LanguageTask
from opdbench.world import World

if TYPE_CHECKING:
    from opdbench.lm.policy import LanguagePolicy
    from opdbench.lm.remote_reference import Remote
    from opdbench.lm.world import LanguageWorld
    from opdbench.policy import Policy


def build(plan: Plan) -> World:
    """The task with its student and its teacher, on the execution's device and in its precision.

    Raises:
        UserError: a model folder is missing, corrupt or does not fit the task; tokenizers that disagree; a GPU that is
            asked for and not there.
    """
    _check_device(plan.spec.execution)
    if (devices := plan.spec.execution.devices) > 1:
        raise UserError(f"profile {plan.spec.execution.profile} asks for {devices} devices, and training on more than "
                        "one is not there yet", "choose a profile with one device, such as --profile gpu-80g")
    if isinstance(plan.task, LanguageTask):
        return _language(plan, plan.task)
    if isinstance(plan.task, ControlTask):
        return _several(plan, plan.task) if plan.task.games() else _control(plan, plan.task)
    raise TypeError(f"{type(plan.task).__name__} is neither a LanguageTask nor a ControlTask")


def _language(plan: Plan, task: LanguageTask) -> World:
    from opdbench.lm.bridge import BridgedWorld
    from opdbench.lm.model import load
    from opdbench.lm.teachers import combine
    from opdbench.lm.world import LanguageWorld

    execution = plan.spec.execution

    def load_teacher(model: references.Model | references.Exact) -> LanguagePolicy:
        assert isinstance(model, references.Model)  # an exact one was refused when the run was resolved
        return load(model.path, dtype=_dtype(execution.teacher_dtype), device=execution.device,
                    quantisation=model.quantisation)

    student = _language_student(plan)
    teacher = None
    if plan.teacher is not None:
        teacher = teachers.build(plan.teacher, student, load_teacher, partial(combine, task=task))
    settings: Any = {"seed": plan.spec.recipe.seed, "generation_batch": execution.generation_batch,
                     "teacher_batch": execution.teacher_batch, "thinking": plan.spec.recipe.training.thinking}
    if plan.remote is not None:
        return _asked(plan.remote, execution, LanguageWorld(task, student, None, **settings))
    members = [] if teacher is None else teacher.members()
    differences = [student.tokenizer.difference(member.tokenizer) for member in members]
    difference = next(filter(None, differences), None)
    if teacher is None or difference is None:
        return LanguageWorld(task, student, teacher, **settings)
    if not _compares_text(plan):
        bridging = [method.name for method in registry.descriptions("method", plan.request.plugins) if method.bridges]
        raise UserError(f"the student's and the teacher's tokenizers do not match: {difference}",
                        "choose two models of one family, or a method that compares text: "
                        + " or ".join(f"--method {name}" for name in bridging))
    return BridgedWorld(task, student, teacher, **settings)


def _asked(remote: Remote, execution: Execution, world: LanguageWorld) -> World:
    """A world whose teacher is asked and not run."""
    from opdbench.lm.remote import RemoteTeacher
    from opdbench.lm.remote_reference import connect
    from opdbench.lm.server import is_address

    source = connect(remote.reference, execution) if is_address(remote.reference) else Path(remote.reference)
    cache = None if execution.teacher_cache is None else Path(execution.teacher_cache).expanduser()
    world.oracle = RemoteTeacher.open(source, world.tokenizer, n_actions=world.student.n_actions, top_k=remote.top_k,
                                      cache=cache, examples=world.task.examples("train"))
    return world


def _compares_text(plan: Plan) -> bool:
    """Whether the method can do with a teacher of another vocabulary: it bridges, or it asks for nothing but text."""
    return plan.method_class.bridges or plan.needs in (Needs.NOTHING, Needs.TEXT)


def _language_student(plan: Plan) -> LanguagePolicy:
    from opdbench.lm.model import load

    recipe, execution = plan.spec.recipe, plan.spec.execution
    assert plan.student is not None
    student: LanguagePolicy
    if recipe.training.lora_rank:
        from opdbench.lm.lora import LoraPolicy

        student = LoraPolicy.adapt(plan.student, rank=recipe.training.lora_rank, alpha=recipe.training.lora_alpha,
                                   generator=seeds.generator(recipe.seed, "lora"), dtype=_dtype(execution.dtype),
                                   device=execution.device)
    else:
        student = load(plan.student, dtype=_dtype(execution.dtype), device=execution.device)
    student.checkpointing = execution.gradient_checkpointing
    return student


def _control(plan: Plan, task: ControlTask) -> World:
    from opdbench.rl.world import ControlWorld

    student, teacher = control_policies(plan.spec, task, plan.student, plan.teacher,
                                        trust_pickle=plan.request.trust_pickle)
    return ControlWorld(task, student, teacher, seed=plan.spec.recipe.seed)


def control_policies(spec: Spec, task: ControlTask, student_path: Path | None, named: references.Teacher | None, *,
                     trust_pickle: bool = False) -> tuple[Policy, Policy | None]:
    """Student and teacher of a run on a control task, on its device and in its precision.

    Args:
        student_path: where the student's weights are; None for a new network, initialised from the run's seed.
        trust_pickle: see `opdbench.rl.sb3.load_sb3`.

    Raises:
        UserError: a model is missing, corrupt or does not fit the task.
    """
    import torch

    from opdbench.rl.games_policy import ByGame
    from opdbench.rl.simulators import make_simulators
    from opdbench.rl.world import fresh_student

    def load(model: references.Model | references.Exact) -> Policy:
        policy = _control_policy(spec, task, model, trust_pickle)
        if isinstance(policy, ByGame):
            raise UserError(f"a student of several games cannot play {task.id} alone",
                            "choose the task that it was trained on, or another policy")
        return policy

    def mix(named: references.Mix | references.Route, parts: list[Policy]) -> Policy:
        assert isinstance(named, references.Mix)  # a route was refused when the run was resolved
        device = spec.execution.device
        observation = torch.zeros(1, 1, *make_simulators(task).observation_shape, device=device)
        return teachers.Mixture(parts, observation, named.weights)

    student = (load(_given(spec, student_path)) if student_path else
               _placed(spec, fresh_student(task, spec.recipe.seed, _widths(spec))))
    return student, None if named is None else teachers.build(named, student, load, mix)


def _several(plan: Plan, task: ControlTask) -> World:
    """A task of several games."""
    from opdbench.rl.games_policy import ByGame
    from opdbench.rl.games_world import GamesWorld, fresh_games_student, teacher_of_each

    spec = plan.spec

    def load(model: references.Model | references.Exact) -> Policy:
        return _control_policy(spec, task, model, plan.request.trust_pickle)

    def combine(named: references.Mix | references.Route, parts: list[Policy]) -> Policy:
        if isinstance(named, references.Mix):
            raise UserError(f"teachers of {task.id} are not mixed: each game has its own", _each_game(task))
        return teacher_of_each(task, [parts[named.values.index(game.name)] for game in task.games()])

    def by_game(policy: Policy, role: str, fix: str) -> ByGame:
        if not isinstance(policy, ByGame):
            raise UserError(f"the {role} plays one game alone, and {task.id} is {len(task.games())}", fix)
        return policy

    student = (load(_given(spec, plan.student)) if plan.student else
               _placed(spec, fresh_games_student(task, spec.recipe.seed, _widths(spec))))
    several = by_game(student, "student", "leave --student out, or name one that was trained on these games")
    teacher = None if plan.teacher is None else by_game(teachers.build(plan.teacher, student, load, combine),
                                                        "teacher", _each_game(task))
    return GamesWorld(task, several, teacher, seed=spec.recipe.seed)


def _each_game(task: ControlTask) -> str:
    return f"--teacher {references.GAMES}" + ",".join(f"{game.name}=MODEL" for game in task.games())


def _control_policy(spec: Spec, task: ControlTask, model: references.Model | references.Exact,
                    trust_pickle: bool) -> Policy:
    from opdbench.rl.load import load_policy

    if isinstance(model, references.Exact):
        exact = task.exact_teacher()
        assert exact is not None  # checked when the run was resolved
        return _placed(spec, exact)
    return _placed(spec, load_policy(model.path, activation=model.activation, trust_pickle=trust_pickle))


def _given(spec: Spec, path: Path) -> references.Model:
    """The starting student that is read from files."""
    return references.Model(path, spec.recipe.student.reference.partition("#")[2] or None)


def _widths(spec: Spec) -> tuple[int, ...] | None:
    """Of a new student."""
    return references.fresh_widths(spec.recipe.student.reference)


def _placed(spec: Spec, policy: Policy) -> Policy:
    """On the device of the execution. bfloat16 would round observations, and a small network gains nothing from it:
    only what sees pixels computes in it."""
    from opdbench.rl.convolutional import ConvNetwork

    dtype = spec.execution.dtype
    for module in policy.modules():
        if isinstance(module, ConvNetwork):
            module.in_bfloat16 = dtype == "bfloat16"
    return policy.to(spec.execution.device, _dtype("float64" if dtype == "float64" else "float32"))


def _check_device(execution: Execution) -> None:
    import torch

    if execution.device == "cuda" and not torch.cuda.is_available():
        why = hardware.torch_cuda_problem() or "torch finds no GPU here"
        raise UserError(f"profile {execution.profile} computes on a GPU, but {why}",
                        "leave --profile out, or pass --profile cpu-2; opdbench doctor looks at this machine")


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def set_threads(execution: Execution) -> None:
    """CPU threads, memory and determinism; before any computation."""
    import torch

    if execution.device == "cpu":
        keep_freed_memory()
    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It also fills new memory with NaN, which finds reads of unset memory at the price of a pass over every tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
