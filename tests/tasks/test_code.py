"""HumanEval and MBPP: off by default, extraction of programs, every published solution, and nothing that games them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opdbench import sandbox
from opdbench.conformance import check_task
from opdbench.errors import UserError
from opdbench.task import Example
from opdbench.tasks.code import MBPP, CodeTask, HumanEval, block, program

TASKS: list[type[CodeTask]] = [HumanEval, MBPP]

HEAD = 'def double(x):\n    """Twice x."""\n'
EXAMPLE = Example("x", "", answer="assert double(2) == 4\nassert double(-1) == -2",
                  meta={"head": HEAD, "function": "double"})
RIGHT = {
    "a block": "Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.",
    "a block of no language": "```\ndef double(x):\n    return 2 * x\n```",
    "a block that is not closed": "```python\ndef double(x):\n    return 2 * x\n",
    "a second block": "```python\nimport os\n```\n```py\ndef double(x):\n    return x + x\n```",
    "plain code": "def double(x):\n    return 2 * x",
    "a continuation": "    return 2 * x",
    "a continuation in a block": "```python\n    return 2 * x\n```",
    "an example of its use": "```python\ndef double(x):\n    return 2 * x\nprint(double(3))\n```",
    "a main block": "```python\ndef double(x):\n    return 2 * x\nif __name__ == '__main__':\n    exit()\n```",
    "windows": "```python\r\ndef double(x):\r\n    return 2 * x\r\n```",
}
WRONG = {
    "nothing": "", "blank": "  \n", "words": "I would double it.", "a fence": "```", "an empty block": "```python\n```",
    "a wrong answer": "```python\ndef double(x):\n    return 2\n```",
    "leaving first": "```python\nimport os\ndef double(x):\n    os._exit(0)\n```",
    "leaving politely": "```python\nimport sys\ndef double(x):\n    return 2 * x\nsys.exit(0)\n```",
    "leaving at import": "```python\nraise SystemExit(0)\n```",
    "an endless loop": "```python\ndef double(x):\n    while True: pass\n```",
    "a file of another": "```python\ndef double(x):\n    return int(open('/etc/hostname').read())\n```",
}


@pytest.fixture
def isolated() -> None:
    try:
        sandbox.check()
    except UserError as error:
        pytest.skip(f"needs namespaces: {error.problem}")


def made(cls: type[CodeTask], data: Path | None, **params: Any) -> CodeTask:
    return cls(data=None if data is None else str(data), params=cls.Params(execute_code=True, **params))


@pytest.mark.parametrize("cls", TASKS)
def test_it_is_off_until_it_is_switched_on(cls: type[CodeTask], shared_data: Path) -> None:
    task = cls(data=str(shared_data))
    for call in (lambda: task.examples("test"), task.checksum, lambda: task.grade(EXAMPLE, RIGHT["a block"])):
        with pytest.raises(UserError, match=f"{cls.name} is scored by running programs that a model wrote") as error:
            call()
        assert "--set execute_code=true" in str(error.value.fix)


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_is_found_and_passes(name: str) -> None:
    assert made(HumanEval, None).grade(EXAMPLE, RIGHT[name]) == {"accuracy": 1.0}, program(EXAMPLE, RIGHT[name])


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_program_does_not_pass(name: str) -> None:
    assert made(HumanEval, None, cpu_seconds=1).grade(EXAMPLE, WRONG[name]) == {"accuracy": 0.0}


def test_the_block_that_defines_the_function_is_taken() -> None:
    text = "```python\nx = 1\n```\n```python\ndef f():\n    pass\n```"
    assert block(text, "f") == "def f():\n    pass\n" and block(text, "") == block(text, "g") == "x = 1\n"
    assert block("def f(): pass", "f") == "def f(): pass"


@pytest.mark.usefixtures("isolated")
def test_the_real_splits(shared_data: Path) -> None:
    tasks = {cls.name: made(cls, shared_data) for cls in TASKS}
    sizes = {name: [len(task.examples(split)) for split in ("train", "validation", "test")]
             for name, task in tasks.items()}
    assert sizes == {"humaneval": [374, 90, 164], "mbpp": [374, 90, 500]}
    assert tasks["humaneval"].examples("train") == tasks["mbpp"].examples("train")
    first = tasks["humaneval"].examples("test")[0]
    assert "has_close_elements" in first.prompt[0]["content"] and first.meta["function"] == "has_close_elements"
    assert "multiples_of_num(4,3)== [3,6,9,12]" in tasks["mbpp"].examples("test")[10].prompt[0]["content"]


@pytest.mark.usefixtures("isolated")
def test_some_published_solutions_pass_and_silence_does_not(shared_data: Path) -> None:
    for cls in TASKS:
        task = made(cls, shared_data)
        for example in task.examples("test")[:8]:
            assert task.grade(example, example.solution or "") == {"accuracy": 1.0}
            assert task.grade(example, "") == {"accuracy": 0.0}


@pytest.mark.slow
@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("cls", TASKS)
def test_every_published_solution_passes_and_silence_does_not(cls: type[CodeTask], shared_data: Path) -> None:
    task = made(cls, shared_data)
    splits = ("test",) if cls is HumanEval else ("train", "validation", "test")
    examples = [example for split in splits for example in task.examples(split)]
    assert len(examples) == {HumanEval: 164, MBPP: 964}[cls]
    assert [example.id for example in examples if task.grade(example, example.solution or "")["accuracy"] != 1] == []
    assert [example.id for example in examples[:164] if task.grade(example, "")["accuracy"] != 0] == []


@pytest.mark.slow
@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("cls", TASKS)
def test_conformance(cls: type[CodeTask], shared_data: Path) -> None:
    class Params(cls.Params):  # type: ignore[name-defined, misc]
        execute_code: bool = True

        model_config = cls.Params.model_config

    Params.model_fields["execute_code"].description = cls.Params.model_fields["execute_code"].description
    switched_on = type(cls.__name__, (cls,), {"Params": Params, "__module__": cls.__module__})
    assert [check for check in check_task(switched_on, data=str(shared_data)) if not check.passed] == []
    off = {check.name: check for check in check_task(cls, data=str(shared_data))}
    assert off["data are at hand"].passed and "execute_code" in off["data are at hand"].message


def test_the_hubs_layout_is_read(shared_data: Path, tmp_path: Path) -> None:
    """MBPP in splits, with lists in parquet."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    from opdbench.tasks import code

    (tmp_path / "full").mkdir()
    for split, size in (("train", 374), ("validation", 90), ("test", 500)):
        rows = [{"task_id": n, "text": f"{split} {n}", "code": "x = 1", "test_list": ["assert x", "assert True"],
                 "test_setup_code": ""} for n in range(size)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "full" / f"{split}-00000-of-00001.parquet")
    examples = code._mbpp("validation", str(tmp_path))
    assert len(examples) == 90 and examples[3].answer == "\nassert x\nassert True"
