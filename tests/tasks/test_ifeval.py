"""IFEval: lm-eval's own verdicts, for every type of instruction; training prompts that can be graded."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opdbench.conformance.language_task import STRANGE_TEXTS
from opdbench.errors import UserError
from opdbench.scores import Outcome, scores
from opdbench.task import Example
from opdbench.tasks import ifeval
from opdbench.tasks.ifeval import IFEval
from tests.tasks import published

# What follows some instruction or other, made up; each prompt's own arguments add to these.
RESPONSES = [
    "", " \n", "I think so.", "My answer is yes.", "My answer is no.", "no commas here at all",
    "ALL OF THIS IS LOUD ENGLISH TEXT.",
    "all of this is quiet english text that goes on for a while.", "<<A Title>>\nSome text, and more.", '{"a": [1, 2]}',
    '```json\n{"a": 1}\n```', '"Wrapped in quotation marks, as asked."', "* one\n* two\n* three", "- one\n- two",
    "*first part* and *second part* and *third part*", "A [name] and an [address], then a [date].",
    "Paragraph one.\n***\nParagraph two.\n***\nParagraph three.", "One.\n\nTwo.\n\nThree.\n\nFour.",
    "First answer.\n******\nSecond answer.", "The end.\n\nP.S. And this.", "The end.\n\nP.P.S And this.",
    "SECTION 1\nabc\nSECTION 2\ndef\nSECTION 3", "Section 1 a Section 2 b", "Day 1 a\nDay 2 b",
    "One sentence. Another one! And a third? Yes. It goes on. And on. Dr. Smith agrees. So does Mr. Jones.",
    "WORD WORD WORD and MORE WORDS IN CAPITALS FOR ALL TO SEE", "word " * 350,
    "Eine deutsche Antwort auf diese lange Frage.",
    "Une réponse en français, bien sûr, pour cette question.", "これは日本語の文章です。とても長いです。",
    "Sure, here it is:\nno commas here\nHope that helps, dear reader", "a e i o u x q z l n " * 12,
]
LANGUAGES = {
    "hi": "यह एक लंबा वाक्य है जो हिंदी में लिखा गया है।", "ko": "이것은 한국어로 쓴 긴 문장입니다.",
    "ru": "Это длинное предложение на русском языке.",
    "ar": "هذه جملة طويلة مكتوبة باللغة العربية.", "de": "Das ist ein langer Satz in deutscher Sprache.",
    "th": "นี่คือประโยคยาวที่เขียนเป็นภาษาไทย", "bn": "এটি বাংলায় লেখা একটি দীর্ঘ বাক্য।", "te": "ఇది తెలుగులో రాసిన పొడవైన వాక్యం.",
    "kn": "ಇದು ಕನ್ನಡದಲ್ಲಿ ಬರೆದ ಉದ್ದವಾದ ವಾಕ್ಯ.", "ta": "இது தமிழில் எழுதப்பட்ட நீண்ட வாக்கியம்.",
}


@pytest.fixture(scope="module")
def task(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IFEval]:
    for package in ("lm_eval", "langdetect", "immutabledict"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'opdbench[test]'")
    import nltk

    before = list(nltk.data.path)
    published.sentence_splitter(shared_data, tmp_path_factory.mktemp("nltk"))
    yield IFEval(str(published.instructions(shared_data, tmp_path_factory.mktemp("published"))))
    nltk.data.path[:] = before


def theirs(example: Example, response: str) -> dict[str, Any]:
    from lm_eval.tasks.ifeval.utils import process_results

    document = {"key": example.id, "prompt": example.prompt[0]["content"],
                "instruction_id_list": example.meta["instructions"], "kwargs": example.meta["arguments"]}
    return process_results(document, [response])


def draws(example: Example) -> bool:
    """Whether lm-eval itself draws what it checks: the letter to count, where the prompt's is none, such as `#`."""
    return any(not letter.isalpha() for arguments in example.meta["arguments"] if (letter := arguments.get("letter")))


def made_up(example: Example, rng: random.Random) -> list[str]:
    """Texts with what the prompt's arguments ask for."""
    given = {name: value for arguments in example.meta["arguments"] for name, value in arguments.items()}
    words = [word for value in given.values() for word in (value if isinstance(value, list) else [value])]
    asked = " ".join(str(word) for word in words for _ in range(rng.randint(1, 4)))
    paragraphs = "\n\n".join([f"{given.get('first_word', 'So')} it goes."] * given.get("num_paragraphs", 2))
    sections = "".join(f"{given.get('section_spliter', '')} {n}\nText.\n" for n in range(given.get("num_sections", 1)))
    return [asked, asked.upper(), f"{example.prompt[0]['content']}\n\n{asked}", f"{rng.choice(RESPONSES)}\n{asked}",
            paragraphs, sections, f'"{asked}"', "[x] " * given.get("num_placeholders", 1),
            LANGUAGES.get(given.get("language"), "")]


