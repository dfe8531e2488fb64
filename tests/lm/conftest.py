"""Folders of tiny models, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.lm import models


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, PreTrainedModel]]:
    """`made(name)` -> (folder, transformers' model) of a tiny architecture of tests/lm/models.py."""

    @cache
    def make(name: str) -> tuple[Path, PreTrainedModel]:
        folder = tmp_path_factory.mktemp("models") / name
        return folder, models.make(folder, name)

    return make


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
