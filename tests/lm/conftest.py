"""Folders of tiny models, made once a session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from opdbench.lm import endpoint
from opdbench.lm.model import load
from opdbench.lm.policy import LanguagePolicy
from tests.lm import asking, models
from tests.lm.completions_server import Running, serve


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, PreTrainedModel]]:
    """`made(name)` -> (folder, transformers' model) of a tiny architecture of tests/lm/models.py."""

    @cache
    def make(name: str) -> tuple[Path, PreTrainedModel]:
        folder = tmp_path_factory.mktemp("models") / name
        return folder, models.make(folder, name)

    return make


@pytest.fixture(scope="session")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A completions server for chain-sum's own teacher, with a chat template."""
    folder = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(asking.SERVED, folder)
    (folder / "chat_template.jinja").write_text(asking.TEMPLATE)
    with serve(folder) as running:
        yield running


@pytest.fixture
def server(process: Running, monkeypatch: pytest.MonkeyPatch) -> Running:
    """It, in good order; who asks it does not wait long between attempts."""
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.01)
    process.set()
    return process


@pytest.fixture(scope="session")
def teacher() -> LanguagePolicy:
    return load(asking.SERVED)


@pytest.fixture(scope="session")
def student() -> LanguagePolicy:
    return load(asking.LOCAL)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
