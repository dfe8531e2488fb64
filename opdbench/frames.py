"""Stacks of frames, with every frame stored once.

A state that is the last four frames shares three of them with the state before it. `FrameStacks` is the tensor
[..., S, *frame] of such states, made of blocks of frames and the places in them where each state's frames lie; stacks
are only built where something computes with them. `FrameLog` writes a rollout's frames into blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLANK = -1  # the place of a frame from before the episode: all zero
BLOCK_BYTES = 16 << 20
_OFFSET_BITS = 32  # a place is the number of a block, then the number of a frame in it
_OFFSET = (1 << _OFFSET_BITS) - 1

aten = torch.ops.aten


class FrameStacks(Tensor):
    """A read-only tensor [..., S, *frame] that holds places. Choosing, slicing and joining along the leading dimensions
    moves places alone; every other operation builds the stacks first, so that nothing else needs to know.

    Attributes:
        blocks: [F, *frame] each; only those that some place is in.
        place: int64 [..., S].
    """

    blocks: tuple[Tensor, ...]
    place: Tensor

    @staticmethod
    def __new__(cls, blocks: Sequence[Tensor], place: Tensor) -> FrameStacks:
        shape = (*place.shape, *blocks[0].shape[1:])
        made: FrameStacks = Tensor._make_wrapper_subclass(
            cls, shape, dtype=blocks[0].dtype, device=blocks[0].device)
        return made

    def __init__(self, blocks: Sequence[Tensor], place: Tensor) -> None:
        super().__init__()
        self.blocks, self.place = _referenced(tuple(blocks), place)

    def built(self) -> Tensor:
        """The plain tensor."""
        place_n, frame = self.place.reshape(-1), self.blocks[0].shape[1:]
        number_n, offset_n = place_n >> _OFFSET_BITS, place_n & _OFFSET
        frames_n = self.blocks[0].new_zeros(len(place_n), *frame)
        for number in torch.unique(number_n).tolist():
            if number >= 0:
                here = (number_n == number).nonzero()[:, 0]
                frames_n[here] = self.blocks[number].index_select(0, offset_n[here])
        return frames_n.view(self.shape)

    def compact(self) -> FrameStacks:
        """The same stacks over one block that holds nothing but their frames, in the order of their places."""
        seen = self.place != BLANK
        unique_f, inverse = torch.unique(self.place[seen], return_inverse=True)
        if not len(unique_f):
            return FrameStacks([self.blocks[0][:1]], self.place)
        place = torch.full_like(self.place, BLANK)
        place[seen] = inverse
        return FrameStacks([FrameStacks(self.blocks, unique_f[:, None]).built()[:, 0]], place)

    def moved(self, device: torch.device) -> FrameStacks:
        """On another device, with no more frames than are needed."""
        compact = self.compact()
        return FrameStacks([compact.blocks[0].to(device)], compact.place.to(device))

    def parts(self) -> dict[str, Tensor]:
        """Plain tensors, for storing; `FrameStacks([parts["frames"]], parts["place"])` is the inverse."""
        compact = self.compact()
        return {"frames": compact.blocks[0], "place": compact.place}

    def n_bytes(self) -> int:
        """What its blocks and places take; blocks may be shared with others."""
        return sum(block.nbytes for block in self.blocks) + self.place.nbytes

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FrameStacks(shape={tuple(self.shape)}, blocks={len(self.blocks)}, device={self.device})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (),  # type: ignore[override]
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable and isinstance(args[0], FrameStacks):
            raise TypeError("stacks of frames are read-only: states share their frames")
        if func in _ON_PLACES and (done := _ON_PLACES[func](*args, **kwargs)) is not NotImplemented:
            return done
        return func(*map(_built, args), **{name: _built(value) for name, value in kwargs.items()})


def _built(value: Any) -> Any:
    if isinstance(value, FrameStacks):
        return value.built()
    return [_built(one) for one in value] if isinstance(value, list | tuple) else value


def _referenced(blocks: tuple[Tensor, ...], place: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Without the blocks that no place is in, so that what is no longer needed is freed."""
    if len(blocks) == 1:
        return blocks, place
    counts = torch.bincount((place >> _OFFSET_BITS).reshape(-1) + 1, minlength=len(blocks) + 1)[1:]
    used = counts.nonzero()[:, 0]
    if len(used) in (0, len(blocks)):
        return (blocks if len(used) else blocks[:1]), place
    renamed = torch.full((len(blocks),), BLANK, dtype=torch.int64, device=place.device)
    renamed[used] = torch.arange(len(used), device=place.device)
    return tuple(blocks[number] for number in used.tolist()), _renumbered(place, renamed)


