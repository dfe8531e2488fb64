"""One on-policy step beside TRL's trainers: `python -m benchmarks.opd_step --peers-python PYTHON`.

Equal work in one run: the same weights and prompts, the same number of new tokens (nothing stops early), reverse KL
over the whole vocabulary, AdamW, float32, one thread. Competitors run in processes of their own and take steps in
turns. What is compared is CPU time, which other processes disturb less than they disturb wall time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks import workload
from benchmarks.pipe import Worker, interleave
from benchmarks.timing import Spread, matmul_peak, table

OURS, PEERS = "opdbench", ("DistillationTrainer", "GKDTrainer")
PARTS = ("generation", "teacher", "student", "rest")
Reports = Sequence[Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    work = workload.TINY if given.tiny else workload.SMALL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload.write_models(work, folder)
        trainers = () if given.no_peers else PEERS
        sections = [_main_section(folder, work, given, trainers)]
        if given.batches:
            sections.append(_batch_section(folder, work, given, trainers[:1]))
    print("\n\n".join(sections))
    return 0


def measure(folder: Path, batch: int, trainers: Sequence[str], peers_python: str, *, warmup: int,
            repeats: int) -> tuple[dict[str, str], dict[str, Reports]]:
    """Versions and reports by competitor, opdbench first; all have done the same amount of work.

    Raises:
        RuntimeError: a competitor wrote another number of tokens.
    """
    shared = {"folder": str(folder), "batch": batch}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(sys.executable, "benchmarks.workers.opdbench_steps",
                                              {**shared, "profile": "cpu-2"}))]
        workers += [stack.enter_context(Worker(
            peers_python, "benchmarks.workers.trl_steps",
            {**shared, "trainer": trainer, "device": "cpu", "micro_batch": batch})) for trainer in trainers]
        reports = interleave(workers, warmup=warmup, repeats=repeats)
        about = {worker.about["name"]: worker.about["version"] for worker in workers}
    expected = batch * workload.read(folder).new
    for name, own in zip(about, reports, strict=True):
        if wrong := {report["tokens"] for report in own} - {expected}:
            raise RuntimeError(f"{name} wrote {wrong} tokens a step instead of {expected}: the work is not equal")
    return about, dict(zip(about, reports, strict=True))


def _main_section(folder: Path, work: workload.Workload, given: argparse.Namespace, trainers: Sequence[str]) -> str:
    _progress(f"batch {work.batch}: {given.repeats} rounds of {', '.join((OURS, *trainers))}")
    peak = matmul_peak()
    about, reports = measure(folder, work.batch, trainers, given.peers_python, warmup=given.warmup,
                             repeats=given.repeats)
    peak = max(peak, matmul_peak())  # a limit, so the best that was seen
    flops = fmean(report["flops"] for report in reports[OURS])
    ours = median(report["seconds"] for report in reports[OURS])
    rows = [_row(name, own, ours, flops / peak) for name, own in reports.items()]
    header = ("one step, CPU seconds", "median (range)", *PARTS, "opdbench takes", "of the FLOP limit", "loss", "MB")
    return "\n".join([
        f"{work.describe()}; {given.repeats} interleaved repeats after {given.warmup}; one thread, float32.", "",
        table(header, rows), "",
        f"Model FLOPs of a step: {flops / 1e9:.2f} GFLOP. Limit: {peak / 1e9:.1f} GFLOP/s (one-thread float32 matrix "
        f"product, measured in the same run), so {flops / peak:.3f} s. Parts are means.",
        "Versions: " + "; ".join(f"{name}: {version}" for name, version in about.items()) + "."])


def _row(name: str, reports: Reports, ours: float, limit: float) -> list[str]:
    spread = Spread.of([report["seconds"] for report in reports])
    parts = {part: fmean(report["parts"].get(part, 0.0) for report in reports) for part in PARTS[:-1]}
    parts["rest"] = fmean(report["seconds"] for report in reports) - sum(parts.values())
    share = "" if name == OURS else f"{ours / spread.median:.2f} of it"
    return [name, str(spread), *(f"{parts[part]:.3f}" for part in PARTS), share, f"{limit / spread.median:.1%}",
            f"{reports[0]['loss']:.4f}", f"{max(report['memory'] for report in reports) / 1e6:.0f}"]


def _batch_section(folder: Path, work: workload.Workload, given: argparse.Namespace, trainers: Sequence[str]) -> str:
    rows = []
    for batch in given.batches:
        _progress(f"batch {batch}: {', '.join((OURS, *trainers))}")
        _, reports = measure(folder, batch, trainers, given.peers_python, warmup=1, repeats=max(3, given.repeats // 3))
        rows.append([f"batch {batch}", *(cell for own in reports.values() for cell in _per_block(own, batch, work))])
    header = [f"CPU seconds for every {work.batch} sequences"]
    for name in (OURS, *trainers):
        header += [f"{name}: step", "generation"]
    return "A larger rollout batch (one update a batch in each):\n\n" + table(header, rows)


def _per_block(reports: Reports, batch: int, work: workload.Workload) -> list[str]:
    blocks = batch / work.batch
    step = median(report["seconds"] for report in reports) / blocks
    generation = median(report["parts"]["generation"] for report in reports) / blocks
    return [f"{step:.3f}", f"{generation:.3f}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.opd_step", description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", default=sys.executable, metavar="PYTHON",
                        help="interpreter of an environment with the extra `peers`; this one by default")
    parser.add_argument("--no-peers", action="store_true", help="time opdbench alone")
    parser.add_argument("--repeats", type=int, default=15, help="counted steps of every competitor")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them that do not count")
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",") if part],
                        default=[16, 64, 256], help="rollout batches to compare, such as 16,64,256; empty for none")
    parser.add_argument("--tiny", action="store_true", help="a much smaller step, to see that everything works")
    return parser


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
