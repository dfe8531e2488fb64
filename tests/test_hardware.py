"""Profiles hold execution settings only; `auto` chooses by what the machine has, and says why."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from opdbench import hardware
from opdbench.errors import UsageError, UserError
from opdbench.hardware import Gpu, Machine

H200, A100, L4 = Gpu("NVIDIA H200", 139.8), Gpu("NVIDIA A100-SXM4-80GB", 80.0), Gpu("NVIDIA L4", 22.5)


def machine(*gpus: Gpu) -> Machine:
    return Machine("a CPU", 2, 16.0, gpus, "Linux")


@pytest.fixture
def torch_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` would read in a torch build with CUDA; the builds of test machines mostly have none."""
    monkeypatch.setattr(hardware, "torch_cuda_problem", lambda: "")


def test_the_five_profiles_are_there_smallest_first_and_valid() -> None:
    assert hardware.names() == ("cpu-2", "gpu-24g", "gpu-80g", "gpu-141g", "gpu-8x80g")
    for profile in hardware.profiles():
        execution = profile.execution()
        assert execution.profile == profile.name
        assert execution.device == ("cuda" if profile.gpus else "cpu")
        assert execution.devices == max(1, profile.gpus)
        assert bool(profile.models) == bool(profile.gpus)  # each GPU profile names the models of real language tasks


@pytest.mark.parametrize(("gpus", "chosen"), [
    ([], "cpu-2"), ([Gpu("small", 8.0)], "cpu-2"), ([L4], "gpu-24g"), ([A100], "gpu-80g"), ([H200], "gpu-141g"),
    ([A100] * 2, "gpu-80g"), ([L4, A100], "gpu-80g"),
])
def test_auto_chooses_the_largest_profile_that_fits(torch_with_cuda: None, gpus: list[Gpu], chosen: str) -> None:
    assert hardware.choose(machine=machine(*gpus)).profile.name == chosen


def test_auto_leaves_alone_what_the_loop_cannot_use(
        torch_with_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = hardware.choose(machine=machine(*[A100] * 8))
    assert choice.profile.name == "gpu-80g" and "of which a run uses 1" in choice.reason
    monkeypatch.setattr(hardware, "USABLE_GPUS", 8)
    assert hardware.choose(machine=machine(*[A100] * 8)).profile.name == "gpu-8x80g"
    assert hardware.choose(machine=machine(*[H200] * 8)).profile.name == "gpu-8x80g"


def test_auto_says_why_in_words(torch_with_cuda: None) -> None:
    assert hardware.choose(machine=machine()).reason == "no GPU was found"
    assert hardware.choose(machine=machine(A100)).reason == (
        "1 GPU (NVIDIA A100-SXM4-80GB, 80 GiB) found: gpu-80g is the largest profile that fits")
    assert "less than any GPU profile" in hardware.choose(machine=machine(Gpu("small", 8.0))).reason
    assert hardware.choose("gpu-24g").reason == "asked for"


def test_a_gpu_that_this_torch_cannot_use_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "torch_cuda_problem", lambda: "the installed torch 1 is a build without CUDA")
    choice = hardware.choose(machine=machine(A100))
    assert (choice.profile.name, choice.reason) == ("cpu-2", "the installed torch 1 is a build without CUDA")


def test_the_torch_build_is_read_as_torch_itself_says() -> None:
    import torch

    has_gpu_support = torch.version.cuda is not None or torch.version.hip is not None
    assert (hardware.torch_cuda_problem() == "") == has_gpu_support


def test_an_unknown_profile_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown profile 'gpu-80'") as error:
        hardware.load("gpu-80")
    assert "'gpu-80g'" in error.value.fix
    with pytest.raises(UsageError, match="unknown profile"):
        hardware.load("../hardware/cpu-2")


def test_a_profile_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("summary: mine\nmachine: {gpus: 0}\nexecution: {threads: 3, micro_batch: 7}\n")
    execution = hardware.load(str(file)).execution()
    assert (execution.profile, execution.threads, execution.micro_batch) == ("mine", 3, 7)


@pytest.mark.parametrize(("content", "sentence"), [
    ("summary: mine\nmachine: {}\nexecution: {threds: 3}\n", "unknown setting 'threds' .*'threads'"),
    ("summary: mine\nmachine: {}\nexecution: {threads: 0}\n", "threads = 0: .*greater than 0"),
    ("summary: mine\n", "must have the keys execution, machine, summary"),
    ("summary: mine\nmachine: {}\nexecution: {}\nmodel: {}\n", "unknown key .*'model'"),
    ("a: [", "cannot be read"),
    ("- 1\n", "must have the keys"),
    ("summary: mine\nmachine: {}\nexecution: 3\n", "execution must be a mapping"),
    ("summary: mine\nmachine: {gpus: many}\nexecution: {}\n", "gpus"),
])
def test_a_bad_profile_file_says_what_is_wrong(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=sentence):
        hardware.load(str(file)).execution()


def test_a_profile_cannot_hold_what_is_computed(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("summary: mine\nmachine: {}\nexecution: {lr: 0.1}\n")
    with pytest.raises(UserError, match="unknown setting 'lr'"):
        hardware.load(str(file)).execution()


def test_this_machine_is_probed() -> None:
    import psutil

    found = hardware.probe()
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 < found.memory_gib <= psutil.virtual_memory().total / 2**30 + 0.01
    assert found.cpu and f"{found.cores} core" in found.in_words()


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a program called nvidia-smi on the path that answers as the real one does."""

    def install(body: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


TWO = "echo '0, GPU-aaaa-1, 143771, NVIDIA H200'; echo '1, GPU-bbbb-2, 81559, NVIDIA H100 80GB HBM3'"


def test_gpus_are_listed_without_torch(nvidia_smi) -> None:
    nvidia_smi(TWO)
    found = hardware.probe()
    assert found.gpus == (Gpu("NVIDIA H200", 143771 / 1024), Gpu("NVIDIA H100 80GB HBM3", 81559 / 1024))
    assert found.in_words().endswith("NVIDIA H200 (140 GiB), NVIDIA H100 80GB HBM3 (80 GiB)")


@pytest.mark.parametrize(("visible", "names"), [
    ("1", ["NVIDIA H100 80GB HBM3"]), ("", []), ("-1", []), ("GPU-aaaa", ["NVIDIA H200"]),
    ("0,1", ["NVIDIA H200", "NVIDIA H100 80GB HBM3"]),
])
def test_only_gpus_that_cuda_may_see_count(nvidia_smi, monkeypatch, visible: str, names: list[str]) -> None:
    nvidia_smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in hardware.probe().gpus] == names


def test_a_driver_that_does_not_answer_is_a_reason_and_no_crash(nvidia_smi) -> None:
    nvidia_smi("echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9")
    found = hardware.probe()
    assert found.gpus == () and "could not communicate" in str(found.driver_problem)
    assert hardware.choose(machine=found).reason == found.driver_problem
