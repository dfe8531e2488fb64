"""The contract: what a method is. Fill in `collect` and `loss`, and the loop does the rest, for every method alike.

One step of the loop (opdbench/loop.py) is

    rollouts = method.collect(ctx)              who acts, for how long, what is reused
    rollouts = ctx.score(rollouts)              the teacher reveals what `asks()` says, once a state
    rollouts = method.prepare(rollouts, ctx)    advantages, labels, buffers: no gradient, whole batch at once
    for minibatch in method.minibatches(rollouts, ctx):
        for rows in chunks(minibatch):          the student's forward pass, with gradient
            method.loss(rows, ctx)              one value a row; the loop reduces, differentiates and steps
    method.after_step(ctx)                      moving teachers, schedules

A loss is one value a row because the loop may cut rows into chunks as memory demands; whatever looks across rows
(returns, groups, whitening) belongs in `prepare`, which sees the whole batch. docs/contract.md writes a dozen methods
that break simpler contracts in this one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from opdbench.context import Context
    from opdbench.rollouts import Rollouts
    from opdbench.rows import Rows
    from opdbench.task import NoteKind


class Needs(StrEnum):
    """What the teacher must reveal about a state. A teacher that reveals more also serves a method that needs less."""

    NOTHING = "nothing"  # no teacher scores: data, or text that it wrote
    TEXT = "text"  # it must be able to act (write), and reveals no probabilities
    ACTION = "action"  # its most likely action: rows.columns["teacher_action"]
    SAMPLED = "sampled"  # the log-probability of the action taken: rows.columns["teacher_logp"]
    FULL = "full"  # the whole distribution: rows.teacher
    HIDDEN = "hidden"  # its layers: rows.columns["teacher_layers"], beside the whole distribution


Standing = Literal["published", "from notes", "unspecified"]
"""How certain a method's form is: read in its paper or its official code; known from others' notes on them; or not
public as a whole, so that what is missing was chosen here."""


class Loss(NamedTuple):
    """One value a row to minimise, and named per-row values to log (their means go to the record)."""

    value_n: Tensor
    scalars: Mapping[str, Tensor] = {}


class Distiller(ABC):
    """A method. One file, one class; the class docstring is its page: the claim, the equation, the deviations.

    Attributes:
        name: what `--method` takes.
        paper: citation, with the section or equation that `loss` implements.
        needs: what the teacher must reveal at default parameters; `requires` answers for the actual ones.
        standing: how certain its form is; shown wherever its name is.
        domains: where it makes sense; most methods: both.
        compares: whether `loss` compares the two through `rows.pair`, so that `loss_temperature` and `support` apply;
            for a method that does not, setting them is refused.
        bridges: whether a teacher with another vocabulary will do, although `requires()` asks for its distribution: the
            method compares pieces of text (opdbench.pieces).
        own_teacher: whether the student (a copy of it, under another prompt: `Context.score_under`) is the teacher
            whose distribution `loss` reads, so that `requires()` asks nothing of another.
        row_wise: False when `loss` looks across the rows of a trajectory; then trajectories are never cut.
        vanishes_at_teacher: False when a student that equals its teacher still has a gradient, because the method also
            follows rewards or data; an instance may say so of its parameters. For the conformance suite; only asked
            where `requires()` is SAMPLED or FULL.
        gated_by_reward: True when the teacher is heard only where something was earned; an instance may say so of its
            parameters. For the conformance suite, which else sees the student move towards the teacher without rewards.
        presets: named settings besides the defaults (which are the paper's), for `--preset`: how official code or a
            framework differs. Keys are those of `--set`.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Needs]
    standing: ClassVar[Standing] = "published"
    domains: ClassVar[frozenset[str]] = frozenset({"lm", "rl"})
    compares: ClassVar[bool] = False
    bridges: ClassVar[bool] = False
    own_teacher: ClassVar[bool] = False
    row_wise: ClassVar[bool] = True
    vanishes_at_teacher: bool = True
    gated_by_reward: bool = False
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    class Params(BaseModel):
        """Every hyperparameter: default, bounds, meaning. Defaults are the paper's."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, params: BaseModel) -> None:
        self.params: Any = params

    def requires(self) -> Needs:
        """What the teacher must reveal with these parameters."""
        return self.needs

    def uses_solutions(self) -> bool:
        """Whether it learns from reference solutions with these parameters: refused early on a task without any. By
        convention a parameter `data` says where demonstrations come from."""
        return getattr(self.params, "data", None) == "solutions"

    def reads(self) -> frozenset[NoteKind]:
        """What a task must be able to tell about every problem, for a teacher that knows it (`LanguageTask.notes`):
        refused early on a task that cannot."""
        return frozenset()

    def asks(self, ctx: Context) -> Needs:
        """What the teacher is asked in this step: `requires()`, or less in a phase that can do without. Called
        before `collect`."""
        return self.requires()

    @abstractmethod
    def collect(self, ctx: Context) -> Rollouts:
        """Make or fetch the trajectories of this step."""

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        """Add what needs the whole batch, as columns; may store and replace the batch (aggregation, replay)."""
        return rollouts

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        """The batches of this step's updates, in order: one optimizer step each. By default the batch, once."""
        yield rollouts

    @abstractmethod
    def loss(self, rows: Rows, ctx: Context) -> Loss:
        """What to minimise in every row. Pure: no state changes, no random draws."""

    def after_step(self, ctx: Context) -> None:  # noqa: B027 - most methods have nothing to do here
        """Called once a step, after the last update."""

    def build(self, ctx: Context) -> None:  # noqa: B027 - most methods have nothing to build
        """Called once, before `modules` and the first step: make what takes its form from the models (a critic, a
        projector). Draws nothing but from `ctx`; a resumed run builds the same and then loads its weights."""

    def modules(self) -> Mapping[str, nn.Module]:
        """Further trainable modules (an adversary, a projector): checkpointed, and trained by the loop's optimizer."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything besides parameters that a resume needs, as JSON values, tensors and nested dicts or lists."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - most methods have no state
        """Restore what `state_dict` gave."""
