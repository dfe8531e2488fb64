"""Bad folders: each a clear sentence that names the file, never a traceback or a half-random model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opdbench.errors import UserError
from opdbench.lm.model import load

Damage = Callable[[Path], object]


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut(path: Path, fraction: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])


def pickle_instead(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"never opened")


def change_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def drop_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))


BROKEN: dict[str, tuple[Damage, str]] = {
    "no folder": (shutil.rmtree, "there is no model folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config cut": (lambda folder: cut(folder / "config.json", 0.5), "not valid JSON"),
    "config without type": (lambda folder: (folder / "config.json").write_text("{}"), "model_type"),
    "config of a list": (lambda folder: (folder / "config.json").write_text("[]"), "JSON object"),
    "config without a size": (drop_size, "hidden_size"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
    "pickled weights": (pickle_instead, "can run code"),
    "weights cut late": (lambda folder: cut(folder / "model.safetensors", 0.9), "cut short"),
    "weights cut early": (lambda folder: cut(folder / "model.safetensors", 0.001), "cut short"),
    "weights empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cut short"),
    "a weight missing": (lambda folder: rewrite(folder, lambda weights: weights.pop("model.norm.weight")),
                         "lacks 1 of .* model.norm.weight"),
    "another shape": (lambda folder: change_config(folder, intermediate_size=40), "has shape .* contradicts"),
    "no tokenizer": (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "cannot read a tokenizer"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_one_clear_sentence(made: Callable[[str], tuple[Path, object]], name: str,
                                               tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made("qwen3")[0], folder)
    damage, message = BROKEN[name]
    damage(folder)
    with pytest.raises(UserError, match=message) as raised:
        load(folder)
    assert raised.value.fix and "\n" not in raised.value.problem


@pytest.mark.parametrize(("name", "message"), [("weights cut late", "cannot load"), ("pickled weights", "can run code"),
                                               ("no tokenizer", "cannot read a tokenizer")])
def test_transformers_models_too(made: Callable[[str], tuple[Path, object]], name: str, message: str,
                                 tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made("gpt2")[0], folder)
    BROKEN[name][0](folder)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_transformers_must_not_fill_a_missing_weight_with_noise(made: Callable[[str], tuple[Path, object]],
                                                                tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made("gpt2")[0], folder)
    rewrite(folder, lambda weights: weights.pop("transformer.h.0.attn.c_attn.weight"))
    with pytest.raises(UserError, match=r"lacks weights, such as .*c_attn"):
        load(folder)


def test_an_unknown_architecture_is_transformers_to_refuse(made: Callable[[str], tuple[Path, object]],
                                                           tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made("gpt2")[0], folder)
    change_config(folder, model_type="of-tomorrow")
    with pytest.raises(UserError, match=r"cannot load .*of-tomorrow"):
        load(folder)


def test_shards_are_read_and_a_missing_one_is_named(made: Callable[[str], tuple[Path, object]], tmp_path: Path) -> None:
    folder, model = made("qwen3")
    shutil.copytree(folder, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")  # type: ignore[attr-defined]
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 2
    sharded, whole = load(tmp_path / "sharded"), load(folder)
    assert all(torch.equal(a, b) for a, b in zip(sharded.parameters(), whole.parameters(), strict=True))
    shards[1].unlink()
    with pytest.raises(UserError, match=f"lacks 1 of {len(shards)} weight files.*{shards[1].name}"):
        load(tmp_path / "sharded")


def test_an_index_cannot_point_outside_its_folder(made: Callable[[str], tuple[Path, object]], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made("qwen3")[0], folder)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="lacks 1 of 1 weight files"):
        load(folder)
