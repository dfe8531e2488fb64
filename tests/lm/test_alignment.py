"""Aligning real tokenizers byte by byte, on real answers and on text that breaks naive alignments."""

from __future__ import annotations

import json
import time
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdbench.errors import UserError
from opdbench.lm.alignment import Piece, Reading, Speller, align
from opdbench.lm.tokenizer import Tokenizer
from tests.lm import real_tokenizers

PAIRS = list(combinations(real_tokenizers.NAMES, 2))
ADVERSARIAL = {
    "empty": "",
    "accents": "déjà vu, Ångström, ñandú, Čeština, Tiếng Việt",
    "combining marks": "e\u0301a\u0308o\u0302\u0323 Z\u0351\u036b\u0343algo",
    "emoji sequences": "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 👍🏽 🇩🇪🇫🇷 1️⃣",
    "white space": "  two   three\t\ttabs\r\n\r\n   \u00a0\u2003\u3000 end   ",
    "only spaces": "     ",
    "only newlines": "\n\n\n",
    "bytes without tokens": "𓀀𒁂 ꙮ \U000e0041 ა ⵣ",
    "CJK": "日本語のテキスト。中文，한국어 ",
    "compatibility forms": "½ ﬁ Ⅳ ① ｈａｌｆ ㎞ …",
    "numbers": "1234567.89 + 0.5 = 1,234,568.39 #### 42",
    "what looks like tokens": "<0x41> ▁x Ġy <unk> ## [CLS] Â©",
    "special tokens as text": "<|endoftext|> hi </s> there <|im_end|>",
    "replacement character": "a\ufffdb",
    "right to left": "שלום עולם مرحبا",
    "control": "\x00\x01\x7f\x1b[0m",
    "code": "def f(x):\n\treturn {x: [1, 2]}  # ok\n\n\n",
}


@pytest.fixture(scope="module")
def tokenizers(shared_data: Path) -> Path:
    return shared_data / "tokenizers"


@pytest.fixture(scope="module")
def answers(shared_data: Path) -> list[str]:
    file = shared_data / "gsm8k" / "test.jsonl"
    return [json.loads(line)["answer"] for line in file.read_text(encoding="utf-8").splitlines()]


@cache
def speller(folder: Path, name: str) -> Speller:
    return Speller(real_tokenizers.load(folder, name))


def check(left: Reading, right: Reading) -> list[Piece]:
    """The pieces of two readings of one text, after holding them to everything that is promised of them."""
    pieces = align(left.end_of, right.end_of)
    for side, reading in (("left", left), ("right", right)):
        covered = [index for piece in pieces for index in getattr(piece, side)]
        assert covered == list(range(len(reading.ids)))
        assert list(reading.end_of) == sorted(reading.end_of)
        assert not reading.ids or reading.end_of[-1] == len(reading.text)
    if left.ids and right.ids:
        assert all(left.span(piece.left) == right.span(piece.right) for piece in pieces)
        assert b"".join(left.span(piece.left) for piece in pieces) == left.text
        common = sorted({*left.end_of} & {*right.end_of} - {0})
        assert sorted({left.end_of[piece.left[-1]] for piece in pieces} - {0}) == common  # none could be smaller
    return pieces


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_real_answers_align_and_every_piece_says_the_same(left: str, right: str, tokenizers: Path,
                                                          answers: list[str]) -> None:
    sides = speller(tokenizers, left), speller(tokenizers, right)
    n_pieces = n_same = n_one_to_one = 0
    for answer in answers[:40]:
        readings = [side.read(answer) for side in sides]
        pieces = check(*readings)
        same = [piece for piece in pieces if readings[0].spells(piece.left) and readings[1].spells(piece.right)]
        n_pieces, n_same = n_pieces + len(pieces), n_same + len(same)
        n_one_to_one += sum(len(piece.left) == len(piece.right) == 1 for piece in pieces)
        if "t5" not in (left, right):  # GSM8K has nothing that NFC changes
            assert len(same) == len(pieces)
    assert n_same / n_pieces > 0.85  # T5 drops line breaks and has no token for "<" or "#"
    assert n_one_to_one / n_pieces > 0.4


