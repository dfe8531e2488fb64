"""Writing completions: any actor, one or two models in lock-step, environment turns, exact ends.

Nothing is masked while sampling. Finished sequences go on being sampled until the batch is compacted or all are done,
and what they wrote after their end is cut off afterwards, so a step is little more than the models themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdbench.actors import Actor, Decision
from opdbench.lm.policy import Decoding, Speaker
from opdbench.rollouts import Rollouts, Source
from opdbench.task import Turns


@dataclass(frozen=True)
class Completion:
    """What one sequence gained; three lists of equal length, the environment's tokens included.

    Attributes:
        tokens: new token ids.
        sources: who chose each; NOBODY for environment turns.
        logps: log-probability of each under what sampled it; NaN for environment turns.
        ended: by an end token or by the environment, rather than cut off by the horizon.
    """

    tokens: list[int]
    sources: list[int]
    logps: list[float]
    ended: bool


def generate(actor: Actor, student: Speaker | None, teacher: Speaker | None,
             prompts: Sequence[Sequence[int]], *, max_new_tokens: int, eos_ids: frozenset[int], uniform_tbd: Tensor,
             turns: Turns | None = None) -> list[Completion]:
    """Complete every prompt with what `actor` chooses.

    Args:
        student: may be None when the actor does not use it; likewise `teacher`.
        prompts: token ids, at least one each.
        max_new_tokens: horizon; environment turns count.
        eos_ids: a model's choice of one of these ends its sequence, unless the environment answers it.
        uniform_tbd: the prompts' part of an `actors.uniform_table`, [max_new_tokens, B, D]; sequence b draws its token
            t from [t, b], whoever else is in the batch.
        turns: the environment; what it replies is read by the models but chosen by nobody.
    """
    models = [_required(student, "student") if actor.uses_student else None,
              _required(teacher, "teacher") if actor.uses_teacher else None]
    with torch.inference_mode():
        pair = _Pair([None if model is None else model.start(prompts, max_new_tokens) for model in models], uniform_tbd)
        if turns is None:
            return _write_alone(actor, pair, len(prompts), max_new_tokens, eos_ids)
        return _write_with_turns(actor, pair, len(prompts), max_new_tokens, eos_ids, turns)


def to_rollouts(prompts: Sequence[Sequence[int]], completions: Sequence[Completion]) -> Rollouts:
    """Prompts and completions as rollouts: the input at step t is token t, the action token t + 1.

    Rewards are zero; `done_bt` marks the last decision of a sequence that ended.
    """
    sequences = [[*prompt, *completion.tokens] for prompt, completion in zip(prompts, completions, strict=True)]
    horizon = max(len(sequence) for sequence in sequences) - 1
    input_rows, action_rows, source_rows, logp_rows = [], [], [], []
    for prompt, completion, tokens in zip(prompts, completions, sequences, strict=True):
        before, after = len(prompt) - 1, horizon - len(tokens) + 1
        input_rows.append(tokens[:-1] + [0] * after)
        action_rows.append(tokens[1:] + [0] * after)
        source_rows.append([0] * before + completion.sources + [0] * after)
        logp_rows.append([float("nan")] * before + completion.logps + [float("nan")] * after)
    source_bt = torch.tensor(source_rows, dtype=torch.uint8)
    ended_b = torch.tensor([completion.ended for completion in completions])
    input_bt, action_bt = (torch.tensor(rows, dtype=torch.int64) for rows in (input_rows, action_rows))
    return Rollouts(input_bt=input_bt, action_bt=action_bt, source_bt=source_bt,
                    behaviour_logp_bt=torch.tensor(logp_rows, dtype=torch.float32),
                    reward_bt=torch.zeros(source_bt.shape), done_bt=last_decision(source_bt) & ended_b[:, None],
                    length_b=torch.tensor([len(sequence) - 1 for sequence in sequences]), truncated_b=~ended_b)


def last_decision(source_bt: Tensor) -> Tensor:
    """bool [B, T]: True at the last step of each trajectory that somebody decided (nowhere when nobody did)."""
    decided_bt = source_bt != Source.NOBODY
    return decided_bt & (decided_bt.flip(1).cumsum(1).flip(1) == 1)


def completion_of(rollouts: Rollouts, index: int) -> tuple[Completion, int]:
    """What followed the prompt in one trajectory, and the step of its first token."""
    length, source_t = int(rollouts.length_b[index]), rollouts.source_bt[index]
    decided = (source_t[:length] != Source.NOBODY).nonzero()
    first = int(decided[0]) if len(decided) else length
    return Completion(rollouts.action_bt[index, first:length].tolist(), source_t[first:length].tolist(),
                      rollouts.behaviour_logp_bt[index, first:length].tolist(),
                      not bool(rollouts.truncated_b[index])), first


def below(rollouts: Rollouts, prompts: Sequence[Sequence[int]]) -> Rollouts:
    """The completions of some rollouts below other prompts, one a trajectory. Rewards are left out."""
    host = rollouts.to("cpu")
    view = to_rollouts(prompts, [completion_of(host, index)[0] for index in range(host.n_trajectories)])
    columns = {name: host.columns[name] for name in ("example", "group")}
    return view.with_columns(per_trajectory=columns).to(rollouts.input_bt.device)


class _Pair:
    """The student's and the teacher's decoding, either of which may be absent, and their sequences' random numbers,
    moved together."""

    def __init__(self, decodings: Sequence[Decoding | None], uniform_tbd: Tensor) -> None:
        self.student, self.teacher = decodings
        self._present = [decoding for decoding in decodings if decoding is not None]
        self._uniform_tbd = uniform_tbd.to(self.device)

    def act(self, actor: Actor, step: int) -> Decision:
        return actor.act(None if self.student is None else self.student.logits_ba,
                         None if self.teacher is None else self.teacher.logits_ba, self._uniform_tbd[step])

    def step(self, token_b: Tensor) -> None:
        for decoding in self._present:
            decoding.step(token_b)

    def keep(self, index_b: Tensor) -> None:
        for decoding in self._present:
            decoding.keep(index_b)
        self._uniform_tbd = self._uniform_tbd[:, index_b]

    @property
    def device(self) -> torch.device:
        return self._present[0].logits_ba.device


def _write_alone(actor: Actor, pair: _Pair, batch: int, horizon: int, eos_ids: frozenset[int]) -> list[Completion]:
    """Only the models write. Whether all are done is asked once a block, since asking means waiting."""
    device, block_size = pair.device, 4 if pair.device.type == "cpu" else 16
    eos = torch.tensor(sorted(eos_ids), dtype=torch.int64, device=device)
    action_bt = torch.zeros(batch, horizon, dtype=torch.int64, device=device)
    source_bt = torch.zeros(batch, horizon, dtype=torch.uint8, device=device)
    logp_bt = torch.zeros(batch, horizon, device=device)
    alive_b, ended_b = torch.arange(batch, device=device), torch.zeros(batch, dtype=torch.bool, device=device)
    block: list[Decision] = []
    for step in range(horizon):
        block.append(pair.act(actor, step))
        if len(block) == block_size or step == horizon - 1:
            columns = slice(step + 1 - len(block), step + 1)
            actions_bs, logps_bs, sources_bs = (torch.stack(parts, 1) for parts in zip(*block, strict=True))
            action_bt[alive_b, columns] = actions_bs
            logp_bt[alive_b, columns] = logps_bs.float()
            source_bt[alive_b, columns] = sources_bs
            ended_b = ended_b | (actions_bs[..., None] == eos).any(-1).any(-1)
            token_b, block = actions_bs[:, -1], []
            n_alive = len(alive_b) - int(ended_b.sum())
            if n_alive == 0:
                break
            if n_alive <= len(alive_b) // 2:
                going_on = (~ended_b).nonzero()[:, 0]
                pair.keep(going_on)
                alive_b, ended_b, token_b = alive_b[going_on], ended_b[going_on], token_b[going_on]
        else:
            token_b = block[-1].action_b
        if step < horizon - 1:
            pair.step(token_b)
    return [_cut(*row, eos_ids) for row in zip(action_bt.tolist(), source_bt.tolist(), logp_bt.tolist(), strict=True)]


def _cut(tokens: list[int], sources: list[int], logps: list[float], eos_ids: frozenset[int]) -> Completion:
    """What was written up to and including the first end token."""
    ends = (step for step, token in enumerate(tokens) if token in eos_ids)
    first = next(ends, None)
    length = len(tokens) if first is None else first + 1
    return Completion(tokens[:length], sources[:length], logps[:length], ended=first is not None)


_Choice = tuple[int, float, int]  # token, log-probability, source


class Conversation:
    """One sequence that an environment takes part in, while it is being written."""

    def __init__(self, index: int, horizon: int) -> None:
        self.index, self.horizon = index, horizon
        self.tokens: list[int] = []
        self.sources: list[int] = []
        self.logps: list[float] = []
        self.forced: deque[int] = deque()
        self.ended = False

    @property
    def over(self) -> bool:
        return self.ended or len(self.tokens) == self.horizon

    def advance(self, choice: _Choice | None, turns: Turns, eos_ids: frozenset[int]) -> int:
        """Append one token, the environment's or the model's choice, and return it.

        A conversation that is over stays in the batch until it is compacted; what is fed to it is never looked at.
        """
        if self.forced and not self.over:
            self._append(self.forced.popleft(), Source.NOBODY, float("nan"))
        elif not self.over:
            assert choice is not None
            self.choose(*choice, turns, eos_ids)
        return self.tokens[-1]

    def choose(self, token: int, logp: float, source: int, turns: Turns, eos_ids: frozenset[int]) -> None:
        """Read a model's choice, and hear what the environment says to it."""
        self._append(token, source, logp)
        reply = turns.reply(self.index, token)
        if reply is None:
            self.ended = token in eos_ids
        elif reply.done:
            room = self.horizon - len(self.tokens)
            for forced in reply.tokens[:room]:
                self._append(forced, Source.NOBODY, float("nan"))
            self.ended = len(reply.tokens) <= room
        else:
            self.forced.extend(reply.tokens)

    def _append(self, token: int, source: int, logp: float) -> None:
        self.tokens.append(token)
        self.sources.append(source)
        self.logps.append(logp)

    def completion(self) -> Completion:
        return Completion(self.tokens, self.sources, self.logps, self.ended)


