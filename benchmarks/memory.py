"""Memory and time of a divergence over a large vocabulary: `python -m benchmarks.memory`.

2,048 rows of hidden states of width 1,024, and two output layers over 151,936 tokens. The loop's way (`Trainer`, chunks
of rows with an exact backward) beside the plain one: the logits of all rows for both sides, log-softmax, divergence,
automatic differentiation; on a GPU also beside Liger's fused JSD, where it is installed. Each runs in processes of its
own; memory is what a process needs at most beyond what it held before, the gradients included. All must give the same
loss and gradients, or the command fails.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.timing import Spread, clock_of, table

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

OURS, PLAIN, LIGER = "opdbench", "plain", "Liger"
DIVERGENCES = ("jsd", "reverse_kl", "forward_kl")
TRAJECTORIES = 16
_ROUNDING = {"float64": 1e-10, "float32": 1e-4, "bfloat16": 5e-2}  # of losses and gradients
MOST_MEMORY, MOST_TIME = 1 / 8, 1.25  # of the plain computation


class Problem(NamedTuple):
    """Hidden states of both sides, and their output layers; the student's are leaves that gradients flow to."""

    student_nh: Parameter
    teacher_nh: Parameter
    student_ah: Parameter
    teacher_ah: Parameter


class Work(NamedTuple):
    """What a child process is asked to compute."""

    rows: int
    vocabulary: int
    width: int
    divergence: str
    device: str
    dtype: str
    logit_chunk: int | None = None  # of opdbench's loop; its default when None


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    rows = []
    for divergence in given.divergences:
        work = Work(given.rows, given.vocabulary, given.width, divergence, given.device, given.dtype,
                    given.logit_chunk)
        found = measured(work, given.repeats, sides(given.device))
        print(*(" | ".join(row.cells()) for row in found), sep="\n", file=sys.stderr, flush=True)
        rows += found
    print(f"{given.rows:,} rows, vocabulary {given.vocabulary:,}, width {given.width:,}, {given.dtype}, "
          f"{given.device}; {given.repeats} repeats in turns, each in a process of its own.\n")
    print(table(("loss and gradients", "peak extra memory, MB", "of plain", "seconds, median (range)", "of plain",
                 "loss", "gradient differs by"), [row.cells() for row in rows]))
    return 0 if all(row.good for row in rows if row.side == OURS) else 1


def sides(device: str) -> tuple[str, ...]:
    """Who takes part."""
    liger = device == "cuda" and find_spec("liger_kernel") is not None
    return (PLAIN, OURS, *((LIGER,) if liger else ()))


class Row(NamedTuple):
    """One line of the table."""

    work: Work
    side: str
    memory: float  # bytes
    seconds: Spread
    loss: float
    gap: float  # of the gradients, relative to the largest entry
    share: float  # of plain's memory
    time: float  # of plain's time

    def cells(self) -> list[str]:
        return [f"{self.work.divergence}, {self.side}", f"{self.memory / 1e6:,.0f}", f"{self.share:.3f}",
                str(self.seconds), f"{self.time:.2f}", f"{self.loss:.6f}", f"{self.gap:.1e}"]

    @property
    def good(self) -> bool:
        """Within the limits of memory and time."""
        return self.share <= MOST_MEMORY and self.time <= MOST_TIME


def measured(work: Work, repeats: int, names: Sequence[str]) -> list[Row]:
    """One row a side, plain first.

    Raises:
        RuntimeError: losses or gradients differ by more than rounding.
    """
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    gaps = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            for name in names:
                print(f"{work.divergence}: {name}, {number + 1} of {repeats}", file=sys.stderr, flush=True)
                reports[name].append(_child(name, work, Path(folder) if number == 0 else None))
        gaps = {name: _gap(Path(folder), name) for name in names}
    rows = [_row(work, name, reports, gaps[name]) for name in names]
    require_equal(rows, _ROUNDING[work.dtype])
    return rows


