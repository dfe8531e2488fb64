"""What a method may use while it collects and prepares: the world, metered, and seeded by purpose and step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from random import Random

import torch
from torch import Generator, Tensor

from opdbench import seeds
from opdbench.actors import Actor
from opdbench.distiller import Needs
from opdbench.errors import UserError
from opdbench.ledger import Ledger
from opdbench.oracle import Oracle
from opdbench.pieces import PIECE_HEAD, Head
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts
from opdbench.rows import (
    TEACHER_ACTION,
    TEACHER_FEATURES,
    TEACHER_LAYERS,
    TEACHER_LOGITS,
    TEACHER_LOGP,
    TEACHER_TOPK_ID,
    Rows,
    RowTable,
    visited,
)
from opdbench.schema.spec import Budget, Execution, Training
from opdbench.support import Comparison
from opdbench.task import Prompt
from opdbench.world import Prompts, World

_COLUMNS = {Needs.FULL: TEACHER_FEATURES, Needs.HIDDEN: TEACHER_LAYERS, Needs.SAMPLED: TEACHER_LOGP,
            Needs.ACTION: TEACHER_ACTION}


class Context:
    """One run as its method sees it. Everything that costs is counted here, so no method can forget to.

    Attributes:
        world: the task with its models; methods rarely need it directly.
        training: the shared settings (batch, horizon, temperatures).
        comparison: how `rows.pair` compares: loss temperature and vocabulary support.
        step: rounds finished so far.
        notes: figures of this step that no row carries, for its line in the record (`note`).
        progress_before: `progress` when this step began. The learning rate follows it: a step's own rollouts may spend
            what is left of the budget, and they are still to be learnt from.
    """

    def __init__(self, world: World, training: Training, budget: Budget, execution: Execution, ledger: Ledger,
                 seed: int) -> None:
        self.world = world
        self.training = training
        self.execution = execution
        self.ledger = ledger
        self.comparison = Comparison(training.support, training.top_k, training.tail, training.loss_temperature)
        self._limits = budget.limits()
        self._seed = seed
        self._draws = 0
        self.progress_before = 0.0
        self.notes: dict[str, float] = {}
        self._asked: Policy | None = None  # who was asked last in place of the world's teacher

    @property
    def step(self) -> int:
        return self.ledger.steps

    @property
    def student(self) -> Policy:
        return self.world.student

    @property
    def teacher(self) -> Policy | None:
        """Whose features the rows hold: the world's teacher, or the policy that this step's method asked instead."""
        return self._asked or self.world.teacher

    @property
    def prompts(self) -> Prompts:
        """Problems, texts and other prompts, in a world that has them."""
        if self.world.prompts is None:
            raise UserError(f"{self.world.task.id} has no prompts, and so no other ones", "choose a language task")
        return self.world.prompts

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1, on the axis that will stop the run."""
        return min(1.0, max((self.ledger.spent(axis) / limit for axis, limit in self._limits.items()), default=0.0))

    def begin_step(self) -> None:
        """Called by the loop; draws are numbered within a step, so that they repeat after a resume."""
        self._draws, self._asked = 0, None
        self.progress_before = self.progress
        self.notes = {}

    def member(self, number: int, twin: Callable[[int], World]) -> Context:
        """The context of another student of this run (opdbench.population): with draws and a world of its own, which
        `twin` makes of a seed, on the same ledger and budget."""
        other = copy(self)
        other._seed = seeds.derive(self._seed, "member", number)
        other.world = twin(other._seed)
        other.begin_step()
        return other

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Inside, nothing is counted, noted or remembered: for looking on."""
        kept = self.ledger, self.notes, self._draws, self._asked
        self.ledger, self.notes = deepcopy(self.ledger), {}
        try:
            yield
        finally:
            self.ledger, self.notes, self._draws, self._asked = kept

    def note(self, name: str, value: float | Tensor) -> None:
        """Log a figure of this step that no row carries: a threshold, how many groups were left out. What is noted
        twice adds up."""
        self.notes[name] = self.notes.get(name, 0.0) + float(value)

    def rng(self, purpose: str) -> Random:
        """Python randomness for one purpose in this step: equal again after a resume, independent between purposes."""
        return seeds.rng(self._seed, "method", purpose, self.step)

    def generator(self, purpose: str) -> Generator:
        """Torch randomness, likewise, on the CPU."""
        return seeds.generator(self._seed, "method", purpose, self.step)

    def rollout(self, actor: Actor, *, n: int | None = None, horizon: int | None = None, repeat: int = 1,
                problems: Sequence[int] | None = None) -> Rollouts:
        """Trajectories made by `actor` (opdbench.actors) from the next training prompts, or the next states.

        Args:
            n: trajectories, the training batch by default; `horizon`: their longest length, the task's by default.
            repeat: times each prompt is used (groups).
            problems: training problems to write about again, by column `example`; language tasks only.

        Raises:
            UserError: the trajectories cannot be divided into groups of `repeat`.
        """
        n = n or (self.training.batch if problems is None else len(problems) * repeat)
        if n % repeat:
            raise UserError(f"a batch of {n} cannot be divided into groups of {repeat}",
                            f"--set batch={max(1, n // repeat) * repeat}")
        generator = seeds.generator(self._seed, "rollout", self.step, self._draws)
        self._draws += 1
        with torch.no_grad():
            rollouts = self.world.rollout(actor, n=n, horizon=horizon or self._horizon(),
                                          generator=generator, repeat=repeat, problems=problems)
        if actor.uses_teacher and self.world.oracle is None and self.world.bridge is None:
            self._require_numbers(rollouts.behaviour_logp_bt[rollouts.mask_bt])
        self.ledger.count_rollout(rollouts)
        if actor.uses_student:
            self._count_forward("student_rollout", self.world.student, rollouts)
        if actor.uses_teacher and self.world.teacher is not None:
            self._count_forward("teacher_rollout", self.world.teacher, rollouts)
        return rollouts

    def demonstrations(self, *, n: int | None = None) -> Rollouts:
        """Reference solutions of the next training problems, as rollouts of source DATA."""
        generator = seeds.generator(self._seed, "demonstrations", self.step, self._draws)
        self._draws += 1
        rollouts = self.world.demonstrations(n=n or self.training.batch, generator=generator)
        self.ledger.count_demonstrations(rollouts)
        return rollouts

    def separable(self, rollouts: Rollouts) -> Rollouts:
        """The smallest units that can be trained on alone: single states where the input is the whole state (control
        tasks), whole trajectories where a state is a prefix (language models)."""
        return self.world.separable(rollouts)

    @torch.no_grad()
    def score(self, rollouts: Rollouts, needs: Needs) -> Rollouts:
        """Ask the teacher, once for every row, and keep just what is needed, as columns. Rollouts that carry its answer
        already (replayed ones) are not asked about again."""
        if needs in (Needs.NOTHING, Needs.TEXT) or _COLUMNS[needs] in rollouts.columns:
            return rollouts
        if self.world.oracle is not None and needs == Needs.FULL and TEACHER_TOPK_ID in rollouts.columns:
            return rollouts
        return rollouts.with_columns(per_step=self._answer(rollouts, needs, None))

    @torch.no_grad()
    def score_under(self, rollouts: Rollouts, prompts: Sequence[Prompt | None], needs: Needs = Needs.FULL, *,
                    policy: Policy | None = None, thinking: bool = False, column: str | None = None) -> Rollouts:
        """`score`, by someone who reads other prompts: the same completions below what a teacher is told.

        Args:
            prompts: one a trajectory; where it is None nobody is asked, and the columns are zero. Without a single one
                the rollouts come back as they are.
            policy: who is asked: a copy of the student (opdbench.copies), whose distribution `rows.teacher` then is in
                this step; the world's teacher when None.
            thinking: whether a chat template leaves room for it.
            column: a name for the answer, other than that of the world's teacher's.

        Raises:
            UserError: a prompt with its completion is too long, or the teacher has a tokenizer of its own.
        """
        if policy is None and self.world.bridge is not None:
            raise UserError("the teacher has another tokenizer than the student, and is asked about the task's own "
                            "prompts only", "choose two models of one family")
        asked = [index for index, prompt in enumerate(prompts) if prompt is not None]
        self._asked = policy or self._asked
        if not asked:
            return rollouts
        view = self.prompts.below(rollouts.select(asked), [prompt for prompt in prompts if prompt is not None],
                                  thinking=thinking)
        is_asked_b = torch.zeros_like(rollouts.truncated_b)
        is_asked_b[asked] = True
        where_bt = rollouts.mask_bt & is_asked_b[:, None]
        columns = {}
        for name, value in self._answer(view, needs, policy).items():
            whole = value.new_zeros(*where_bt.shape, *value.shape[2:])
            whole[where_bt.to(value.device)] = value[view.mask_bt.to(value.device)]
            columns[column if column and name == _COLUMNS[needs] else name] = whole
        return rollouts.with_columns(per_step=columns)

    @torch.no_grad()
    def with_logits(self, rollouts: Rollouts) -> Rollouts:
        """For a store: the teacher's logits in place of its features, where these are the larger (18 actions beside 512
        features, say). `rows.teacher` is the same distribution."""
        teacher, columns = self.teacher, dict(rollouts.columns)
        features_bth = columns.get(TEACHER_FEATURES)
        if teacher is None or features_bth is None or features_bth.shape[-1] <= teacher.n_actions:
            return rollouts
        del columns[TEACHER_FEATURES]
        logits_bta = teacher.project(features_bth.flatten(0, 1)).view(*features_bth.shape[:2], -1)
        self._require_numbers(logits_bta[rollouts.mask_bt].sum(-1))
        bare = replace(rollouts, columns=columns, step_columns=rollouts.step_columns - {TEACHER_FEATURES})
        return bare.with_columns(per_step={TEACHER_LOGITS: logits_bta})

    def _answer(self, rollouts: Rollouts, needs: Needs, policy: Policy | None) -> dict[str, Tensor]:
        """What a policy, or the world's teacher, says in every row, by column."""
        if policy is None and self.world.oracle is not None:
            return self._ask(self.world.oracle, rollouts, needs)
        teacher = policy or self.world.teacher
        assert teacher is not None  # checked when the run was resolved
        self.ledger.teacher_scored += rollouts.n_rows
        self._count_forward("teacher_score", teacher, rollouts)
        if needs == Needs.HIDDEN:
            return self._hidden(teacher, rollouts)
        features_bth = (self.world.teacher_features(rollouts) if teacher is self.world.teacher
                        else self.prompts.features(teacher, rollouts))
        if needs == Needs.FULL:
            return {TEACHER_FEATURES: features_bth}
        mask_bt = rollouts.mask_bt
        values_n = self._reduce_rows(teacher, features_bth[mask_bt], rollouts.action_bt[mask_bt], needs)
        column_bt = values_n.new_zeros(*mask_bt.shape, *values_n.shape[1:])
        column_bt[mask_bt] = values_n
        return {_COLUMNS[needs]: column_bt}

    def _hidden(self, teacher: Policy, rollouts: Rollouts) -> dict[str, Tensor]:
        size, device = self.execution.teacher_batch, next(teacher.parameters()).device
        parts = [teacher.hidden(rollouts.input_bt[start:start + size].to(device),
                                rollouts.length_b[start:start + size].to(device))
                 for start in range(0, rollouts.n_trajectories, size)]
        features_bth, layers_btlh = (torch.cat(values) for values in zip(*parts, strict=True))
        return {TEACHER_FEATURES: features_bth, TEACHER_LAYERS: layers_btlh}

    def score_pieces(self, rollouts: Rollouts, head: Head = "first") -> Rollouts:
        """Ask the teacher for its whole distribution, whatever its vocabulary, for a loss on `opdbench.pieces`. With
        the student's vocabulary that is `score`, and `head` means nothing."""
        bridge, teacher = self.world.bridge, self.world.teacher
        if bridge is None or PIECE_HEAD in rollouts.columns:
            return self.score(rollouts, Needs.FULL)
        assert teacher is not None
        scored = bridge.score(rollouts, head)
        self.ledger.teacher_scored += scored.states
        self._count_forward("teacher_score", teacher, replace(rollouts, length_b=scored.length_b))
        return scored.rollouts

    @torch.no_grad()
    def check_teacher(self, rollouts: Rollouts) -> None:
        """Called by the loop where a loss is not a number: the teacher may be why.

        Raises:
            UserError: the teacher's distributions in these rows are not numbers.
        """
        features_bth = rollouts.columns.get(TEACHER_FEATURES)
        if self.world.teacher is not None and features_bth is not None:
            mask_bt = rollouts.mask_bt
            self._reduce_rows(self.world.teacher, features_bth[mask_bt], rollouts.action_bt[mask_bt], Needs.ACTION)

    @torch.no_grad()
    def per_row(self, rollouts: Rollouts, value: Callable[[Rows], Tensor], *, policy: Policy | None = None) -> Tensor:
        """`value(rows)` in every row as the student is now, without a gradient: [B, T, ...], zero where no row is.

        Args:
            value: such as `lambda rows: rows.student.logp(rows.action_n)`; gets rows in chunks and returns [N, ...].
            policy: whose `rows.student` is looked at instead of the student's: a frozen or moving copy of it.
        """
        policy, teacher = policy or self.student, self.teacher
        self._count_forward("student_score", policy, rollouts)
        parts = [rollouts.select(range(first, min(first + self.execution.micro_batch, rollouts.n_trajectories)))
                 for first in range(0, rollouts.n_trajectories, self.execution.micro_batch)]
        chunks, size = [], self.execution.rows_at_once(policy.n_actions)
        for part in parts:
            features_nh, layers_nlh = visited(policy, part)
            table = RowTable(part, policy, teacher, self.comparison)
            chunks += [value(table.chunk(features_nh[start:start + size], start, start + size,
                                         None if layers_nlh is None else layers_nlh[start:start + size]))
                       for start in range(0, max(1, len(features_nh)), size)]
        value_n = torch.cat(chunks)
        value_bt = value_n.new_zeros(*rollouts.mask_bt.shape, *value_n.shape[1:])
        value_bt[rollouts.mask_bt] = value_n
        return value_bt

    def _ask(self, oracle: Oracle, rollouts: Rollouts, needs: Needs) -> dict[str, Tensor]:
        """`score` by a teacher that is asked: its most likely actions stand for the whole distribution."""
        answer = oracle.columns(rollouts, needs, self.training.top_k)
        self.ledger.teacher_scored += answer.n_asked
        self.ledger.teacher_cached += answer.n_cached
        return dict(answer.columns)

    def _reduce_rows(self, teacher: Policy, features_nh: Tensor, action_n: Tensor, needs: Needs) -> Tensor:
        chunks, size = [], self.execution.rows_at_once(teacher.n_actions)
        for start in range(0, max(1, features_nh.shape[0]), size):
            stop = start + size
            distribution = teacher.distribution(features_nh[start:stop])
            if needs == Needs.SAMPLED:
                chunks.append(distribution.logp(action_n[start:stop]))
                self._require_numbers(chunks[-1])
            else:
                chunks.append(distribution.mode())  # which is a NaN where there is one
                self._require_numbers(distribution.logp(chunks[-1]) if teacher.continuous else
                                      distribution.logits_na.gather(-1, chunks[-1][:, None]))
        return torch.cat(chunks)

    def _require_numbers(self, value_n: Tensor) -> None:
        """A teacher's NaN need not reach the loss: its label is a label like any other. So one has to look."""
        if n_wrong := int(value_n.isnan().sum()):
            raise UserError(f"the teacher's logits are not numbers (NaN) in {n_wrong} of {len(value_n)} states of step "
                            f"{self.step + 1}", "look for NaN in its weights, or pass a hardware profile with a wider "
                            "teacher_dtype (--profile FILE)")

    def _count_forward(self, part: str, policy: Policy, rollouts: Rollouts) -> None:
        states = int(rollouts.length_b.sum())
        self.ledger.add_flops(part, policy.forward_flops(states, mean_context(rollouts)))

    def _horizon(self) -> int:
        assert self.training.horizon is not None  # filled in from the task when the run was resolved
        return self.training.horizon


def mean_context(rollouts: Rollouts) -> float:
    """Mean number of inputs that a state attends to, over all states: exact for causal attention."""
    length_b = rollouts.length_b.double()
    return float((length_b * (length_b + 1) / 2).sum() / length_b.sum().clamp(min=1))
