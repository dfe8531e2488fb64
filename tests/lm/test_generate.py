"""Generation: exact ends, honest log-probabilities, environment turns, two models in lock-step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor

from opdbench.actors import Decision, Mixture, Student, Teacher, uniform_table
from opdbench.lm.decoder import NativePolicy
from opdbench.lm.generate import Completion, generate, last_decision, to_rollouts
from opdbench.lm.model import load
from opdbench.lm.policy import LanguagePolicy, pad_right
from opdbench.rollouts import Source
from opdbench.task import Reply

Made = Callable[[str], tuple[Path, object]]
PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15], [4, 4]]
EOS, CELL = 1, 30


class Scripted:
    """An actor that writes given tokens, column by column, whatever the models say. Counts how often it is asked."""

    uses_student, uses_teacher = True, False

    def __init__(self, columns: Sequence[Sequence[int]]) -> None:
        self.columns = list(columns)
        self.calls = 0

    def act(self, student: Tensor | None, teacher: Tensor | None, uniform_bd: Tensor) -> Decision:
        tokens = self.columns[self.calls]
        self.calls += 1
        return Decision(torch.tensor(tokens), torch.full((len(tokens),), -0.5),
                        torch.full((len(tokens),), int(Source.STUDENT), dtype=torch.uint8))


class Maze:
    """Answers every move with CELL; ends the game at the move `last`."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.heard: list[tuple[int, int]] = []

    def reply(self, index: int, token: int) -> Reply | None:
        self.heard.append((index, token))
        return Reply([CELL, CELL + 1], done=token == self.last)


@pytest.fixture
def policy(made: Made) -> LanguagePolicy:
    return load(made("qwen3")[0])


def write(actor: object, policy: LanguagePolicy, generator: Generator, *, n: int = 4, horizon: int = 8,
          **settings: object) -> list[Completion]:
    return generate(actor, policy, None, PROMPTS[:n], max_new_tokens=horizon, eos_ids=frozenset([EOS]),  # type: ignore[arg-type]
                    uniform_tbd=uniform_table(n, horizon, generator), **settings)  # type: ignore[arg-type]


def logp_of_actions(policy: LanguagePolicy, prompt: list[int], tokens: list[int], temperature: float = 1.0) -> Tensor:
    tokens_bt, length_b = pad_right([prompt + tokens], policy.device)
    with torch.no_grad():
        logits_ta = policy.project(policy.features(tokens_bt, length_b)[0]) / temperature
    logp_ta = logits_ta.log_softmax(-1)[len(prompt) - 1:-1]
    return logp_ta.gather(1, torch.tensor(tokens)[:, None])[:, 0]


def test_the_first_end_token_is_kept_and_nothing_after_it(policy: LanguagePolicy, generator: Generator) -> None:
    columns = [[1, 7, 7, 7], [7, 1, 7, 7], [1, 1, 7, 7], [7, 7, 7, 7], [1, 7], [7, 7], [7, 7], [7, 1]]
    completions = write(Scripted(columns), policy, generator)
    assert [completion.tokens for completion in completions] == [[1], [7, 1], [7, 7, 7, 7, 1], [7] * 7 + [1]]
    assert all(completion.ended for completion in completions)
    assert all(len(completion.logps) == len(completion.sources) == len(completion.tokens) for completion in completions)


def test_the_horizon_cuts_off_and_says_so(policy: LanguagePolicy, generator: Generator) -> None:
    completions = write(Scripted([[7, 8], [7, 8], [7, 1]]), policy, generator, n=2, horizon=3)
    assert [completion.tokens for completion in completions] == [[7, 7, 7], [8, 8, 1]]
    assert [completion.ended for completion in completions] == [False, True]


def test_no_step_is_made_when_all_are_done(policy: LanguagePolicy, generator: Generator) -> None:
    actor = Scripted([[1, 1]] * 20)
    write(actor, policy, generator, n=2, horizon=20)
    assert actor.calls <= 4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behaviour_logp_is_the_models_own(policy: LanguagePolicy, generator: Generator, temperature: float) -> None:
    for prompt, completion in zip(PROMPTS, write(Student(temperature), policy, generator, horizon=12), strict=True):
        expected = logp_of_actions(policy, prompt, completion.tokens, temperature)
        torch.testing.assert_close(torch.tensor(completion.logps), expected, atol=1e-4, rtol=1e-4)


