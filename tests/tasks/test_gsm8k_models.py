"""GSM8K with small local models on real questions, and the same generations under lm-eval itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from opdbench.actors import Student
from opdbench.lm import model
from opdbench.lm.world import LanguageWorld
from opdbench.seeds import generator
from opdbench.tasks.gsm8k import GSM8K, INSTRUCTION
from tests.lm import tiny_models
from tests.tasks.test_gsm8k import Grader, lm_eval_grade  # noqa: F401


def short_task(folder: Path) -> GSM8K:
    return GSM8K(str(folder / "gsm8k"), GSM8K.Params(max_new_tokens=64))


@pytest.fixture(scope="module")
def folders(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A hardly trained teacher and a random student, made in a few seconds."""
    return tiny_models.make(tmp_path_factory.mktemp("models"), data=str(shared_data / "gsm8k"), teacher_steps=20)


@pytest.fixture(scope="module")
def world(shared_data: Path, folders: dict[str, Path]) -> LanguageWorld:
    student, teacher = model.load(folders["student"]), model.load(folders["teacher"])
    return LanguageWorld(short_task(shared_data), student, teacher, seed=0)


def test_prompts_go_through_the_chat_template(world: LanguageWorld) -> None:
    example = world.task.examples("test")[0]
    text = world.tokenizer.inner.decode(world.tokenizer.render(example.prompt))
    question = tiny_models.question(example)
    assert text == f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def test_demonstrations_are_the_solutions_with_an_end(world: LanguageWorld) -> None:
    rollouts = world.demonstrations(n=4, generator=generator(0, "test"))
    for row, index in enumerate(rollouts.columns["example"].tolist()):
        tokens = rollouts.action_bt[row][rollouts.mask_bt[row]].tolist()
        assert tokens[-1] == world.tokenizer.eos_id
        assert world.tokenizer.decode(tokens[:-1]) == world.task.examples("train")[index].solution
    assert rollouts.reward_bt.sum(1).tolist() == [1.0] * 4  # real solutions are right


def test_rollouts_are_graded_on_real_questions(world: LanguageWorld) -> None:
    rollouts = world.rollout(Student(), n=4, horizon=16, generator=generator(0, "test"))
    for row, index in enumerate(rollouts.columns["example"].tolist()):
        text = world.tokenizer.decode(rollouts.action_bt[row][rollouts.mask_bt[row]].tolist())
        verdict = world.task.grade(world.task.examples("train")[index], text)["accuracy"]
        assert rollouts.reward_bt[row].sum().item() == verdict


def test_real_generations_are_graded_as_lm_eval_does(world: LanguageWorld, lm_eval_grade: Grader) -> None:  # noqa: F811
    outcomes = world.evaluate(world.teacher, split="test", mode="sampled", n=48, seed=0)
    examples = {example.id: example for example in world.task.examples("test")}
    assert [outcome.id for outcome in outcomes] == list(examples)[:48]
    for outcome in outcomes:
        theirs = lm_eval_grade(examples[outcome.id].solution, outcome.output)
        assert (outcome.extra["strict"], outcome.score) == (theirs["strict-match"], theirs["flexible-extract"])
    numbers = [outcome for outcome in outcomes if any(digit in outcome.output for digit in "0123456789")]
    assert len(numbers) > 10  # the filters had something to find


@pytest.mark.slow
def test_lm_eval_run_on_the_same_model_agrees(shared_data: Path, tmp_path: Path) -> None:
    """lm-eval's own command on 200 real questions: same prompts, same greedy text, same two verdicts for each."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'opdbench[test]'")
    folders = tiny_models.make(tmp_path / "models", data=str(shared_data / "gsm8k"))
    task, teacher = short_task(shared_data), model.load(folders["teacher"])
    outcomes = LanguageWorld(task, teacher, None, seed=0).evaluate(teacher, split="test", mode="greedy", n=200, seed=0)
    samples = run_lm_eval(folders["teacher"], shared_data / "gsm8k", tmp_path, limit=200, max_new_tokens=64)

    same_text = 0
    for index, outcome in enumerate(outcomes):
        strict, flexible = (samples[name][index] for name in ("strict-match", "flexible-extract"))
        example = task.examples("test")[index]
        assert strict["arguments"]["gen_args_0"]["arg_0"] == teacher.tokenizer.inner.apply_chat_template(
            example.prompt, tokenize=False, add_generation_prompt=True)
        (text,), = strict["resps"]
        scores = task.grade(example, text)
        assert scores["strict"] == strict["exact_match"] and scores["flexible"] == flexible["exact_match"], text
        if outcome.output.split("Question:")[0] == text:
            same_text += 1
            assert (outcome.extra["strict"], outcome.score) == (strict["exact_match"], flexible["exact_match"])
    # Greedy ties may break differently in another batch, so a few texts may differ; the verdicts above never.
    assert same_text >= 190
    assert 0 < sum(sample["exact_match"] for sample in samples["flexible-extract"]) < 200
    assert any("####" in sample["resps"][0][0] for sample in samples["strict-match"])


def run_lm_eval(folder: Path, data: Path, out: Path, *, limit: int, max_new_tokens: int) -> dict[str, list[Any]]:
    """lm-eval's gsm8k on local files, zero-shot through the chat template; samples by filter, in the test's order."""
    (out / "tasks").mkdir()
    options = {
        "include": "gsm8k.yaml", "task": "gsm8k_local", "tag": [], "dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {"data_files": {"train": str(data / "train.jsonl.gz"), "test": str(data / "test.jsonl")}},
        "doc_to_text": "{{question}}\n\n" + INSTRUCTION, "num_fewshot": 0,
    }
    (out / "tasks" / "gsm8k_local.yaml").write_text(yaml.safe_dump(options))
    import lm_eval

    published = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    (out / "tasks" / "gsm8k.yaml").write_text(published.read_text().replace("task: gsm8k", "task: gsm8k_published", 1))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "cache"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args",
                    f"pretrained={folder},dtype=float32", "--device", "cpu", "--tasks", "gsm8k_local", "--include_path",
                    str(out / "tasks"), "--apply_chat_template", "--log_samples", "--output_path", str(out / "results"),
                    "--limit", str(limit), "--batch_size", "64", "--gen_kwargs", f"max_gen_toks={max_new_tokens}"],
                   check=True, env=environment, timeout=500)
    (file,) = (out / "results").rglob("samples_gsm8k_local_*.jsonl")
    samples = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return {name: [sample for sample in samples if sample["filter"] == name]
            for name in ("strict-match", "flexible-extract")}
