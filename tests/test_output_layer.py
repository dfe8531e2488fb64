"""The output layer's gradient summed in place: the same numbers, and no second copy of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import embedding, linear

from benchmarks.memory import Work, make_problem
from benchmarks.workers.hidden_states import make_trainer
from opdbench import output_layer
from opdbench.schema.spec import Execution
from tests.enumerable import near, random_logits

N, H, A, USED = 12, 5, 9, 7  # rows, width, rows of the weight, vocabulary in use


def weight() -> Parameter:
    return Parameter(random_logits(A, H, seed=2))


def backward(weight_ah: Parameter, features_nh: Tensor, chunk: int, *, in_place: bool) -> None:
    """Of a loss that is not linear in the logits, in chunks of rows."""
    for part_nh in torch.split(features_nh, chunk):
        if in_place:
            with output_layer.summed_in_place():
                logits_na = output_layer.project(part_nh, weight_ah, USED)
        else:
            logits_na = linear(part_nh, weight_ah[:USED])
        logits_na.logsumexp(-1).square().sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("chunk", [1, 5, N])
def test_gradients_are_those_of_a_plain_linear_layer(chunk: int) -> None:
    found = []
    for in_place in (False, True):
        weight_ah, features_nh = weight(), random_logits(N, H, seed=1).requires_grad_()
        backward(weight_ah, features_nh, chunk, in_place=in_place)
        found.append((weight_ah.grad, features_nh.grad))
    (plain_ah, plain_nh), (ours_ah, ours_nh) = found
    assert plain_ah is not None and ours_ah is not None and plain_nh is not None and ours_nh is not None
    assert float(plain_ah.abs().max()) > 0.1
    assert near(plain_ah, ours_ah) and near(plain_nh, ours_nh)
    assert near(ours_ah[USED:], 0.0)  # padding of the vocabulary


def test_the_sum_stays_in_one_tensor_and_joins_what_is_there() -> None:
    """An embedding that is tied to the output layer adds its own share, before or after."""
    weight_ah, features_nh = weight(), random_logits(N, H, seed=1)
    embedding(torch.tensor([0, 3, 3]), weight_ah).square().sum().backward()  # type: ignore[no-untyped-call]
    first, kept = weight_ah.grad, weight_ah.grad
    assert first is not None and kept is not None
    alone = first.clone()
    backward(weight_ah, features_nh, 4, in_place=True)
    assert weight_ah.grad is kept and kept.data_ptr() == first.data_ptr()
    other = weight()
    backward(other, features_nh, 4, in_place=True)
    assert other.grad is not None and near(kept, alone + other.grad)
    embedding(torch.tensor([0, 3, 3]), other).square().sum().backward()  # type: ignore[no-untyped-call]
    assert near(kept, other.grad)


def test_outside_automatic_differentiation_is_told_as_ever() -> None:
    weight_ah, features_nh = weight(), random_logits(N, H, seed=1)
    total = output_layer.project(features_nh, weight_ah, USED).square().sum()
    (found,) = torch.autograd.grad(total, weight_ah)
    assert weight_ah.grad is None and float(found.abs().max()) > 0.1
    with output_layer.summed_in_place(), torch.no_grad():
        assert not output_layer.project(features_nh, weight_ah, USED).requires_grad


@pytest.mark.parametrize("divergence", ["jsd", "forward_kl", "reverse_kl"])
def test_the_loops_chunks_give_the_gradients_of_one_piece(divergence: str) -> None:
    """Through the training loop, both sides projected chunk by chunk; 37 actions and 100 logits at one time."""
    found = []
    for settings in ({"logit_chunk": 10**9}, {"logit_chunk": 100}):
        problem = make_problem(Work(48, 37, 6, divergence, "cpu", "float64"))
        trainer, micro, weight_n, meter = make_trainer(problem, divergence, "cpu", 16, **settings)
        trainer._accumulate(micro, weight_n, meter)
        assert problem.student_nh.grad is not None and problem.student_ah.grad is not None
        found.append((meter.pop_update_loss(), problem.student_nh.grad, problem.student_ah.grad))
    whole, cut = found
    assert whole[0] == pytest.approx(cut[0], rel=1e-12) and near(whole[1], cut[1]) and near(whole[2], cut[2])


def test_a_large_vocabulary_cuts_the_rows_that_exist_at_one_time() -> None:
    execution = Execution(row_chunk=500, logit_chunk=100_000)
    assert [execution.rows_at_once(n_actions) for n_actions in (3, 1000, 50_000, 10**6)] == [500, 100, 2, 1]
    assert Execution().rows_at_once(151_936) < 100 <= Execution().rows_at_once(1024)
