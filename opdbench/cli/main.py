"""`opdbench VERB ...`: find the verb, run it, and turn what went wrong into one sentence and an exit code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from opdbench.cli.arguments import Parser
from opdbench.errors import UserError, unknown
from opdbench.untrusted import inert

VERBS = {  # module below opdbench.cli -> meaning
    "run": "train a student with a method on a task, and record what it cost and scored",
    "list": "list methods, tasks or hardware profiles",
    "show": "show a method, a task, a profile, or the record of a run",
    "play": "watch a run's teacher and student at one test episode or problem, side by side",
    "doctor": "look at this machine and say what is missing for what",
    "check": "run the conformance suite on a method or a task",
    "board": "build leaderboards from records, check or list them",
    "paper": "published tables and claims beside our records: list, show, plan, run, build",
    "compare": "compare two methods, or two groups of records, on one task",
    "results": "validate records, ask them questions in SQL, or write them in formats of others",
    "regrade": "grade the stored outputs of runs again, and say how far that confirms their records",
    "submit": "validate and bundle the records of a method, and prepare a branch for a pull request",
    "submissions": "verify what somebody submitted, without executing any of it",
    "new": "write the skeleton of a new method, with its test",
    "teacher": "train the teacher (or the starting student) that ships with a task",
}
EPILOG = """opdbench VERB --help tells more; the main job is opdbench run --method METHOD --task TASK
exit codes: 0 fine, 1 failed, 2 usage, 3 a check failed"""

USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, what shells report
BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _execute(words)
        sys.stdout.flush()
        return code
    except UserError as error:
        _report(error, as_json="--json" in words)
        return error.exit_code
    except KeyboardInterrupt:
        print("opdbench: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough (`| head`). Python flushes stdout once more at exit, so give it a sink.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _execute(words: list[str]) -> int:
    position = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
    parser = _top_parser()
    parser.parse_known(words[:position])  # answers --help and --version
    if position == len(words):
        parser.print_help()
        return USAGE
    verb = words[position]
    if verb not in VERBS:
        raise unknown("command", verb, VERBS, see="opdbench --help")
    module = import_module(f"opdbench.cli.{verb}")
    verb_parser = Parser(prog=f"opdbench {verb}", description=module.__doc__)
    module.add_arguments(verb_parser)
    return int(module.execute(verb_parser.parse_known(words[position + 1:])))


def _top_parser() -> Parser:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {meaning}" for verb, meaning in VERBS.items())
    parser = Parser(prog="opdbench", usage="opdbench VERB [options]", formatter_class=_raw_formatter(),
                    description=f"A benchmark and reproduction suite for on-policy distillation.\n\nverbs:\n{verbs}",
                    epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"opdbench {installed_version()}")
    return parser


def _raw_formatter() -> type:
    from argparse import RawDescriptionHelpFormatter

    return RawDescriptionHelpFormatter


def installed_version() -> str:
    try:
        return version("opdbench")
    except PackageNotFoundError:
        return "(not installed as a package)"


def _report(error: UserError, *, as_json: bool) -> None:
    print(f"opdbench: {inert(str(error))}", file=sys.stderr)
    if as_json:
        print(json.dumps({"status": "error", "error": {"problem": error.problem, "fix": error.fix,
                                                       "exit_code": error.exit_code}}))


if __name__ == "__main__":
    sys.exit(main())
