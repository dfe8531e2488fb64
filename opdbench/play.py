"""Teacher and student of a run at one test episode or problem, side by side, from what its record says.

Of a control task the record keeps no more than returns, so both policies play: exactly what was played when the run was
scored, since where episodes start and what is drawn depend on the recipe alone. Of a language task it keeps what both
wrote, and nothing has to be computed. A record may come from a stranger: weights are safetensors, and nothing that it
names is downloaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ValidationError

from opdbench import references, registry
from opdbench.errors import UsageError, UserError
from opdbench.gif import Frame, Picture
from opdbench.report.runs import FRESH, Run, read_run, with_outcomes
from opdbench.schema.record import Phase
from opdbench.schema.spec import Recipe, Spec
from opdbench.scores import Outcome
from opdbench.store import RECORD, run_path
from opdbench.task import ControlTask, Example, LanguageTask, Task
from opdbench.text import number

if TYPE_CHECKING:
    from opdbench.policy import Policy
    from opdbench.rl.world import Watched

PLAYERS: tuple[tuple[Phase, str], ...] = (("teacher", "teacher"), ("after", "student"))
MOST_FRAMES = 240


class Side(NamedTuple):
    """One of the two players.

    Attributes:
        role, who: teacher or student, and which.
        recorded: how it did when the run was scored.
        score: how it did here; of a language task the same, since nothing is written again.
        actions, rewards: of a control task, step by step.
        pictures: from the numbers of steps, ascending from 0 (before the first), to how it looks after each of them.
    """

    role: str
    who: str
    recorded: Outcome
    score: float
    actions: Sequence[Any]
    rewards: Sequence[float]
    pictures: Callable[[Sequence[int]], Iterator[Picture]]

    @property
    def name(self) -> str:
        return f"{self.role} {self.who}"


class Play(NamedTuple):
    """What is shown.

    Attributes:
        prompt: of a language task, where its problems are at hand.
        sides: teacher, where the run had one, and student.
    """

    run: Run
    id: str
    mode: str
    metric: str
    prompt: str | None
    sides: Sequence[Side]


class Source(NamedTuple):
    """Where to look for what a record only names.

    Attributes:
        plugins, data: as for `opdbench run`.
        teacher: the run's teacher, where it does not lie where the record says.
        trust_pickle: see `opdbench.rl.sb3.load_sb3`; of the teacher.
    """

    plugins: Sequence[str] = ()
    data: str | None = None
    teacher: str | None = None
    trust_pickle: bool = False


def play(path: Path, episode: int, mode: str, source: Source | None = None) -> Play:
    """Watch the test episode, or the test problem, of that number.

    Args:
        path: a run's folder, or its record.

    Raises:
        UserError: no whole record of a completed run; weights or a task that are not here or are not the run's; no such
            episode.
    """
    source = source or Source()
    run = completed(path)
    outcomes = {phase: of_mode(run, phase, mode) for phase, _ in PLAYERS if phase in run.tested}
    names = list(outcomes["after"])
    if not 0 <= episode < len(names):
        raise UsageError(f"there is no test episode or problem {episode}: this run was tested on {len(names)}",
                         f"--episode 0 to {len(names) - 1}")
    recorded = {phase: of_phase[names[episode]] for phase, of_phase in outcomes.items()}
    if recorded["after"].output is None:
        return _control(run, episode, recorded, source)
    return _language(run, recorded, source)


def completed(path: Path) -> Run:
    """A run that came to its end, its scores recomputed from its outcomes."""
    file = path / RECORD if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"there is no record at {path}", f"pass a run's folder, or its {RECORD}")
    run = with_outcomes(read_run(file))
    if run.problem is not None:
        raise UserError(f"the record {file} cannot be used: {run.problem}", "restore it, or make the run again")
    if run.record.status != "completed":
        reason = f" ({run.record.reason})" if run.record.reason else ""
        raise UserError(f"the run {run.path} has the status {run.record.status}{reason}: no student came out of it",
                        f"run it again: {run.record.command}")
    return run


def of_mode(run: Run, phase: Phase, mode: str) -> dict[str, Outcome]:
    """One phase's outcomes by episode or problem; of several samples of a problem the first."""
    found: dict[str, Outcome] = {}
    for outcome in run.outcomes[phase]:
        if outcome.mode == mode:
            found.setdefault(outcome.id, outcome)
    if not found:
        raise UsageError(f"this run was not scored in the mode {mode}", f"--mode {' or '.join(run.record.after)}")
    return found


