"""GSM8K: grading equal to lm-eval's own code, data that is read or refused with file and line, prompts, splits."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from opdbench.errors import UserError
from opdbench.task import Example
from opdbench.tasks import gsm8k
from opdbench.tasks.gsm8k import GSM8K

pytest_plugins = ["tests.hub_cache"]

Grader = Callable[[str, str], dict[str, float]]

GOLD = ["18", "-5", "1,450,000", "0.5", "70", "8"]

TRICKY = [
    "", " ", "\n", "####", "#### ", "####18", "#### 18", "####  18", "#### 18.", "#### 18..", "#### 18.0", "#### $18",
    "#### 18$", "#### 18 eggs for 2 days", "#### 18\n#### 19", "#### 19\n#### 18", "#### -5", "#### - 5", "#### −5",
    "-5", "x-5", "5-", "3-5", "#### 1,450,000", "#### 1450000", "#### $1,450,000.00", "1,450,000", "1450000.",
    "$1,450,000.", "1.450.000", "#### .5", "0.5", "#### 0.5", "½", "50%", "#### 50%", "The answer is 18",
    "The answer is 18.", "The answer is $18.", "The answer is \\boxed{18}", "The answer is 18!", "**18**", "18 or 19",
    "19 or 18", "It is 18, 19, or 18", "eighteen", "１８", "#### １８", "#### ١٨", "٧٠", "1 8", "18\x00", "18\n\n",
    "\n\n18", "#### 18\r\n", "a. b. c.", "so, ..", "18 .. ,,", "$", "$$", "-", "-.", "--18", "-$18", "#### -",
    "#### ,", "#### .", "#### ..", "#### ,18", "#### 18,", "#### 1,8", "18e0", "1e1", "0x12", "018", "18.00", "+18",
    "#### +18", "####\n18", "####\t18", "#### 18#### 19", "## 18", "##### 18", "#### 18 #### ", "####  #### 18",
    "[invalid]", "#### [invalid]", "Question: 18", "#### 18\nQuestion: what is 2+2?\n#### 4", "18</s>19",
    "#### 18<|im_end|>#### 19", "18<|im_end|>", "question: 18\n19", "Question:#### 18", "#### 8\u20ac",
    "70 \u2014 no, 8", "8.", "8,", "8, 70.", "70.8", "7 0", "8/1", "16/2=8", "8=16/2", "The total is 8 (eight).",
    "Answer:8", "#### 8.\n\n", "8\u00a0", "8\u2009000", "#### 70\u00a0%", "<think>70</think>8", "\\(8\\)", "$8$",
    "\\$8", "8$.", "$8.$", "#### 8 **", "`#### 8`", "`#### N`", "1.", "1.\n2.\n3.", "(18)",
]


@pytest.fixture(scope="module")
def lm_eval_grade() -> Grader:
    """(answer text, completion) -> scores, computed by lm-eval's own filters, metric and task file."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'opdbench[test]'")
    import lm_eval
    import yaml
    from lm_eval.api.instance import Instance
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters import build_filter_ensemble
    from lm_eval.models.utils import postprocess_generated_text

    config = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
    (metric,) = config["metric_list"]
    options = {name: metric[name] for name in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    ensembles = [build_filter_ensemble(item["name"], [
        (step["function"], {key: value for key, value in step.items() if key != "function"}) for step in item["filter"]
    ]) for item in config["filter_list"]]

    def grade(answer: str, completion: str) -> dict[str, float]:
        text = postprocess_generated_text(completion, config["generation_kwargs"]["until"], None)
        instance = Instance("generate_until", {}, ("", {}), 0)
        instance.resps = [text]
        scores = {}
        for ensemble in ensembles:
            ensemble.apply([instance])
            prediction = instance.filtered_resps[ensemble.name]
            scores[ensemble.name] = float(
                exact_match_fn(predictions=[prediction], references=[answer], **options)["exact_match"])
        return scores

    return grade


@pytest.fixture(scope="module")
def real(shared_data: Path) -> GSM8K:
    """The task on the real files."""
    return GSM8K(data=str(shared_data / "gsm8k"))


def assert_same(lm_eval_grade: Grader, answer: str, completion: str) -> dict[str, float]:
    final = answer.rpartition("#### ")[2]
    ours = GSM8K().grade(Example(id="x", prompt="", answer=final), completion)
    theirs = lm_eval_grade(answer, completion)
    assert ours["strict"] == theirs["strict-match"], (answer, completion)
    assert ours["flexible"] == theirs["flexible-extract"], (answer, completion)
    assert ours["accuracy"] == ours["flexible"]
    return ours


@pytest.mark.parametrize("gold", GOLD)
def test_grades_tricky_strings_as_lm_eval_does(lm_eval_grade: Grader, gold: str) -> None:
    seen = [assert_same(lm_eval_grade, f"So it is {gold}.\n#### {gold}", completion) for completion in TRICKY]
    assert {scores["flexible"] for scores in seen} == {0.0, 1.0}  # the strings decide something for every gold answer
    assert {scores["strict"] for scores in seen} == {0.0, 1.0}


def test_grades_random_strings_as_lm_eval_does(lm_eval_grade: Grader) -> None:
    rng = random.Random(0)
    pieces = ["#", "####", "#### ", " ", "\n", "$", ",", ".", "-", "1", "8", "18", "0", "٨", "Question:", "</s>", "x"]
    answers = ["#### 18", "#### 1", "#### -8", "#### 1,8"]
    hits = 0
    for _ in range(4000):
        completion = "".join(rng.choices(pieces, k=rng.randint(1, 9)))
        hits += bool(assert_same(lm_eval_grade, rng.choice(answers), completion)["flexible"])
    assert 100 < hits < 3900


def test_grades_examples_with_known_verdicts() -> None:
    example = Example(id="x", prompt="", answer="1,800")
    verdicts = {"... #### 1800": (1, 1), "#### $1,800.": (0, 1), "It is 1,800": (0, 1), "#### 1800 in 2 days": (1, 0),
                "#### 18": (0, 0), "": (0, 0)}
    for completion, (strict, flexible) in verdicts.items():
        scores = GSM8K().grade(example, completion)
        assert scores == {"accuracy": flexible, "strict": strict, "flexible": flexible}, completion


def test_the_real_splits(real: GSM8K) -> None:
    splits = {split: real.examples(split) for split in ("train", "validation", "test")}
    assert [len(examples) for examples in splits.values()] == [6973, 500, 1319]
    everything = [example for examples in splits.values() for example in examples]
    assert len({example.prompt[0]["content"] for example in everything}) == len(everything)
    assert len({example.id for example in everything}) == len(everything)
    first = splits["test"][0]
    assert first.id == "test-0" and first.answer == "18"
    assert first.prompt[0]["content"].startswith("Janet’s ducks") and gsm8k.INSTRUCTION in first.prompt[0]["content"]
    assert first.solution == ("Janet sells 16 - 3 - 4 = 9 duck eggs a day.\n"
                              "She makes 9 * 2 = $18 every day at the farmer’s market.\n#### 18")


def test_every_real_solution_is_right_by_both_filters(real: GSM8K, lm_eval_grade: Grader) -> None:
    for split in ("train", "validation", "test"):
        for example in real.examples(split):
            assert "<<" not in example.solution and ">>" not in example.solution
            assert real.grade(example, example.solution) == {"accuracy": 1, "strict": 1, "flexible": 1}, example.id
    for example in real.examples("test")[:200]:
        assert lm_eval_grade(example.solution, example.solution) == {"strict-match": 1.0, "flexible-extract": 1.0}


def test_the_instruction_holds_no_number() -> None:
    echo = GSM8K().grade(Example(id="x", prompt="", answer="1"), gsm8k.INSTRUCTION)
    assert echo == {"accuracy": 0, "strict": 0, "flexible": 0}
    assert gsm8k.strict_match(gsm8k.INSTRUCTION) == gsm8k.flexible_extract(gsm8k.INSTRUCTION) == "[invalid]"


def test_local_data_in_every_form_is_the_same_task(
        real: GSM8K, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(real.data)
    checksum = real.checksum()
    assert GSM8K(data=str(folder.parent)).checksum() == checksum  # a folder of data sets
    monkeypatch.setenv("OPDBENCH_DATA", str(folder))
    assert GSM8K().checksum() == checksum
    monkeypatch.setenv("OPDBENCH_DATA", str(tmp_path / "elsewhere"))
    assert GSM8K(data=str(folder)).checksum() == checksum  # --data wins

    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    (tmp_path / "main").mkdir()  # as the hub lays it out, train in two shards
    train, test = _rows(folder, "train"), _rows(folder, "test")
    for name, rows in (("test-00000-of-00001", test), ("train-00000-of-00002", train[:4000]),
                       ("train-00001-of-00002", train[4000:])):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "main" / f"{name}.parquet")
    assert GSM8K(data=str(tmp_path)).checksum() == checksum


def test_hub_data_is_read_from_its_cache(real: GSM8K, hub_cache: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    main = hub_cache / "datasets--openai--gsm8k" / "snapshots" / "c0ffee" / "main"
    main.mkdir(parents=True)
    (hub_cache / "datasets--openai--gsm8k" / "refs").mkdir()
    (hub_cache / "datasets--openai--gsm8k" / "refs" / "main").write_text("c0ffee")
    for split in ("train", "test"):
        table = pyarrow.Table.from_pylist(_rows(Path(real.data), split))
        parquet.write_table(table, main / f"{split}-00000-of-00001.parquet")
    assert GSM8K().checksum() == real.checksum()


def test_no_data_says_what_to_download_or_pass(hub_cache: Path) -> None:
    with pytest.raises(UserError) as error:
        GSM8K().examples("test")
    assert "openai/gsm8k" in error.value.problem and "HF_HUB_OFFLINE is set" in error.value.problem
    for part in ("hf download --repo-type dataset openai/gsm8k", "--data FOLDER", "OPDBENCH_DATA",
                 "test.jsonl (1,319 rows)"):
        assert part in error.value.fix


def test_a_folder_without_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds neither gsm8k's files nor a folder gsm8k/"):
        GSM8K(data=str(tmp_path)).examples("test")
    with pytest.raises(UserError, match="--data names a folder that does not exist"):
        GSM8K(data=str(tmp_path / "no" / "such")).examples("test")
    monkeypatch.setenv("OPDBENCH_DATA", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="OPDBENCH_DATA names a folder that does not exist"):
        GSM8K().examples("test")
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"has no test\.jsonl"):
        GSM8K(data=str(tmp_path)).examples("test")


GOOD = json.dumps({"question": "What is 1+1?", "answer": "1+1=<<1+1=2>>2\n#### 2"}).encode()
BAD_LINES = {
    "cut": (b'{"question": "What', r"test.jsonl line 2 is not one JSON object"),
    "latin-1": (b'{"question": "caf\xe9", "answer": "#### 2"}', r"test.jsonl line 2 is not one JSON object in UTF-8"),
    "list": (b"[1]", "test.jsonl line 2 is not a JSON object"),
    "nested": (b"[" * 100_000, "test.jsonl line 2 is not one JSON object"),
    "no answer": (b'{"question": "What?"}', "test.jsonl line 2: field 'answer' is missing"),
    "number": (b'{"question": "What?", "answer": 2}', "test.jsonl line 2: field 'answer' is not a text"),
    "empty": (b'{"question": " ", "answer": "#### 2"}', "test.jsonl line 2: field 'question' is not a text, or empty"),
    "short": (GOOD, "test.jsonl has 2 rows, but gsm8k's test split has 1319"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named_with_file_and_line(kind: str, tmp_path: Path) -> None:
    line, message = BAD_LINES[kind]
    (tmp_path / "test.jsonl").write_bytes(GOOD + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=message) as error:
        GSM8K(data=str(tmp_path)).examples("test")
    assert error.value.fix


def test_an_answer_without_its_mark_is_named(tmp_path: Path) -> None:
    unmarked = json.dumps({"question": "What?", "answer": "2"}).encode()
    (tmp_path / "test.jsonl").write_bytes(b"\n".join([GOOD] * 1318 + [unmarked]))
    with pytest.raises(UserError, match=r"test\.jsonl line 1319: the answer does not end in"):
        GSM8K(data=str(tmp_path)).examples("test")


def test_a_cut_archive_is_named(tmp_path: Path) -> None:
    packed = gzip.compress(b"\n".join([GOOD] * 1319), mtime=0)
    (tmp_path / "test.jsonl.gz").write_bytes(packed)
    assert len(GSM8K(data=str(tmp_path)).examples("test")) == 1319
    for damaged in (packed[: len(packed) // 2], b"not gzip at all", packed[:20] + bytes(20) + packed[40:]):
        (tmp_path / "test.jsonl.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"test\.jsonl\.gz after line \d+ cannot be read"):
            GSM8K(data=str(tmp_path)).examples("test")


def test_a_broken_parquet_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "test.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(UserError, match=r"test\.parquet is not a readable parquet file"):
        GSM8K(data=str(tmp_path)).examples("test")


def _rows(folder: Path, split: str) -> list[dict[str, str]]:
    name = {"train": "train.jsonl.gz", "test": "test.jsonl"}[split]
    raw = (folder / name).read_bytes()
    return [json.loads(line) for line in (gzip.decompress(raw) if name.endswith(".gz") else raw).splitlines()]
