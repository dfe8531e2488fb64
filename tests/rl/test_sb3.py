"""Stable-Baselines3 files: equal to SB3's own predictions, and nothing in them is run."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO

from opdbench.distributions import Gaussian
from opdbench.errors import UserError
from opdbench.rl import sb3
from opdbench.rl.conv_policy import ConvPolicy
from opdbench.rl.load import load_policy
from opdbench.rl.policy import ControlPolicy

ALGORITHMS = {
    "ppo": lambda: PPO("MlpPolicy", "CartPole-v1", seed=1, device="cpu", n_steps=8, batch_size=8),
    "ppo-relu": lambda: PPO("MlpPolicy", "CartPole-v1", seed=2, device="cpu", n_steps=8, batch_size=8, policy_kwargs={
        "activation_fn": torch.nn.ReLU, "net_arch": {"pi": [7, 5], "vf": [3]}}),
    "a2c": lambda: A2C("MlpPolicy", "Acrobot-v1", seed=3, device="cpu", policy_kwargs={"net_arch": [9]}),
    "dqn": lambda: DQN("MlpPolicy", "CartPole-v1", seed=4, device="cpu", buffer_size=10,
                       policy_kwargs={"net_arch": [6, 6, 6]}),
}


def _logits(policy: ControlPolicy, observations: np.ndarray) -> torch.Tensor:
    input_bt = torch.from_numpy(observations)[:, None]
    return policy.project(policy.features(input_bt, torch.ones(len(input_bt), dtype=torch.int64))[:, 0])


@pytest.fixture(scope="module")
def ppo_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sb3") / "ppo.zip"
    ALGORITHMS["ppo"]().save(path)
    return path


@pytest.mark.parametrize("name", ALGORITHMS)
def test_predicts_as_sb3_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = ALGORITHMS[name]()
    draws = torch.Generator().manual_seed(0)
    for parameter in model.policy.parameters():  # biases start at zero, and heads so small that one action always wins
        parameter.data.normal_(std=0.7, generator=draws)
    model.save(tmp_path / "model.zip")
    observations = np.random.default_rng(0).normal(size=(256, *model.observation_space.shape)).astype(np.float32)
    greedy, _ = model.predict(observations, deterministic=True)
    tensor = torch.from_numpy(observations)
    expected = model.q_net(tensor) if name == "dqn" else model.policy.get_distribution(tensor).distribution.logits
    _forbid_unpickling(monkeypatch)
    logits = _logits(load_policy(tmp_path / "model.zip"), observations)
    if name != "dqn":
        logits = logits.log_softmax(-1)
    torch.testing.assert_close(logits, expected.detach())
    assert np.array_equal(logits.argmax(-1).numpy(), greedy) and len(set(greedy.tolist())) > 1


def test_a_gaussian_is_sb3s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PPO("MlpPolicy", "Pendulum-v1", seed=1, device="cpu", policy_kwargs={"net_arch": [7, 5]})
    draws = torch.Generator().manual_seed(0)
    for parameter in model.policy.parameters():
        parameter.data.normal_(std=0.7, generator=draws)
    model.save(tmp_path / "model.zip")
    input_bt = torch.randn(64, 1, 3, generator=draws)
    expected: Any = model.policy.get_distribution(input_bt[:, 0]).distribution
    _forbid_unpickling(monkeypatch)
    policy = load_policy(tmp_path / "model.zip")
    found = policy.distribution(policy.features(input_bt, torch.ones(64, dtype=torch.int64))[:, 0])
    assert isinstance(found, Gaussian)
    torch.testing.assert_close(found.mean_nd, expected.mean)
    torch.testing.assert_close(found.log_std_nd.exp(), expected.stddev)
    action_nd = torch.randn(64, 1, generator=draws)
    torch.testing.assert_close(found.logp(action_nd), expected.log_prob(action_nd).sum(-1))


class Pictures(gymnasium.Env[Any, Any]):
    """Four frames and six actions, and nothing behind them."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(6)


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_convolutional_policy_predicts_as_sb3_does(algorithm: Any, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    few: dict[str, int] = {"n_steps": 2, "batch_size": 2} if algorithm is PPO else {"buffer_size": 2}
    model = algorithm("CnnPolicy", Pictures(), seed=1, device="cpu", **few)
    draws = torch.Generator().manual_seed(0)
    for parameter in model.policy.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=draws), alpha=0.05)
    model.save(tmp_path / "model.zip")
    observations = np.random.default_rng(0).integers(0, 256, (16, 4, 84, 84), np.uint8)
    tensor = torch.from_numpy(observations)
    expected = model.q_net(tensor) if algorithm is DQN else model.policy.get_distribution(tensor).distribution.logits
    _forbid_unpickling(monkeypatch)
    policy = load_policy(tmp_path / "model.zip")
    assert isinstance(policy, ConvPolicy)
    assert (policy.architecture.channels, policy.architecture.hidden) == ((32, 64, 64), 512)
    logits = _logits(policy, observations)  # type: ignore[arg-type]
    torch.testing.assert_close(logits if algorithm is DQN else logits.log_softmax(-1), expected.detach(), atol=1e-4,
                               rtol=1e-4)