def require_equal(rows: Sequence[Row], rounding: float) -> None:
    """Equal losses and gradients, relative to plain's, which come first.

    Raises:
        RuntimeError: they are not.
    """
    for row in rows:
        if not (row.gap <= rounding and math.isclose(row.loss, rows[0].loss, rel_tol=rounding)):
            raise RuntimeError(f"{row.side} differs from {PLAIN}: loss {row.loss} and {rows[0].loss}, gradients by "
                               f"{row.gap:.2g} of the largest")


def _row(work: Work, name: str, reports: Mapping[str, Sequence[Mapping[str, Any]]], gap: float) -> Row:
    seconds = {side: Spread.of([report["seconds"] for report in own]) for side, own in reports.items()}
    memory = {side: max(report["memory"] for report in own) for side, own in reports.items()}
    return Row(work, name, memory[name], seconds[name], reports[name][0]["loss"], gap, memory[name] / memory[PLAIN],
               seconds[name].median / seconds[PLAIN].median)


def _child(name: str, work: Work, folder: Path | None) -> dict[str, Any]:
    """Run one side in a process of its own; its gradients go to `folder`."""
    threads = {"OMP_NUM_THREADS": "1"} if work.device == "cpu" else {}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--child", name, json.dumps(work._asdict()), str(folder or "")],
        capture_output=True, text=True, env={**_environment(), **threads}, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with code {done.returncode} (killed for memory?):\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def _gap(folder: Path, name: str) -> float:
    """The largest difference of a gradient from plain's, relative to plain's largest entry."""
    from safetensors.torch import load_file

    plain, other = (load_file(folder / f"{side}.safetensors") for side in (PLAIN, name))
    return max(float((other[key] - plain[key]).abs().max() / plain[key].abs().max()) for key in plain)


# --------------------------------------------------------------------------------------------------------- the child


def child(name: str, work: Work, folder: str) -> dict[str, Any]:
    """Prepare, measure one computation, and report."""
    import torch

    if work.device == "cpu":
        torch.set_num_threads(1)
    problem = make_problem(work)
    compute = {OURS: _ours, PLAIN: _plain, LIGER: _liger}[name](problem, work)
    warm = {OURS: _ours, PLAIN: _plain, LIGER: _liger}[name](_small(work), work)
    warm()
    clock = clock_of(work.device)
    with PeakMemory(work.device) as peak:
        start = clock()
        loss = compute()
        seconds = clock() - start
    if folder:
        _store(problem, Path(folder) / f"{name}.safetensors")
    return {"seconds": seconds, "memory": peak.extra, "loss": loss}


def make_problem(work: Work) -> Problem:
    """Logits of a spread of about 2, the student's correlated with the teacher's."""
    import torch
    from torch import nn

    generator = torch.Generator(work.device).manual_seed(0)
    dtype = getattr(torch, work.dtype)

    def draw(*shape: int) -> Tensor:
        return torch.empty(shape, device=work.device, dtype=dtype).normal_(generator=generator)

    teacher_nh, teacher_ah = draw(work.rows, work.width), draw(work.vocabulary, work.width).mul_(2 / work.width**0.5)
    student_nh = teacher_nh + 0.3 * draw(work.rows, work.width)
    student_ah = draw(work.vocabulary, work.width).mul_(0.5 / work.width**0.5).add_(teacher_ah)
    return Problem(nn.Parameter(student_nh), nn.Parameter(teacher_nh, requires_grad=False), nn.Parameter(student_ah),
                   nn.Parameter(teacher_ah, requires_grad=False))


def _small(work: Work) -> Problem:
    """The same in small: whatever a first call sets up is not counted."""
    return make_problem(work._replace(rows=2 * TRAJECTORIES, vocabulary=1024))


