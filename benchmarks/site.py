"""How long boards and the static site take to build, how much memory, and how it grows: `python -m benchmarks.site`.

Synthetic records are written first (`benchmarks.records`), which takes longer than the builds. Every measurement is a
process of its own: all boards from the raw outcomes, then the site into an empty folder, and each again with nothing
changed. Wall seconds mean what they say only on a quiet machine; CPU seconds are over all processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.records import write_records
from opdbench.report.unchanged import MADE

_MEASURED = """
import contextlib, io, json, resource, sys, time
started = time.perf_counter()
from opdbench.cli.main import main
what, results, leaderboards, out = sys.argv[1:]
with contextlib.redirect_stdout(io.StringIO()) as said:
    assert main(["board", what, "--json", "--results", results, "--leaderboards", leaderboards, "--out", out]) == 0
done = json.loads(said.getvalue())
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
changed = done["changed"] if what == "site" else sum(len(board["changed"]) for board in done)
print(json.dumps({"changed": changed, "seconds": time.perf_counter() - started,
                  "cpu": sum(u.ru_utime + u.ru_stime for u in used), "memory": [u.ru_maxrss / 1024 for u in used]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[2000, 20_000])
    parser.add_argument("--keep", type=Path, help="a folder for the records, to be used again; default: temporary")
    args = parser.parse_args()
    print("| records | | files | build, s | CPU s | memory, MiB | unchanged, s | CPU s |\n| --: | --- |" + " --: |" * 6)
    with tempfile.TemporaryDirectory() as folder:
        for count in args.records:
            place = (args.keep or Path(folder)) / str(count)
            if not place.is_dir():
                write_records(place, count)
            (place / "leaderboards" / MADE).unlink(missing_ok=True)
            with tempfile.TemporaryDirectory() as out:
                for what in ("build", "site"):
                    print(_line(count, what, place, Path(out) / "site"), flush=True)


def _line(count: int, what: str, place: Path, out: Path) -> str:
    """Memory is the main process's largest, and the largest of its workers; they share what was there before them."""
    first, again = (_measure(what, place, out) for _ in range(2))
    assert again["changed"] == 0
    main, worker = first["memory"]
    return (f"| {count:,} | board {what} | {first['changed']:,} | {first['seconds']:.1f} | {first['cpu']:.1f} | "
            f"{main:.0f}, {worker:.0f} | {again['seconds']:.2f} | {again['cpu']:.2f} |")


def _measure(what: str, place: Path, out: Path) -> dict[str, Any]:
    words = [sys.executable, "-c", _MEASURED, what, str(place / "results"), str(place / "leaderboards"), str(out)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
