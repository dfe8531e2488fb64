"""Who acts while a rollout is made: the student, the teacher, or both.

An actor sees one batch of states at a time through the models' logits and decides. It knows no domain: the same
`Mixture` makes DAgger's roll-ins on CartPole and token-level teacher mixing in a language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from opdbench.rollouts import Source


class Decision(NamedTuple):
    """What was chosen in B states."""

    action_b: Tensor  # int64 [B]
    logp_b: Tensor  # float32 [B], under the distribution that was sampled from
    source_b: Tensor  # uint8 [B], a Source


class Actor(Protocol):
    """Chooses actions from logits. A model that `uses_*` does not ask for is not run, and its logits are None."""

    @property
    def uses_student(self) -> bool: ...

    @property
    def uses_teacher(self) -> bool: ...

    def act(self, student_logits_ba: Tensor | None, teacher_logits_ba: Tensor | None, generator: Generator) -> Decision:
        ...


def sample(logits_ba: Tensor, temperature: float, generator: Generator) -> tuple[Tensor, Tensor]:
    """Draw one action a row from softmax(logits / temperature); temperature 0 takes the largest logit.

    Returns:
        (action_b, logp_b): int64 [B], and float32 [B] under the distribution that was sampled from (0 when greedy).
    """
    if temperature == 0:
        action_b = logits_ba.argmax(-1)
        return action_b, torch.zeros(action_b.shape, device=logits_ba.device)
    logits_ba = logits_ba.float() if temperature == 1 else logits_ba.float() / temperature
    if logits_ba.device.type == "cpu":
        return _sample_by_inversion(logits_ba, generator)
    # The Gumbel-max trick (argmax of logits minus log of exponentials) draws exactly, and deterministically on a GPU.
    noise_ba = torch.empty_like(logits_ba).exponential_(generator=generator).log_()
    action_b = (logits_ba - noise_ba).argmax(-1)
    logp_b = logits_ba.gather(-1, action_b[:, None])[:, 0] - logits_ba.logsumexp(-1)
    return action_b, logp_b


def _sample_by_inversion(logits_ba: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """The first action whose cumulative probability exceeds a uniform number: one random number a row, where Gumbel
    noise takes one for every action and costs ten times as much. Summed in float64, so that rare actions keep theirs.
    """
    probability_ba = logits_ba.softmax(-1)
    cumulative_ba = probability_ba.cumsum(-1, dtype=torch.float64)
    uniform_b1 = torch.rand(len(logits_ba), 1, dtype=torch.float64, generator=generator)
    action_b1 = torch.searchsorted(cumulative_ba, uniform_b1 * cumulative_ba[:, -1:], right=True)
    action_b1 = action_b1.clamp_(max=logits_ba.shape[-1] - 1)  # rounding may reach the total itself, once in 1e16
    return action_b1[:, 0], probability_ba.gather(-1, action_b1)[:, 0].log()


@dataclass(frozen=True)
class Student:
    """The student acts: the on-policy case."""

    temperature: float = 1.0
    uses_student: bool = True
    uses_teacher: bool = False

    def act(self, student_logits_ba: Tensor | None, teacher_logits_ba: Tensor | None, generator: Generator) -> Decision:
        assert student_logits_ba is not None
        action_b, logp_b = sample(student_logits_ba, self.temperature, generator)
        return Decision(action_b, logp_b, _sources(action_b, Source.STUDENT))


@dataclass(frozen=True)
class Teacher:
    """The teacher acts: demonstrations."""

    temperature: float = 1.0
    uses_student: bool = False
    uses_teacher: bool = True

    def act(self, student_logits_ba: Tensor | None, teacher_logits_ba: Tensor | None, generator: Generator) -> Decision:
        assert teacher_logits_ba is not None
        action_b, logp_b = sample(teacher_logits_ba, self.temperature, generator)
        return Decision(action_b, logp_b, _sources(action_b, Source.TEACHER))


@dataclass(frozen=True)
class Mixture:
    """In every state a coin decides who acts: the teacher with probability `beta` (DAgger's beta_i).

    `logp_b` is the log-probability of the mixture when both temperatures are positive, and the chooser's own otherwise.
    At beta = 0 the teacher is not run, and at beta = 1 the student is not.
    """

    beta: float
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0

    @property
    def uses_student(self) -> bool:
        return self.beta < 1

    @property
    def uses_teacher(self) -> bool:
        return self.beta > 0

    def act(self, student_logits_ba: Tensor | None, teacher_logits_ba: Tensor | None, generator: Generator) -> Decision:
        if not self.uses_teacher:
            return Student(self.student_temperature).act(student_logits_ba, None, generator)
        if not self.uses_student:
            return Teacher(self.teacher_temperature).act(None, teacher_logits_ba, generator)
        assert student_logits_ba is not None and teacher_logits_ba is not None
        student_action_b, student_logp_b = sample(student_logits_ba, self.student_temperature, generator)
        teacher_action_b, teacher_logp_b = sample(teacher_logits_ba, self.teacher_temperature, generator)
        coin_b = torch.empty(student_action_b.shape, device=student_action_b.device).uniform_(generator=generator)
        from_teacher_b = coin_b < self.beta
        action_b = torch.where(from_teacher_b, teacher_action_b, student_action_b)
        logp_b = torch.where(from_teacher_b, teacher_logp_b, student_logp_b)
        if self.student_temperature > 0 and self.teacher_temperature > 0:
            mixed_ba = (self.beta * (teacher_logits_ba.float() / self.teacher_temperature).softmax(-1)
                        + (1 - self.beta) * (student_logits_ba.float() / self.student_temperature).softmax(-1))
            logp_b = mixed_ba.gather(-1, action_b[:, None])[:, 0].log()
        source_b = torch.where(from_teacher_b, _sources(action_b, Source.TEACHER), _sources(action_b, Source.STUDENT))
        return Decision(action_b, logp_b, source_b)


@dataclass(frozen=True)
class Blend:
    """Sample from one distribution made of both: `combine(student_logits_ba, teacher_logits_ba) -> logits_ba`.

    For samplers that mix probabilities rather than choosers (MiniLLM's alpha, a trust-region blend). Its actions count
    as the student's, since they are neither's alone and the student is the one that is trained on them.
    """

    combine: Callable[[Tensor, Tensor], Tensor]
    uses_student: bool = True
    uses_teacher: bool = True

    def act(self, student_logits_ba: Tensor | None, teacher_logits_ba: Tensor | None, generator: Generator) -> Decision:
        assert student_logits_ba is not None and teacher_logits_ba is not None
        action_b, logp_b = sample(self.combine(student_logits_ba, teacher_logits_ba), 1.0, generator)
        return Decision(action_b, logp_b, _sources(action_b, Source.STUDENT))


def _sources(action_b: Tensor, source: Source) -> Tensor:
    return torch.full(action_b.shape, int(source), dtype=torch.uint8, device=action_b.device)
