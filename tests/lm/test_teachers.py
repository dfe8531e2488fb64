"""Mixtures and routes of language models: what they say, write and cost is what their parts do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from opdbench.actors import Student, Teacher, uniform_table
from opdbench.errors import UserError
from opdbench.lm.architecture import qwen3_config
from opdbench.lm.decoder import NativePolicy
from opdbench.lm.generate import generate
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.teachers import LanguageMixture, LanguageRoute, combine
from opdbench.lm.tokenizer import Tokenizer
from opdbench.lm.world import LanguageWorld
from opdbench.references import Copy, Mix, Route
from opdbench.task import Example, Split
from tests.lm import models
from tests.lm.test_world import Spelling
from tests.test_run import execute, plan_of

PLUGIN = '''
from dataclasses import replace
from opdbench.tasks.reasoning import ChainSum

class Tagged(ChainSum):
    name = "tagged-sum"

    def examples(self, split):
        return [replace(example, meta={"number": "odd" if int(example.id[-1]) % 2 else "even"})
                for example in super().examples(split)]
'''


class Tagged(Spelling):
    """Every second problem is of another kind."""

    def examples(self, split: Split) -> Sequence[Example]:
        return [replace(example, meta={"kind": "ab"[number % 2], "number": number})
                for number, example in enumerate(super().examples(split))]


def model(seed: int, width: int = 16, *, vocabulary: int | None = None, dtype: torch.dtype = torch.float64,
          tokenizer: Tokenizer | None = None) -> LanguagePolicy:
    tokenizer = tokenizer or models.tokenizer()
    config = qwen3_config(vocabulary or tokenizer.n_tokens, hidden_size=width, n_layers=1, n_heads=2, n_kv_heads=1,
                          context_length=64)
    return NativePolicy.initialise({**config, "initializer_range": 0.3}, tokenizer, Generator().manual_seed(seed),
                                   dtype=dtype)


def mixture(*parts: LanguagePolicy, weights: Sequence[float] = (0.7, 0.3)) -> LanguageMixture:
    mixed = combine(Mix((Copy(),) * len(parts), tuple(weights)), list(parts), Tagged())
    assert isinstance(mixed, LanguageMixture)
    return mixed


def route(*parts: LanguagePolicy) -> LanguageRoute:
    routed = combine(Route((Copy(),) * len(parts), "kind", ("b", "a")), list(parts), Tagged())
    assert isinstance(routed, LanguageRoute)
    return routed


def world(teacher: LanguagePolicy, **settings: int) -> LanguageWorld:
    return LanguageWorld(Tagged(), model(9), teacher, seed=0, **settings)


def probabilities(policy: LanguagePolicy, input_bt: Tensor, length_b: Tensor) -> Tensor:
    return policy.project(policy.features(input_bt, length_b).flatten(0, 1)).softmax(-1).detach()


def test_probabilities_are_mixed_exactly() -> None:
    one, other = model(0), model(1, width=32)
    input_bt, length_b = torch.arange(4, 24).view(2, 10), torch.tensor([10, 10])
    expected = 0.7 * probabilities(one, input_bt, length_b) + 0.3 * probabilities(other, input_bt, length_b)
    torch.testing.assert_close(probabilities(mixture(one, other), input_bt, length_b), expected, rtol=1e-12, atol=1e-15)


def test_padded_vocabularies_are_cut_before_they_are_normalised() -> None:
    tokens = models.tokenizer().n_tokens
    one, other = model(0, vocabulary=tokens + 3), model(1)
    mixed = mixture(one, other)
    assert mixed.n_actions == one.n_actions == tokens
    total_n = probabilities(mixed, torch.arange(4, 14)[None], torch.tensor([10])).sum(-1)
    torch.testing.assert_close(total_n, torch.ones_like(total_n))


def test_decoding_a_mixture_agrees_with_scoring_it() -> None:
    teacher = mixture(model(0), model(1, width=32))
    it = world(teacher, generation_batch=3)
    rollouts = it.rollout(Teacher(), n=14, horizon=6, generator=Generator().manual_seed(0))
    features_bth = it.teacher_features(rollouts)
    mask_bt = rollouts.mask_bt
    logp_n = teacher.project(features_bth[mask_bt]).log_softmax(-1)
    taken_n = logp_n.gather(1, rollouts.action_bt[mask_bt][:, None])[:, 0]
    torch.testing.assert_close(taken_n.float(), rollouts.behaviour_logp_bt[mask_bt], rtol=1e-5, atol=1e-5)


def test_writing_has_the_mixtures_frequencies() -> None:
    teacher, n = mixture(model(0), model(1)), 4000
    table = uniform_table(n, 1, Generator().manual_seed(3))
    written = generate(Teacher(), None, teacher, [[5, 6]] * n, max_new_tokens=1, eos_ids=frozenset(), uniform_tbd=table)
    first_n = torch.tensor([completion.tokens[0] for completion in written])
    count_a = torch.bincount(first_n, minlength=teacher.n_actions)
    p_a = probabilities(teacher, torch.tensor([[5, 6]]), torch.tensor([2]))[1]
    assert float(((count_a - n * p_a) ** 2 / (n * p_a)).sum()) < 80  # chi-squared, 38 degrees of freedom: p < 1e-4


def test_every_problem_is_scored_by_its_own_teacher_alone() -> None:
    one, other = model(0, width=32), model(1)
    routed = route(one, other)
    rollouts = world(routed, teacher_batch=3).rollout(Student(), n=12, horizon=6, generator=Generator().manual_seed(0))
    said_bta = routed.project(world(routed, teacher_batch=3).teacher_features(rollouts).flatten(0, 1))
    said_bta = said_bta.view(*rollouts.input_bt.shape, -1)
    for row, index in enumerate(rollouts.columns["example"].tolist()):
        own, length = (other if index % 2 == 0 else one), int(rollouts.length_b[row])
        alone = own.project(own.features(rollouts.input_bt[row:row + 1, :length], torch.tensor([length]))[0])
        torch.testing.assert_close(said_bta[row, :length], alone)


@pytest.mark.parametrize("batch", [12, 5])
def test_every_problem_is_written_by_its_own_teacher_alone(batch: int) -> None:
    one, other = model(0, width=32), model(1)
    rollouts = [world(teacher, generation_batch=batch).rollout(Teacher(), n=12, horizon=6,
                                                               generator=Generator().manual_seed(0))
                for teacher in (route(one, other), one, other)]
    for row, index in enumerate(rollouts[0].columns["example"].tolist()):
        length = int(rollouts[0].length_b[row])
        alone = rollouts[2 if index % 2 == 0 else 1]
        assert alone.length_b[row] == length
        assert torch.equal(rollouts[0].action_bt[row, :length], alone.action_bt[row, :length])


def test_sequences_that_end_leave_their_teachers_in_step() -> None:
    """Compaction drops sequences of both teachers; what remains must be read by its own."""
    decoding = route(model(0, width=32), model(1)).on(Tagged().examples("train")[:4]).start([[5], [6], [7], [8]], 4)
    decoding.keep(torch.tensor([3, 0, 2]))
    logits = decoding.step(torch.tensor([9, 9, 9]))
    for row, (prompt, own) in enumerate([([8, 9], model(0, width=32)), ([5, 9], model(1)), ([7, 9], model(1))]):
        alone = own.project(own.features(torch.tensor([prompt]), torch.tensor([2]))[0, 1:])
        torch.testing.assert_close(logits[row:row + 1], alone)
    decoding.keep(torch.tensor([1]))
    assert decoding.step(torch.tensor([4])).shape[0] == 1


def test_a_route_is_evaluated_and_costs_what_its_parts_do() -> None:
    one, other = model(0, width=32), model(1)
    routed = route(one, other)
    both, alone = (world(teacher).evaluate(teacher, split="test", mode="greedy", n=None, seed=0)
                   for teacher in (routed, one))
    assert [outcome.output for outcome in both][1::2] == [outcome.output for outcome in alone][1::2]
    expected = 3 / 7 * one.forward_flops(10, 5) + 4 / 7 * other.forward_flops(10, 5)
    assert routed.forward_flops(10, 5) == pytest.approx(expected)


def test_an_unknown_kind_of_problem_is_refused() -> None:
    routed = route(model(0), model(1))
    with pytest.raises(UserError, match="no teacher for kind = c, which problem new has"):
        routed.on([Example("new", "a", "x", meta={"kind": "c"})])
    with pytest.raises(TypeError, match="whose problems"):
        routed.features(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1))


@pytest.mark.parametrize("make", [mixture, route])
def test_the_tokenizer_of_every_part_is_checked(make: Callable[..., LanguagePolicy]) -> None:
    odd = [model(seed, tokenizer=Tokenizer.characters(models.ALPHABET[::-1])) for seed in (2, 3)]
    with pytest.raises(UserError, match="tokenizers of teachers 1 and 2 do not match"):
        make(model(0), odd[0])
    with pytest.raises(UserError, match="tokenizers do not match"):
        world(make(*odd))


@pytest.mark.parametrize("teacher", ["mix:chain-sum/teacher=0.5,chain-sum/student=0.5",
                                     "route:number:odd=chain-sum/teacher,even=student"])
def test_runs_from_the_command_line(teacher: str, tmp_path: Path) -> None:
    plugin = tmp_path / "tagged.py"
    plugin.write_text(PLUGIN)
    plan = plan_of("gkd", "curve_points=0", "divergence=reverse_kl", task="tagged-sum", budget="steps=2",
                   plugins=(str(plugin),), teacher=teacher)
    record, _ = execute(plan, tmp_path)
    assert record.status == "completed" and record.ledger["teacher_scored"] == record.ledger["student_tokens"]
    assert record.recipe.teacher is not None and len(record.recipe.teacher.parts) == 2
    assert any(entry["loss"] > 0 for entry in record.curve)
