"""Frames with a picture for every player, side by side, as a GIF that is kept small; drawn by Pillow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from opdbench.errors import UserError
from opdbench.untrusted import PLAY_BYTES, inert

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image as Drawn

    Picture: TypeAlias = NDArray[np.uint8]  # RGB, [H, W, 3]
else:
    Picture: TypeAlias = Any

WIDTH, HEIGHT = 240, 200  # of a picture, at most
GAP, HEAD = 8, 40  # pixels around pictures, and above them for words
COLOURS = 32
FRAME_MS, LAST_MS, SHORTEST_MS = 40, 2_000, 4_000  # a frame's time, the last one's, and a film's
PAPER, INK, SOFT = (250, 250, 250), (25, 28, 33), (98, 104, 115)
SMALL = 0.5  # share of a picture's room below which it is enlarged, in whole steps


class Frame(NamedTuple):
    """One player at one time."""

    name: str
    note: str
    picture: Picture


class Film(NamedTuple):
    """A finished GIF; `every` is the number of steps from one frame to the next."""

    content: bytes
    width: int
    height: int
    frames: int
    every: int


def film(frames: Sequence[Sequence[Frame]], every: int) -> Film:
    """The GIF, of at most PLAY_BYTES: where it is larger, every second frame is left out until it is not.

    Raises:
        UserError: Pillow is missing.
    """
    require()
    from PIL import Image

    drawn = [_drawn(sides) for sides in frames]
    colours = _colours(drawn)
    images = [image.quantize(palette=colours, dither=Image.Dither.NONE) for image in drawn]
    while len(content := _encoded(images)) > PLAY_BYTES and len(images) > 2:
        images, every = [*images[:-1:2], images[-1]], 2 * every
    return Film(content, *images[0].size, len(images), every)


def require() -> None:
    """Raise a UserError unless Pillow is there."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise UserError("a GIF is written by Pillow, which is not installed", 'pip install "opdbench[play]"') from error


def _encoded(images: Sequence[Drawn]) -> bytes:
    frame = min(500, max(FRAME_MS, SHORTEST_MS // len(images)))
    durations = [frame] * (len(images) - 1) + [LAST_MS]
    stream = io.BytesIO()
    images[0].save(stream, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)
    return stream.getvalue()


def _drawn(sides: Sequence[Frame]) -> Drawn:
    """A frame: every side's name and note above its picture."""
    from PIL import Image, ImageDraw, ImageFont

    pictures = [_fitted(side.picture) for side in sides]
    height = HEAD + max(picture.height for picture in pictures) + GAP
    image = Image.new("RGB", (GAP + len(sides) * (WIDTH + GAP), height), PAPER)
    draw, large, small = ImageDraw.Draw(image), ImageFont.load_default(13), ImageFont.load_default(12)
    for number, (side, picture) in enumerate(zip(sides, pictures, strict=True)):
        left = GAP + number * (WIDTH + GAP)
        for top, text, font, colour in ((5, side.name, large, INK), (21, side.note, small, SOFT)):
            draw.text((left, top), _cut(inert(text), font), colour, font)
        image.paste(picture, (left + (WIDTH - picture.width) // 2, HEAD))
    return image


def _cut(text: str, font: Any) -> str:
    """As much of a text as there is room for."""
    while font.getlength(text) > WIDTH:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text


def _fitted(picture: Picture) -> Drawn:
    """Reduced to its room, or, where it is small, enlarged in whole steps: its pixels stay squares."""
    from PIL import Image

    image = Image.fromarray(picture)
    scale = min(WIDTH / image.width, HEIGHT / image.height)
    if scale >= 1 / SMALL:
        return image.resize((image.width * int(scale), image.height * int(scale)), Image.Resampling.NEAREST)
    if scale < 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        return image.resize(size, Image.Resampling.LANCZOS)
    return image


def _colours(images: Sequence[Drawn]) -> Drawn:
    """One palette for all frames, from some of them: what does not move keeps its colour, and costs nothing."""
    from PIL import Image

    some = images[::max(1, len(images) // 12)]
    strip = Image.new("RGB", (some[0].width, sum(image.height for image in some)))
    for number, image in enumerate(some):
        strip.paste(image, (0, number * image.height))
    return strip.quantize(COLOURS)
