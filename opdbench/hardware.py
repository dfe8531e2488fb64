"""The machine as it is, and hardware profiles: how a run is computed on such a machine.

A profile is a YAML file in `configs/hardware/` (or any path): settings of `schema.spec.Execution`, what a machine must
have for `--profile auto` to choose it, and the models that a real language task uses there by default. It never holds
anything that changes what is computed. Nothing here imports torch: `list` and `doctor` must answer fast.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from opdbench.errors import UserError, unknown

if TYPE_CHECKING:
    from opdbench.schema.spec import Execution

AUTO = "auto"
GIB = 2**30
# How many GPUs the training loop can use together. `auto` does not choose a profile that wants more; raise this when
# the loop shards its models.
USABLE_GPUS = 1


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_gib: float


@dataclass(frozen=True)
class Machine:
    """What a run can use here.

    Attributes:
        cores: CPU cores that this process may use; `memory_gib`: main memory that it may use.
        gpus: the GPUs that are visible to CUDA.
        driver_problem: why GPUs could not be listed although a driver seems to be there; None when nothing is wrong.
    """

    cpu: str
    cores: int
    memory_gib: float
    gpus: tuple[Gpu, ...]
    platform: str
    driver_problem: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "gpus": [asdict(gpu) for gpu in self.gpus]}

    def in_words(self) -> str:
        gpus = ", ".join(f"{gpu.name} ({gpu.memory_gib:.0f} GiB)" for gpu in self.gpus) or "no GPU"
        return f"{self.cpu}, {self.cores} {_plural(self.cores, 'core')}, {self.memory_gib:.1f} GiB memory, {gpus}"


@dataclass(frozen=True)
class Profile:
    """How to compute on one kind of machine.

    Attributes:
        gpus, gpu_memory_gib: what `auto` wants to see before it chooses this profile (0: no GPU needed).
        settings: fields of `schema.spec.Execution`.
        models: default "teacher" and "student" of tasks that ship none.
    """

    name: str
    summary: str
    gpus: int
    gpu_memory_gib: float
    settings: Mapping[str, Any]
    models: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    def execution(self) -> Execution:
        """The validated settings.

        Raises:
            UserError: a setting does not exist or has a value out of range.
        """
        from pydantic import ValidationError

        from opdbench.schema.spec import Execution

        try:
            return Execution(**{**self.settings, "profile": self.name})
        except ValidationError as error:
            raise UserError(f"profile {self.name!r} ({self.path}): {_first_problem(error, Execution)}") from error

    def fits(self, machine: Machine) -> bool:
        return len(self._large_enough(machine)) >= self.gpus

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": None if self.path is None else str(self.path)}

    def _large_enough(self, machine: Machine) -> list[Gpu]:
        return [gpu for gpu in machine.gpus if gpu.memory_gib >= self.gpu_memory_gib]


class Choice(NamedTuple):
    """A profile, and in words why it is this one."""

    profile: Profile
    reason: str


def names() -> tuple[str, ...]:
    """The names of the installed profiles, the smallest machine first."""
    return tuple(profile.name for profile in profiles())


def profiles() -> list[Profile]:
    """The installed profiles, the smallest machine first."""
    found = [_read(path) for path in _folder().iterdir() if path.suffix == ".yaml"]
    return sorted(found, key=lambda profile: (profile.gpus * profile.gpu_memory_gib, profile.name))


def load(name: str) -> Profile:
    """A profile by name, or by the path of a YAML file.

    Raises:
        UserError: there is no such profile, or its file is not one.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"there is no profile file {path}", "opdbench list profiles shows the installed ones")
        return _read(path)
    path = _folder() / f"{name}.yaml"
    if "/" in name or os.sep in name or not path.is_file():
        raise unknown("profile", name, [AUTO, *(file.stem for file in _folder().glob("*.yaml"))],
                      see="opdbench list profiles")
    return _read(path)


def choose(name: str = AUTO, machine: Machine | None = None) -> Choice:
    """The profile that was asked for, or for "auto" the largest one that this machine and the loop satisfy."""
    if name != AUTO:
        return Choice(load(name), "asked for")
    machine = machine or probe()
    torch_without_cuda = "" if not machine.gpus else torch_cuda_problem()
    if torch_without_cuda:
        machine = Machine(machine.cpu, machine.cores, machine.memory_gib, (), machine.platform)
    usable = [candidate for candidate in profiles() if candidate.gpus <= USABLE_GPUS]
    profile = [candidate for candidate in usable if candidate.fits(machine)][-1]
    return Choice(profile, torch_without_cuda or _reason(profile, machine))


