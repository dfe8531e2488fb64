"""sb3_distill's two student-driven loops, implemented again on Stable-Baselines3, on every command some rounds of one.

sb3_distill (Spigler, MIT, github.com/spiglerg/sb3_distill at e82ff6b) is on no package index. What it computes in an
update was read in its source, and is written here anew:

- the student's distribution, value and entropy for a minibatch, with a gradient;
- the teacher's distribution for the same minibatch, run again in every one of them, with a graph that nothing uses;
- the student's distribution once more, for the KL;
- in student-distill, the teacher's values, run once more, which the student's value function is fitted to.

Everything else is Stable-Baselines3: its preprocessing of Atari games in Python, its frame stack, rollout buffer and
collection. All copies are in this process (DummyVecEnv): processes of their own would cost more CPU time, not less.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ale_py
import gymnasium
import stable_baselines3
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.pipe import Channel, arguments
from benchmarks.sb3_distill_setting import Setting, network
from benchmarks.timing import Parts, peak_bytes
from opdbench.rl.conv_policy import ConvPolicy
from opdbench.rl.training_network import RusuExtractor


class StudentDistill(OnPolicyAlgorithm):
    """One update on the whole batch: KL(teacher || student), and the teacher's values."""

    teacher: ActorCriticCnnPolicy

    def train(self) -> None:
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        for batch in self.rollout_buffer.get(batch_size=None):
            value_n, _, entropy_n = self.policy.evaluate_actions(batch.observations, batch.actions.long().flatten())
            self.distance = kl(self.teacher, self.policy, batch.observations).mean()
            fit = mse_loss(value_n.flatten(), self.teacher.predict_values(batch.observations).flatten())
            update(self, self.distance + self.vf_coef * fit - self.ent_coef * entropy_n.mean())


class ProximalPolicyDistillation(PPO):
    """PPO's loss and max(ratio, 1 - clip) KL(teacher || student), for some passes over minibatches."""

    teacher: ActorCriticCnnPolicy

    def train(self) -> None:
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip = self.clip_range(self._current_progress_remaining)
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                value_n, logp_n, entropy_n = self.policy.evaluate_actions(batch.observations,
                                                                          batch.actions.long().flatten())
                gain_n = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
                ratio_n = (logp_n - batch.old_log_prob).exp()
                surrogate = torch.min(gain_n * ratio_n, gain_n * ratio_n.clamp(1 - clip, 1 + clip)).mean()
                fit = mse_loss(batch.returns, value_n.flatten())
                distance_n = kl(self.teacher, self.policy, batch.observations)
                self.distance = distance_n.mean()
                update(self, (ratio_n.clamp(min=1 - clip) * distance_n).mean() - surrogate + self.vf_coef * fit
                       - self.ent_coef * entropy_n.mean())


def kl(teacher: ActorCriticCnnPolicy, student: ActorCriticCnnPolicy, observation_n: Tensor) -> Tensor:
    """KL(teacher || student) [N]; both networks are run."""
    pair = (policy.get_distribution(observation_n).distribution for policy in (teacher, student))
    return torch.distributions.kl_divergence(*pair)


def update(algorithm: OnPolicyAlgorithm, loss: Tensor) -> None:
    algorithm.policy.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(algorithm.policy.parameters(), algorithm.max_grad_norm)
    algorithm.policy.optimizer.step()


def make_env(setting: Setting) -> VecEnv:
    """As in sb3_distill's example, but for the copies' processes."""
    gymnasium.register_envs(ale_py)
    game = "".join(word.capitalize() for word in setting.game.split("-"))
    env = make_atari_env(f"{game}NoFrameskip-v4", n_envs=setting.copies, seed=0,
                         wrapper_kwargs={"clip_reward": False, "terminal_on_life_loss": True})
    return VecFrameStack(VecNormalize(env, norm_obs=False), n_stack=4)


def make_model(setting: Setting, env: VecEnv) -> StudentDistill | ProximalPolicyDistillation:
    def policy_of(name: str) -> dict[str, Any]:
        return {"features_extractor_class": RusuExtractor, "net_arch": [],
                "features_extractor_kwargs": {"network": name, "bfloat16": False}}

    common: dict[str, Any] = {
        "policy": ActorCriticCnnPolicy, "env": env, "n_steps": setting.horizon, "learning_rate": 3e-4, "gamma": 0.999,
        "ent_coef": 0.01, "policy_kwargs": policy_of(setting.student), "device": "cpu", "seed": 0}
    model: StudentDistill | ProximalPolicyDistillation
    if setting.method == "student-distill":
        space = (gymnasium.spaces.Discrete,)
        model = StudentDistill(**common, gae_lambda=1.0, vf_coef=0.5, max_grad_norm=0.5, use_sde=False,
                               sde_sample_freq=-1, supported_action_spaces=space)
    else:
        model = ProximalPolicyDistillation(**common, n_epochs=setting.epochs, batch_size=setting.minibatch)
    model.teacher = ActorCriticCnnPolicy(model.observation_space, model.action_space, lambda _: 0.0,
                                         **policy_of(setting.teacher))
    actions = int(model.action_space.n)  # type: ignore[attr-defined]
    copy_weights(network(setting.teacher, actions, "teacher"), model.teacher)
    copy_weights(network(setting.student, actions, "student"), model.policy)
    model.set_logger(Logger(None, []))
    return model


def copy_weights(source: ConvPolicy, target: Any) -> None:
    """Make the actor of `target` the policy `source`."""
    extractor, own = target.features_extractor, source.network
    convolutions = [layer for layer in extractor.cnn if isinstance(layer, torch.nn.Conv2d)]
    for mine, theirs in zip([*own.convolutions, own.hidden, own.heads[0]],
                            [*convolutions, extractor.linear[0], target.action_net], strict=True):
        theirs.load_state_dict(mine.state_dict())


def rounds_of(model: StudentDistill | ProximalPolicyDistillation) -> Callable[[int], None]:
    """A function that collects and updates a number of times."""
    callback = CallbackList([])
    callback.init_callback(model)
    model._last_obs = model.env.reset()
    model._last_episode_starts = torch.ones(model.n_envs, dtype=torch.bool).numpy()
    model.ep_info_buffer, model.ep_success_buffer = [], []

    def advance(number: int) -> None:
        for _ in range(number):
            model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
            model.train()

    return advance


def main() -> None:
    channel, given = Channel(), arguments()
    setting = Setting(**given)
    torch.set_num_threads(1)
    model = make_model(setting, make_env(setting))
    advance, parts = rounds_of(model), Parts()
    parts.wrap(model, "collect_rollouts", "collect")
    parts.wrap(model, "train", "train")
    channel.send({"name": "sb3_distill's loop", "version": f"stable-baselines3 {stable_baselines3.__version__}, "
                                                           f"ale-py {ale_py.__version__}"})
    while channel.wait():
        wall, cpu = time.perf_counter(), time.process_time()
        advance(setting.rounds)
        channel.send({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "parts": parts.pop(),
                      "steps": setting.steps(), "loss": float(model.distance), "peak": peak_bytes("cpu")})


if __name__ == "__main__":
    main()
