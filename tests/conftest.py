"""Shared by all tests: one thread, no network, and where the shared data lie."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)

SHARED = Path(os.environ.get("OPDBENCH_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data files that lies beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the shared data: there is no {SHARED / 'data'} (set OPDBENCH_SHARED to its parent)")
    return SHARED / "data"
