"""What a user may call a model, and where it is found; nothing here touches the network."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from opdbench import hub, models, registry
from opdbench.errors import UserError
from opdbench.tasks.gsm8k import GSM8K

pytest_plugins = ["tests.hub_cache"]


def make_model(folder: Path, *, config: str = "config.json", weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / config).write_text('{"model_type": "qwen3"}')
    (folder / weights).write_bytes(b"weights")
    return folder


def resolve(reference: str | Path, role: models.Role = "teacher") -> Path:
    return models.resolve(str(reference), role=role, task=GSM8K())


def test_every_shipped_model_resolves_by_its_name() -> None:
    shipped = models.shipped_models()
    assert shipped, "opdbench ships teachers"
    for name, folder in shipped.items():
        assert resolve(name) == folder and folder.parts[-2:] == tuple(name.split("/"))


CONTROL = sorted(name for name, folder in models.shipped_models().items() if (folder / "policy.json").exists())


@pytest.mark.parametrize("name", CONTROL)
def test_a_shipped_control_policy_is_what_its_manifest_says_and_its_tasks_teacher(name: str) -> None:
    folder = models.shipped_models()[name]
    manifest, weights = json.loads((folder / "manifest.json").read_text()), (folder / "policy.safetensors").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(weights).hexdigest() and len(weights) < 4e6
    if manifest["task"].startswith("atari"):
        pytest.importorskip("ale_py.vector_env", reason="the extra `atari` is not installed")
    assert registry.load("task", manifest["task"]).teacher == name
    assert manifest["algorithm"].startswith("written down") or manifest["command"].startswith("opdbench teacher train")


def test_a_plugin_package_ships_models_beside_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "models" / "my-task" / "teacher", config="policy.json")
    (tmp_path / "a_plugin_task.py").write_text("from opdbench.tasks.gsm8k import GSM8K\n\n\nclass Mine(GSM8K): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    from a_plugin_task import Mine  # type: ignore[import-not-found]

    assert models.resolve("my-task/teacher", role="teacher", task=Mine()) == folder


def test_a_local_folder_a_run_and_a_policy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "mine")
    assert resolve(folder) == folder
    monkeypatch.chdir(tmp_path)
    assert resolve("./mine") == Path("mine")

    student = make_model(tmp_path / "results" / "run-1" / "student")
    (tmp_path / "results" / "run-1" / "record.json").write_text("{}")
    (tmp_path / "results" / "run-1.json").write_text("{}")
    for reference in ("results/run-1", "results/run-1/record.json", "results/run-1.json"):
        assert resolve(reference).resolve() == student

    (tmp_path / "ppo.zip").write_bytes(b"zip")
    assert resolve("ppo.zip") == Path("ppo.zip")


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model: there is no config\.json or policy\.json"):
        resolve(tmp_path)
    pickled = make_model(tmp_path / "old", weights="pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin would have to be unpickled") as error:
        resolve(pickled, role="student")
    assert "--student" in error.value.fix


def test_a_name_that_does_not_exist_names_the_nearest() -> None:
    shipped = sorted(models.shipped_models())[0]
    with pytest.raises(UserError, match="neither a shipped name, nor a path that exists, nor a hub id") as error:
        resolve(shipped.removesuffix("r") + "rr", role="student")
    assert repr(shipped) in error.value.fix and "--student" in error.value.fix
    with pytest.raises(UserError, match=r"no teacher model '\./gone/folder'"):
        resolve("./gone/folder")


def test_a_hub_model_that_is_not_here_says_what_to_download(hub_cache: Path) -> None:
    with pytest.raises(UserError, match=r"Qwen/Qwen3-8B is not a folder here.*HF_HUB_OFFLINE is set") as error:
        resolve("Qwen/Qwen3-8B")
    assert "`hf download Qwen/Qwen3-8B`" in error.value.fix and "--teacher" in error.value.fix
    with pytest.raises(UserError) as error:
        resolve("Qwen/Qwen3-8B@v1.0")
    assert "`hf download Qwen/Qwen3-8B --revision v1.0`" in error.value.fix


def test_a_cached_hub_model_needs_no_network(hub_cache: Path) -> None:
    repo = hub_cache / "models--Qwen--Qwen3-0.6B"
    folder = make_model(repo / "snapshots" / "c0ffee")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0ffee")
    assert resolve("Qwen/Qwen3-0.6B") == folder
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="never does"):
        resolve("Qwen/Qwen3-0.6B")


class _Hub(BaseHTTPRequestHandler):
    """A hub that has one repository, with weights, pickles and code; it refuses everything else."""

    FILES: ClassVar = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"pickle",
                       "modeling.py": b"code", "original/model.safetensors": b"copy"}

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/model/tree/"):
            self._send(json.dumps([{"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                                   for name, content in self.FILES.items()]).encode())
        elif self.path.startswith("/api/models/org/model"):
            self._send(json.dumps({"id": "org/model", "sha": "c" * 40, "siblings": []}).encode())
        elif self.path.startswith("/org/model/resolve/"):
            self._send(self.FILES[self.path.split("/", 5)[5]])
        else:
            codes = {"/api/models/org/gated": (403, "GatedRepo"), "/api/models/org/broken": (500, "")}
            status, code = codes.get(self.path.split("/revision")[0], (404, "RepoNotFound"))
            self._send(b"{}", status, {"X-Error-Code": code})

    do_HEAD = do_GET

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "ETag": f'"{hash(body)}"', "X-Repo-Commit": "c" * 40,
                            **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def local_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub on this machine, and the cache folder that downloads go to."""
    from huggingface_hub import constants

    server = HTTPServer(("127.0.0.1", 0), _Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield hub_cache
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_download_brings_weights_and_text_but_no_pickles_and_no_code(local_hub: Path) -> None:
    folder = resolve("org/model")
    assert sorted(file.name for file in folder.rglob("*")) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(("reference", "message"), [
    ("org/nothing", "is not on the hub"),
    ("org/gated", "licence must first be accepted"),
    ("org/broken", "the hub cannot be reached"),
])
def test_what_the_hub_refuses_is_said_in_one_sentence(local_hub: Path, reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        resolve(reference)
    assert f"hf download {reference}" in error.value.fix and "\n" not in error.value.problem


def test_only_owner_and_name_is_a_hub_id() -> None:
    assert all(hub.is_id(name) for name in ("Qwen/Qwen3-8B", "a/b@main", "openai/gsm8k"))
    assert not any(hub.is_id(name) for name in ("gpt2", "./a/b", "/a/b", "~/a", "a/b/c", "a/", "a/..", "../b", "a b/c"))


def test_a_checksum_changes_with_weights_and_configuration_only(tmp_path: Path) -> None:
    first, second = make_model(tmp_path / "a"), make_model(tmp_path / "b")
    before = models.checksum(first)
    assert before == models.checksum(second) and len(before) == 64
    (first / "manifest.json").write_text("{}")
    (first / "README.md").write_text("read me")
    assert models.checksum(first) == before
    for name in ("config.json", "model.safetensors"):
        (second / name).write_bytes(b"other")
        assert models.checksum(second) != before
        before = models.checksum(second)
    (tmp_path / "ppo.zip").write_bytes(b"zip")
    assert models.checksum(tmp_path / "ppo.zip") != models.checksum(tmp_path / "a" / "config.json")