def _reason(profile: Profile, machine: Machine) -> str:
    if not machine.gpus:
        return machine.driver_problem or "no GPU was found"
    largest = max(machine.gpus, key=lambda gpu: gpu.memory_gib)
    here = f"{len(machine.gpus)} {_plural(len(machine.gpus), 'GPU')} ({largest.name}, {largest.memory_gib:.0f} GiB)"
    if profile.gpus == 0:
        return f"{here} found, which is less than any GPU profile asks for"
    use = f" found, of which a run uses {USABLE_GPUS}" if len(machine.gpus) > USABLE_GPUS else " found"
    return f"{here}{use}: {profile.name} is the largest profile that fits"


# ----------------------------------------------------------------------------------------------------------- reading


def _folder() -> Path:
    return Path(str(files("opdbench.configs"))) / "hardware"


def _read(path: Path) -> Profile:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"profile {path} cannot be read: {' '.join(str(error).split())}") from error
    _check_keys(path, content)
    machine, models = _mapping(path, content, "machine"), _mapping(path, content, "models")
    try:
        gpus, memory = int(machine.get("gpus", 0)), float(machine.get("gpu_memory_gib", 0))
    except (TypeError, ValueError) as error:
        raise UserError(f"profile {path}: machine wants numbers for gpus and gpu_memory_gib: {error}") from error
    return Profile(path.stem, str(content["summary"]), gpus, memory, _mapping(path, content, "execution"), models, path)


def _check_keys(path: Path, content: Any) -> None:
    required = {"summary", "machine", "execution"}
    if not isinstance(content, dict) or not required <= set(content):
        raise UserError(f"profile {path} must have the keys {', '.join(sorted(required))}")
    for key in set(content) - required - {"models"}:
        raise unknown(f"key in profile {path}:", str(key), required | {"models"})


def _mapping(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"profile {path}: {key} must be a mapping, such as `{key}: {{name: value}}`")
    return {str(name): entry for name, entry in value.items()}


def _first_problem(error: Any, model: Any) -> str:
    from opdbench.errors import nearest

    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {key!r} ({nearest(key, model.model_fields)})"
    return f"{key} = {problem['input']!r}: {problem['msg']}"


# ----------------------------------------------------------------------------------------------------------- probing


def probe() -> Machine:
    """Look at this machine without importing torch; runs `nvidia-smi` when there is one."""
    gpus, problem = _gpus()
    return Machine(_cpu_name(), _cores(), _memory_bytes() / GIB, gpus, platform.platform(), problem)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Cores that this process may use: its affinity mask, and a container's quota rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _first_line("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal():
        cores = min(cores, max(1, -(-int(quota[0]) // int(quota[1]))))
    return cores


def _memory_bytes() -> int:
    """Main memory, or a container's limit when that is lower."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _first_line("/sys/fs/cgroup/memory.max")
    return min(memory, int(limit)) if limit.isdecimal() else memory


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().partition("\n")[0].strip()
    except OSError:
        return ""


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs that CUDA would see, and why they could not be listed."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return (), None
    query = [command, "--query-gpu=index,uuid,memory.total,name", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), f"nvidia-smi does not answer: {error}"
    if done.returncode != 0:
        return (), "nvidia-smi fails: " + (done.stdout + done.stderr).strip().partition("\n")[0]
    return tuple(_visible(done.stdout)), None


def _visible(listing: str) -> Iterator[Gpu]:
    """The GPUs of an nvidia-smi listing that CUDA_VISIBLE_DEVICES leaves visible."""
    rows = [[cell.strip() for cell in line.split(",", 3)] for line in listing.splitlines() if line.count(",") >= 3]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    for index, uuid, memory_mib, name in rows:
        if wanted is None or any(_names_gpu(token.strip(), index, uuid) for token in wanted.split(",")):
            # A card without memory of its own (it shares the machine's) reports "[N/A]".
            yield Gpu(name, float(memory_mib) / 1024 if re.fullmatch(r"[\d.]+", memory_mib) else 0.0)


def _names_gpu(token: str, index: str, uuid: str) -> bool:
    """Whether one entry of CUDA_VISIBLE_DEVICES means this GPU: by its index, or by the beginning of its UUID."""
    return token == index or (token.startswith("GPU-") and uuid.startswith(token))


def torch_cuda_problem() -> str:
    """Why the installed torch cannot use a GPU, read from its version file; "" when it can."""
    from opdbench.source import SourceError, SourceFile

    try:
        source = SourceFile.of_module("torch.version").path.read_text()
    except (SourceError, OSError):
        return "torch is not installed"
    version = re.search(r"__version__ = '([^']*)'", source)
    if re.search(r"^(cuda|hip)\b[^=]*= '", source, re.MULTILINE):
        return ""
    return f"the installed torch {version[1] if version else ''} is a build without CUDA, so GPUs cannot be used"


def _plural(n: int, noun: str) -> str:
    return noun if n == 1 else noun + "s"
