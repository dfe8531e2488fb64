"""Who acts while a rollout is made: the student, the teacher, or both.

An actor sees one batch of states at a time through the models' logits and decides. It knows no domain: the same
`Mixture` makes DAgger's roll-ins on CartPole and token-level teacher mixing in a language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from opdbench.distributions import Gaussian
from opdbench.errors import UserError
from opdbench.rollouts import Source


class Decision(NamedTuple):
    """What was chosen in B states."""

    action_b: Tensor  # int64 [B], or float32 [B, D] where actions are vectors
    logp_b: Tensor  # float32 [B], under the distribution that was sampled from
    source_b: Tensor  # uint8 [B], a Source


class Actor(Protocol):
    """Chooses actions from logits. A model that `uses_*` does not ask for is not run, and its logits are None.

    In control tasks an actor with a method `look(observation_b)` is shown the states before it acts in them, so that it
    may plan. Where actions are vectors of real numbers, one that says `continuous = True` gets `Gaussian`s in place of
    logits, and all others are refused.
    """

    @property
    def uses_student(self) -> bool: ...

    @property
    def uses_teacher(self) -> bool: ...

    def act(self, student_logits_ba: Tensor | None, teacher_logits_ba: Tensor | None, uniform_bd: Tensor) -> Decision:
        """Decide in B states. All randomness is in `uniform_bd` [B, D], one row of a `uniform_table` a state, and so is
        the state's place in its trajectory."""


ACTION, COIN = 0, 1  # columns of uniform numbers: which action, and who chooses it
N_DRAWS = 2
STEP = 2  # no draw: how many steps the trajectory has taken, environment turns included
MORE = 3  # from here on, which action, where one number does not say it


def uniform_table(n: int, horizon: int, generator: Generator, action_draws: int = 1) -> Tensor:
    """All random numbers of a rollout: float64 [T, B, D], uniform in [0, 1), on the CPU; and the steps' numbers.

    A trajectory's draw at a step is the number in its place, so that it depends neither on the device, nor on which
    trajectories are written together, nor on which of them are still going on. Two actors that are handed one table
    use common random numbers. Time comes first: a longer horizon only adds to a table.

    Args:
        action_draws: numbers that one action takes: for a vector of real numbers, as many as it has.
    """
    draws_tbd = torch.rand(horizon, n, N_DRAWS + action_draws - 1, dtype=torch.float64, generator=generator)
    step_tb1 = torch.arange(horizon, dtype=torch.float64)[:, None, None].expand(-1, n, -1)
    return torch.cat([draws_tbd[..., :N_DRAWS], step_tb1, draws_tbd[..., N_DRAWS:]], -1)


def draw(said: Tensor | Gaussian, temperature: float, uniform_bd: Tensor) -> tuple[Tensor, Tensor]:
    """One action a row and its log-probability [B] from logits (`sample`) or from Gaussians (`Gaussian.draw`).

    Args:
        uniform_bd: the action's own numbers alone: one a row for logits.
    """
    if isinstance(said, Gaussian):
        return said.draw(temperature, uniform_bd)
    return sample(said, temperature, uniform_bd[:, 0])


def _draw(said: Tensor | Gaussian, temperature: float, uniform_bd: Tensor) -> tuple[Tensor, Tensor]:
    """`draw` with rows of a `uniform_table`."""
    if isinstance(said, Gaussian):
        return said.draw(temperature, torch.cat([uniform_bd[:, :1], uniform_bd[:, MORE:]], -1))
    return sample(said, temperature, uniform_bd[:, ACTION])