def test_a_convolutional_policy_with_further_layers_is_refused() -> None:
    tensors = {"features_extractor.cnn.0.weight": torch.zeros(32, 4, 8, 8), "action_net.weight": torch.zeros(6, 64),
               "mlp_extractor.policy_net.0.weight": torch.zeros(64, 512)}
    with pytest.raises(ValueError, match="further hidden layers"):
        sb3.policy_from_tensors(tensors, observation_shape=(4, 84, 84), activation="relu")
    del tensors["mlp_extractor.policy_net.0.weight"]
    with pytest.raises(ValueError, match=r"no features_extractor\.cnn\.0\.bias"):
        sb3.policy_from_tensors(tensors, observation_shape=(4, 84, 84), activation="relu")


def _forbid_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    import cloudpickle

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was read")

    for module in (pickle, cloudpickle):
        for name in ("loads", "load"):
            monkeypatch.setattr(module, name, forbidden)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "boom"))


def _with_member(source: Path, target: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.namelist():
            new.writestr(member, content if member == name else old.read(member))
    return target


def test_a_pickle_bomb_among_the_weights_is_not_run(ppo_zip: Path, tmp_path: Path) -> None:
    weights = io.BytesIO()
    torch.save({"action_net.weight": torch.zeros(2, 2), "bomb": Bomb(tmp_path / "boom")}, weights)
    path = _with_member(ppo_zip, tmp_path / "model.zip", "policy.pth", weights.getvalue())
    with pytest.raises(UserError, match="holds more than tensors") as caught:
        load_policy(path)
    assert "--trust-pickle" in str(caught.value.fix)
    assert not (tmp_path / "boom").exists()
    # With the flag the bomb does go off: this is what the refusal protects from, and shows that it would have worked.
    with pytest.raises(UserError):
        load_policy(path, trust_pickle=True)
    assert (tmp_path / "boom").exists()


def test_a_pickle_bomb_in_the_data_is_not_even_decoded(ppo_zip: Path, tmp_path: Path) -> None:
    import base64
    import json

    with zipfile.ZipFile(ppo_zip) as archive:
        data = json.loads(archive.read("data"))
    bomb = base64.b64encode(pickle.dumps(Bomb(tmp_path / "boom"))).decode()
    for entry in data.values():
        if isinstance(entry, dict) and ":serialized:" in entry:
            entry[":serialized:"] = bomb
    path = _with_member(ppo_zip, tmp_path / "model.zip", "data", json.dumps(data).encode())
    assert load_policy(path).n_actions == 2
    assert not (tmp_path / "boom").exists()


def test_an_activation_that_is_not_stated_must_be_given(ppo_zip: Path, tmp_path: Path) -> None:
    path = _with_member(ppo_zip, tmp_path / "model.zip", "data", b"{}")
    with pytest.raises(UserError, match="does not say in plain text which activation") as caught:
        load_policy(path)
    assert "model.zip#tanh" in str(caught.value.fix)
    assert load_policy(path, activation="relu").architecture.activation == "relu"


def test_a_zip_bomb_is_not_unpacked(ppo_zip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sb3, "MAX_MEMBER_BYTES", 10_000)
    with pytest.raises(UserError, match="unpacks to more than"):
        load_policy(ppo_zip)


def _save(model: Any, path: Path) -> Path:
    model.save(path)
    return path


@pytest.mark.parametrize(("make", "says"), [
    (lambda path: path, "there is no file|neither a policy folder"),
    (lambda path: path.write_bytes(b"PK\x03\x04 cut short") and path, "not a readable Stable-Baselines3 .zip"),
    (lambda path: zipfile.ZipFile(path, "w").close() or path, "it has no data"),
    (lambda path: _save(PPO("MlpPolicy", "Pendulum-v1", device="cpu", use_sde=True, policy_kwargs={"net_arch": [3]}),
                        path), "cannot be used: .*gSDE"),
], ids=["missing", "corrupt", "another zip", "state-dependent exploration"])
def test_other_files_are_one_clear_error(make: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        load_policy(make(tmp_path / "model.zip"))


def test_a_file_cut_short(ppo_zip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(ppo_zip) as archive:
        weights = archive.read("policy.pth")
    path = _with_member(ppo_zip, tmp_path / "model.zip", "policy.pth", weights[: len(weights) // 2])
    with pytest.raises(UserError, match=r"policy\.pth in .* cannot be read"):
        load_policy(path)
