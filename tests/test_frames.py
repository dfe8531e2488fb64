"""Stacks that hold every frame once are, in every operation, the plain tensor of the stacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from opdbench.frames import BLANK, FrameLog, FrameStacks

STACK, SIDE = 4, 3


def shown(steps: int, n: int, seed: int = 0, ends: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """What n environments with episodes of random lengths show: stacks [T, N, S, side, side]; steps so far [T, N]."""
    rng = np.random.default_rng(seed)
    stack_n, step_n = np.zeros((n, STACK, SIDE, SIDE), np.uint8), np.zeros(n, np.int64)
    stack_n[:, -1] = rng.integers(1, 256, (n, SIDE, SIDE))
    stacks, numbers = [], []
    for _ in range(steps):
        stacks.append(stack_n.copy())
        numbers.append(step_n.copy())
        done_n = rng.random(n) < ends
        stack_n = np.concatenate([stack_n[:, 1:], rng.integers(1, 256, (n, 1, SIDE, SIDE), dtype=np.uint8)], 1)
        stack_n[done_n, :-1] = 0
        step_n = np.where(done_n, 0, step_n + 1)
    return np.stack(stacks), np.stack(numbers)


def logged(log: FrameLog, stack_tn: np.ndarray, step_tn: np.ndarray) -> FrameStacks:
    """[N, T, S, side, side]."""
    place_tns = np.stack([log.write(stack_n, step_n) for stack_n, step_n in zip(stack_tn, step_tn, strict=True)])
    return log.stacks(torch.from_numpy(np.ascontiguousarray(place_tns.swapaxes(0, 1))))


def plain(stack_tn: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(stack_tn.swapaxes(0, 1)))


@pytest.fixture
def pair() -> tuple[FrameStacks, Tensor]:
    stack_tn, step_tn = shown(30, 5)
    return logged(FrameLog(STACK, block_bytes=40 * SIDE * SIDE), stack_tn, step_tn), plain(stack_tn)


def test_it_is_the_plain_tensor_with_every_frame_once(pair: tuple[FrameStacks, Tensor]) -> None:
    stacks, expected = pair
    assert stacks.shape == expected.shape and stacks.dtype == torch.uint8 and torch.equal(stacks, expected)
    assert len(stacks.blocks) == 4 and len(stacks.compact().blocks[0]) == 30 * 5
    assert torch.equal(stacks.compact(), expected)


@pytest.mark.parametrize("operation", [
    lambda x: x[3], lambda x: x[1:3], lambda x: x[:, 5:20], lambda x: x[torch.tensor([4, 0, 0])], lambda x: x[:, None],
    lambda x: x[torch.arange(150).view(5, 30) % 3 == 0], lambda x: torch.cat([x[:2], x[3:]]), lambda x: x.detach(),
    lambda x: x[torch.tensor([0, 1])[:, None], torch.tensor([[3, 4], [5, 6]])], lambda x: torch.cat([x, x[:, :4]], 1),
    lambda x: x.new_zeros(2, 3, STACK, SIDE, SIDE),
    lambda x: torch.cat([x[:, :2], x.new_zeros(5, 1, *x.shape[2:])], 1)])
def test_choosing_and_joining_moves_places_alone(pair: tuple[FrameStacks, Tensor], operation: object) -> None:
    stacks, expected = (operation(one) for one in pair)  # type: ignore[operator]
    assert isinstance(stacks, FrameStacks)
    assert stacks.shape == expected.shape and torch.equal(stacks.built(), expected)


@pytest.mark.parametrize("operation", [
    lambda x: x.float() / 255, lambda x: x.flatten(0, 1), lambda x: x == 0, lambda x: x[:, :, 0], lambda x: x.clone(),
    lambda x: x[..., 1], lambda x: torch.cat([x, torch.ones(5, 1, *x.shape[2:], dtype=torch.uint8)], 1)])
def test_everything_else_computes_with_the_stacks(pair: tuple[FrameStacks, Tensor], operation: object) -> None:
    built, expected = (operation(one) for one in pair)  # type: ignore[operator]
    assert type(built) is Tensor and built.dtype == expected.dtype and torch.equal(built, expected)


def test_it_is_read_only(pair: tuple[FrameStacks, Tensor]) -> None:
    with pytest.raises(TypeError, match="read-only"):
        pair[0][0] = 0
    with pytest.raises(TypeError, match="read-only"):
        pair[0].zero_()


def test_rollouts_that_follow_each_other_share_blocks_and_repeat_no_frame() -> None:
    stack_tn, step_tn = shown(24, 3, ends=0.05)
    log = FrameLog(STACK)
    parts = [logged(log, stack_tn[first:first + 8], step_tn[first:first + 8]) for first in (0, 8, 16)]
    whole = torch.cat(parts, 1)
    assert isinstance(whole, FrameStacks) and torch.equal(whole, plain(stack_tn))
    assert len(whole.blocks) == 1 and len(whole.compact().blocks[0]) == 24 * 3


def test_blocks_that_nothing_is_left_of_are_let_go() -> None:
    stack_tn, step_tn = shown(100, 2)
    log = FrameLog(STACK, block_bytes=10 * SIDE * SIDE)
    parts = [logged(log, stack_tn[first:first + 10], step_tn[first:first + 10]) for first in range(0, 100, 10)]
    assert len(log._blocks) <= 2
    whole = torch.cat(parts, 1)
    assert isinstance(whole, FrameStacks) and len(whole.blocks) == 20
    late = whole[:, 70:]
    assert len(late.blocks) <= 7 and torch.equal(late, plain(stack_tn)[:, 70:])
    assert torch.equal(whole[:, :0], plain(stack_tn)[:, :0])


def test_an_environment_met_in_the_middle_of_an_episode_brings_its_frames() -> None:
    stack_tn, step_tn = shown(12, 4, ends=0.05)
    few = FrameLog(STACK)
    assert torch.equal(logged(few, stack_tn[:6, :2], step_tn[:6, :2]), plain(stack_tn[:6, :2]))
    assert torch.equal(logged(few, stack_tn[6:], step_tn[6:]), plain(stack_tn[6:]))
    assert torch.equal(logged(FrameLog(STACK), stack_tn[6:], step_tn[6:]), plain(stack_tn[6:]))


def test_parts_are_plain_and_whole(pair: tuple[FrameStacks, Tensor]) -> None:
    parts = pair[0][1:4].parts()
    assert type(parts["frames"]) is Tensor and len(parts["frames"]) <= 3 * 33
    assert torch.equal(FrameStacks([parts["frames"]], parts["place"]), pair[1][1:4])
    blank = FrameStacks([parts["frames"]], torch.full((2, STACK), BLANK))
    assert not blank.compact().built().any() and blank.moved(torch.device("cpu")).shape == (2, STACK, SIDE, SIDE)