def _renumbered(place: Tensor, renamed: Tensor) -> Tensor:
    """Places by new numbers of blocks."""
    number = renamed[(place >> _OFFSET_BITS).clamp(min=0)]
    return torch.where(place == BLANK, BLANK, (number << _OFFSET_BITS) | (place & _OFFSET))


# ----------------------------------------------------------------------------- what is done to places instead of frames


def _leads(stacks: FrameStacks, dim: int, extra: int = 0) -> bool:
    """Whether a dimension is a leading one: before the stack's own."""
    return dim % (stacks.dim() + extra) < stacks.place.dim() - 1 + extra


def _along(func: Callable[..., Tensor], extra: int = 0) -> Callable[..., Any]:
    """An operation along one dimension."""
    def on_places(stacks: FrameStacks, dim: int = 0, *args: Any, **kwargs: Any) -> Any:
        if not _leads(stacks, dim, extra):
            return NotImplemented
        return FrameStacks(stacks.blocks, func(stacks.place, dim % (stacks.dim() + extra), *args, **kwargs))
    return on_places


def _index(stacks: Any, indices: Sequence[Tensor | None]) -> Any:
    if not isinstance(stacks, FrameStacks) or _indexed(indices) > stacks.place.dim() - 1:
        return NotImplemented
    return FrameStacks(stacks.blocks, aten.index.Tensor(stacks.place, indices))


def _indexed(indices: Sequence[Tensor | None]) -> int:
    """How many dimensions the indices take: a mask takes as many as it has."""
    return sum(index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
               for index in indices)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Any:
    if not all(isinstance(one, FrameStacks) and _leads(one, dim) for one in tensors):
        return NotImplemented
    blocks: dict[int, Tensor] = {}  # by identity: parts of one rollout, and rollouts that follow each other, share some
    for one in tensors:
        blocks |= {id(block): block for block in one.blocks}  # type: ignore[attr-defined]
    number = {key: index for index, key in enumerate(blocks)}
    places = [_renumbered(one.place, torch.tensor([number[id(block)] for block in one.blocks],
                                                  device=one.place.device))
              for one in tensors if isinstance(one, FrameStacks)]
    return FrameStacks(list(blocks.values()), torch.cat(places, dim % tensors[0].dim()))


def _same(stacks: FrameStacks) -> FrameStacks:
    return FrameStacks(stacks.blocks, stacks.place)


def _to_copy(stacks: FrameStacks, *, dtype: Any = None, device: Any = None, **kwargs: Any) -> Any:
    if dtype not in (None, stacks.dtype) or device is None:
        return NotImplemented
    return stacks.moved(torch.device(device))


def _new_zeros(stacks: FrameStacks, size: Sequence[int], **kwargs: Any) -> Tensor:
    stack = stacks.shape[stacks.place.dim() - 1:]
    if tuple(size[-len(stack):]) != tuple(stack) or kwargs.get("dtype") not in (None, stacks.dtype):
        return stacks.blocks[0].new_zeros(size, **kwargs)
    lead = size[:len(size) - len(stack) + 1]
    return FrameStacks(stacks.blocks[:1], torch.full(tuple(lead), BLANK, device=stacks.place.device))