def frames(shown: Play) -> tuple[list[list[Frame]], int]:
    """What a film of it shows, frame by frame with one picture for every side, and how many steps lie between two.

    Raises:
        UserError: the task has no pictures.
    """
    longest = max(len(side.rewards) for side in shown.sides)
    every = max(1, -(-longest // (MOST_FRAMES - 2)))
    steps = sorted({*range(0, longest + 1, every), longest})
    tracks = [_track(side, steps, shown.metric) for side in shown.sides]
    return [list(frame) for frame in zip(*tracks, strict=True)], every


def _track(side: Side, steps: Sequence[int], metric: str) -> Iterator[Frame]:
    """A frame for every step; what has ended stays as it was."""
    length, paid_t = len(side.rewards), [0.0, *accumulate(side.rewards)]
    shown = [min(step, length) for step in steps]
    pictures = side.pictures(sorted(set(shown)))
    for step, copies in Counter(shown).items():
        end = ", the end" if step == length else ""
        frame = Frame(side.name, f"{metric} {number(paid_t[step])}, step {step}{end}", next(pictures))
        yield from [frame] * copies


# ------------------------------------------------------------------------------------------------------------- control


def _control(run: Run, episode: int, recorded: dict[Phase, Outcome], source: Source) -> Play:
    from opdbench.rl.world import Watched, evaluate
    from opdbench.run import evaluation_seed

    recipe, mode = run.record.recipe, recorded["after"].mode
    task = recreated(recipe, source.plugins, source.data)
    if not isinstance(task, ControlTask) or recorded["after"].id != f"episode-{episode}":
        raise UserError(f"the outcomes of {run.path} are none of {recipe.task}", "make the run again")
    n = len(of_mode(run, "after", mode))
    policies = _policies(run, task, source)
    sides = []
    for phase, role in PLAYERS:
        if phase in recorded:
            watched = Watched(episode)
            played = evaluate(task, policies[phase], mode=mode, n=n,  # type: ignore[arg-type]
                              seed=evaluation_seed(recipe, mode), watched=watched)
            outcome = next(outcome for outcome in played if outcome.id == recorded[phase].id)
            sides.append(Side(role, _who(role, recipe), recorded[phase], outcome.score, watched.action_t,
                              watched.reward_t, partial(_drawn, task, watched)))
    return Play(run, recorded["after"].id, mode, task.metric, None, sides)


def _policies(run: Run, task: ControlTask, source: Source) -> dict[Phase, Policy]:
    """The run's teacher and its trained student, as it computed them."""
    from opdbench import worlds

    record, recipe = run.record, run.record.recipe
    trained = run.path / "student"
    if not trained.is_dir():
        again = Path("again", run_path(record.recipe, record.id))
        raise UserError(f"the weights of the student are not here: there is no {trained}, as records are kept without",
                        f"{record.command} --results again makes them; then opdbench play {again}")
    named = _teacher(recipe, task, source)
    spec = Spec(recipe=recipe, execution=record.execution.model_copy(update=_device(record.execution.device)))
    worlds.set_threads(spec.execution)
    load = partial(worlds.control_policies, spec, task, trust_pickle=source.trust_pickle)
    student, teacher = load(trained, named)
    if named is not None and any(isinstance(leaf, references.Copy) for leaf in references.leaves(named)):
        teacher = load(_start(recipe, task), named)[1]  # of the student as it was at first
    return {"after": student, **({} if teacher is None else {"teacher": teacher})}


def _device(wanted: str) -> dict[str, str]:
    import torch

    return {"device": "cuda" if wanted == "cuda" and torch.cuda.is_available() else "cpu"}


def _teacher(recipe: Recipe, task: Task, source: Source) -> references.Teacher | None:
    if recipe.teacher is None:
        return None
    name = source.teacher or recipe.teacher.reference
    ref, named = references.teacher(name, task, recipe.student)
    if ref.sha256 != recipe.teacher.sha256:
        raise UserError(f"the teacher {name} is not the one that this run had: its checksum differs",
                        "pass that one with --teacher")
    return named


def _start(recipe: Recipe, task: Task) -> Path | None:
    if recipe.student.reference.startswith(FRESH):
        return None
    return references.model(recipe.student.reference, "student", task)[1].path


def _drawn(task: ControlTask, watched: Watched, steps: Sequence[int]) -> Iterator[Picture]:
    """The same actions once more, in an environment that can be drawn; its rewards must be the same."""
    import numpy as np

    from opdbench.rl.world import episode_seed

    with task.visible() as env:
        space: Any = env.action_space
        env.reset(seed=episode_seed(task, "test", watched.number))
        if 0 in steps:
            yield _picture(task, env)
        for step, (action, reward) in enumerate(zip(watched.action_t, watched.reward_t, strict=True), 1):
            chosen = int(action) if action.ndim == 0 else np.clip(action, space.low, space.high)
            if float(env.step(chosen)[1]) != reward:
                raise UserError(f"step {step} of {task.id} went another way when it was drawn: its environment does "
                                "not repeat", "leave --video out")
            if step in steps:
                yield _picture(task, env)


def _picture(task: ControlTask, env: Any) -> Picture:
    import numpy as np

    none = UserError(f"{task.id} has no pictures", "leave --video out: what was done is printed")
    if env.render_mode != "rgb_array":
        raise none
    try:
        picture = env.render()
    except NotImplementedError:
        raise none from None
    except Exception as error:
        raise UserError(f"{task.id} cannot be drawn here: {str(error) or type(error).__name__}",
                        'pip install "opdbench[play]"') from error
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise UserError(f"what {task.id} draws is no RGB picture of bytes", "mend the environment's `render`")
    return picture


# ------------------------------------------------------------------------------------------------------------ language


def _language(run: Run, recorded: dict[Phase, Outcome], source: Source) -> Play:
    recipe, after = run.record.recipe, recorded["after"]
    task: LanguageTask | None = None
    example: Example | None = None
    with suppress(UserError):  # what both wrote is here, whatever of the task is not
        task, example = _problem(recipe, after.id, source)
    sides = []
    for phase, role in PLAYERS:
        if phase in recorded:
            pictures = task.pictures(example, recorded[phase].output or "") if task and example else ()
            score = recorded[phase].score  # the grader's, at the end of the text
            rewards = [*[0.0] * (len(pictures) - 2), score] if len(pictures) > 1 else []
            sides.append(Side(role, _who(role, recipe), recorded[phase], score, (), rewards,
                              partial(_chosen, recipe.task, pictures)))
    metric = next(iter(run.record.after.values())).metric
    return Play(run, after.id, after.mode, metric, None if example is None else in_words(example), sides)


def _problem(recipe: Recipe, name: str, source: Source) -> tuple[LanguageTask, Example]:
    task = recreated(recipe, source.plugins, source.data)
    if isinstance(task, LanguageTask):
        for example in task.examples("test"):
            if example.id == name:
                return task, example
    raise UserError(f"{recipe.task} has no problem {name}")


def _chosen(task: str, pictures: Sequence[Picture], steps: Sequence[int]) -> Iterator[Picture]:
    if not pictures:
        raise UserError(f"{task} has no pictures: what is written is all there is to see", "leave --video out")
    for step in steps:
        yield pictures[step]


def in_words(example: Example) -> str:
    """A problem's prompt as text; of a conversation, every message behind its role."""
    if isinstance(example.prompt, str):
        return example.prompt
    return "\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in example.prompt)


# ---------------------------------------------------------------------------------------------------------------- both


def recreated(recipe: Recipe, plugins: Sequence[str] = (), data: str | None = None) -> Task:
    """The record's task, when what it is here is what it was there.

    Raises:
        UserError: it is not, or is not here.
    """
    task_class: type[Task] = registry.load("task", recipe.task, plugins)
    settings: type[BaseModel] = task_class.Params
    try:
        task = task_class(data if task_class.reads_data else None, settings(**recipe.task_params))
    except (ValidationError, TypeError):
        raise UserError(f"the record's settings of {recipe.task} are none", "make the run again") from None
    if task.checksum() != recipe.task_sha256:
        raise UserError(f"{recipe.task} is not here what it was when this run was made: its checksum differs",
                        "make the run again, or install the version of then")
    return task


def _who(role: str, recipe: Recipe) -> str:
    return recipe.teacher.reference if role == "teacher" and recipe.teacher else f"of {recipe.method}"
