"""Where two tokenizers of one text break it at the same bytes.

A token is a stretch of bytes of a UTF-8 string. `Speller` says which, for the tokens that a model wrote (`written`) and
for a text that a model is to read (`read`); `align` groups two such readings of one text into pieces, the smallest
stretches that both sides cover with whole tokens. A character that is split over several tokens needs no care: only
bytes count.

Where a tokenizer changes what it reads (T5, NeoX and Qwen normalise Unicode, T5 swallows runs of white space and has
one token for all that it does not know), its tokens still cover known stretches of the original, as the tokenizers
library tracks them. They are aligned by those, and `Reading.spells` tells the pieces in which its tokens do not say
what is written there: theirs is a probability of other text, which is compared with nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from opdbench.errors import UserError
from opdbench.lm.tokenizer import Tokenizer


class Piece(NamedTuple):
    """Tokens of the left and of the right reading that cover the same bytes; one side is empty only where it has no
    token for the whole text."""

    left: range
    right: range


@dataclass(frozen=True)
class Reading:
    """A text as one tokenizer cuts it.

    Attributes:
        text: UTF-8.
        ids: the tokens; `end_of` [T]: the byte of `text` that each ends at, never falling, and the last one its length.
        spelled: the bytes that each stands for when it is decoded; None for a special token, which is no text.
    """

    text: bytes
    ids: list[int]
    end_of: list[int]
    spelled: list[bytes | None]

    def span(self, tokens: range) -> bytes:
        """The text that consecutive tokens cover."""
        if not tokens:
            return b""
        start = self.end_of[tokens[0] - 1] if tokens[0] else 0
        return self.text[start:self.end_of[tokens[-1]]]

    def spells(self, tokens: range) -> bool:
        """Whether the tokens (at least one) say exactly what stands where they are."""
        spelled = [self.spelled[index] for index in tokens]
        said = b"".join(filter(None, spelled))
        return bool(spelled) and all(part is not None for part in spelled) and said == self.span(tokens)


def align(left_end_of: Sequence[int], right_end_of: Sequence[int]) -> list[Piece]:
    """The smallest pieces of two readings of one text: consecutive, and together all tokens of both sides.

    Linear in the number of tokens. Tokens that cover nothing belong to the piece that follows them, and at the end of
    the text to the last one.

    Raises:
        ValueError: the readings do not end at the same byte, so they are not of one text.
    """
    if left_end_of and right_end_of and left_end_of[-1] != right_end_of[-1]:
        raise ValueError("two readings of different texts cannot be aligned")
    pieces: list[Piece] = []
    n_left, n_right = len(left_end_of), len(right_end_of)
    left = right = left_start = right_start = 0
    while left < n_left and right < n_right:
        left_end, right_end = left_end_of[left], right_end_of[right]
        left += left_end <= right_end
        right += right_end <= left_end
        if left_end == right_end:
            pieces.append(Piece(range(left_start, left), range(right_start, right)))
            left_start, right_start = left, right
    if left_start < n_left or right_start < n_right:
        last = pieces.pop() if pieces else Piece(range(0), range(0))
        pieces.append(Piece(range(last.left.start, n_left), range(last.right.start, n_right)))
    return pieces


class Speller:
    """What the tokens of one tokenizer stand for, in bytes.

    Raises:
        UserError: the tokenizer's decoder is of a kind whose tokens have no bytes of their own (WordPiece, CTC).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        backend = getattr(tokenizer.inner, "backend_tokenizer", None)
        if backend is None:
            raise _refused(f"{type(tokenizer.inner).__name__} is not one of the tokenizers library")
        self._backend: Any = backend
        steps = [] if backend.decoder is None else list(_steps(json.loads(backend.decoder.__getstate__())))
        if not steps:
            raise _refused("it has no decoder")
        self._replacements = [(step["pattern"]["String"], step["content"]) for step in steps
                              if step["type"] == "Replace"]
        self._replacements += [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]
        kinds = {step["type"] for step in steps}
        self._byte_level, self._byte_fallback = "ByteLevel" in kinds, "ByteFallback" in kinds
        self._drops_space = any(_drops_space(step) for step in steps)
        added = backend.get_added_tokens_decoder()
        self._special = {index for index, token in added.items() if token.special}
        self._known: dict[int, bytes | None] = {}

    def token(self, index: int) -> bytes | None:
        """The bytes of one token inside a text; None for a special token, and for an id that has no token."""
        if index not in self._known:
            surface = None if index in self._special else self._backend.id_to_token(index)
            self._known[index] = None if surface is None else self._bytes(surface)
        return self._known[index]

    def written(self, ids: Sequence[int]) -> Reading:
        """The text that a model wrote as these tokens. Bytes that are no UTF-8 are read as U+FFFD, as decoding does,
        which no token among them spells."""
        spelled = self._spell(ids)
        raw = b"".join(part or b"" for part in spelled)
        text, moved = _repaired(raw)
        return Reading(text, list(ids), [moved[end] for end in _ends(spelled)] if moved else _ends(spelled), spelled)

    def read(self, text: str) -> Reading:
        """The tokens that this tokenizer makes of a text, none added.

        Raises:
            UserError: a character-level tokenizer met a character that it does not know.
        """
        ids, original = self.tokenizer.encode(text), text.encode()
        spelled = self._spell(ids)
        if b"".join(part or b"" for part in spelled) == original:
            return Reading(original, ids, _ends(spelled), spelled)
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Reading(original, ids, _tracked_ends(text, encoding.offsets), spelled)

    def _spell(self, ids: Sequence[int]) -> list[bytes | None]:
        """The bytes of every token. A sentencepiece model writes a space before the text, which decoding drops."""
        spelled = [self.token(index) for index in ids]
        if self._drops_space:
            first = next((place for place, part in enumerate(spelled) if part), None)
            if first is not None:
                spelled[first] = (spelled[first] or b"").removeprefix(b" ")
        return spelled

    def _bytes(self, surface: str) -> bytes:
        if self._byte_level:
            if all(character in _BYTE_OF for character in surface):
                return bytes(_BYTE_OF[character] for character in surface)
            return surface.encode()  # an added token, which is written as it is
        if self._byte_fallback and len(surface) == 6 and surface.startswith("<0x") and surface.endswith(">"):
            return bytes.fromhex(surface[3:5])
        for pattern, content in self._replacements:
            surface = surface.replace(pattern, content)
        return surface.encode()


