"""lm-eval's tasks by name: equal to lm-eval's own run of the same model, splits, refusals, and the record of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from opdbench import registry
from opdbench.actors import Student
from opdbench.conformance import check_task
from opdbench.errors import UsageError, UserError
from opdbench.lm.architecture import qwen3_config
from opdbench.lm.decoder import NativePolicy
from opdbench.lm.likelihood import split_tokens
from opdbench.lm.model import load as load_model
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.tokenizer import Tokenizer
from opdbench.lm.world import LanguageWorld
from opdbench.rollouts import Source
from opdbench.scores import scores
from opdbench.task import Example, LanguageTask

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'opdbench[eval]'")

WRITTEN = """
task: tiny_written
dataset_path: json
dataset_kwargs: {data_files: {train: TRAIN, test: TEST}}
training_split: train
test_split: test
fewshot_split: train
num_fewshot: 2
output_type: generate_until
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n", "k"], max_gen_toks: 12, do_sample: false}
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "([a-j])"}, {function: take_first}]}
  - {name: last, filter: [{function: regex, regex_pattern: "([a-j])", group_select: -1}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
CHOSEN = """
task: tiny_chosen
dataset_path: json
dataset_kwargs: {data_files: {train: TRAIN, test: TEST}}
training_split: train
validation_split: test
num_fewshot: 1
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
UNTRAINED = "include: tiny_chosen.yaml\ntask: tiny_untrained\ntraining_split: null\nnum_fewshot: 0\n"
TOKENIZER = Tokenizer.characters("abcdefghijklmnopqrstuvwxyzAQ: \n?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files of each kind, with their data beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    for split, size in (("train", 20), ("test", 30)):
        rows = [{"question": f"is {word(number + 100 * size)} {word(number)}?", "answer": word(number)[0],
                 "choices": [word(number), word(number + 7) * 2, word(number * 3 + 1)], "label": number % 3}
                for number in range(size)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, content in (("tiny_written", WRITTEN), ("tiny_chosen", CHOSEN), ("tiny_untrained", UNTRAINED)):
        content = content.replace("TRAIN", str(folder / "train.jsonl")).replace("TEST", str(folder / "test.jsonl"))
        (folder / f"{name}.yaml").write_text(content)
    return folder


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data sets go to a folder of the test's own."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


def word(number: int) -> str:
    letters = "abcdefghij"
    return "".join(letters[int(digit)] for digit in str(number * 37 + 1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = qwen3_config(TOKENIZER.n_tokens, hidden_size=16, n_layers=1, n_heads=2, n_kv_heads=1, context_length=256)
    path = tmp_path_factory.mktemp("model")
    policy = NativePolicy.initialise(config, TOKENIZER, torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(30.0 if parameter.dim() > 1 else 1.0)  # or every prompt would be answered alike
    policy.save(path)
    return path


def task(name: str, folder: Path, **params: Any) -> LanguageTask:
    cls = registry.load("task", f"lm-eval:{name}")
    made = cls(data=str(folder), params=cls.Params(**params))
    assert isinstance(made, LanguageTask)
    return made


def world(task: LanguageTask, model: Path) -> LanguageWorld:
    return LanguageWorld(task, load_model(model), None, seed=0, generation_batch=7)


def own_run(name: str, folder: Path, model: Path, **settings: Any) -> dict[str, Any]:
    """lm-eval's results of the task, and its samples by document."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    done = simple_evaluate(HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=4), tasks=[name],
                           task_manager=manager, bootstrap_iters=0, **settings)
    return {"figures": done["results"][name], "samples": done["samples"][name]}


def test_what_is_written_scores_as_in_lm_evals_own_run(folder: Path, model: Path) -> None:
    mine = task("tiny_written", folder)
    outcomes = world(mine, model).evaluate(load_model(model), split="test", mode="greedy", n=None, seed=0)
    theirs = own_run("tiny_written", folder, model)
    score = scores(outcomes, mine.metric)["greedy"]
    for name, value in score.extra.items():
        assert value == theirs["figures"][name], name
    assert 0 < score.mean < 1 and score.mean == theirs["figures"]["exact_match,first"]
    assert score.mean != score.extra["exact_match,last"]
    texts = {sample["doc_id"]: (sample["arguments"][0][0], sample["resps"][0][0]) for sample in theirs["samples"]}
    for index, (example, outcome) in enumerate(zip(mine.examples("test"), outcomes, strict=True)):
        prompt, completion = texts[index]
        assert example.prompt == prompt and prompt.count("Q:") == 3
        assert (outcome.output or "").split("\n")[0].split("k")[0] == completion
    assert any(outcome.length < 12 for outcome in outcomes) and mine.max_new_tokens == 12  # stop strings end it


def test_what_is_chosen_scores_as_in_lm_evals_own_run(folder: Path, model: Path) -> None:
    mine = task("tiny_chosen", folder)
    outcomes = world(mine, model).evaluate(load_model(model), split="test", mode="greedy", n=None, seed=0)
    theirs = own_run("tiny_chosen", folder, model)
    score = scores(outcomes, mine.metric)["greedy"]
    assert 0 < score.mean < 1 and score.mean == score.extra["acc"] == theirs["figures"]["acc,none"]
    assert score.extra["acc_norm"] == theirs["figures"]["acc_norm,none"]
    assert any(outcome.extra["acc"] != outcome.extra["acc_norm"] for outcome in outcomes)
    by_document = {sample["doc_id"]: sample["filtered_resps"] for sample in theirs["samples"]}
    for index, outcome in enumerate(outcomes):
        mine_and_theirs = zip(json.loads(outcome.output or ""), by_document[index], strict=True)
        for (logp, greedy), (their_logp, their_greedy) in mine_and_theirs:
            assert logp == pytest.approx(float(their_logp), abs=1e-3) and greedy == bool(their_greedy)


def test_stored_likelihoods_are_graded_again_to_the_same_scores(folder: Path, model: Path) -> None:
    mine = task("tiny_chosen", folder)
    outcomes = world(mine, model).evaluate(load_model(model), split="test", mode="greedy", n=8, seed=0)
    again = task("tiny_chosen", folder)
    examples = {example.id: example for example in again.examples("test")}
    assert len(outcomes) == 8
    for outcome in outcomes:
        assert again.grade(examples[outcome.id], outcome.output or "") == {"score": outcome.score, **outcome.extra}
    assert world(mine, model).evaluate(load_model(model), split="test", mode="sampled", n=8, seed=0) == []


def test_settings_choose_metric_and_shots(folder: Path) -> None:
    chosen = task("tiny_chosen", folder, metric="acc_norm", fewshot=0)
    example = chosen.examples("test")[0]
    assert isinstance(example.prompt, str) and example.prompt.count("Q:") == 1
    assert [len(continuation) for _, continuation in example.continuations] == [2, 7, 3]  # the first is right
    found = chosen.grade(example, json.dumps([[-1.0, False], [-5.0, False], [-2.0, False]]))
    assert found == {"score": 0.0, "acc_norm": 0.0, "acc": 1.0}  # the second is the most probable by letter
    with pytest.raises(UsageError, match="unknown metric of lm-eval:tiny_chosen: 'acc_nrom'"):
        wrong = task("tiny_chosen", folder, metric="acc_nrom")
        wrong.grade(wrong.examples("test")[0], "[]")


def test_splits_solutions_and_training_grades(folder: Path) -> None:
    chosen = task("tiny_chosen", folder)
    assert [len(chosen.examples(split)) for split in ("train", "validation", "test")] == [18, 2, 30]
    train, test = chosen.examples("train")[1], chosen.examples("test")[1]
    assert test.continuations and test.solution is None and not train.continuations
    assert train.solution == f" {word(8) * 2}" and train.answer == word(8) * 2
    assert chosen.grade(train, f" {word(8) * 2} and more") == {"score": 1.0}
    assert chosen.grade(train, word(8)) == chosen.grade(train, "") == {"score": 0.0}
    written = task("tiny_written", folder)
    train = written.examples("train")[3]
    assert train.solution == f" {word(3)[0]}" and written.grade(train, train.solution)["score"] == 1.0


def test_rollouts_end_at_stop_strings(folder: Path, model: Path) -> None:
    written = world(task("tiny_written", folder), model)
    rollouts = written.rollout(Student(), n=8, horizon=30, generator=torch.Generator().manual_seed(0))
    for row in range(8):
        length = int(rollouts.length_b[row])
        wrote = rollouts.action_bt[row, :length][rollouts.source_bt[row, :length] != Source.NOBODY].tolist()
        text = TOKENIZER.decode(wrote[:-1])
        assert "\n" not in text and "k" not in text


def test_a_policy_is_trained_on_prompts_of_a_choice_task(folder: Path, model: Path) -> None:
    chosen = world(task("tiny_chosen", folder), model)
    rollouts = chosen.rollout(Student(), n=4, horizon=8, generator=torch.Generator().manual_seed(0))
    assert rollouts.n_trajectories == 4 and bool((rollouts.reward_bt >= 0).all())
    solutions = chosen.demonstrations(n=4, generator=torch.Generator().manual_seed(0))
    assert bool((solutions.reward_bt.sum(1) == 1).all())


@pytest.mark.parametrize("name", ["tiny_written", "tiny_chosen"])
def test_conformance(folder: Path, name: str) -> None:
    failed = [check for check in check_task(registry.load("task", f"lm-eval:{name}"), data=str(folder))
              if not check.passed]
    assert not failed


def test_refusals_name_the_task_and_the_way_out(folder: Path, model: Path) -> None:
    with pytest.raises(UserError, match="lm-eval:tiny_untrained has no training documents"):
        task("tiny_untrained", folder).checksum()
    untrained = task("tiny_untrained", folder)
    assert len(world(untrained, model).evaluate(load_model(model), split="test", mode="greedy", n=5, seed=0)) == 5
    with pytest.raises(UserError, match="--data names a folder that does not exist"):
        task("tiny_chosen", folder / "gone").examples("test")
    (folder / "broken").mkdir(exist_ok=True)
    (folder / "broken" / "tiny_broken.yaml").write_text(
        CHOSEN.replace("tiny_chosen", "tiny_broken").replace("TRAIN", "/gone.jsonl").replace("TEST", "/gone.jsonl"))
    with pytest.raises(UserError, match="lm-eval cannot load tiny_broken"):
        task("tiny_broken", folder / "broken").examples("test")


@pytest.mark.slow
def test_a_name_that_lm_eval_lacks_gets_the_nearest(folder: Path) -> None:
    with pytest.raises(UsageError, match="unknown lm-eval task 'arc_esy'") as error:
        task("arc_esy", folder).examples("test")  # not in the folder, so lm-eval's own tasks are looked through
    assert "'arc_easy'" in str(error.value.fix)
    with pytest.raises(UserError, match="lm-eval:mmlu is a group of tasks"):
        task("mmlu", folder).examples("test")


def test_the_registry_makes_a_class_for_a_name() -> None:
    made = registry.load("task", "lm-eval:arc_easy@1")
    assert made.name == "lm-eval:arc_easy" and made(data=None).id == "lm-eval:arc_easy@1"
    assert registry.describe("task", "lm-eval:arc_easy").id == "lm-eval:arc_easy@1"
    assert [found.id for found in registry.descriptions("task") if found.name == "lm-eval"] == ["lm-eval:NAME@1"]
    assert registry.kinds_of("lm-eval:arc_easy") == ["task"]
    for call in (registry.load, registry.describe):
        with pytest.raises(UsageError, match="'lm-eval' stands for many") as error:
            call("task", "lm-eval")
        assert error.value.fix == "write lm-eval:NAME"
        with pytest.raises(UsageError, match="'gsm8k' takes nothing behind a colon"):
            call("task", "gsm8k:main")


def test_tokens_are_split_where_lm_eval_splits_them() -> None:
    for context, continuation, expected in (("Q: ", "a", ("Q:", " a")), ("Q:", " a", ("Q:", " a"))):
        parts = split_tokens(TOKENIZER, context, continuation)
        assert tuple(TOKENIZER.decode(part) for part in parts) == expected
    start, tokens = split_tokens(TOKENIZER, "", "ab")
    assert start == [TOKENIZER.eos_id] and TOKENIZER.decode(tokens) == "ab"
    with pytest.raises(UserError, match="adds no token"):
        split_tokens(TOKENIZER, "Q:", "")


def test_likelihoods_are_those_of_plain_sums(folder: Path, model: Path) -> None:
    from opdbench.lm.likelihood import likelihoods

    policy: LanguagePolicy = load_model(model)
    pairs = [([3, 4, 5], [6, 7]), ([8], [9]), ([5, 5, 5, 5, 5], [1, 2, 3])]
    for (context, continuation), found in zip(pairs, likelihoods(policy, pairs, batch=2), strict=True):
        tokens = torch.tensor([[*context, *continuation]])
        with torch.no_grad():
            features = policy.features(tokens, torch.tensor([tokens.shape[1]]))[0]
            logp_ta = policy.project(features).log_softmax(-1)
        plain = sum(float(logp_ta[len(context) - 1 + step, token]) for step, token in enumerate(continuation))
        assert found.logp == pytest.approx(plain, abs=1e-5)
    with pytest.raises(UserError, match="exceeds the model's context"):
        likelihoods(policy, [([3] * 300, [4])], batch=2)


def test_a_hostile_text_is_no_likelihood(folder: Path) -> None:
    chosen = task("tiny_chosen", folder)
    example: Example = chosen.examples("test")[0]
    for text in ("", "[]", "[[1,2],[3]]", "null", "[" * 9999, "{}", "[[1,true]]", '[["a",1],[1,1],[1,1]]'):
        assert set(chosen.grade(example, text).values()) == {0.0}
