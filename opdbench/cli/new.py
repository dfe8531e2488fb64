"""Write the skeleton of a new method: one file that works as it is, and its test."""

from __future__ import annotations

import argparse
import keyword
import re
from pathlib import Path
from string import Template

from opdbench import registry
from opdbench.cli.arguments import one_of
from opdbench.errors import UsageError, UserError

METHOD = Template('''\
"""$title: say in one sentence what it is."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class $cls(Distiller):
    """Say what this method claims, in one sentence that an experiment could refute.

        L = E_{s ~ student} [ w KL(teacher || student)(s) + (1 - w) KL(student || teacher)(s) ]

    Explain the terms, with the section or equation of the paper. As it stands, this skeleton mixes the two KL
    divergences on the student's own trajectories, so it runs and learns before you change it.

    Deviations from the paper:
        Say what differs, and why. None, when nothing does.
    """

    name: ClassVar[str] = "$name"
    paper: ClassVar[str] = "Authors, venue and year, section or equation that `loss` implements"
    needs: ClassVar[Needs] = Needs.FULL  # what the teacher must reveal; ask for no more than `loss` reads

    class Params(Distiller.Params):
        forward_weight: float = Field(0.5, ge=0, le=1, description="w: share of the forward KL in the loss")

    def collect(self, ctx: Context) -> Rollouts:
        """Who acts, and for how long: here the student, with the run's own batch size and horizon."""
        return ctx.rollout(Student(ctx.training.temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        """One value for every row (a visited state); the loop averages, differentiates and steps."""
        forward_n = forward_kl(rows.teacher, rows.student)
        reverse_n = reverse_kl(rows.teacher, rows.student)
        weight = self.params.forward_weight
        return Loss(weight * forward_n + (1 - weight) * reverse_n, {"forward_kl": forward_n.detach()})
''')

TEST = Template('''\
"""$name must pass the conformance suite; add what the paper says about it in closed form."""

from pathlib import Path

from opdbench import registry
from opdbench.conformance import check_method

FILE = Path(__file__).with_name("$module.py")


def test_${module}_passes_the_conformance_suite() -> None:
    method = registry.load("method", "$name", [FILE])
    failed = [f"{check.name}: {check.message}" for check in check_method(method) if not check.passed]
    assert not failed, "\\n".join(failed)
''')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", type=one_of("kind", ["method"]), metavar="method", help="what to make: method")
    parser.add_argument("name", metavar="NAME", help="lower case, words joined by hyphens, such as my-method")
    parser.add_argument("--out", default=".", metavar="DIR", help="folder for the two files (default: this one)")


def execute(args: argparse.Namespace) -> int:
    _check_name(args.name)
    module = args.name.replace("-", "_")
    words = {"name": args.name, "module": module, "cls": "".join(part.capitalize() for part in args.name.split("-")),
             "title": args.name.replace("-", " ").capitalize()}
    folder = Path(args.out).expanduser()
    method, test = folder / f"{module}.py", folder / f"test_{module}.py"
    _write({method: METHOD.substitute(words), test: TEST.substitute(words)})
    print(f"wrote {method} and {test}\n"
          f"next:  opdbench check {method}\n"
          f"       opdbench run --plugin {method} --method {args.name} --task TASK")
    return 0


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UsageError(f"{name!r} cannot name a method",
                         "use lower-case letters and digits, words joined by hyphens, such as my-method")
    if name in registry.names("method"):
        raise UserError(f"there is a method {name!r} already ({registry.describe('method', name).path})",
                        "choose another name")


def _write(files: dict[Path, str]) -> None:
    """Write all of them or none; nothing is overwritten."""
    for path in files:
        if path.exists():
            raise UserError(f"{path} exists, and is left as it is", "choose another name, or another folder with --out")
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as handle:
                handle.write(text)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}", "choose another folder with --out DIR") from error
