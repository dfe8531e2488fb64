"""How long the static site takes to build, how much memory, and how it grows: `python -m benchmarks.site`.

Synthetic records are written first (`benchmarks.records`), which takes longer than the build. Every measurement is a
process of its own: a build into an empty folder, then the same again with nothing changed. Wall seconds mean what they
say only on a quiet machine; CPU seconds, over all processes, hold on a busy one too.
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

_MEASURED = """
import json, resource, sys, time
from pathlib import Path
started = time.perf_counter()
from opdbench.site.build import build_site
done = build_site(*map(Path, sys.argv[1:4]))
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"files": done.pages, "changed": done.changed, "unread": len(done.unread),
                  "seconds": time.perf_counter() - started, "cpu": sum(u.ru_utime + u.ru_stime for u in used),
                  "memory": [u.ru_maxrss / 1024 for u in used]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[2000, 20_000])
    parser.add_argument("--keep", type=Path, help="a folder for the records, to be used again; default: temporary")
    args = parser.parse_args()
    print("| records | files | build, s | CPU s | memory, MiB | unchanged, s | CPU s |\n|" + " --: |" * 7)
    with tempfile.TemporaryDirectory() as folder:
        for count in args.records:
            print(_line(count, (args.keep or Path(folder)) / str(count)), flush=True)


def _line(count: int, place: Path) -> str:
    """Memory is the main process's largest, and each worker's at the same time."""
    if not place.is_dir():
        write_records(place, count)
    with tempfile.TemporaryDirectory() as out:
        first, again = (_measure(place, Path(out) / "site") for _ in range(2))
    assert again["changed"] == 0 and first["unread"] == 0
    main, worker = first["memory"]
    return (f"| {count:,} | {first['files']:,} | {first['seconds']:.1f} | {first['cpu']:.1f} | {main:.0f} + 2 x "
            f"{worker:.0f} | {again['seconds']:.2f} | {again['cpu']:.2f} |")


def _measure(place: Path, out: Path) -> dict[str, Any]:
    words = [sys.executable, "-c", _MEASURED, str(place / "results"), str(place / "leaderboards"), str(out)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
