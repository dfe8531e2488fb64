from __future__ import annotations

import pytest

from benchmarks import atari_rollouts, dagger_cartpole, gpu_step, opd_step, sb3_distill


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


@pytest.mark.slow
def test_atari_rollouts(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ale_py.vector_env", reason="the extra `atari` is not installed")
    assert atari_rollouts.main(["--steps", "4", "--repeats", "1", "--copies", "2"]) == 0
    out = capsys.readouterr().out
    assert "| opdbench, net3 |" in out and "of ALE's throughput" in out


@pytest.mark.slow
@pytest.mark.parametrize("method", ["student-distill", "ppd"])
def test_sb3_distill_alone(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ale_py.vector_env", reason="the extra `atari` is not installed")
    assert sb3_distill.main(["--no-peer", "--tiny", "--repeats", "1", "--methods", method]) == 0
    assert f"| {method} | CPU" in (out := capsys.readouterr().out) and "| opdbench |" in out


@pytest.mark.slow
def test_sb3_distills_loop_does_the_same_work(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2", reason="Stable-Baselines3's preprocessing of Atari games needs opencv-python-headless")
    assert sb3_distill.main(["--tiny", "--repeats", "1", "--methods", "student-distill"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith(("| opd", "| sb3"))]
    assert [row[1].strip() for row in rows] == ["opdbench", "sb3_distill's loop"]
    ours, theirs = (float(row[-3]) for row in rows)
    assert ours == pytest.approx(theirs, rel=0.3)  # the same networks, in states much alike
