"""`ppo` beside Stable-Baselines3's own code: a minibatch's loss and gradient, advantages, the return on CartPole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO as SB3
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import Tensor

from benchmarks import ppo_parity
from opdbench import advantages
from opdbench.baselines.ppo import PPO
from opdbench.conformance.harness import make_rows
from opdbench.context import Context
from opdbench.rl.policy import Architecture, ControlPolicy
from opdbench.rl.world import ControlWorld
from opdbench.rollouts import Rollouts
from opdbench.tasks.control import CartPole
from opdbench.value_network import OBSERVATION
from tests.enumerable import context, generator, make, near

COPIES, STEPS, CLIP, ENTROPY, VALUE = 4, 16, 0.2, 0.01, 0.5
MARGIN = 25.0  # of 500, the largest return


class Wide(FlattenExtractor):
    """Observations in float64: Stable-Baselines3 makes them float32 before."""

    def forward(self, observations: Tensor) -> Tensor:
        return super().forward(observations.double())


def sb3_model(*, normalize: bool) -> SB3:
    """One minibatch, one step of plain gradient descent with rate 1: what the weights lose is the gradient."""
    model = SB3("MlpPolicy", make_vec_env(CartPole().make, COPIES, seed=0), n_steps=STEPS, batch_size=COPIES * STEPS,
                n_epochs=1, learning_rate=1.0, clip_range=CLIP, ent_coef=ENTROPY, vf_coef=VALUE, max_grad_norm=1e12,
                normalize_advantage=normalize, seed=0, device="cpu",
                policy_kwargs={"net_arch": [8, 8], "features_extractor_class": Wide,
                               "optimizer_class": torch.optim.SGD})
    model.policy.double()
    with torch.no_grad():
        model.policy.action_net.weight.mul_(50)  # at first all but zero, so that nothing reaches the layers below
    model.set_logger(configure(None, []))
    return model


def small_policy(weights: dict[str, Tensor], net: str, head: str, outputs: int) -> ControlPolicy:
    """A network of the model's, as ours."""
    policy = ControlPolicy(Architecture((4,), outputs, (8, 8))).double()
    names = {f"layers.{i}.{kind}": f"mlp_extractor.{net}.{2 * i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
    names |= {f"head.{kind}": f"{head}.{kind}" for kind in ("weight", "bias")}
    policy.load_state_dict({name: weights[theirs] for name, theirs in names.items()})
    return policy


def minibatch(ctx: Context, weights: dict[str, Tensor]) -> tuple[PPO, Rollouts, Tensor, Tensor]:
    """Ours with the model's weights, a rollout whose actions have been sampled at other weights, and in float64 their
    log-probabilities then [N] and raw advantages [N]."""
    method = make(PPO, clip=CLIP, entropy=ENTROPY, value_weight=VALUE, epochs=1, minibatches=1)
    assert isinstance(method, PPO)
    method.build(ctx)
    value = small_policy(weights, "value_net", "value_net", 1)
    method.critic.body = value
    method.critic.head.data, method.critic.bias.data = value.head.weight[0].clone(), value.head.bias[0].clone()
    ctx.begin_step()
    collected = method.collect(ctx)
    rollouts = ctx.separable(method.prepare(collected, ctx))
    noise_n = torch.empty(COPIES * STEPS, dtype=torch.float64).normal_(0, 0.4, generator=generator(3))
    with torch.no_grad():
        rows = make_rows(ctx, rollouts)
        old_n = rows.student.logp(rows.action_n) + noise_n
    return method, rollouts, old_n, torch.empty_like(old_n).normal_(1.0, 3.0, generator=generator(4))


def fill(buffer: RolloutBuffer, rollouts: Rollouts, old_n: Tensor, raw_n: Tensor) -> None:
    """The same rows in Stable-Baselines3's buffer, as its `get` hands them out, in float64."""
    buffer.reset()
    n = COPIES * STEPS
    columns = {"observations": rollouts.input_bt[:, 0], "actions": rollouts.action_bt, "log_probs": old_n[:, None],
               "advantages": raw_n[:, None], "returns": rollouts.columns["return"].double(),
               "values": torch.zeros(n, 1, dtype=torch.float64)}
    for name, value in columns.items():
        setattr(buffer, name, value.numpy())
    buffer.full = buffer.generator_ready = True


@pytest.mark.parametrize("normalize", [False, True])
def test_a_minibatchs_loss_and_gradient_are_stable_baselines3s(normalize: bool) -> None:
    """On rows of which some ratios have left the interval, others not. Its advantages are divided by the unbiased
    deviation, ours by the other, over the same rows."""
    model = sb3_model(normalize=normalize)
    weights = {name: value.detach().clone() for name, value in model.policy.state_dict().items()}
    student = small_policy(weights, "policy_net", "action_net", 2)
    ctx = context(ControlWorld(CartPole(), student, None, seed=0), batch=COPIES, horizon=STEPS)
    method, rollouts, old_n, raw_n = minibatch(ctx, weights)
    fill(model.rollout_buffer, rollouts, old_n, raw_n)
    model.train()
    theirs = {name: weights[name] - value for name, value in model.policy.state_dict().items()}

    n, mine_n = len(raw_n), raw_n
    if normalize:
        whole = torch.ones(n, 1, dtype=torch.bool)
        mine_n = advantages.whitened(raw_n[:, None], whole)[:, 0] * ((n - 1) / n) ** 0.5
    rows = make_rows(ctx, rollouts)
    rows.behaviour_logp_n = old_n
    rows.columns = {**rows.columns, "advantage": mine_n, "return": rollouts.columns["return"][:, 0].double(),
                    OBSERVATION: rollouts.input_bt[:, 0]}
    ratio_n = (rows.student.logp(rows.action_n) - old_n).exp()
    assert 0.2 < float(((ratio_n - 1).abs() > CLIP).double().mean()) < 0.9
    total = method.loss(rows, ctx).value_n.mean()
    total.backward()
    tolerance = 1e-6 if normalize else 1e-12  # 1e-6 and 1e-8 are added to the deviation
    assert near(total.detach(), model.logger.name_to_value["train/loss"], tolerance)
    for net, own in (("policy_net", student), ("value_net", method.critic.body)):
        for i in (0, 1):
            for kind in ("weight", "bias"):
                found = getattr(own.layers[i], kind).grad  # type: ignore[union-attr, index]
                assert near(found, theirs[f"mlp_extractor.{net}.{2 * i}.{kind}"], tolerance)
                assert float(found.abs().max()) > 1e-3
    for kind, head in (("weight", method.critic.head), ("bias", method.critic.bias)):
        assert near(getattr(student.head, kind).grad, theirs[f"action_net.{kind}"], tolerance)
        assert near(head.grad, theirs[f"value_net.{kind}"].squeeze(), tolerance)  # type: ignore[arg-type]


def test_advantages_and_returns_are_stable_baselines3s_where_the_segment_ends_with_an_episode() -> None:
    """And where it does not, it bootstraps from the next state, which is not in the batch here."""
    rng = np.random.default_rng(0)
    reward_tb, value_tb = rng.normal(size=(2, STEPS, COPIES))
    done_tb = rng.random((STEPS, COPIES)) < 0.2
    done_tb[-1] = True
    model: Any = sb3_model(normalize=False)
    buffer = RolloutBuffer(STEPS, model.observation_space, model.action_space, "cpu", gae_lambda=0.8, gamma=0.98,
                           n_envs=COPIES)
    buffer.rewards, buffer.values = reward_tb, value_tb
    buffer.advantages = np.zeros((STEPS, COPIES))
    buffer.episode_starts = np.concatenate([np.ones((1, COPIES)), done_tb[:-1]])
    buffer.compute_returns_and_advantage(torch.zeros(COPIES), done_tb[-1])
    reward_bt, value_bt, done_bt = (torch.from_numpy(array.T.copy()) for array in (reward_tb, value_tb, done_tb))
    mask_bt = torch.ones_like(done_bt)
    unseen_bt = advantages.unseen_ahead(mask_bt, done_bt)
    assert not unseen_bt.any()
    mine_bt = advantages.generalised(reward_bt, value_bt, mask_bt, done_bt, unseen_bt, discount=0.98, decay=0.8)
    assert near(mine_bt, torch.from_numpy(buffer.advantages.T.copy()))
    assert near(mine_bt + value_bt, torch.from_numpy(buffer.returns.T.copy()))


def test_the_comparison_pairs_seeds_and_episodes() -> None:
    """The paired interval is narrower than what the spread between seeds, which both share, would make it."""
    rng = np.random.default_rng(0)
    shared_sqe = rng.normal(100, 40, (3, 1, 1)) + rng.normal(0, 5, (3, 4, 20))
    mine = [ppo_parity.Run(score_qe, 2.0) for score_qe in shared_sqe]
    other = [ppo_parity.Run(score_qe - 7 + rng.normal(0, 1, (4, 20)), 4.0) for score_qe in shared_sqe]
    low, high = ppo_parity.difference(mine, other).interval()[1:3]
    assert 6 < low < 7 < high < 8
    lines = ppo_parity.report(mine, other, 512).splitlines()
    assert [line.split(" |")[0] for line in lines[2:]] == ["| opdbench", "| Stable-Baselines3", "| paired difference"]
    assert "| 128 steps | 256 steps | 384 steps | 512 steps |" in lines[0] and lines[2].endswith("| 2 |")


@pytest.mark.parametrize("train", [ppo_parity.ours, ppo_parity.theirs])
def test_both_are_looked_at_after_every_quarter(train: Callable[[int, int], ppo_parity.Run],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo_parity, "SHARED", {**ppo_parity.SHARED, "epochs": 1})
    run = train(0, 1024)
    assert run.score_qe.shape == (4, 100) and run.cpu > 0 and (run.score_qe >= 8).all()  # a pole falls no sooner


@pytest.mark.slow
def test_equal_return_on_cartpole() -> None:
    """Three seeds of 51,200 steps each: some five minutes of CPU time."""
    mine, other = ppo_parity.compare(range(3), 51_200)
    for runs in (mine, other):
        assert np.mean([run.score_qe[-1] for run in runs]) > 475
    assert abs(ppo_parity.difference(mine, other).mean) < MARGIN