def _write_with_turns(actor: Actor, pair: _Pair, batch: int, horizon: int, eos_ids: frozenset[int],
                      turns: Turns) -> list[Completion]:
    """Models and environment take turns; an environment's tokens enter one column at a time, while others sample."""
    conversations = [Conversation(index, horizon) for index in range(batch)]
    alive = conversations
    for step in range(horizon):
        somebody_chooses = any(not conversation.over and not conversation.forced for conversation in alive)
        decision = pair.act(actor, step) if somebody_chooses else None
        tokens = [conversation.advance(choice, turns, eos_ids)
                  for conversation, choice in zip(alive, _choices(decision, len(alive)), strict=True)]
        going_on = [row for row, conversation in enumerate(alive) if not conversation.over]
        if not going_on:
            break
        if len(going_on) <= len(alive) // 2:
            pair.keep(torch.tensor(going_on, device=pair.device))
            alive, tokens = [alive[row] for row in going_on], [tokens[row] for row in going_on]
        if step < horizon - 1:
            pair.step(torch.tensor(tokens, device=pair.device))
    return [conversation.completion() for conversation in conversations]


def _choices(decision: Decision | None, batch: int) -> Sequence[_Choice | None]:
    if decision is None:
        return [None] * batch
    return list(zip(*(part.tolist() for part in decision), strict=True))


def _required(model: Speaker | None, name: str) -> Speaker:
    if model is None:
        raise ValueError(f"the actor uses the {name}, and there is none")
    return model
