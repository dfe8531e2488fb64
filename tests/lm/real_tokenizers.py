"""Tokenizers of real model families, from the shared data: tokenizer.json files, GPT-2's pair and tiktoken's ranks."""

from __future__ import annotations

import base64
import gzip
import json
from functools import cache
from pathlib import Path

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from opdbench.lm.tokenizer import Tokenizer

_WORDS = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|""" \
         r"""\s*[\r\n]+|\s+(?!\S)|\s+"""
_JSON = {"neox": "gptneox_pythia_olmo", "mistral": "mistral", "t5": "t5"}
NAMES = ("gpt2", "qwen", "cl100k", *_JSON)
LOSSY = ("t5", "neox")  # they normalise what they read
END = {"gpt2": "<|endoftext|>", "qwen": "<|im_end|>", "cl100k": "<|endoftext|>", "neox": "<|endoftext|>",
       "mistral": "</s>", "t5": "</s>"}


@cache
def load(folder: Path, name: str) -> Tokenizer:
    """One of `NAMES`, from the folder of tokenizers in the shared data."""
    if name == "gpt2":
        backend = _gpt2(folder / "gpt2")
    elif name == "qwen":
        backend = _tiktoken(folder / "qwen" / "qwen.tiktoken.gz", digits="", nfc=True)
    elif name == "cl100k":
        backend = _tiktoken(folder / "openai" / "cl100k_base.tiktoken.gz", digits="{1,3}", nfc=False)
    else:
        backend = Backend.from_str(_text(folder / _JSON[name] / "tokenizer.json.gz"))
    inner = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END[name], clean_up_tokenization_spaces=False)
    return Tokenizer(inner, frozenset([int(inner.eos_token_id)]))


def _gpt2(folder: Path) -> Backend:
    merges = [tuple(line.split()) for line in (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]]
    backend = Backend(models.BPE(json.loads(_text(folder / "encoder.json.gz")), merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _tiktoken(file: Path, *, digits: str, nfc: bool) -> Backend:
    """tiktoken joins any two neighbours whose union has a rank, lowest first: as merges, every way to halve a token."""
    surface = [_surface(base64.b64decode(line.split()[0])) for line in _text(file).splitlines()]
    rank = {token: index for index, token in enumerate(surface)}
    merges = [(left, right) for token in surface for cut in range(1, len(token))
              if (left := token[:cut]) in rank and (right := token[cut:]) in rank]
    backend = Backend(models.BPE(rank, merges))
    if nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_WORDS.replace("DIGITS", digits)), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend


def _surface(raw: bytes) -> str:
    """GPT-2's way to write bytes as characters, here from the definition: unprintable ones move beyond U+0100."""
    return raw.decode("latin-1").translate(_MOVED)


_PRINTABLE = {*range(33, 127), *range(161, 173), *range(174, 256)}
_MOVED = {byte: 256 + place for place, byte in enumerate(sorted({*range(256)} - _PRINTABLE))}


def _text(file: Path) -> str:
    return gzip.decompress(file.read_bytes()).decode()
