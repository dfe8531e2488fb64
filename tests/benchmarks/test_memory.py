"""The memory benchmark in small, and at its own size when asked for."""

from __future__ import annotations

import math

import pytest

from benchmarks import memory
from benchmarks.timing import Spread


def test_the_loop_needs_an_eighth_of_the_plain_computations_memory_and_gives_its_gradients() -> None:
    """In processes of their own; `measured` raises when losses or gradients differ. Time says nothing at this size."""
    work = memory.Work(rows=2048, vocabulary=12_000, width=16, divergence="jsd", device="cpu", dtype="float32",
                       logit_chunk=400_000)
    plain, ours = memory.measured(work, 1, memory.sides("cpu"))
    assert plain.share == 1 and ours.share <= memory.MOST_MEMORY
    assert 0 < ours.gap < 1e-4 and plain.memory > 4 * work.rows * work.vocabulary * 4


@pytest.mark.parametrize(("loss", "gap"), [(0.51, 0.0), (0.5, 1e-3), (math.nan, 0.0), (0.5, math.nan)])
def test_another_loss_or_gradient_is_an_error(loss: float, gap: float) -> None:
    work, time = memory.Work(64, 50, 4, "jsd", "cpu", "float32"), Spread(1.0, 1.0, 1.0)
    plain, ours = (memory.Row(work, side, 1.0, time, value, difference, 1.0, 1.0)
                   for side, value, difference in (("plain", 0.5, 0.0), ("opdbench", loss, gap)))
    memory.require_equal([plain, plain], 1e-4)
    with pytest.raises(RuntimeError, match="opdbench differs from plain"):
        memory.require_equal([plain, ours], 1e-4)


@pytest.mark.slow
def test_at_full_size(capsys: pytest.CaptureFixture[str]) -> None:
    """Ten gigabytes and five minutes."""
    assert memory.main(["--repeats", "1"]) == 0
    assert "| jsd, opdbench |" in capsys.readouterr().out
