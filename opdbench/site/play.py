"""The GIF that lies beside a record, if it is one: it may come from a stranger, so its parts are looked at one by one.

Nothing is unpacked. What is let through is a GIF from its first byte to its last, of a size that pages have room for,
without comments, text or anything else that is not a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from opdbench import untrusted
from opdbench.site.pages import Page
from opdbench.untrusted import PLAY_BYTES, RefusedError

PLAY = "play.gif"
LARGEST, MOST_FRAMES = 2_000, 1_200  # pixels a side, frames
_LOOP = b"NETSCAPE2.0"  # the one application whose extension is let through: how often the film is shown


class Shown(NamedTuple):
    """A GIF as a file of the site, and its size in pixels."""

    page: Page
    width: int
    height: int


def play_file(folder: Path, record_page: str) -> Shown | None:
    """The GIF of a run's folder, to lie beside the record's page; None where there is none, or none that is shown."""
    try:
        content = untrusted.read(f"{folder}/{PLAY}", PLAY_BYTES)
        width, height = check(content)
    except (OSError, RefusedError):
        return None
    return Shown(Page(record_page.removesuffix(".html") + ".gif", content), width, height)


def check(content: bytes) -> tuple[int, int]:
    """Width and height of a GIF in pixels.

    Raises:
        RefusedError: it is none, is cut short, goes on behind its end, or holds what is no picture.
    """
    if content[:6] not in (b"GIF87a", b"GIF89a") or len(content) < 14:
        raise RefusedError("is no GIF")
    size = _number(content, 6), _number(content, 8)
    if not all(1 <= side <= LARGEST for side in size):
        raise RefusedError(f"has pictures of {size[0]} x {size[1]} pixels")
    place, frames = 13 + _colours(content[10]), 0
    while content[place:place + 1] != b"\x3b":
        kind = content[place:place + 1]
        if kind == b"\x2c":
            place, frames = _picture(content, place, size), frames + 1
        elif kind == b"\x21":
            place = _extension(content, place)
        else:
            raise RefusedError("is cut short, or is no GIF further in")
    if place + 1 != len(content):
        raise RefusedError("goes on behind its end")
    if not 1 <= frames <= MOST_FRAMES:
        raise RefusedError(f"has {frames} pictures")
    return size


def _picture(content: bytes, place: int, size: tuple[int, int]) -> int:
    """Where a picture ends that begins here; it lies within the size of all."""
    if place + 11 > len(content):
        raise RefusedError("is cut short")
    left, top, width, height = (_number(content, place + offset) for offset in (1, 3, 5, 7))
    if left + width > size[0] or top + height > size[1]:
        raise RefusedError("has a picture that is larger than it says")
    return _blocks(content, place + 10 + _colours(content[place + 9]) + 1)


def _extension(content: bytes, place: int) -> int:
    """Where an extension ends that begins here: how long a picture is shown, or how often all are."""
    kind = content[place + 1:place + 3]
    if kind == b"\xf9\x04" or (kind == b"\xff\x0b" and content[place + 3:place + 14] == _LOOP):
        return _blocks(content, place + 2)
    raise RefusedError("holds something besides pictures")


def _blocks(content: bytes, place: int) -> int:
    """Behind a row of blocks, each with its length before it; the last is empty."""
    while place < len(content) and content[place]:
        place += 1 + content[place]
    if place >= len(content):
        raise RefusedError("is cut short")
    return place + 1


def _colours(flags: int) -> int:
    """Bytes of a table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _number(content: bytes, place: int) -> int:
    return int.from_bytes(content[place:place + 2], "little")
