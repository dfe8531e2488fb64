"""Check the records of a method, grade their outputs again, bundle them with the method's file, and prepare a branch.

Nothing is sent: the bundle is a file, and the branch is yours to push.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from opdbench.cli.arguments import add_json, add_plugin, one_of
from opdbench.cli.submissions import add_places, place_of, print_verdict, verdict_json
from opdbench.errors import CHECK_FAILED
from opdbench.text import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", nargs="+", metavar="RECORD|DIR", help="the method's runs, failed ones too")
    parser.add_argument("--license", required=True, metavar="SPDX", help="of the method's code and the records")
    parser.add_argument("--contact", required=True, metavar="TEXT", help="whom to ask about it")
    parser.add_argument("--division", default="closed", type=one_of("division", ("closed", "open")),
                        metavar="closed|open", help="closed (default): only the method differs from a board's rules")
    parser.add_argument("--name", metavar="NAME", help="of the submission (default: the method's)")
    parser.add_argument("--out", default=".", metavar="DIR", help="where the bundle goes (default: this folder)")
    parser.add_argument("--no-branch", action="store_true", help="make the bundle only")
    add_places(parser)
    add_plugin(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    from opdbench.regrade import folders
    from opdbench.store import write_atomically
    from opdbench.submissions.branch import prepare
    from opdbench.submissions.bundle import opened, pack
    from opdbench.submissions.make import About, files_of
    from opdbench.submissions.verify import verify

    about = About(args.license, args.contact, args.division, args.name, tuple(args.plugin))
    runs = folders([Path(record) for record in args.records])
    files = files_of(runs, about)
    content = pack(files)
    with tempfile.TemporaryDirectory(prefix="opdbench-") as place:
        draft = Path(place, "bundle.zip")
        draft.write_bytes(content)
        with opened(draft) as bundle:
            name, verdict = bundle.manifest.name, verify(bundle, place_of(args))
    target, branch = None, None
    if verdict.passed:
        target = Path(args.out) / f"{name}.zip"
        write_atomically(target, content)
        branch = None if args.no_branch else prepare(Path(args.repository), name, files, f"Submission: {name}")
    if args.json:
        print_json({**verdict_json(verdict), "bundle": target and str(target), "branch": branch})
    else:
        print_verdict(verdict, _next(target, branch))
    return 0 if verdict.passed else CHECK_FAILED


def _next(target: Path | None, branch: str | None) -> str:
    if target is None:
        return "nothing was written"
    if branch is None:
        return f"wrote {target}\nnext:  opdbench submissions verify {target}"
    return f"wrote {target}, made the branch {branch}\nnext:  git push origin {branch}, and open a pull request"
