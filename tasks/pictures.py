"""Simple pictures for `opdbench play`: boards of coloured cells, and mazes. All are RGB, uint8 [H, W, 3]."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

FLOOR, DARK, GOOD, BAD, WALKER = ((236, 238, 241), (58, 64, 74), (63, 160, 92), (208, 82, 76), (48, 105, 205))
# Of things on a board that are told apart by nothing but their number; the first lie below the others.
THINGS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (213, 94, 0), (240, 228, 66), (204, 121, 167), (0, 114, 178),
          (255, 255, 255), (150, 150, 150), (120, 94, 240))
_SIDE = 200  # pixels, about


def board(colour_hwc: NDArray[np.integer], at: tuple[int, int] | None = None) -> Picture:
    """Cells [H, W, 3] in these colours, with lines between them and a dot on the one that somebody is `at`."""
    cell = max(4, _SIDE // max(colour_hwc.shape[:2]))
    pixels = np.repeat(np.repeat(colour_hwc.astype(np.uint8), cell, axis=0), cell, axis=1)
    pixels[::cell], pixels[:, ::cell] = (np.array(FLOOR, np.uint8) * 0.85,) * 2
    if at is not None:
        _dot(pixels, at, cell, 0.36, WALKER)
    return pixels


def channels(on_hwk: NDArray[np.bool_]) -> Picture:
    """A board [H, W, K] of K kinds of things, each in a colour of its own."""
    colour_hwc = np.full((*on_hwk.shape[:2], 3), DARK)
    for kind in range(on_hwk.shape[2]):
        colour_hwc[on_hwk[..., kind].astype(bool)] = THINGS[kind % len(THINGS)]
    return board(colour_hwc)


def maze(doors: Collection[tuple[int, int]], side: int, *, at: int, goal: int) -> Picture:
    """A maze of side x side cells in reading order, with a wall between neighbours that no door joins."""
    cell = _SIDE // side
    pixels = np.full((side * cell + 2, side * cell + 2, 3), FLOOR, np.uint8)
    pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = (DARK,) * 4
    for here in range(side * side):
        row, column = divmod(here, side)
        top, left = row * cell, column * cell
        if column < side - 1 and (here, here + 1) not in doors:
            pixels[top:top + cell + 2, left + cell:left + cell + 2] = DARK
        if row < side - 1 and (here, here + side) not in doors:
            pixels[top + cell:top + cell + 2, left:left + cell + 2] = DARK
    _dot(pixels, divmod(goal, side), cell, 0.42, GOOD)
    _dot(pixels, divmod(at, side), cell, 0.3, WALKER)
    return pixels


def _dot(pixels: Picture, at: tuple[int, int], cell: int, radius: float, colour: tuple[int, int, int]) -> None:
    """Draw a disc in the middle of a cell; `radius` is in cells."""
    row_hw, column_hw = np.indices((cell, cell)) - (cell - 1) / 2
    disc_hw = row_hw**2 + column_hw**2 <= (radius * cell) ** 2
    top, left = at[0] * cell + 1, at[1] * cell + 1
    inside = pixels[top:top + cell, left:left + cell]
    inside[disc_hw[:inside.shape[0], :inside.shape[1]]] = colour
