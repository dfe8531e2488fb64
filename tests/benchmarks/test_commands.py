from __future__ import annotations

import pytest

from benchmarks import dagger_cartpole, gpu_step, opd_step


@pytest.mark.slow
def test_opd_step_without_peers(capsys: pytest.CaptureFixture[str]) -> None:
    assert opd_step.main(["--tiny", "--no-peers", "--repeats", "2", "--warmup", "1", "--batches", ""]) == 0
    out = capsys.readouterr().out
    assert "| opdbench | 0." in out and "GFLOP/s" in out and "Versions: opdbench: torch" in out


@pytest.mark.slow
def test_gpu_step_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_step.main(["--tiny", "--device", "cpu", "--no-peers", "--repeats", "1"]) == 0
    assert "| opdbench | 0." in capsys.readouterr().out


def test_dagger_cartpole_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert dagger_cartpole.main(["--seeds", "1"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| opdbench"))
    assert float(row.split("|")[-2]) >= 475