@pytest.mark.parametrize("text", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_adversarial_text_aligns_between_any_two(text: str, tokenizers: Path) -> None:
    readings = {name: speller(tokenizers, name).read(text) for name in real_tokenizers.NAMES}
    for left, right in combinations(readings.values(), 2):
        pieces = check(left, right)
        for piece in pieces:
            if left.spells(piece.left) and right.spells(piece.right):
                assert _said(left, piece.left) == _said(right, piece.right) == left.span(piece.left)


def _said(reading: Reading, tokens: range) -> bytes:
    return b"".join(reading.spelled[index] or b"" for index in tokens)


@pytest.mark.parametrize("name", [name for name in real_tokenizers.NAMES if name not in real_tokenizers.LOSSY])
@pytest.mark.parametrize("kind", sorted(set(ADVERSARIAL) - {"empty", "special tokens as text", "combining marks",
                                                            "what looks like tokens"}))
def test_what_a_lossless_tokenizer_reads_it_spells(name: str, kind: str, tokenizers: Path) -> None:
    side, text = speller(tokenizers, name), ADVERSARIAL[kind]
    reading = side.read(text)
    assert reading.spells(range(len(reading.ids)))
    assert side.written(reading.ids).text.decode() == text == side.tokenizer.decode(reading.ids)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_aligns(text: str, shared_data: Path) -> None:
    readings = [speller(shared_data / "tokenizers", name).read(text) for name in ("gpt2", "mistral", "neox", "t5")]
    for left, right in combinations(readings, 2):
        check(left, right)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_a_model_writes_aligns_with_how_another_reads_it(data: st.DataObject, shared_data: Path) -> None:
    """Any tokens in any order, half characters and special tokens among them."""
    writer, reader = (speller(shared_data / "tokenizers", data.draw(st.sampled_from(("gpt2", "mistral", "qwen"))))
                      for _ in range(2))
    ids = data.draw(st.lists(st.integers(0, writer.tokenizer.n_tokens - 1), max_size=20))
    written = writer.written(ids)
    check(written, reader.read(written.text.decode()))


def test_half_a_character_is_no_text_and_is_compared_with_nothing(tokenizers: Path) -> None:
    gpt2, qwen = speller(tokenizers, "gpt2"), speller(tokenizers, "qwen")
    ids = gpt2.read("ok 👍 ok").ids
    broken = gpt2.written([*ids[:2], *ids[-1:]])  # the emoji's first bytes only
    assert broken.text.decode() == "ok \ufffd ok"
    reading = qwen.read(broken.text.decode())
    exact = [broken.spells(piece.left) and reading.spells(piece.right) for piece in check(broken, reading)]
    assert exact[0] and exact[-1] and not all(exact)


def test_a_character_split_over_tokens_is_broken_where_both_break_its_bytes(tokenizers: Path) -> None:
    gpt2, mistral = speller(tokenizers, "gpt2").read("🌈"), speller(tokenizers, "mistral").read("🌈")
    pieces = check(gpt2, mistral)
    assert [gpt2.span(piece.left) for piece in pieces] == [b"\xf0\x9f", b"\x8c", b"\x88"]
    assert all(gpt2.spells(piece.left) and mistral.spells(piece.right) for piece in pieces)


def test_special_tokens_cover_nothing_and_spell_nothing(tokenizers: Path) -> None:
    """A BOS that only one side has joins the first piece, which then says something else than the text."""
    mistral, gpt2 = speller(tokenizers, "mistral"), speller(tokenizers, "gpt2")
    ids = mistral.read("Hello world").ids
    with_start = mistral.written([1, *ids])
    assert with_start.text == b"Hello world" and with_start.end_of[0] == 0
    pieces = check(with_start, gpt2.read("Hello world"))
    assert [piece.left for piece in pieces] == [range(2), range(2, 3)]
    assert [with_start.spells(piece.left) for piece in pieces] == [False, True]


def test_what_a_tokenizer_normalises_is_aligned_by_place_and_marked(tokenizers: Path) -> None:
    """NeoX composes characters (NFC), T5 unfolds compatibility forms (NFKC) and has no emoji."""
    for name, text in (("neox", "cafe\u0301 noir"), ("t5", "half ½ done"), ("t5", "thumb 👍 up")):
        lossy, exact = speller(tokenizers, name).read(text), speller(tokenizers, "gpt2").read(text)
        verdicts = [lossy.spells(piece.right) for piece in check(exact, lossy)]
        assert verdicts[0] and verdicts[-1] and not all(verdicts)


def test_groups_of_a_small_example() -> None:
    assert align([1, 3, 6], [2, 3, 4, 6]) == [Piece(range(2), range(2)), Piece(range(2, 3), range(2, 4))]
    assert align([], []) == []
    assert align([0], []) == [Piece(range(1), range(0))]
    assert align([2, 2, 4, 4], [2, 4]) == [Piece(range(1), range(1)), Piece(range(1, 4), range(1, 2))]
    with pytest.raises(ValueError, match="different texts"):
        align([3], [4])


def test_cost_is_linear(tokenizers: Path, answers: list[str]) -> None:
    """Ten times the text takes about ten times as long, and not a hundred; measured on the alignment alone."""
    sides = speller(tokenizers, "gpt2"), speller(tokenizers, "mistral")
    text = "\n".join(answers)[:20_000]
    seconds = []
    for size in (2_000, 20_000):
        readings = [side.read(text[:size]).end_of for side in sides]
        best = float("inf")
        for _ in range(5):
            began = time.process_time()
            for _ in range(20_000 // size):
                align(*readings)
            best = min(best, time.process_time() - began)
        seconds.append(best)
    assert seconds[1] < 3 * seconds[0]  # equal amounts of text; quadratic would be 10 times


def test_undecodable_tokenizers_are_refused() -> None:
    tokenizer = Tokenizer.characters("abc")
    from tokenizers import decoders

    tokenizer.inner.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="decoder is WordPiece"):
        Speller(tokenizer)


def test_readings_end_where_the_tokenizers_own_offsets_end(tokenizers: Path, answers: list[str]) -> None:
    """On plain ASCII the library's character offsets are byte offsets; white space that it trims goes to the word."""
    for name in ("gpt2", "qwen", "cl100k", "mistral"):
        side = speller(tokenizers, name)
        for answer in filter(str.isascii, answers[:20]):
            offsets = side.tokenizer.inner.backend_tokenizer.encode(answer, add_special_tokens=False).offsets
            assert side.read(answer).end_of == [end for _, end in offsets]
            assert all(here <= there for here, there in pairwise(side.read(answer).end_of))