def test_sampling_follows_the_distribution(policy: LanguagePolicy, generator: Generator) -> None:
    n = 8000
    completions = generate(Student(), policy, None, [PROMPTS[0]] * n, max_new_tokens=1, eos_ids=frozenset(),
                           uniform_tbd=uniform_table(n, 1, generator))
    counts_a = torch.bincount(torch.tensor([completion.tokens[0] for completion in completions]), minlength=39)
    with torch.no_grad():
        p_a = policy.start([PROMPTS[0]], 1).logits_ba[0].softmax(-1)
    error_a = (counts_a / n - p_a).abs() / (p_a * (1 - p_a) / n).sqrt().clamp(min=1 / n)
    assert error_a.max() < 4.5


def test_same_generator_same_text_and_the_next_draw_differs(policy: LanguagePolicy) -> None:
    one, two = (torch.Generator().manual_seed(5) for _ in range(2))
    first, again = write(Student(), policy, one), write(Student(), policy, two)
    assert first == again and write(Student(), policy, one) != first


def test_compaction_changes_no_greedy_output(policy: LanguagePolicy, generator: Generator) -> None:
    """Some end early, so the batch shrinks; each must read as if it were alone."""
    ends = frozenset(range(0, 39, 3))
    settings = {"max_new_tokens": 30, "eos_ids": ends, "uniform_tbd": uniform_table(4, 30, generator)}
    together = generate(Student(0.0), policy, None, PROMPTS, **settings)
    alone = [generate(Student(0.0), policy, None, [prompt], **settings)[0] for prompt in PROMPTS]
    assert [completion.tokens for completion in together] == [completion.tokens for completion in alone]
    assert len({len(completion.tokens) for completion in together}) > 1


@pytest.mark.parametrize("turns", [False, True])
def test_a_sequence_draws_from_its_own_column_alone(made: Made, turns: bool, generator: Generator) -> None:
    """Neither batches, nor their order, compaction or forced tokens matter to what is drawn, in float64."""
    student, teacher = (load(made(name)[0], dtype=torch.float64) for name in ("qwen3", "gpt2"))
    ends, table = frozenset(range(0, 39, 3)), uniform_table(4, 30, generator)

    def written(order: Sequence[int]) -> list[Completion]:
        return generate(Mixture(0.5), student, teacher, [PROMPTS[index] for index in order], max_new_tokens=30,
                        eos_ids=ends, uniform_tbd=table[:, list(order)], turns=Maze(last=3) if turns else None)

    together = written(range(4))
    alone, backwards = [written([index])[0] for index in range(4)], written([3, 2, 1, 0])[::-1]
    assert len({len(completion.tokens) for completion in together}) > 1
    for others in (alone, backwards):
        assert [(it.tokens, it.sources) for it in others] == [(it.tokens, it.sources) for it in together]


def test_environment_turns_are_read_and_chosen_by_nobody(policy: LanguagePolicy, generator: Generator) -> None:
    maze = Maze(last=3)
    actor = Scripted([[5, 3], [5], [3]])  # the second ends at once and leaves the batch
    completions = write(actor, policy, generator, n=2, horizon=20, turns=maze)
    assert completions[0].tokens == [5, CELL, CELL + 1, 5, CELL, CELL + 1, 3, CELL, CELL + 1]
    assert completions[0].sources == [1, 0, 0] * 3
    assert completions[1].tokens == [3, CELL, CELL + 1] and completions[1].ended
    assert maze.heard == [(0, 5), (1, 3), (0, 5), (0, 3)], "forced tokens are not asked about"
    assert all(torch.tensor(completion.logps).isnan().tolist() == [source == 0 for source in completion.sources]
               for completion in completions)


def test_the_models_see_the_environments_turns(policy: LanguagePolicy, generator: Generator) -> None:
    completions = write(Student(), policy, generator, horizon=13, turns=Maze(last=-1))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        expected = logp_of_actions(policy, prompt, completion.tokens)
        chosen = torch.tensor(completion.sources) == Source.STUDENT
        assert chosen.tolist() == [step % 3 == 0 for step in range(13)]
        torch.testing.assert_close(torch.tensor(completion.logps)[chosen], expected[chosen], atol=1e-4, rtol=1e-4)


def test_turns_of_different_lengths_interleave_with_sampling(policy: LanguagePolicy, generator: Generator) -> None:
    """One conversation is forced while the other chooses; each has the text it would have alone."""

    class Uneven:
        def reply(self, index: int, token: int) -> Reply | None:
            return Reply([CELL] * 3, done=False) if index == 1 else None

    completions = write(Student(0.0), policy, generator, n=3, horizon=9, turns=Uneven())
    assert completions[1].sources == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    for index in (0, 2):
        alone = generate(Student(0.0), policy, None, [PROMPTS[index]], max_new_tokens=9, eos_ids=frozenset([EOS]),
                         uniform_tbd=uniform_table(1, 9, generator))
        assert completions[index].tokens == alone[0].tokens


