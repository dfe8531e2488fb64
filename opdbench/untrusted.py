"""What is read from strangers, and how much of it: every limit on records, raw outcomes and bundles is here.

Records, outcomes and bundles come from whoever sends them. Nothing in them is executed; nothing is read beyond these
limits; what no honest run writes (a duplicate key, a number that is none, a character that moves a terminal's cursor
or turns the direction of reading) is refused, in a clause that the caller puts behind the file's name.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import zlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic_core import from_json

MIB = 1 << 20
RECORD_BYTES = 4 * MIB
MANIFEST_BYTES = 4 * MIB
METHOD_BYTES = MIB // 4
OUTCOMES_BYTES = 64 * MIB  # one phase, compressed
OUTCOMES_UNPACKED = 512 * MIB
OUTCOMES = 1_000_000  # of one phase
PLAY_BYTES = 2 * MIB  # the pictures of an episode
BUNDLE_BYTES = 128 * MIB
BUNDLE_UNPACKED = 256 * MIB  # all its files as they lie in it, outcomes still compressed
BUNDLE_FILES = 4_000
LARGEST = 1e300  # of any number
LARGEST_AMOUNT = 1e30  # of FLOPs, tokens, seconds, bytes
LARGEST_SCORE = 1e12  # squares and sums of it stay numbers
LONGEST_NAME = 200  # an example's id
_MANY = 16  # values of a list from which on they are looked at together

METHOD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(\.[A-Za-z0-9_-]{1,63}){0,3}")
TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(:[A-Za-z0-9][A-Za-z0-9_/:+-]{0,199})?"
                       r"(\.[A-Za-z0-9_-]{1,63}){0,3}@[0-9]{1,6}")
# Control characters but tab and line feed, and marks that turn the direction of reading.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class RefusedError(ValueError):
    """Why something is not read: a clause whose subject is the file, such as "is larger than 4 MiB"."""


def read(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes, not through a symbolic link; of one that grows meanwhile,
    no more than it had.

    Raises:
        RefusedError: it is something else, or larger.
        OSError: it cannot be read.
    """
    try:
        # Not blocking: whoever opens a pipe would wait for its other end.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(path):
            raise RefusedError("is a symbolic link") from None
        raise
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise RefusedError("is no regular file")
    with open(handle, "rb", buffering=0) as file:
        if status.st_size > limit:
            raise RefusedError(f"is larger than {in_words(limit)}")
        return file.read(status.st_size) or b""


def gunzip(content: bytes, limit: int) -> bytes:
    """One gzip member, whole, and of at most `limit` bytes when unpacked."""
    stream = zlib.decompressobj(wbits=31)
    try:
        unpacked = stream.decompress(content, limit + 1)
    except zlib.error:
        raise RefusedError("is not gzip, or is damaged") from None
    if len(unpacked) > limit:
        raise RefusedError(f"is larger than {in_words(limit)} when unpacked")
    if not stream.eof:
        raise RefusedError("is cut short")
    if stream.unused_data:
        raise RefusedError("goes on behind its end")
    return unpacked


def parse_json(content: bytes) -> Any:
    """JSON, stricter than Python's: no key twice, no NaN or infinity, no hidden character in any text."""
    if (plain := parse_plain(content)) is not None:
        return plain
    quick = _quick(content, [content])
    try:
        value = _BOUNDED.decode(content.decode()) if quick is None else quick[0]
    except RefusedError:
        raise
    except (ValueError, RecursionError):  # UnicodeDecodeError, JSONDecodeError, integers of thousands of digits
        raise RefusedError("is not JSON, or is cut short") from None
    _check(value)
    return value


def parse_plain(content: bytes) -> Any:
    """The same of JSON that is ASCII without an escape, in which no text hides anything, and that the quick parser
    reads; None where only `parse_json` can say."""
    if not content.isascii() or b"\\" in content or b"\x7f" in content:
        return None
    quick = _quick(content, [content])
    return None if quick is None else quick[0]


def parse_lines(content: bytes) -> list[Any]:
    """JSON lines of raw outcomes: a model's text may hold any character, and numbers are checked by whoever reads."""
    if content.count(b"\n") > OUTCOMES:
        raise RefusedError(f"has more than {OUTCOMES:,} lines")
    lines = content.removesuffix(b"\n").split(b"\n")
    if (quick := _quick(content, lines)) is not None:
        return quick
    try:
        return [_DECODER.decode(line.decode()) for line in lines]
    except RefusedError:
        raise
    except (ValueError, RecursionError):
        raise RefusedError("has a line that is not JSON") from None


def inert(text: str) -> str:
    """A text that cannot move a terminal's cursor or turn the direction of reading."""
    return HIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def in_words(size: int) -> str:
    return f"{size / MIB:g} MiB"


def _quick(content: bytes, texts: Sequence[bytes]) -> list[Any] | None:
    """The values of the JSON texts in a file, three times as fast as with Python's parser; None where only that one can
    say. The fast parser keeps the last of two equal keys in silence, so the keys that it kept are counted."""
    try:
        values = [from_json(text, allow_inf_nan=False) for text in texts]
    except ValueError:
        return None
    return values if _keys(values) == keys_written(content) else None


def keys_written(content: bytes) -> int:
    """At least as many as there are keys in a JSON text; -2 where a space stands before a colon, which nobody writes.

    Every key ends with a quotation mark and its colon. What stands in a text only makes the count larger: where a
    parser kept as many keys, none was there twice.
    """
    import numpy as np

    signs = np.frombuffer(content, np.uint8)
    before = signs[np.flatnonzero(signs == ord(":")) - 1]
    return -2 if (before <= ord(" ")).any() else int(np.count_nonzero(before == ord('"')))


def _keys(values: list[Any]) -> int:
    """How many keys there are, however deep they lie; -1 where a number is beyond any that is measured."""
    keys, todo = 0, [values]
    while todo:
        node: Any = todo.pop()
        if type(node) is dict:
            keys += len(node)
            node = node.values()
        elif len(node) > _MANY and set(map(type, node)) == {dict}:  # such as a curve: all its points at once
            keys += sum(map(len, node))
            node = list(chain.from_iterable(map(dict.values, node)))
            if set(map(type, node)) == {float} and min(node) >= -LARGEST and max(node) <= LARGEST:
                continue
        for value in node:
            kind = type(value)
            if kind is dict or kind is list:
                todo.append(value)
            elif (kind is float or kind is int) and not -LARGEST <= value <= LARGEST:
                return -1
    return keys


def _check(value: Any) -> None:
    """Refuse hidden characters, however deep they lie."""
    todo = [value]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo += [*value, *value.values()]
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, str) and HIDDEN.search(value):
            raise RefusedError("has a text with control characters, or with marks that turn the direction of reading")


def _number(text: str) -> float:
    """A number, unless it is beyond any that is measured."""
    value = float(text)
    if not -LARGEST <= value <= LARGEST:
        raise RefusedError(f"has a number beyond {LARGEST:g}")
    return value


def _whole(text: str) -> int:
    _number(text)
    return int(text)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RefusedError("has a key twice")
    return found


def _no_constant(name: str) -> Any:
    raise RefusedError(f"has {name} where a number should be")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
_BOUNDED = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_number,
                            parse_int=_whole)
