"""Folders in the published layout, made of the public files beside the checkout; for tests only.

Where no full set is at hand, real rows stand in for others: Dolly's training split is a part of its development rows,
and the WMT files are cut from one list of training pairs. A model of nltk's sentence splitter is trained on Dolly's
text.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest


def instructions(shared: Path, out: Path) -> Path:
    """dolly/, self-inst/, vicuna/ and sinst/11_/ below `out`."""
    for source, target in {"dolly/valid.jsonl": "dolly/valid.jsonl",
                           "self_instruct/minillm_selfinst_valid.jsonl": "self-inst/valid.jsonl",
                           "vicuna_mtbench/minillm_vicuna_valid.jsonl": "vicuna/valid.jsonl",
                           "super_natural_instructions/sinst_11_valid.jsonl.gz": "sinst/11_/valid.jsonl.gz",
                           "ifeval/input_data.jsonl": "ifeval/input_data.jsonl"}.items():
        (out / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shared / source, out / target)
    rows = dolly_rows(shared)
    (out / "dolly/dev.jsonl").write_bytes(b"".join(rows[:200]))
    (out / "dolly/train.jsonl").write_bytes(b"".join(rows[200:]))
    return out


def dolly_rows(shared: Path) -> list[bytes]:
    return gzip.decompress((shared / "dolly/dev.jsonl.gz").read_bytes()).splitlines(keepends=True)


def translations(shared: Path, out: Path) -> Path:
    """wmt-en-de/ below `out`: 3,003 pairs for test, 3,000 for validation, 997 for training."""
    folder = out / "wmt-en-de"
    folder.mkdir(parents=True)
    for side, language in (("src", "en"), ("tgt", "de")):
        lines = gzip.decompress((shared / f"wmt_ende/opennmt_{side}-train.txt.gz").read_bytes()).splitlines(True)
        for split, part in (("test", lines[:3003]), ("validation", lines[3003:6003]), ("train", lines[6003:7000])):
            (folder / f"{split}.{language}").write_bytes(b"".join(part))
    return out


def sentence_splitter(shared: Path, out: Path) -> Path:
    """A folder for nltk's data with `tokenizers/punkt_tab/english`, trained on some of Dolly's answers."""
    pytest.importorskip("nltk", reason="nltk is not installed: pip install 'opdbench[test]'")
    import json

    import nltk
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

    nltk.data.path.insert(0, str(out))  # it writes only where it may read
    folder = out / "tokenizers/punkt_tab/english"
    folder.mkdir(parents=True, mode=0o700)
    text = "\n".join(json.loads(row)["output"] for row in dolly_rows(shared)[:200])
    save_punkt_params(PunktTrainer(text).get_params(), dir=str(folder))
    return out
