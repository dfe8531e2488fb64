"""What `opdbench board site` and `opdbench board serve` do; see `opdbench.cli.board`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from opdbench.text import print_json

OUT, PORT = "site", 8000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default=OUT, metavar="DIR", help="site, serve: where the pages go (default ./site)")
    parser.add_argument("--papers", default="papers", metavar="DIR",
                        help="site, serve: what `opdbench paper build` wrote (default ./papers)")
    parser.add_argument("--fresh", action="store_true",
                        help="build, site, serve: make everything again, also where nothing has changed")
    parser.add_argument("--port", type=int, default=PORT, help="serve: on this machine, at this port (default 8000)")


def build(args: argparse.Namespace) -> int:
    from opdbench.site.build import build_site

    started = time.perf_counter()
    done = build_site(Path(args.results), Path(args.leaderboards), Path(args.out), papers=Path(args.papers),
                      fresh=args.fresh)
    if args.json:
        print_json({"out": args.out, "pages": done.pages, "changed": done.changed, "removed": done.removed,
                    "unread": [each._asdict() for each in done.unread]})
        return 0
    print(f"{args.out}: {done.pages} files, {done.changed} written, {done.removed} removed, "
          f"{time.perf_counter() - started:.1f} s; open {args.out}/index.html")
    for each in done.unread:
        print(f"not read: {each.place}: {each.problem}")
    return 0


def serve(args: argparse.Namespace) -> int:
    """Build, then serve until interrupted."""
    from opdbench.site.pages import board_path
    from opdbench.site.serve import server

    build(args)
    with server(Path(args.out), args.port) as running:
        page = "" if args.name is None else board_path(args.name)
        print(f"http://127.0.0.1:{running.server_port}/{page} (Ctrl-C ends it)", flush=True)
        running.serve_forever()
    return 0