def _steps(decoder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps of a decoder that is a sequence, or its one step.

    Raises:
        UserError: a step that does not keep tokens apart.
    """
    if decoder["type"] == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
        return
    kind = decoder["type"]
    known = kind in ("ByteLevel", "ByteFallback", "Fuse", "Metaspace") or (
        kind == "Replace" and "String" in decoder["pattern"]) or (
        kind == "Strip" and (decoder["content"], decoder["stop"]) == (" ", 0) and decoder["start"] in (0, 1))
    if not known:
        raise _refused(f"its decoder is {kind}")
    yield decoder


def _drops_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return bool(step.get("add_prefix_space", True)) and step.get("prepend_scheme", "always") != "never"
    return bool(step["type"] == "Strip" and step["start"] == 1)


def _ends(spelled: Sequence[bytes | None]) -> list[int]:
    ends, end = [], 0
    for part in spelled:
        end += len(part or b"")
        ends.append(end)
    return ends


def _repaired(raw: bytes) -> tuple[bytes, list[int]]:
    """Bytes with everything that is no UTF-8 replaced by U+FFFD, and where each byte position went (empty: nowhere)."""
    moved: list[int] = []
    text, start, view = bytearray(), 0, memoryview(raw)
    while True:
        try:
            str(view[start:], "utf-8")
        except UnicodeDecodeError as error:
            good, bad = start + error.start, start + error.end
            moved += range(len(text), len(text) + good - start)
            text += view[start:good]
            moved += [len(text)] * (bad - good)  # a broken character belongs to the token that ends it
            text += "\ufffd".encode()
            start = bad
        else:
            if start == 0:
                return raw, []
            moved += range(len(text), len(text) + len(raw) - start + 1)
            return bytes(text + view[start:]), moved


def _tracked_ends(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The bytes at which tokens end, from the characters of the original that the tokenizer says they cover.

    Characters that it dropped go to the token after them (white space before a word) or, at the end, to the last one.
    Of tokens that share one character, the last one ends it.
    """
    byte_of = [0]
    for character in text:
        byte_of.append(byte_of[-1] + len(character.encode()))
    ends = [byte_of[end] for _, end in offsets]
    for place, ((_, end), (start, _)) in enumerate(pairwise(offsets)):
        if start < end:
            ends[place] = byte_of[start]
    for place in range(1, len(ends)):
        ends[place] = max(ends[place], ends[place - 1])
    if ends:
        ends[-1] = byte_of[-1]
    return ends


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: printable ones for themselves, the others from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + place): byte for place, byte in enumerate(others)}}


_BYTE_OF = _byte_alphabet()


def _refused(why: str) -> UserError:
    return UserError(f"the text that this tokenizer's tokens stand for is not known: {why}",
                     "use a model with a byte-level, sentencepiece or character tokenizer")
