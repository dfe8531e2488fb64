"""One on-policy step at the size of real models on one GPU, beside TRL's: `python -m benchmarks.gpu_step`.

A student of Qwen3-0.6B's shape and a teacher of Qwen3-8B's, with random weights; bfloat16, batch 64, prompts of 128
tokens, 512 new tokens each, reverse KL over the whole vocabulary. Competitors run one after the other, each in a
process of its own, so that memory is theirs alone. Figures are wall seconds, once the GPU has nothing left to do.

`--tiny --device cpu` runs the same code end to end on small models without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import workload
from benchmarks.opd_step import OURS, PARTS, PEERS
from benchmarks.pipe import ONE_THREAD, Worker, interleave
from benchmarks.timing import Spread, table

# Its vocabulary is larger than the tokenizer's, as that of the large models is.
TINY = replace(workload.TINY, vocabulary=2048)
Reports = Sequence[Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    work = TINY if given.tiny else workload.LARGE
    profile = given.profile or ("cpu-2" if given.device == "cpu" else "gpu-80g")
    with tempfile.TemporaryDirectory(dir=given.scratch) as name:
        folder = Path(name)
        print("drawing weights", file=sys.stderr, flush=True)
        workload.write_models(work, folder, device=given.device,
                              dtype="float32" if given.device == "cpu" else "bfloat16")
        rows, versions = [], []
        for competitor in (OURS, *(() if given.no_peers else PEERS)):
            print(competitor, file=sys.stderr, flush=True)
            version, reports = _measure(competitor, folder, work, profile, given)
            rows.append(_row(competitor, reports, work))
            versions.append(f"{competitor}: {version}")
    header = ("one step, seconds", "median (range)", *PARTS, "new tokens/s, writing", "new tokens/s, whole step",
              "peak memory, GB")
    print(f"{work.describe()}; {given.device}, profile {profile}; {given.repeats} steps after 1.\n")
    print(table(header, rows))
    print(f"\nVersions: {'; '.join(versions)}.")
    return 0


def _measure(competitor: str, folder: Path, work: workload.Workload, profile: str, given: argparse.Namespace
             ) -> tuple[str, Reports]:
    """Version and reports of one competitor, alone on the machine."""
    from opdbench import hardware

    micro_batch = min(work.batch, hardware.load(profile).execution().micro_batch)
    shared = {"folder": str(folder), "batch": work.batch}
    if competitor == OURS:
        python, module, passed = sys.executable, "opdbench_steps", {**shared, "profile": profile}
    else:
        python, module = given.peers_python, "trl_steps"
        passed = {**shared, "trainer": competitor, "device": given.device, "micro_batch": micro_batch}
    environment = ONE_THREAD if given.device == "cpu" else {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with Worker(python, f"benchmarks.workers.{module}", passed, environment) as worker:
        (reports,) = interleave([worker], warmup=1, repeats=given.repeats)
        return worker.about["version"], reports


def _row(name: str, reports: Reports, work: workload.Workload) -> list[str]:
    seconds = Spread.of([report["seconds"] for report in reports])
    parts = {part: fmean(report["parts"].get(part, 0.0) for report in reports) for part in PARTS[:-1]}
    parts["rest"] = fmean(report["seconds"] for report in reports) - sum(parts.values())
    tokens = work.batch * work.new
    return [name, str(seconds), *(f"{parts[part]:.3f}" for part in PARTS), f"{tokens / parts['generation']:,.0f}",
            f"{tokens / seconds.median:,.0f}", f"{max(report['memory'] for report in reports) / 1e9:.2f}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_step", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--profile", help="hardware profile of opdbench: gpu-80g by default, cpu-2 on a CPU")
    parser.add_argument("--tiny", action="store_true", help="small models, to see that everything works")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PYTHON",
                        help="interpreter of an environment with the extra `peers`; this one by default")
    parser.add_argument("--no-peers", action="store_true", help="time opdbench alone")
    parser.add_argument("--repeats", type=int, default=3, help="counted steps of each")
    parser.add_argument("--scratch", metavar="FOLDER", help="where weights are written for a while (18 GB)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