def _choose(first_b: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """`one` where it is to be the first, else `other`: values [B], or [B, D]."""
    return torch.where(first_b if one.dim() == 1 else first_b[:, None], one, other)


def sample(logits_ba: Tensor, temperature: float, uniform_b: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one action a row from softmax(logits / temperature), by inversion: the first action whose cumulative
    probability exceeds the row's uniform number. Temperature 0 takes the largest logit.

    Args:
        uniform_b: float64 [B], in [0, 1), on the device of the logits.

    Returns:
        (action_b, logp_b): int64 [B], and float32 [B] under the distribution that was sampled from (0 when greedy); NaN
        where the logits are.
    """
    if temperature == 0:
        action_b = logits_ba.argmax(-1)
        largest_b = logits_ba.gather(-1, action_b[:, None])[:, 0]
        return action_b, torch.zeros(action_b.shape, device=logits_ba.device).masked_fill_(largest_b.isnan(), math.nan)
    probability_ba = _tempered(logits_ba, temperature).softmax(-1)
    on_cpu = probability_ba.device.type == "cpu"
    cumulative_ba = probability_ba.cumsum(-1, dtype=torch.float64) if on_cpu else counted_cumsum(probability_ba)
    action_b1 = torch.searchsorted(cumulative_ba, uniform_b[:, None] * cumulative_ba[:, -1:], right=True)
    action_b1 = action_b1.clamp_(max=logits_ba.shape[-1] - 1)  # rounding may reach the total itself, once in 1e16
    logp_b = probability_ba.gather(-1, action_b1)[:, 0].log()
    return action_b1[:, 0], logp_b if logp_b.dtype == torch.float32 else logp_b.float()


def counted_cumsum(probability_ba: Tensor) -> Tensor:
    """Cumulative probabilities in whole units of 2^-52, as float64. A GPU adds floats in no fixed order, or slowly when
    it is told to; whole numbers have one sum in every order."""
    return (probability_ba * 2.0**52).cumsum(-1, dtype=torch.int64).double()


def nucleus(logits_ba: Tensor, top_p: float) -> Tensor:
    """The logits of the most likely actions that together just reach probability `top_p`, and -inf for all others
    (Holtzman et al. 2020, arXiv 1904.09751)."""
    p_ba, order_ba = logits_ba.softmax(-1).sort(-1, descending=True)
    outside_ba = p_ba.cumsum(-1) - p_ba >= top_p  # what comes before an action is already enough
    return logits_ba.masked_fill(torch.zeros_like(outside_ba).scatter(-1, order_ba, outside_ba), -torch.inf)


def _tempered(logits_ba: Tensor, temperature: float) -> Tensor:
    """logits / temperature, in float32 or wider."""
    logits_ba = logits_ba if logits_ba.dtype.itemsize >= 4 else logits_ba.float()
    return logits_ba if temperature == 1 else logits_ba / temperature


@dataclass(frozen=True)
class Student:
    """The student acts: the on-policy case. `top_p` below 1 keeps the nucleus of its distribution (`nucleus`)."""

    temperature: float = 1.0
    top_p: float = 1.0
    uses_student: bool = True
    uses_teacher: bool = False
    continuous: ClassVar[bool] = True

    def act(self, student_logits_ba: Tensor | Gaussian | None, teacher_logits_ba: Tensor | Gaussian | None,
            uniform_bd: Tensor) -> Decision:
        assert student_logits_ba is not None
        if self.top_p == 1:
            action_b, logp_b = _draw(student_logits_ba, self.temperature, uniform_bd)
        elif isinstance(student_logits_ba, Gaussian):
            raise UserError(f"top_p={self.top_p} keeps the most likely of finitely many actions, and the actions here "
                            "are vectors of real numbers", "leave top_p at 1, or choose a task with discrete actions")
        else:
            logits_ba = nucleus(_tempered(student_logits_ba, self.temperature), self.top_p)
            action_b, logp_b = sample(logits_ba, 1.0, uniform_bd[:, ACTION])
        return Decision(action_b, logp_b, _sources(action_b, Source.STUDENT))


@dataclass(frozen=True)
class Teacher:
    """The teacher acts: demonstrations."""

    temperature: float = 1.0
    uses_student: bool = False
    uses_teacher: bool = True
    continuous: ClassVar[bool] = True

    def act(self, student_logits_ba: Tensor | Gaussian | None, teacher_logits_ba: Tensor | Gaussian | None,
            uniform_bd: Tensor) -> Decision:
        assert teacher_logits_ba is not None
        action_b, logp_b = _draw(teacher_logits_ba, self.temperature, uniform_bd)
        return Decision(action_b, logp_b, _sources(action_b, Source.TEACHER))


@dataclass(frozen=True)
class Mixture:
    """In every state a coin decides who acts: the teacher with probability `beta` (DAgger's beta_i).

    `logp_b` is the log-probability of the mixture when both temperatures are positive, and the chooser's own otherwise.
    At beta = 0 the teacher is not run, and at beta = 1 the student is not; on one table of uniform numbers the actions
    are then what `Student` and `Teacher` draw.
    """

    beta: float
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0
    continuous: ClassVar[bool] = True

    @property
    def uses_student(self) -> bool:
        return self.beta < 1

    @property
    def uses_teacher(self) -> bool:
        return self.beta > 0

    def act(self, student_logits_ba: Tensor | Gaussian | None, teacher_logits_ba: Tensor | Gaussian | None,
            uniform_bd: Tensor) -> Decision:
        if not self.uses_teacher:
            return Student(self.student_temperature).act(student_logits_ba, None, uniform_bd)
        if not self.uses_student:
            return Teacher(self.teacher_temperature).act(None, teacher_logits_ba, uniform_bd)
        assert student_logits_ba is not None and teacher_logits_ba is not None
        # The same numbers for both: only one of the two actions is taken.
        student_action_b, student_logp_b = _draw(student_logits_ba, self.student_temperature, uniform_bd)
        teacher_action_b, teacher_logp_b = _draw(teacher_logits_ba, self.teacher_temperature, uniform_bd)
        from_teacher_b = uniform_bd[:, COIN] < self.beta
        action_b = _choose(from_teacher_b, teacher_action_b, student_action_b)
        logp_b = torch.where(from_teacher_b, teacher_logp_b, student_logp_b)
        if self.student_temperature > 0 and self.teacher_temperature > 0:
            logp_b = self._logp(student_logits_ba, teacher_logits_ba, action_b)
        source_b = torch.where(from_teacher_b, _sources(action_b, Source.TEACHER), _sources(action_b, Source.STUDENT))
        return Decision(action_b, logp_b, source_b)

    def _logp(self, student: Tensor | Gaussian, teacher: Tensor | Gaussian, action_b: Tensor) -> Tensor:
        """Of the actions under both together."""
        if isinstance(student, Gaussian) and isinstance(teacher, Gaussian):
            return torch.logaddexp(teacher.tempered(self.teacher_temperature).logp(action_b) + math.log(self.beta),
                                   student.tempered(self.student_temperature).logp(action_b)
                                   + math.log1p(-self.beta)).float()
        assert isinstance(student, Tensor) and isinstance(teacher, Tensor)
        mixed_ba = (self.beta * _tempered(teacher, self.teacher_temperature).softmax(-1)
                    + (1 - self.beta) * _tempered(student, self.student_temperature).softmax(-1))
        return mixed_ba.gather(-1, action_b[:, None])[:, 0].log().float()


@dataclass(frozen=True)
class Handover:
    """The teacher acts for the first `n_steps` steps of a trajectory, environment turns included, and the student for
    the rest."""

    n_steps: int
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0
    uses_student: bool = True
    continuous: ClassVar[bool] = True

    @property
    def uses_teacher(self) -> bool:
        return self.n_steps > 0

    def act(self, student_logits_ba: Tensor | Gaussian | None, teacher_logits_ba: Tensor | Gaussian | None,
            uniform_bd: Tensor) -> Decision:
        student = Student(self.student_temperature).act(student_logits_ba, None, uniform_bd)
        if not self.uses_teacher:
            return student
        teacher = Teacher(self.teacher_temperature).act(None, teacher_logits_ba, uniform_bd)
        by_teacher_b = uniform_bd[:, STEP] < self.n_steps
        return Decision(*(_choose(by_teacher_b, *sides) for sides in zip(teacher, student, strict=True)))


@dataclass(frozen=True)
class Blend:
    """Sample from one distribution made of both: `combine(student_logits_ba, teacher_logits_ba) -> logits_ba`.

    For samplers that mix probabilities rather than choosers (MiniLLM's alpha, a trust-region blend). Its actions count
    as the student's, since they are neither's alone and the student is the one that is trained on them.
    """

    combine: Callable[[Tensor, Tensor], Tensor]
    uses_student: bool = True
    uses_teacher: bool = True

    def act(self, student_logits_ba: Tensor | None, teacher_logits_ba: Tensor | None, uniform_bd: Tensor) -> Decision:
        assert student_logits_ba is not None and teacher_logits_ba is not None
        action_b, logp_b = sample(self.combine(student_logits_ba, teacher_logits_ba), 1.0, uniform_bd[:, ACTION])
        return Decision(action_b, logp_b, _sources(action_b, Source.STUDENT))


@dataclass(frozen=True)
class EpsilonGreedy:
    """The most likely action of the student or of the teacher, and with probability `epsilon` any action at all.

    `logp_b` is the log-probability under both together. A random action counts as its chooser's: it is what that model
    does when it explores.
    """

    who: Literal["student", "teacher"]
    epsilon: float

    @property
    def uses_student(self) -> bool:
        return self.who == "student"

    @property
    def uses_teacher(self) -> bool:
        return self.who == "teacher"

    def act(self, student_logits_ba: Tensor | None, teacher_logits_ba: Tensor | None, uniform_bd: Tensor) -> Decision:
        logits_ba = student_logits_ba if self.uses_student else teacher_logits_ba
        assert logits_ba is not None
        best_b, nan_b = sample(logits_ba, 0.0, uniform_bd[:, ACTION])
        n_actions = logits_ba.shape[-1]
        any_b = (uniform_bd[:, ACTION] * n_actions).long()
        action_b = torch.where(uniform_bd[:, COIN] < self.epsilon, any_b, best_b)
        p_b = self.epsilon / n_actions + (1 - self.epsilon) * (action_b == best_b).float()
        source = Source.STUDENT if self.uses_student else Source.TEACHER
        return Decision(action_b, p_b.log() + nan_b, _sources(action_b, source))


def _sources(action_b: Tensor, source: Source) -> Tensor:
    return torch.full(action_b.shape[:1], int(source), dtype=torch.uint8, device=action_b.device)