def of_every_type(task: IFEval, n: int) -> list[Example]:
    """The first `n` prompts of every type of instruction."""
    chosen: dict[str, list[Example]] = {}
    for example in task.examples("test"):
        for name in example.meta["instructions"]:
            if not draws(example) and len(chosen.setdefault(name, [])) < n:
                chosen[name].append(example)
    return list({example.id: example for examples in chosen.values() for example in examples}.values())


def test_verdicts_are_lm_evals_for_every_type_of_instruction(task: IFEval) -> None:
    rng, seen = random.Random(0), {}
    for example in of_every_type(task, n=3):
        for response in [*rng.sample(RESPONSES, 5), *made_up(example, rng)]:
            ours, expected = task.grade(example, response), theirs(example, response)
            assert ours["prompt_strict"] == expected["prompt_level_strict_acc"], (example.id, response)
            assert ours["prompt_loose"] == expected["prompt_level_loose_acc"], (example.id, response)
            assert ours["sum.instruction_strict.hits"] == sum(expected["inst_level_strict_acc"])
            assert ours["sum.instruction_loose.hits"] == sum(expected["inst_level_loose_acc"])
            for name, verdict in zip(example.meta["instructions"], expected["inst_level_strict_acc"], strict=True):
                seen.setdefault(name, set()).add(verdict)
    assert len(seen) == 25  # every type that IFEval has,
    assert {name for name, verdicts in seen.items() if len(verdicts) < 2} == set()  # and each was followed, and was not


def test_what_lm_eval_draws_anew_is_always_the_same_here(task: IFEval) -> None:
    drawn = [example for example in task.examples("test") if draws(example)]
    assert 0 < len(drawn) < 10
    for example in task.examples("test"):
        state = random.getstate()
        theirs(example, "a b")
        assert (random.getstate() != state) == (example in drawn), example.id
    for example in drawn:
        assert len({task.grade(example, "eeee tttt aaaa")["sum.instruction_strict.hits"] for _ in range(20)}) == 1


def test_accuracy_over_instructions_is_lm_evals_aggregate(task: IFEval) -> None:
    from lm_eval.tasks.ifeval.utils import agg_inst_level_acc

    rng, outcomes, items = random.Random(1), [], []
    for example in task.examples("test")[:60]:
        response = rng.choice(RESPONSES)
        grade = task.grade(example, response)
        extra = {name: value for name, value in grade.items() if name != "prompt_strict"}
        outcomes.append(Outcome(example.id, "greedy", grade["prompt_strict"], 1, False, response, extra))
        items.append(theirs(example, response)["inst_level_strict_acc"])
    score = scores(outcomes, "prompt_strict")["greedy"]
    assert score.extra["instruction_strict"] == pytest.approx(agg_inst_level_acc(items))
    assert 0 < score.mean < score.extra["instruction_strict"] and score.interval == "wilson"
    assert set(score.extra) == {"prompt_loose", "instruction_strict", "instruction_loose"}


def test_grading_is_repeatable_and_leaves_global_randomness_alone(task: IFEval) -> None:
    languages = [example for example in task.examples("test") if "language:response_language" in
                 example.meta["instructions"]][:5]
    state = random.getstate()
    for example in (*languages, *task.examples("test")[:5]):
        for text in ("la", "ok no", "Das ist so", *STRANGE_TEXTS[:12]):
            assert task.grade(example, text) == task.grade(example, text)
    assert random.getstate() == state


def test_training_prompts_ask_for_what_can_be_checked(task: IFEval) -> None:
    train, validation = task.examples("train"), task.examples("validation")
    assert len(train) > 500 and len(validation) > 100
    kinds = {example.meta["instructions"][0] for example in train}
    assert len(kinds) == 25 - len(ifeval.NOT_DRAWN) and not kinds & set(ifeval.NOT_DRAWN)
    verdicts = [task.grade(example, response)["prompt_strict"] for example in train[:40] for response in RESPONSES[:8]]
    assert 0.05 < sum(verdicts) / len(verdicts) < 0.95
    assert {example.solution for example in train} == {None}
    assert IFEval(task.data).checksum() == task.checksum()


def test_without_the_sentence_splitter_nothing_is_downloaded(task: IFEval, monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    ifeval._checkers.cache_clear()
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(UserError, match="punkt_tab") as error:
        IFEval(task.data).examples("train")
    assert "python -m nltk.downloader punkt_tab" in error.value.fix
    monkeypatch.undo()
    ifeval._checkers.cache_clear()


def test_bad_rows_are_named(task: IFEval, tmp_path: Path) -> None:
    (tmp_path / "ifeval").mkdir()
    for row, problem in (('{"prompt": "a"}', "are not two lists"),
                         ('{"prompt": "a", "instruction_id_list": ["x:y"], "kwargs": [{}]}', "no checker for"),
                         ('{"prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}',
                          "has 1 rows, but IFEval has 541")):
        (tmp_path / "ifeval/input_data.jsonl").write_text(row)
        with pytest.raises(UserError, match=problem):
            IFEval(str(tmp_path)).examples("test")