@pytest.mark.parametrize(("horizon", "length", "ended"), [(2, 2, False), (3, 3, True), (4, 3, True)])
def test_the_horizon_counts_environment_turns(policy: LanguagePolicy, generator: Generator, horizon: int, length: int,
                                              ended: bool) -> None:
    completion = write(Scripted([[3]] * 4), policy, generator, n=1, horizon=horizon, turns=Maze(last=3))[0]
    assert (len(completion.tokens), completion.ended) == (length, ended)


def test_the_environment_may_answer_an_end_token(policy: LanguagePolicy, generator: Generator) -> None:
    answered = write(Scripted([[EOS]] * 2), policy, generator, n=1, horizon=4, turns=Maze(last=-1))[0]
    assert answered.tokens == [EOS, CELL, CELL + 1, EOS] and not answered.ended

    class Silent:
        def reply(self, index: int, token: int) -> Reply | None:
            return None

    assert write(Scripted([[EOS]] * 2), policy, generator, n=1, horizon=4, turns=Silent())[0].tokens == [EOS]


def test_two_models_read_the_same_text(made: Made, policy: LanguagePolicy, generator: Generator) -> None:
    teacher = load(made("gpt2")[0])
    completions = generate(Mixture(0.5), policy, teacher, PROMPTS, max_new_tokens=12, eos_ids=frozenset(),
                           uniform_tbd=uniform_table(4, 12, generator))
    seen = set()
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        mine, theirs = (logp_of_actions(model, prompt, completion.tokens) for model in (policy, teacher))
        expected = torch.stack([mine.double().exp(), theirs.double().exp()]).mean(0).log().float()
        torch.testing.assert_close(torch.tensor(completion.logps), expected, atol=1e-4, rtol=1e-4)
        seen |= set(completion.sources)
    assert seen == {int(Source.STUDENT), int(Source.TEACHER)}


def test_a_teacher_can_write_alone(policy: LanguagePolicy, generator: Generator) -> None:
    settings = {"max_new_tokens": 5, "eos_ids": frozenset(), "uniform_tbd": uniform_table(4, 5, generator)}
    completions = generate(Teacher(0.0), None, policy, PROMPTS, **settings)
    students = generate(Student(0.0), policy, None, PROMPTS, **settings)
    assert [completion.tokens for completion in completions] == [completion.tokens for completion in students]
    assert {source for completion in completions for source in completion.sources} == {int(Source.TEACHER)}
    with pytest.raises(ValueError, match="uses the teacher"):
        generate(Teacher(), policy, None, PROMPTS, **settings)


def test_rollouts_shift_by_one_and_mark_the_last_decision() -> None:
    nan = float("nan")
    completions = [Completion([7, 30, EOS], [1, 0, 1], [-0.1, nan, -0.2], True), Completion([8], [2], [-0.3], False)]
    rollouts = to_rollouts([[5, 6], [4]], completions)
    assert rollouts.input_bt.tolist() == [[5, 6, 7, 30], [4, 0, 0, 0]]
    assert rollouts.action_bt.tolist() == [[6, 7, 30, EOS], [8, 0, 0, 0]]
    assert rollouts.source_bt.tolist() == [[0, 1, 0, 1], [2, 0, 0, 0]]
    assert rollouts.length_b.tolist() == [4, 1] and rollouts.truncated_b.tolist() == [False, True]
    assert rollouts.done_bt.tolist() == [[False, False, False, True], [False] * 4]
    assert last_decision(rollouts.source_bt).tolist() == [[False, False, False, True], [True, False, False, False]]


def test_rollouts_can_be_trained_on(policy: LanguagePolicy, generator: Generator) -> None:
    """Nothing that generation returns is an inference tensor, which autograd would refuse."""
    rollouts = to_rollouts(PROMPTS, write(Student(), policy, generator))
    assert isinstance(policy, NativePolicy)
    logits = policy.project(policy.features(rollouts.input_bt, rollouts.length_b)[rollouts.mask_bt])
    (logits.log_softmax(-1).gather(1, rollouts.action_bt[rollouts.mask_bt][:, None]).sum()).backward()
    assert policy.embedding.grad is not None
