"""Several control tasks at once: one student with a body that all share and a head for each, a teacher for each.

    several:cartpole+acrobot
    several:atari/pong@v5-sticky+atari/breakout@v5-sticky      in short several:atari-v5-sticky:pong+breakout
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from pydantic import BaseModel, Field, create_model

from opdbench import registry
from opdbench.errors import UserError
from opdbench.schema.record import NORMALISED
from opdbench.task import ControlTask, Task
from opdbench.tasks.atari import Atari

if TYPE_CHECKING:
    import gymnasium

PAPERS_CONTROLLER = 128  # Rusu et al. 2016, appendix B
SMALL_CONTROLLER = 32


class Several(ControlTask):
    """Tasks with finitely many actions, of which all see vectors, or all see stacks of frames of one size.

    What can be set about Atari games is set of all together; `--set network=teacher` is the body of Rusu et al.'s
    network of three games, with the controller of 128 that is the default there.
    """

    name = "several"
    argument = "TASK+TASK"
    version = 1
    summary = "several control tasks for one student, such as several:cartpole+acrobot, or Atari games"
    source = "that of each task; several games in one student: Rusu et al., ICLR 2016 (arXiv 1511.06295), section 3.2"
    license = "that of each task"
    protocol = ("Every task is played as it is alone, as many episodes of each. An episode's score is 0 for the mean "
                "return of random actions and 100 for that of the task's shipped teacher (of an Atari game: of a "
                "human); the mean is over episodes, and so over tasks. Mean returns of each task are beside it.")
    metric = NORMALISED
    teacher: ClassVar[str | None] = None  # that of each task, where all ship one
    student = None
    env_id = "several"
    max_episode_steps: ClassVar[int] = 0
    student_hidden: ClassVar[Sequence[int]] = (64,)
    training: ClassVar[Mapping[str, Any]] = {}
    budget: ClassVar[Mapping[str, float]] = {"steps": 1}
    members: ClassVar[tuple[type[ControlTask], ...]] = ()

    class Params(ControlTask.Params):
        controller: int = Field(SMALL_CONTROLLER, ge=0, le=1 << 14, description="width of the hidden layer that each "
                                "task has for itself, between the shared ones and its head; 0: the head comes at once")

    @classmethod
    def named(cls, argument: str) -> type[Task]:
        members = _checked(argument, _members(argument.split("+")))
        found = super().named("+".join(_short([member.name for member in members])))
        first = members[0]
        batch = first.training.get("batch", 32)
        own: dict[str, Any] = {
            "members": tuple(members), "Params": _params(members), "budget": first.budget,
            "max_episode_steps": max(member.max_episode_steps for member in members),
            "training": {**first.training, "batch": -(-batch // len(members)) * len(members)}}
        if all(member.teacher for member in members):
            own["teacher"] = "route:game:" + ",".join(f"{member.name}={member.teacher}" for member in members)
        for key, value in own.items():
            setattr(found, key, value)
        return found

    def __init__(self, data: str | None = None, params: BaseModel | None = None) -> None:
        super().__init__(data, params)
        shared = self.params.model_dump(exclude={"controller"})
        self._games = tuple(member(params=member.Params(**shared)) for member in self.members)

    def games(self) -> Sequence[ControlTask]:
        return self._games

    def controller(self) -> int:
        return int(self.params.controller)

    def student_network(self) -> str | None:
        return self._games[0].student_network()

    def make(self) -> gymnasium.Env[Any, Any]:
        _no_single(self.name)

    def checksum(self) -> str:
        parts = [f"{game.checksum()} {game.yardstick}" for game in self._games]
        return sha256("\n".join([self.id, *parts]).encode()).hexdigest()


def _members(names: Sequence[str]) -> list[type[Task]]:
    """By name; one that is no task may be of the family of the one before it: `atari-v5-sticky:pong+breakout`."""
    found: list[type[Task]] = []
    for name in names:
        family = found[-1].name.rpartition(":")[0] if found else ""
        belongs = family and ":" not in name and not registry.kinds_of(name)
        found.append(registry.load("task", f"{family}:{name}" if belongs else name))
    return found


def _short(names: Sequence[str]) -> Iterator[str]:
    """The names, without a family that is that of the one before: folders of records are called so."""
    before = ""
    for name in names:
        family, _, last = name.rpartition(":")
        yield last if family and family == before and not registry.kinds_of(last) else name
        before = family


def _params(members: Sequence[type[ControlTask]]) -> type[BaseModel]:
    """`controller`, and what can be set of the tasks where that is the same of all; it is set of all together."""
    first = members[0]
    same = [first.Params] if len({member.Params for member in members}) == 1 and first.Params.model_fields else []
    seen_in_frames = first().student_network() is not None
    field = Several.Params.model_fields["controller"]
    width = Field(PAPERS_CONTROLLER if seen_in_frames else SMALL_CONTROLLER, ge=0, le=1 << 14,
                  description=field.description)
    made: type[BaseModel] = create_model("Params", __base__=(Several.Params, *same), controller=(int, width))
    return made


def _checked(argument: str, members: Sequence[type[Task]]) -> list[type[ControlTask]]:
    """The members, where they can be one task."""
    if len(members) < 2 or len({member.name for member in members}) < len(members):
        raise UserError(f"several:{argument} does not name two different tasks or more",
                        "write them like several:cartpole+acrobot")
    found = []
    for member in members:
        if not issubclass(member, ControlTask) or issubclass(member, Several):
            raise UserError(f"{member.name} is no single control task", "opdbench list tasks says which there are")
        if member.yardstick is None:
            raise UserError(f"{member.name} has no known returns of random play and of a good player, between which "
                            "its scores could be compared with another task's",
                            "name tasks that have (cartpole, acrobot, mountain-car, lunarlander, the games of Rusu)")
        found.append(member)
    if len(tracks := {member.name.partition(":")[0] for member in found if issubclass(member, Atari)}) > 1:
        raise UserError(f"several:{argument} mixes {' and '.join(sorted(tracks))}, whose scores do not compare",
                        "name games of one track, like several:atari-v4-nosticky:pong+breakout")
    return found


def _no_single(name: str) -> NoReturn:
    raise UserError(f"{name} is no single environment", "name one of its tasks")
