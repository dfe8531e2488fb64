"""TRL's loss functions and ours on the same random logits, value and gradient: TRL is an extra for tests.

Everything that touches TRL is in this file, since importing its trainers takes some ten seconds. Trainers are made
without their constructors (which load models and data); the loss functions that are called are TRL's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opdbench import policy_gradient
from opdbench.baselines.gkd import GKD
from opdbench.conformance.harness import gradient
from opdbench.distributions import Categorical
from opdbench.divergences import forward_kl, forward_scaled_jsd, generalized_jsd, reverse_kl
from opdbench.support import Comparison, TopK
from tests.enumerable import context, leaf, make, near, random_logits, small_language

PARITY = 1e-6
B, T, A, K = 3, 4, 29, 6
INF = float("inf")


@pytest.fixture(scope="module")
def trl(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """A module of TRL by name, imported when it is first asked for."""
    pytest.importorskip("trl", reason="TRL is not installed (pip install -e '.[test]' -c constraints.txt)")
    patch = pytest.MonkeyPatch()
    patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    request.addfinalizer(patch.undo)
    return lambda name: import_module(f"trl.{name}")


def ours_at(beta: float) -> Callable[[Categorical, Categorical], Tensor]:
    """What TRL calls JSD(beta), with the two full KLs that it puts in at the ends by their names."""
    if beta == 0:
        return forward_kl
    return reverse_kl if beta == 1 else lambda teacher, student: generalized_jsd(teacher, student, beta)


def sides() -> tuple[Tensor, Tensor]:
    """Logits [B, T, A] of the teacher, and of the student as a leaf."""
    return random_logits(B, T, A, seed=1), leaf(B, T, A, seed=2)


def flat(logits_bta: Tensor) -> Categorical:
    return Categorical(logits_bta.flatten(0, -2))


def agree(ours: Tensor, theirs: Tensor, student: Tensor, tolerance: float = PARITY) -> bool:
    """Equal in value and in gradient, and neither is nothing."""
    slopes = [torch.autograd.grad(value.sum(), student, retain_graph=True)[0] for value in (ours, theirs)]
    assert float(slopes[0].abs().max()) > 100 * tolerance
    return near(ours.detach(), theirs.detach(), tolerance) and near(slopes[0], slopes[1], tolerance)


# ---------------------------------------------------------------------------------------------------- whole vocabulary


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("trainer", ["gkd.gkd_trainer.GKDTrainer", "gold.gold_trainer.GOLDTrainer"])
def test_generalised_jsd(trl: Callable[[str], Any], trainer: str, beta: float) -> None:
    """Per token and action theirs, per token ours; at 0 and 1 theirs are the forward and the reverse KL."""
    module, name = trainer.rsplit(".", 1)
    loss = getattr(trl(f"experimental.{module}"), name).generalized_jsd_loss
    teacher, student = sides()
    for temperature in (1.0, 2.5):
        theirs = loss(student, teacher, beta=beta, temperature=temperature, reduction="none").sum(-1).flatten()
        pair = Comparison(temperature=temperature).pair(flat(teacher), flat(student))
        assert agree(ours_at(beta)(pair.teacher, pair.student), theirs, student)


def test_the_jump_at_the_ends_is_theirs_and_has_a_size(trl: Callable[[str], Any]) -> None:
    """Next to its end their loss is a thousandth of what it is at its end; the rescaled family here has no jump."""
    loss = trl("experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss
    teacher, student = sides()
    at_end, beside = (float(loss(student, teacher, beta=beta, reduction="sum").detach()) for beta in (0.0, 1e-3))
    assert at_end > 500 * beside > 0
    ours = [float(forward_scaled_jsd(flat(teacher), flat(student), beta).sum().detach()) for beta in (0.0, 1e-3)]
    assert ours == pytest.approx([at_end, 1000 * beside], rel=1e-6) and ours[0] == pytest.approx(ours[1], rel=0.05)


def test_their_batchmean_is_the_mean_over_tokens(trl: Callable[[str], Any]) -> None:
    """Which is reduction=token here, and not torch's `batchmean`, which divides by the batch."""
    loss = trl("experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss
    world = small_language(echo=True)
    rollouts = world.completions()
    assert world.teacher is not None
    mask_bt = rollouts.mask_bt
    theirs_student, theirs_teacher = (policy.project(policy.features(rollouts.input_bt, rollouts.length_b))
                                      for policy in (world.student, world.teacher))
    labels_bt = torch.where(mask_bt, rollouts.action_bt, -100)
    theirs = loss(theirs_student, theirs_teacher.detach(), labels=labels_bt, beta=0.5)
    ctx, method = context(world), make(GKD, beta=0.5)
    ours, _ = gradient(method, ctx, ctx.score(rollouts, method.requires()))
    assert ours == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_divergence_of_hidden_states_against_output_layers(trl: Callable[[str], Any], beta: float) -> None:
    """The stable `DistillationTrainer`'s chunked loss, in the hidden states and in the output layer; it is float32."""
    loss = trl("trainer.distillation_trainer")._chunked_divergence_loss
    width = 5
    hidden, weight = (random_logits(*shape, seed=seed).float().requires_grad_()
                      for seed, shape in ((3, (B, T, width)), (4, (A, width))))
    teacher_hidden, teacher_weight = random_logits(B, T, width, seed=5).float(), random_logits(A, width, seed=6).float()
    mask_bt = torch.ones(B, T, dtype=torch.bool)
    mask_bt[1, 2:] = False
    theirs, *_ = loss(hidden, teacher_hidden, weight, teacher_weight, mask_bt, beta, temperature=1.5)
    pair = Comparison(temperature=1.5).pair(Categorical((teacher_hidden @ teacher_weight.T)[mask_bt]),
                                            Categorical((hidden @ weight.T)[mask_bt]))
    ours = ours_at(beta)(pair.teacher, pair.student).mean()
    assert agree(ours, theirs, hidden) and agree(ours, theirs, weight)


# --------------------------------------------------------------------------------------------------------------- top-k


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
@pytest.mark.parametrize("package", ["sdpo", "sdft"])
def test_the_students_top_k(trl: Callable[[str], Any], package: str, tail: str, beta: float) -> None:
    """SDPO's and SDFT's loss: support=student, with the tail as one more event or both sides renormalised."""
    loss = trl(f"experimental.{package}.loss_utils").compute_topk_self_distillation_loss
    teacher, student = sides()
    theirs = loss(student, teacher, distillation_topk=K, distillation_alpha=beta,
                  distillation_add_tail=tail == "bucket").flatten()
    pair = Comparison("student", K, tail).pair(flat(teacher), flat(student))  # type: ignore[arg-type]
    assert agree(ours_at(beta)(pair.teacher, pair.student), theirs, student)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_the_top_k_of_a_teacher_behind_a_server(trl: Callable[[str], Any], tail: str) -> None:
    """The server trainer's forward KL, where one row has fewer than k entries: padded with -inf in both."""
    module = trl("experimental.server_distillation.server_distillation_trainer")
    trainer = make_trainer(module.ServerDistillationTrainer, loss_add_tail=tail == "bucket")
    teacher, student = sides()
    top = teacher.log_softmax(-1).topk(K)
    logp_btk, id_btk = top.values.clone(), top.indices.clone()
    logp_btk[0, 0, -2:], id_btk[0, 0, -2:] = -INF, 0
    labels_bt = torch.zeros(B, T, dtype=torch.int64)
    theirs = trainer._compute_server_forward_kl_loss({"topk_logprobs": logp_btk, "topk_token_ids": id_btk},
                                                     student.log_softmax(-1), labels_bt)
    revealed = TopK(id_btk.flatten(0, 1), logp_btk.flatten(0, 1))
    pair = Comparison("teacher", K, tail).pair(revealed, flat(student))  # type: ignore[arg-type]
    assert agree(forward_kl(pair.teacher, pair.student).mean(), theirs, student)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_the_top_k_of_an_asynchronous_teacher(trl: Callable[[str], Any], tail: str, beta: float) -> None:
    """`AsyncDistillationTrainer`'s chunk: float32, from hidden states, with temperature in the student alone at 1."""
    loss = trl("experimental.async_distillation.async_distillation_trainer")._jsd_loss_chunk
    hidden, weight = leaf(B * T, 5, seed=3), random_logits(A, 5, seed=4)
    top = random_logits(B * T, A, seed=1).log_softmax(-1).topk(K)
    theirs, *_ = loss(hidden, weight, None, 1.0, None, top.indices, top.values.float(),
                      torch.ones(B * T, K, dtype=torch.bool), beta, 1.0, tail == "bucket", None, 1)
    pair = Comparison("teacher", K, tail).pair(  # type: ignore[arg-type]
        TopK(top.indices, top.values.float()), Categorical(hidden.float() @ weight.float().T))
    assert agree(ours_at(beta)(pair.teacher, pair.student).mean(), theirs / (B * T), hidden)


# ------------------------------------------------------------------------------------------------------ sampled tokens


def test_the_sampled_token_loss_is_the_log_ratio_as_advantage(trl: Callable[[str], Any]) -> None:
    loss = trl("experimental.sdpo.loss_utils").compute_sampled_token_self_distillation_loss
    teacher, student = sides()
    action_bt = torch.randint(A, (B, T), generator=torch.Generator().manual_seed(0))
    theirs = loss(student, teacher, action_bt, distillation_alpha=1.0).flatten()
    logq_n, logp_n = flat(student).logp(action_bt.flatten()), flat(teacher).logp(action_bt.flatten())
    assert agree(policy_gradient.reinforce(logq_n, logp_n - logq_n), theirs, student)


@pytest.mark.parametrize(("reduction", "loss_type"), [("sequence", "grpo"), ("token", "bnpo"), ("sum", "dr_grpo")])
def test_grpo(trl: Callable[[str], Any], reduction: str, loss_type: str) -> None:
    """Clipped surrogate and k3 penalty; `grpo` averages within answers first, `bnpo` over all tokens, `dr_grpo` divides
    their sum by a constant."""
    trainer = make_trainer(
        trl("trainer.grpo_trainer").GRPOTrainer, loss_type=loss_type, beta=0.04, epsilon_low=0.2, epsilon_high=0.28,
        max_completion_length=T, importance_sampling_level="token", top_entropy_quantile=1.0, use_vllm=False,
        off_policy_mask_threshold=None, aux_loss_enabled=False, _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1, model=torch.nn.Identity(),
        _metrics=defaultdict(lambda: defaultdict(list)), args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        accelerator=SimpleNamespace(reduce=lambda value, reduction: value, gather=lambda value: value))
    student, action_bt = leaf(B, T, A, seed=2), torch.randint(A, (B, T), generator=torch.Generator().manual_seed(0))
    logq_bt = student.log_softmax(-1).gather(-1, action_bt[..., None])[..., 0]
    old_bt, reference_bt = (logq_bt.detach() + random_logits(B, T, seed=seed, scale=0.3) for seed in (7, 8))
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logq_bt, torch.zeros(B, T), None)
    advantage_b, mask_bt = torch.tensor([1.0, -0.5, 0.7], dtype=torch.float64), torch.ones(B, T, dtype=torch.bool)
    mask_bt[0, 1:] = False
    theirs = trainer._compute_loss(None, {
        "prompt_ids": action_bt[:, :1], "prompt_mask": mask_bt[:, :1], "completion_ids": action_bt,
        "completion_mask": mask_bt.double(), "advantages": advantage_b, "old_per_token_logps": old_bt,
        "ref_per_token_logps": reference_bt})
    value_bt = policy_gradient.grpo(logq_bt, old_bt, advantage_b[:, None].expand(B, T), low=0.2, high=0.28,
                                    reference_logp_n=reference_bt, kl_coefficient=0.04)
    weights = {"sequence": mask_bt / mask_bt.sum(1, keepdim=True) / B, "token": mask_bt / mask_bt.sum(),
               "sum": mask_bt / (B * T)}
    assert agree((value_bt * weights[reduction]).sum(), theirs, student)


def make_trainer(cls: type[Any], **attributes: Any) -> Any:
    """A trainer with these attributes and nothing else."""
    trainer: Any = object.__new__(cls)
    trainer.__dict__.update(attributes)
    return trainer
