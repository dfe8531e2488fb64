"""Control policies: arithmetic, storage, and refusal of folders that are broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from opdbench.errors import UserError
from opdbench.rl.load import load_policy
from opdbench.rl.policy import Architecture, ControlPolicy, Normalization
from opdbench.seeds import generator

ARCHITECTURE = Architecture((2, 3), 4, (8, 5), "relu")


def _policy() -> ControlPolicy:
    return ControlPolicy(ARCHITECTURE, generator=generator(0, "test"))


def _logits(policy: ControlPolicy, x: torch.Tensor) -> torch.Tensor:
    return policy.project(policy.features(x, torch.full((len(x),), x.shape[1])))


def test_is_the_perceptron_it_says() -> None:
    policy = _policy().double()
    x = torch.randn(3, 7, 2, 3, dtype=torch.float64, generator=generator(1))
    reference = nn.Sequential(nn.Flatten(2), policy.layers[0], nn.ReLU(), policy.layers[1], nn.ReLU(), policy.head)
    assert _logits(policy, x).dtype == torch.float64
    torch.testing.assert_close(_logits(policy, x), reference(x))


def test_normalises_as_vecnormalize_does() -> None:
    from stable_baselines3.common.running_mean_std import RunningMeanStd

    statistics = RunningMeanStd(shape=(6,))
    data = torch.randn(50, 6, generator=generator(2)).numpy() * 3 + 1
    statistics.update(data)
    normalization = Normalization.from_moments(statistics.mean, statistics.var, 1e-8, clip=1.5)
    clipped = (data - statistics.mean) / (statistics.var + 1e-8) ** 0.5
    architecture = Architecture((6,), 2, (), observation_clip=1.5)
    policy = ControlPolicy.from_tensors(architecture, {
        "head.weight": torch.randn(2, 6, generator=generator(3)), "head.bias": torch.zeros(2),
        "observation_mean": normalization.mean, "observation_scale": normalization.scale})
    expected = torch.from_numpy(clipped.clip(-1.5, 1.5)).float() @ policy.head.weight.T
    torch.testing.assert_close(_logits(policy, torch.from_numpy(data)[None]), expected[None])


def test_initialisation_depends_on_the_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = _policy(), _policy()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.0), (torch.float16, 2e-3)])
def test_is_the_same_after_storing(tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    policy = _policy()
    policy.save(tmp_path / "policy", dtype=dtype)
    stored = load_policy(tmp_path / "policy")
    x = torch.randn(2, 5, 2, 3, generator=generator(4))
    torch.testing.assert_close(_logits(stored, x), _logits(policy, x), rtol=0, atol=tolerance)
    assert stored.architecture == ARCHITECTURE and next(stored.parameters()).dtype == torch.float32


def test_counts_multiply_accumulates_twice() -> None:
    assert _policy().forward_flops(10, context=3.0) == 10 * 2 * (6 * 8 + 8 * 5 + 5 * 4)


def _cut_short(folder: Path) -> None:
    weights = (folder / "policy.safetensors").read_bytes()
    (folder / "policy.safetensors").write_bytes(weights[:-10])


def _other_shape(folder: Path) -> None:
    description = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(description | {"n_actions": 5}))


def _huge(folder: Path) -> None:
    description = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps(description | {"hidden": [10**6, 10**6]}))


def _not_finite(folder: Path) -> None:
    policy = ControlPolicy.load(folder)
    with torch.no_grad():
        policy.head.bias[0] = torch.nan
    policy.save(folder)


@pytest.mark.parametrize(("harm", "says"), [
    (_cut_short, "policy.safetensors cannot be read"),
    (_other_shape, r"tensor head.weight has shape \(4, 5\), expected \(5, 5\)"),
    (_huge, "out of range"),
    (_not_finite, "not finite"),
    (lambda folder: (folder / "policy.safetensors").unlink(), "no policy.safetensors"),
    (lambda folder: (folder / "policy.json").unlink(), "it has no policy.json"),
    (lambda folder: (folder / "policy.json").write_text('{"format": 1'), "policy.json cannot be read"),
    (lambda folder: (folder / "policy.json").write_text('{"format": 1}'), "does not describe a policy"),
    (lambda folder: (folder / "policy.json").write_text('[]'), "does not describe a policy"),
], ids=["cut short", "other shape", "huge", "not finite", "no weights", "no json", "half json", "empty json", "a list"])
def test_broken_folder_is_one_clear_error(tmp_path: Path, harm: object, says: str) -> None:
    _policy().save(tmp_path)
    harm(tmp_path)  # type: ignore[operator]
    with pytest.raises(UserError, match=says) as caught:
        load_policy(tmp_path)
    assert caught.value.fix


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the policy"):
        _policy().save(tmp_path / "file" / "policy")