def _ours(problem: Problem, work: Work) -> Callable[[], float]:
    """The training loop's own code on the method `gkd`."""
    from benchmarks.workers.hidden_states import make_trainer

    settings = {} if work.logit_chunk is None else {"logit_chunk": work.logit_chunk}
    trainer, micro, weight_n, meter = make_trainer(problem, work.divergence, work.device, TRAJECTORIES, **settings)

    def compute() -> float:
        trainer._accumulate(micro, weight_n, meter)
        return meter.pop_update_loss()

    return compute


def _plain(problem: Problem, work: Work) -> Callable[[], float]:
    """As a paper's equation reads."""
    def compute() -> float:
        student_na, teacher_na = problem.student_nh @ problem.student_ah.T, problem.teacher_nh @ problem.teacher_ah.T
        loss = divergence(teacher_na.float().log_softmax(-1), student_na.float().log_softmax(-1), work.divergence)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    return compute


def divergence(logp_na: Tensor, logq_na: Tensor, name: str) -> Tensor:
    """The mean over rows, differentiated automatically: torch's `kl_div(input, target)` is KL(target || input)."""
    import torch
    from torch.nn.functional import kl_div

    if name == "forward_kl":
        return kl_div(logq_na, logp_na, reduction="batchmean", log_target=True)
    if name == "reverse_kl":
        return kl_div(logp_na, logq_na, reduction="batchmean", log_target=True)
    logm_na = torch.logaddexp(logp_na, logq_na) - math.log(2)
    return (kl_div(logm_na, logp_na, reduction="batchmean", log_target=True)
            + kl_div(logm_na, logq_na, reduction="batchmean", log_target=True)) / 2


def _liger(problem: Problem, work: Work) -> Callable[[], float]:
    """Liger's fused JSD, which splices the KLs in at beta 0 and 1; its default of half a hard loss is turned off."""
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    beta = {"jsd": 0.5, "forward_kl": 0.0, "reverse_kl": 1.0}[work.divergence]
    fused = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)
    labels_n = torch.zeros(len(problem.student_nh), dtype=torch.int64, device=work.device)

    def compute() -> float:
        loss = fused(problem.student_nh, problem.student_ah, problem.teacher_nh, problem.teacher_ah, labels_n)
        loss.backward()
        return float(loss)

    return compute


def _store(problem: Problem, path: Path) -> None:
    from safetensors.torch import save_file

    assert problem.student_nh.grad is not None and problem.student_ah.grad is not None
    leaves = {"features": problem.student_nh.grad, "weight": problem.student_ah.grad}
    save_file({name: gradient.float().cpu() for name, gradient in leaves.items()}, path)


class PeakMemory:
    """The most that is held inside beyond what was held at its beginning, as `extra`, in bytes.

    On a CPU: anonymous memory, looked at every few milliseconds, where an array of a megabyte takes longer to compute.
    The resident set as a whole would not do: on a busy machine pages of libraries go and come back in it.
    """

    def __init__(self, device: str) -> None:
        self.device, self.extra = device, 0
        self._done = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if self.device == "cpu":
            self._before = self._peak = _anonymous()
            self._thread.start()
            return self
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cpu":
            self._done.set()
            self._thread.join()
        else:
            import torch

            self._peak = torch.cuda.max_memory_allocated()
        self.extra = self._peak - self._before

    def _watch(self) -> None:
        while not self._done.wait(0.003):
            self._peak = max(self._peak, _anonymous())


def _anonymous() -> int:
    """Bytes of this process's memory that are no file's."""
    resident, shared = (int(pages) for pages in Path("/proc/self/statm").read_text().split()[1:3])
    return (resident - shared) * resource.getpagesize()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--divergences", nargs="+", choices=DIVERGENCES, default=DIVERGENCES)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--logit-chunk", type=int, help="logits that opdbench holds at one time; a run's by default")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each side")
    return parser


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], Work(**json.loads(sys.argv[3])), sys.argv[4])))
        raise SystemExit(0)
    raise SystemExit(main())
