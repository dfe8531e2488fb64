"""What `--teacher` may name: read, refused, and identified by content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from opdbench import references
from opdbench.errors import UserError
from opdbench.estimate import estimate
from opdbench.policy import Policy
from opdbench.references import Copy, Mix, Model, Named
from opdbench.registry import load
from opdbench.resolve import Request, resolve
from opdbench.schema.spec import ModelRef
from opdbench.worlds import build

MODELS = Path(__file__).resolve().parents[1] / "tasks" / "models"
STUDENT = ModelRef(reference="s", sha256="5" * 64)
T, S = "chain-sum/teacher", "chain-sum/student"


def named(reference: str, task: str = "chain-sum") -> Named:
    return references.teacher(reference, load("task", task)(), STUDENT)


def test_one_model_is_its_files() -> None:
    assert named(T).teacher == Model(MODELS / T)
    assert named(f"int8:{T}").teacher == Model(MODELS / T, quantisation="int8")
    assert len({named(reference).ref.sha256 for reference in (T, f"int8:{T}", f"nf4:{T}")}) == 3


def test_the_student_may_be_its_own_teacher() -> None:
    assert named("student").teacher == Copy() and named("ema:0.99").teacher == Copy(0.99)
    other = references.teacher("ema:0.99", load("task", "chain-sum")(), ModelRef(reference="s", sha256="6" * 64))
    assert len({named("student").ref.sha256, named("ema:0.99").ref.sha256, named("ema:0.9").ref.sha256,
                other.ref.sha256}) == 4


def test_a_mixture_names_all_its_parts() -> None:
    mixture = named(f"mix:{T}=1/3, nf4:{S}=0.5,student=1/6")
    assert mixture.teacher == Mix((Model(MODELS / T), Model(MODELS / S, quantisation="nf4"), Copy()),
                                  (pytest.approx(1 / 3), 0.5, pytest.approx(1 / 6)))
    assert [part.reference for part in mixture.ref.parts] == [T, f"nf4:{S}", "student"]
    assert references.leaves(mixture.teacher) == list(mixture.teacher.parts)


def test_the_checksum_is_of_what_is_mixed_and_how_much(tmp_path: Path) -> None:
    shutil.copytree(MODELS / T, tmp_path / "copy")
    plain = named(f"mix:{T}=0.5,{S}=0.5").ref.sha256
    assert named(f"mix:{tmp_path / 'copy'}=1/2,{S}=1/2").ref.sha256 == plain
    assert named(f"mix:{T}=0.4,{S}=0.6").ref.sha256 != plain
    assert named(f"mix:{S}=0.5,{S}=0.5").ref.sha256 != plain


@pytest.mark.parametrize(("reference", "message"), [
    ("mix:", "cannot be read"),
    (f"mix:{T}", "cannot be read"),
    (f"mix:{T}=half,{S}=0.5", "weight 'half' is not a positive number"),
    (f"mix:{T}=1.5,{S}=-0.5", "weight '-0.5' is not a positive number"),
    (f"mix:{T}=nan,{S}=0.5", "weight 'nan' is not a positive number"),
    (f"mix:{T}=0.5,{S}=0.4", "weights sum to 0.9 and not to 1"),
    (f"mix:nowhere=0.5,{S}=0.5", "no teacher model 'nowhere'"),
    (f"mix:mix:{T}=1", "cannot be nested"),
    ("ema:", "needs a decay between 0 and 1"),
    ("ema:1", "needs a decay between 0 and 1"),
    ("ema:fast", "needs a decay between 0 and 1"),
    ("int8:", "names no model"),
    ("nf4:student", "no teacher model 'student'"),
    ("route:", "cannot be read"),
    (f"route:size:a={T},a={S}", "two teachers for one value"),
    (f"route:size:a={T},b={S}", "does not say its 'size'"),
])
def test_what_breaks_the_grammar_is_refused(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        named(reference)


@pytest.mark.parametrize(("reference", "message"), [
    ("route:wind:a=cartpole/teacher", "no problems to route by"), ("int8:cartpole/teacher", "is a control task")])
def test_control_tasks_refuse_what_is_for_language_models(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        named(reference, "cartpole")


def test_a_problem_without_a_teacher_is_named() -> None:
    with pytest.raises(UserError, match=r"names no teacher for shortest = .*, which problem text-maze-"):
        named("route:shortest:999=text-maze/teacher", "text-maze")


# ------------------------------------------------------------------------------------------------------- fresh students


def test_a_new_student_is_named_by_its_hidden_layers() -> None:
    assert references.fresh_widths("fresh:60x30") == references.fresh_widths("fresh 60x30") == (60, 30)
    assert references.fresh((60, 30)) == "fresh 60x30" and references.fresh(()) == "fresh table"
    assert references.fresh_widths("fresh table") == () and not references.is_fresh("fresh 60x30")


@pytest.mark.parametrize("reference", ["fresh:", "fresh:0", "fresh:8x", "fresh:-8", "fresh:8,8", "fresh:99999"])
def test_a_new_student_without_widths_is_refused(reference: str) -> None:
    with pytest.raises(UserError, match="widths of hidden layers"):
        references.fresh_widths(reference)


def test_a_run_may_ask_for_a_student_of_another_size() -> None:
    given, own = (resolve(Request("kd", "cartpole", student=student)) for student in ("fresh:8x4", None))
    assert (given.spec.recipe.student.reference, given.student) == ("fresh 8x4", None)
    assert given.spec.origins["student"] == "user" and own.spec.recipe.student.reference == "fresh 32"
    student = build(given).student
    assert isinstance(student, Policy) and student.n_parameters() == 4 * 8 + 8 + 8 * 4 + 4 + 4 * 2 + 2
    assert estimate(given).student_parameters == student.n_parameters()
    same = resolve(Request("kd", "cartpole", student="fresh:32")).spec.recipe
    assert same.digest() == own.spec.recipe.digest()


def test_a_language_model_is_not_a_small_network() -> None:
    with pytest.raises(UserError, match="needs a language model"):
        resolve(Request("kd", "chain-sum", student="fresh:8"))