_ON_PLACES: dict[Any, Callable[..., Any]] = {
    aten.index.Tensor: _index, aten.slice.Tensor: _along(aten.slice.Tensor), aten.select.int: _along(aten.select.int),
    aten.unsqueeze.default: _along(aten.unsqueeze.default, extra=1), aten.cat.default: _cat,
    aten.detach.default: _same, aten.alias.default: _same, aten._to_copy.default: _to_copy,
    aten.new_zeros.default: _new_zeros}


class FrameLog:
    """Writes the newest frame of every environment's stack, step by step; it remembers where the earlier ones are.

    Args:
        stack: S, frames a state.
        block_bytes: size of a block, which the frames of several rollouts share.
    """

    def __init__(self, stack: int, block_bytes: int = BLOCK_BYTES) -> None:
        self._stack, self._block_bytes = stack, block_bytes
        self._blocks: list[Tensor] = []
        self._newest: NDArray[Any] = np.zeros(0)  # the last block
        self._used = 0  # frames of it
        self._recent_nr: NDArray[np.int64] = np.zeros((0, stack - 1), np.int64)  # places of the frames seen last

    def write(self, stack_b: NDArray[Any], step_b: NDArray[np.int64]) -> NDArray[np.int64]:
        """Add what environments 0 to B-1 show now.

        Args:
            stack_b: [B, S, *frame].
            step_b: [B], steps taken in their episodes: a stack holds the frames of that many steps and its newest.

        Returns:
            The stacks' places, [B, S].
        """
        n = len(stack_b)
        self._know(stack_b, step_b)
        place_bs = np.empty((n, self._stack), np.int64)
        place_bs[:, :-1] = self._recent_nr[:n]
        place_bs[:, -1] = self._append(stack_b[:, -1])
        if step_b.min() < self._stack - 1:
            place_bs[np.arange(self._stack) < self._stack - 1 - step_b[:, None]] = BLANK
        self._recent_nr[:n] = place_bs[:, 1:]
        return place_bs

    def stacks(self, place: Tensor) -> FrameStacks:
        """The states at `place` [..., S]. Blocks that the next states cannot need are let go."""
        made = FrameStacks(self._blocks, place)
        self._forget()
        return made

    def _know(self, stack_b: NDArray[Any], step_b: NDArray[np.int64]) -> None:
        """An environment that is met for the first time in the middle of an episode brings its earlier frames along."""
        first, n = len(self._recent_nr), len(stack_b)
        if n <= first:
            return
        new_nr = np.full((n - first, self._stack - 1), BLANK)
        for row in np.flatnonzero(step_b[first:] > 0):
            new_nr[row] = self._append(stack_b[first + row, :-1])
        self._recent_nr = np.concatenate([self._recent_nr, new_nr])

    def _append(self, frame_k: NDArray[Any]) -> NDArray[np.int64]:
        """Places [K] of K new frames."""
        k = len(frame_k)
        if not self._blocks or self._used + k > len(self._blocks[-1]):
            frames = max(k, self._block_bytes // max(1, frame_k[0].nbytes))
            self._newest = np.empty((frames, *frame_k.shape[1:]), frame_k.dtype)
            self._blocks.append(torch.from_numpy(self._newest))
            self._used = 0
        self._newest[self._used:self._used + k] = frame_k
        first = ((len(self._blocks) - 1) << _OFFSET_BITS) | self._used
        self._used += k
        return np.arange(first, first + k)

    def _forget(self) -> None:
        numbers = self._recent_nr[self._recent_nr != BLANK] >> _OFFSET_BITS
        oldest = min([len(self._blocks) - 1, *numbers.tolist()])
        self._blocks = self._blocks[oldest:]
        self._recent_nr = np.where(self._recent_nr == BLANK, BLANK, self._recent_nr - (oldest << _OFFSET_BITS))
