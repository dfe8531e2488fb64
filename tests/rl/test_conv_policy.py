"""Convolutional policies: the network's own numbers, files that come back, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from opdbench.errors import UserError
from opdbench.rl.conv_policy import CHUNK, ConvPolicy, multiplications
from opdbench.rl.convolutional import RUSU
from opdbench.rl.load import load_policy
from opdbench.seeds import generator

SMALLEST = RUSU["net3"]


def frames(*lead: int) -> torch.Tensor:
    return torch.randint(0, 256, (*lead, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_features_and_projection_are_the_networks_output() -> None:
    policy, seen = ConvPolicy.named("net3", 6, generator=generator(0, "test")), frames(2, 3)
    features_bth = policy.features(seen, torch.tensor([3, 3]))
    assert features_bth.shape == (2, 3, policy.n_features) and features_bth.requires_grad
    torch.testing.assert_close(policy.project(features_bth.flatten(0, 1)), policy.network(seen.flatten(0, 1)))


def test_in_bfloat16_what_it_says_and_how_it_learns_are_nearly_the_same_and_wide() -> None:
    policy, seen = ConvPolicy.named("net3", 6, generator=generator(0, "test")), frames(4, 8)
    found = []
    for policy.network.in_bfloat16 in (False, True):
        logits_na = policy.project(policy.features(seen, torch.full((4,), 8)).flatten(0, 1))
        assert logits_na.dtype == torch.float32
        gradient = torch.autograd.grad(logits_na.square().sum(), list(policy.parameters()))
        assert {part.dtype for part in gradient} == {torch.float32}
        found.append((logits_na, torch.cat([part.flatten() for part in gradient])))
        with torch.no_grad():
            read = policy.reader()(seen[0])
        torch.testing.assert_close(read.logits_na, logits_na[:8].detach(), rtol=0, atol=1e-4)
    for wide, narrow in zip(*found, strict=True):
        assert 0 < (narrow - wide).norm() < 0.02 * wide.norm()


def test_without_a_gradient_states_are_read_in_chunks() -> None:
    policy, seen = ConvPolicy.named("net3", 6, generator=generator(0, "test")), frames(1, CHUNK + 3)
    with torch.no_grad():
        found_bth = policy.features(seen, torch.tensor([CHUNK + 3]))
        torch.testing.assert_close(found_bth[0], policy.network.features(seen[0]))


def test_a_fresh_one_depends_on_its_generator_alone_and_is_nearly_uniform() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (ConvPolicy.named("net3", 6, generator=generator(seed, "test")) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [policy.network.hidden.weight for policy in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    with torch.no_grad():
        assert one.network(frames(4)).softmax(-1).sub(1 / 6).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_saved_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    policy = ConvPolicy.named("net3", 6, generator=generator(0, "test"))
    policy.save(tmp_path, dtype=dtype)
    again = load_policy(tmp_path)
    assert isinstance(again, ConvPolicy) and again.architecture == policy.architecture
    for name, tensor in policy.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.to(dtype).float())
    assert (tmp_path / "policy.safetensors").stat().st_size < 250_000


@pytest.mark.parametrize(("change", "says"), [
    ({"format": 2}, "another version"), ({"channels": [16, 16]}, "unpack"), ({"hidden": 10**9}, "out of range"),
    ({"actions": [3, 6]}, "several games"), ({"hidden": 32}, "has shape"), ({"frames": 0}, "out of range")])
def test_a_description_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    ConvPolicy.named("net3", 6).save(tmp_path)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=says):
        load_policy(tmp_path)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    ConvPolicy.named("net3", 6).save(tmp_path)
    path = tmp_path / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read"):
        load_policy(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"no policy\.safetensors"):
        load_policy(tmp_path)


def test_flops_are_twice_the_multiplications_of_every_place() -> None:
    # 20 x 20, 9 x 9 and 7 x 7 places; 16 channels each; 784 to 64 to 18.
    expected = 400 * 16 * 4 * 64 + 81 * 16 * 16 * 16 + 49 * 16 * 16 * 9 + 784 * 64 + 64 * 18
    assert multiplications(SMALLEST) == expected
    assert ConvPolicy(SMALLEST).forward_flops(5, 1) == 10 * expected
