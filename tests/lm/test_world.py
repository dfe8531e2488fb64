"""LanguageWorld: order of problems, rewards, demonstrations, teacher scores, evaluation, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import ClassVar, Literal

import pytest
import torch
from torch import Generator

from opdbench.actors import Mixture, Student
from opdbench.errors import UserError
from opdbench.lm.architecture import qwen3_config
from opdbench.lm.decoder import NativePolicy
from opdbench.lm.model import load
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.tokenizer import Tokenizer
from opdbench.lm.world import LanguageWorld
from opdbench.rollouts import Rollouts, Source
from opdbench.task import Example, LanguageTask, Reply, Split, Turns
from tests.lm import models

Made = Callable[[str], tuple[Path, object]]


class Spelling(LanguageTask):
    """Seven problems of different lengths; the grade is the share of letters among what was written."""

    name, version, summary, source, license, protocol = "spelling", 1, "", "here", "none", ""
    metric, teacher, student, training, budget = "letters", None, None, {}, {}
    max_new_tokens: ClassVar[int] = 6
    with_solutions: ClassVar[bool] = True

    def checksum(self) -> str:
        return "0"

    def examples(self, split: Split) -> Sequence[Example]:
        prefix = {"train": "a", "validation": "b", "test": "c"}[split]
        return [Example(f"{split}-{index}", prefix * (index * 3 % 7 + 1), answer="x",
                        solution="xy"[: index % 2 + 1] if self.with_solutions else None) for index in range(7)]

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        return {"letters": sum(character.isalpha() for character in completion) / 100, "length": float(len(completion))}


class Echo(Spelling):
    """The environment repeats what was written; "z" ends the conversation."""

    def examples(self, split: Split) -> Sequence[Example]:
        return [Example("0", "a", answer="", solution="xxyyzz"), Example("1", "b", answer="", solution="xxyy")]

    def turns(self, examples: Sequence[Example], tokenizer: Tokenizer, rngs: Sequence[Random], *,
              evaluating: bool) -> Turns:
        last = tokenizer.encode("z")[0]

        class Echoes:
            def reply(self, index: int, token: int) -> Reply:
                return Reply([token], done=token == last)

        return Echoes()


class Dice(Spelling):
    """The environment answers every token with one that it throws, and ends the conversation at the third."""

    def turns(self, examples: Sequence[Example], tokenizer: Tokenizer, rngs: Sequence[Random], *,
              evaluating: bool) -> Turns:
        thrown = [0] * len(examples)

        class Throws:
            def reply(self, index: int, token: int) -> Reply:
                thrown[index] += 1
                return Reply(tokenizer.encode(rngs[index].choice("pqrstuvw")), done=thrown[index] == 3)

        return Throws()


def small(characters: Tokenizer, *, vocabulary: int | None = None, context: int = 64, seed: int = 0) -> LanguagePolicy:
    config = qwen3_config(vocabulary or characters.n_tokens, hidden_size=16, n_layers=1, n_heads=2, n_kv_heads=1,
                          context_length=context)
    return NativePolicy.initialise(config, characters, torch.Generator().manual_seed(seed))


def world(task: LanguageTask | None = None, *, seed: int = 0, **settings: int) -> LanguageWorld:
    characters = models.tokenizer()
    return LanguageWorld(task or Spelling(), small(characters), small(characters, seed=1), seed=seed, **settings)


def equal(left: Rollouts, right: Rollouts) -> bool:
    pairs = zip(left.tensors().values(), right.tensors().values(), strict=True)
    return all(torch.equal(torch.nan_to_num(a.float()), torch.nan_to_num(b.float())) for a, b in pairs)


def test_every_problem_comes_once_an_epoch_and_epochs_differ(generator: Generator) -> None:
    it = world()
    drawn = torch.cat([it.rollout(Student(), n=4, horizon=2, generator=generator).columns["example"] for _ in range(7)])
    epochs = drawn.view(4, 7)
    assert all(sorted(epoch.tolist()) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) > 1
    other = world(seed=1).rollout(Student(), n=7, horizon=2, generator=generator).columns["example"]
    assert other.tolist() != epochs[0].tolist()


def test_a_resumed_world_goes_on_where_it_was() -> None:
    straight, stopped, resumed = world(), world(), world()
    for it in (straight, stopped):
        it.rollout(Student(), n=5, horizon=3, generator=torch.Generator().manual_seed(1))
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    left, right = (it.rollout(Student(), n=5, horizon=3, generator=torch.Generator().manual_seed(2))
                   for it in (straight, resumed))
    assert equal(left, right)


def test_groups_share_a_prompt_and_are_never_reused(generator: Generator) -> None:
    it = world()
    parts = [it.rollout(Student(), n=6, horizon=2, generator=generator, repeat=3) for _ in range(2)]
    for part in parts:
        assert torch.equal(part.columns["example"], part.columns["example"][::3].repeat_interleave(3))
    assert torch.cat([part.columns["group"] for part in parts]).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    with pytest.raises(ValueError, match="groups of 4"):
        it.rollout(Student(), n=6, horizon=2, generator=generator, repeat=4)


def test_the_reward_is_the_grade_of_what_was_written(generator: Generator) -> None:
    it = world(generation_batch=3)
    rollouts = it.rollout(Student(), n=7, horizon=6, generator=generator)
    for row in range(7):
        mask = rollouts.mask_bt[row]
        tokens = [token for token in rollouts.action_bt[row][mask].tolist() if token not in it.eos_ids]
        letters = sum(character.isalpha() for character in it.tokenizer.decode(tokens)) / 100
        assert float(rollouts.reward_bt[row].sum()) == pytest.approx(letters)
        assert float(rollouts.reward_bt[row, int(mask.nonzero()[-1])]) == pytest.approx(letters)
    assert rollouts.reward_bt.sum() > 0


def test_demonstrations_are_the_solutions_closed_by_the_end_token(generator: Generator) -> None:
    it = world()
    rollouts = it.demonstrations(n=7, generator=generator)
    for row, index in enumerate(rollouts.columns["example"].tolist()):
        example = it.task.examples("train")[index]
        written = rollouts.action_bt[row][rollouts.mask_bt[row]].tolist()
        assert written == [*it.tokenizer.encode(example.solution or ""), it.tokenizer.eos_id]
    assert set(rollouts.source_bt.flatten().tolist()) == {int(Source.NOBODY), int(Source.DATA)}
    assert rollouts.behaviour_logp_bt.isnan().all() and not rollouts.truncated_b.any()


def test_an_environments_part_of_a_solution_is_no_row(generator: Generator) -> None:
    it = world(Echo())
    rollouts = it.demonstrations(n=2, generator=generator)
    row = rollouts.columns["example"].tolist().index(0)
    assert rollouts.source_bt[row].tolist() == [3, 0, 3, 0, 3, 0]
    assert rollouts.done_bt[row].tolist() == [False] * 4 + [True, False]
    other = 1 - row
    assert rollouts.source_bt[other].tolist() == [3, 0, 3, 0, 3, 0], "not ended by the environment: closed by us"
    assert int(rollouts.action_bt[other, 4]) == it.tokenizer.eos_id


def test_a_solution_that_contradicts_its_environment_is_an_error(generator: Generator) -> None:
    class Wrong(Echo):
        def examples(self, split: Split) -> Sequence[Example]:
            return [Example("0", "a", answer="", solution="xy")]

    with pytest.raises(ValueError, match="contradicts"):
        world(Wrong()).demonstrations(n=1, generator=generator)


def test_teacher_features_are_the_teachers_own_whatever_the_batches(generator: Generator) -> None:
    it = world(teacher_batch=2)
    assert it.teacher is not None
    rollouts = it.rollout(Mixture(0.5), n=7, horizon=6, generator=generator)
    features = it.teacher_features(rollouts)
    assert not features.requires_grad and features.shape == (*rollouts.input_bt.shape, 16)
    for row in range(7):
        n = int(rollouts.length_b[row])
        alone = it.teacher.features(rollouts.input_bt[row:row + 1, :n], torch.tensor([n]))[0]
        torch.testing.assert_close(features[row, :n], alone, atol=1e-6, rtol=1e-5)
    assert features.isfinite().all()


def test_evaluation_keeps_the_order_and_is_repeatable() -> None:
    it = world(generation_batch=2)
    greedy = it.evaluate(it.student, split="test", mode="greedy", n=None, seed=3)
    assert [outcome.id for outcome in greedy] == [f"test-{index}" for index in range(7)]
    alone = [world(generation_batch=1).evaluate(it.student, split="test", mode="greedy", n=None, seed=9)]
    assert greedy == alone[0], "greedy output depends neither on the batch nor on the seed"
    sampled = [it.evaluate(it.student, split="test", mode="sampled", n=5, seed=seed) for seed in (3, 3, 4)]
    assert sampled[0] == sampled[1] != sampled[2] and len(sampled[0]) == 5
    outcome = sampled[0][0]
    assert outcome.output is not None and outcome.extra == {"length": float(len(outcome.output))}
    assert outcome.score == it.task.grade(it.task.examples("test")[0], outcome.output)["letters"]  # type: ignore[attr-defined]
    assert outcome.truncated == (outcome.length == 6 and len(outcome.output) == 6)


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_what_an_environment_draws_in_evaluation_does_not_depend_on_the_batch(
        mode: Literal["greedy", "sampled"]) -> None:
    student = world().student
    together, *others = [
        world(Dice(), generation_batch=batch).evaluate(student, split="test", mode=mode, n=n, seed=3)
        for batch, n in ((7, 7), (2, 7), (1, 5))]
    assert all(other == together[:len(other)] for other in others)
    assert len({outcome.output[1::2] for outcome in together if outcome.output}) > 4, "every problem has its own dice"


def test_evaluation_does_not_move_the_training_problems(generator: Generator) -> None:
    it = world()
    before = it.state_dict()
    it.evaluate(it.student, split="test", mode="sampled", n=None, seed=0)
    assert it.state_dict() == before


def test_outputs_contain_the_environments_turns() -> None:
    it = world(Echo())
    for outcome in it.evaluate(it.student, split="test", mode="sampled", n=None, seed=0):
        assert outcome.output is not None and len(outcome.output) > 1
        assert outcome.output[::2][: len(outcome.output) // 2] == outcome.output[1::2]


def test_padded_vocabularies_are_cut_to_what_both_have(generator: Generator) -> None:
    characters = models.tokenizer()
    student, teacher = small(characters, vocabulary=64), small(characters, vocabulary=48)
    it = LanguageWorld(Spelling(), student, teacher, seed=0)
    assert student.n_actions == teacher.n_actions == 48
    assert it.rollout(Mixture(0.5), n=4, horizon=4, generator=generator).n_rows > 0


def test_other_tokenizers_are_refused_with_what_differs() -> None:
    other = Tokenizer.characters(models.ALPHABET[::-1])
    with pytest.raises(UserError, match=r"do not match: .* tokens have different ids") as raised:
        LanguageWorld(Spelling(), small(models.tokenizer()), small(other), seed=0)
    assert raised.value.fix is not None and "one family" in raised.value.fix


def test_what_exceeds_the_context_is_refused(generator: Generator) -> None:
    characters = models.tokenizer()
    it = LanguageWorld(Spelling(), small(characters), small(characters, context=8), seed=0)
    with pytest.raises(UserError, match=r"exceeds the models' context of 8"):
        it.rollout(Student(), n=7, horizon=6, generator=generator)


def test_without_solutions_there_are_no_demonstrations(generator: Generator) -> None:
    class Bare(Spelling):
        with_solutions = False

    with pytest.raises(UserError, match="no reference solutions"):
        world(Bare()).demonstrations(n=1, generator=generator)


def test_every_end_token_of_either_model_ends_a_completion(made: Made) -> None:
    """A base model may name one end token and its chat-tuned teacher another."""
    student, teacher = load(made("qwen3")[0]), load(made("llama-3")[0])
    teacher.tokenizer.eos_ids = frozenset([EOS_OF_TEACHER := 7])
    assert LanguageWorld(Spelling(), student, teacher, seed=0).eos_ids == {models.EOS, EOS_OF_TEACHER}


def test_samples_of_a_problem_share_its_id_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is what a single sample is; greedy takes one; batches change nothing."""
    single = world().evaluate(world().student, split="test", mode="sampled", n=3, seed=5)
    monkeypatch.setattr(Spelling, "samples", 4)
    many = world(generation_batch=5)
    outcomes = many.evaluate(many.student, split="test", mode="sampled", n=3, seed=5)
    assert [outcome.id for outcome in outcomes] == [f"test-{number}" for number in range(3) for _ in range(4)]
    assert outcomes[::4] == single and all(len({o.output for o in outcomes[i:i + 4]}) > 1 for i in (0, 4, 8))
    assert outcomes == world().evaluate(world().student, split="test", mode="sampled", n=3, seed=5)
    assert len(many.evaluate(many.student, split="test", mode="greedy", n=3, seed=5)) == 3
