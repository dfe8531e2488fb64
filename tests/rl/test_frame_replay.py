"""The replay of Rusu et al., 540,000 steps of a game, fits in 4 GB: one frame a step, logits in place of features."""

from __future__ import annotations

from random import Random

import numpy as np
import torch

from opdbench.frames import BLOCK_BYTES, FrameLog, FrameStacks
from opdbench.replay import Aggregate
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import TEACHER_LOGITS
from opdbench.store import pack, unpack

STACK, SIDE, ACTIONS = 4, 84, 18
ENVIRONMENTS, HORIZON = 8, 64


def segments(number: int) -> list[Rollouts]:
    """What a world of 8 environments and a teacher of 18 actions hand to a replay."""
    log, rng = FrameLog(STACK), np.random.default_rng(0)
    stack_n, parts = np.zeros((ENVIRONMENTS, STACK, SIDE, SIDE), np.uint8), []
    for first in range(0, number * HORIZON, HORIZON):
        places = []
        for t in range(first, first + HORIZON):
            stack_n = np.roll(stack_n, -1, axis=1)
            stack_n[:, -1] = rng.integers(1, 256, (ENVIRONMENTS, 1, 1))
            places.append(log.write(stack_n, np.full(ENVIRONMENTS, t)))
        shape = (ENVIRONMENTS, HORIZON)
        bare = Rollouts(
            input_bt=log.stacks(torch.from_numpy(np.stack(places, 1))), action_bt=torch.zeros(shape, dtype=torch.int64),
            source_bt=torch.full(shape, int(Source.TEACHER), dtype=torch.uint8), behaviour_logp_bt=torch.zeros(shape),
            reward_bt=torch.zeros(shape), done_bt=torch.zeros(shape, dtype=torch.bool),
            length_b=torch.full((ENVIRONMENTS,), HORIZON), truncated_b=torch.ones(ENVIRONMENTS, dtype=torch.bool))
        index_b = torch.arange(ENVIRONMENTS)
        parts.append(bare.with_columns(
            per_trajectory={"group": index_b, "example": index_b},
            per_step={"truncated": torch.zeros(shape, dtype=torch.bool), TEACHER_LOGITS: torch.zeros(*shape, ACTIONS)}))
    return parts


def test_540_000_steps_fit_in_4_gb() -> None:
    replay, parts = Aggregate(capacity=540_000), segments(10)
    for part in parts:
        replay.add(part.flatten())
    states = len(replay)
    assert states == 10 * ENVIRONMENTS * HORIZON
    slack = 2 * BLOCK_BYTES  # blocks are freed as wholes, and the newest is not full yet
    per_state = (replay.n_bytes() - slack) / states
    exact = SIDE * SIDE + 32 + 76 + 4 * ACTIONS  # the frame, its stack's places, the columns, the teacher's logits
    assert per_state <= exact
    assert 540_000 * exact + slack < 4e9


def test_what_leaves_a_full_replay_is_freed() -> None:
    replay = Aggregate(capacity=2_000)
    for part in segments(24):
        replay.add(part.flatten())
    assert len(replay) == 2_000
    assert replay.n_bytes() < 2_000 * 7_300 + 2 * BLOCK_BYTES


def test_minibatches_are_stacks_and_a_checkpoint_brings_them_back() -> None:
    replay, again = Aggregate(), Aggregate()
    parts = segments(2)
    for part in parts:
        replay.add(part.flatten())
    plain = torch.cat([part.flatten().input_bt.clone() for part in parts])
    state = unpack(pack(replay.state_dict()))
    assert state["tensors"]["input_bt"]["frames"].shape == (2 * ENVIRONMENTS * HORIZON, SIDE, SIDE)
    again.load_state_dict(state)
    for store in (replay, again):
        drawn = store.sample(32, Random(3))
        chosen = Random(3).sample(range(len(plain)), 32)
        assert isinstance(drawn.input_bt, FrameStacks) and torch.equal(drawn.input_bt, plain[chosen])
