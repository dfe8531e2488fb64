"""A small completions server on loopback, in a process of its own: `python -m tests.lm.completions_server MODEL`.

It answers from a local model's folder as vLLM does (`--dialect vllm`), as OpenAI's completions do (`openai`), or tells
nothing but text (`text`). `--fault` makes it fail in one of the ways that real ones do, `--after N` only from the Nth
request for completions on. Written against the documented protocol, and used by the tests of teachers over HTTP.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MODEL = "tiny-teacher"
FAULTS = ("none", "not-json", "fewer-choices", "short", "nan", "positive", "raw-logits", "missing", "other-tokens",
          "error-500", "error-429", "busy-once", "drop", "drip", "slow", "cut", "empty")


class Model:
    """The local model, behind token ids."""

    def __init__(self, folder: Path) -> None:
        import torch

        from opdbench.lm.model import load

        torch.set_num_threads(1)
        self.torch, self.policy, self.lock = torch, load(folder), Lock()
        self.tokenizer = self.policy.tokenizer

    def logp(self, sequences: list[list[int]]) -> list[Any]:
        """log softmax [T, A] of every sequence, for the token after each."""
        from opdbench.lm.policy import pad_right

        with self.lock, self.torch.no_grad():
            token_bt, length_b = pad_right(sequences, self.policy.device)
            features_bth = self.policy.features(token_bt, length_b)
            return [self.policy.project(features_bth[row, :len(sequence)]).float().log_softmax(-1)
                    for row, sequence in enumerate(sequences)]

    def write(self, prompt: list[int], request: dict[str, Any], eos_ids: set[int]
              ) -> tuple[list[int], list[float], bool]:
        torch = self.torch
        generator = torch.Generator().manual_seed(int(request.get("seed") or 0))
        tokens: list[int] = []
        logps: list[float] = []
        temperature, most = float(request.get("temperature", 1.0)), int(request.get("max_tokens", 16))
        if most == 0:
            return tokens, logps, False
        with self.lock, torch.no_grad():
            decoding = self.policy.start([prompt], most)
            while True:
                logp_a = decoding.logits_ba[0].float().log_softmax(-1)
                token = (int(logp_a.argmax()) if temperature == 0 else
                         int(torch.multinomial((logp_a / temperature).softmax(-1), 1, generator=generator)))
                tokens.append(token)
                logps.append(float(logp_a[token]))
                if token in eos_ids or len(tokens) == most:
                    return tokens, logps, token in eos_ids
                decoding.step(torch.tensor([token]))

    def text(self, token: int) -> str:
        return str(self.tokenizer.inner.decode([token], skip_special_tokens=False))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/requests":
            return self.reply(200, {"completions": self.server.n_completions})
        if self.path != "/v1/models":
            return self.refuse(404, "Not Found")
        if not self.authorised():
            return None
        listed = {"id": self.server.options.name, "object": "model"}
        if self.server.options.dialect == "vllm":
            listed["max_model_len"] = self.server.options.context
        self.reply(200, {"object": "list", "data": [listed]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/control":
            self.server.reset(request)
            return self.reply(200, {})
        if not self.authorised():
            return
        if self.path == "/tokenize" and self.server.options.dialect == "vllm":
            return self.tokenize(request)
        if self.path != "/v1/completions":
            return self.refuse(404, "Not Found")
        if request.get("model") != self.server.options.name:
            return self.refuse(404, f"The model `{request.get('model')}` does not exist.")
        self.server.n_completions += 1
        fault = self.server.options.fault if self.server.n_completions > self.server.options.after else "none"
        if not self.fails(fault):
            self.complete(request, fault)

    def authorised(self) -> bool:
        key = self.server.options.key
        if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
            self.refuse(401, "Unauthorized")
            return False
        return True

    def fails(self, fault: str) -> bool:
        """Whether a fault that needs no answer has happened."""
        if fault == "error-500":
            self.refuse(500, "Internal Server Error")
        elif fault == "error-429":
            self.refuse(429, "Rate limit reached", {"Retry-After": "0.01"})
        elif fault == "busy-once" and self.server.once():
            self.refuse(503, "The engine is starting", {"Retry-After": "0.01"})
        elif fault == "not-json":
            self.send(200, b"<html>It works!</html>", {})
        elif fault == "drop":
            self.close_connection = True
            self.connection.close()
        elif fault == "slow":
            time.sleep(30)
        elif fault == "drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(300):
                self.wfile.write(b" ")
                time.sleep(0.1)
        else:
            return False
        return True

    def tokenize(self, request: dict[str, Any]) -> None:
        tokenizer = self.server.model.tokenizer
        if "messages" in request:
            ids = list(tokenizer.inner.apply_chat_template(
                request["messages"], tokenize=True, return_dict=False,
                add_generation_prompt=request.get("add_generation_prompt", True),
                **request.get("chat_template_kwargs", {})))
        else:
            ids = tokenizer.encode(request["prompt"])
        self.reply(200, {"tokens": ids, "count": len(ids), "max_model_len": self.server.options.context})

    def complete(self, request: dict[str, Any], fault: str) -> None:
        options, model = self.server.options, self.server.model
        prompts = request["prompt"]
        prompts = [prompts] if isinstance(prompts, str) or isinstance(prompts[0], int) else prompts
        prompts = [model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        wrong = self.problem(request, prompts)
        if wrong is not None:
            return self.refuse(400, wrong)
        eos_ids = set(model.tokenizer.eos_ids)
        if options.dialect == "vllm":
            eos_ids = (set() if request.get("ignore_eos") else eos_ids) | set(request.get("stop_token_ids") or ())
        logps = model.logp(prompts) if "prompt_logprobs" in request or request.get("echo") else [None] * len(prompts)
        choices = []
        for index, (prompt, logp_ta) in enumerate(zip(prompts, logps, strict=True)):
            tokens, written, ended = model.write(prompt, request, eos_ids)
            text = model.tokenizer.decode(tokens)
            choice: dict[str, Any] = {"index": index, "text": "" if fault == "empty" else text,
                                      "finish_reason": "stop" if ended or fault == "empty" else "length"}
            if options.dialect == "vllm":
                self.as_vllm(choice, request, prompt, logp_ta, tokens, fault)
            if request.get("logprobs") is not None and options.dialect != "text":
                self.as_openai(choice, request, prompt, logp_ta, tokens, written, fault)
            choices.append(choice)
        choices.reverse()  # the protocol numbers them, and promises no order
        choices = choices[1:] if fault == "fewer-choices" else choices
        content = json.dumps({"object": "text_completion", "model": options.name, "choices": choices}).encode()
        if fault == "cut":
            return self.send(200, content[:len(content) // 2], {"Content-Length": str(len(content))})
        self.send(200, content, {})

    def problem(self, request: dict[str, Any], prompts: list[list[int]]) -> str | None:
        options, model = self.server.options, self.server.model
        most = max(request.get("prompt_logprobs") or 0, request.get("logprobs") or 0)
        if options.dialect == "openai" and "prompt_logprobs" in request:
            return "Unrecognized request argument supplied: prompt_logprobs"
        if options.dialect == "text" and (request.get("echo") or "prompt_logprobs" in request):
            return "echo is not supported"
        if most > options.max_logprobs:
            return f"Requested logprobs of {most}, which is greater than max allowed: {options.max_logprobs}"
        for prompt in prompts:
            if len(prompt) + request.get("max_tokens", 16) > options.context:
                return (f"This model's maximum context length is {options.context} tokens. However, you requested "
                        f"{len(prompt) + request.get('max_tokens', 16)} tokens.")
            if any(not 0 <= token < model.policy.n_actions for token in prompt):
                return f"Token id {max(prompt)} is out of vocabulary"
        return None

    def as_vllm(self, choice: dict[str, Any], request: dict[str, Any], prompt: list[int], logp_ta: Any,
                tokens: list[int], fault: str) -> None:
        if request.get("return_token_ids"):
            choice["token_ids"] = tokens
        if "prompt_logprobs" not in request or fault == "missing":
            return
        entries: list[Any] = [None]
        for place, token in enumerate(prompt[1:]):
            logp_a = self.broken(logp_ta[place], fault)
            top = logp_a.topk(min(request["prompt_logprobs"], len(logp_a))).indices.tolist()
            shown = (token + 1) % len(logp_a) if fault == "other-tokens" else token
            entries.append({str(each): {"logprob": float(logp_a[each]), "rank": rank + 1,
                                        "decoded_token": self.server.model.text(each)}
                            for rank, each in enumerate(dict.fromkeys([shown, *top]))})
        choice["prompt_logprobs"] = entries[:-1] if fault == "short" else entries

    def as_openai(self, choice: dict[str, Any], request: dict[str, Any], prompt: list[int], logp_ta: Any,
                  tokens: list[int], written: list[float], fault: str) -> None:
        if fault == "missing":
            return
        name = (self.by_id if request.get("return_tokens_as_token_ids") and self.server.options.dialect == "vllm"
                else self.server.model.text)
        names, logps, tops = [name(token) for token in tokens], list(written), [{} for _ in tokens]
        if request.get("echo"):
            before: list[Any] = [None]
            before_tops: list[Any] = [None]
            for place, token in enumerate(prompt[1:]):
                logp_a = self.broken(logp_ta[place], fault)
                top = logp_a.topk(min(request["logprobs"], len(logp_a))).indices.tolist()
                before.append(float(logp_a[token]))
                before_tops.append({name(each): float(logp_a[each]) for each in top})
            prompt_names = [name((token + 1) % len(logp_ta[0]) if fault == "other-tokens" else token)
                            for token in prompt]
            names, logps, tops = [*prompt_names, *names], [*before, *logps], [*before_tops, *tops]
        if fault == "short":
            names, logps, tops = names[:-1], logps[:-1], tops[:-1]
        choice["logprobs"] = {"tokens": names, "token_logprobs": logps, "top_logprobs": tops}

    @staticmethod
    def by_id(token: int) -> str:
        return f"token_id:{token}"

    @staticmethod
    def broken(logp_a: Any, fault: str) -> Any:
        return {"nan": logp_a * math.nan, "positive": logp_a + 20, "raw-logits": logp_a * 0 - 0.5}.get(fault, logp_a)

    def refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self.reply(status, {"error": {"message": message, "type": "invalid_request_error", "code": status}}, headers)

    def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(content).encode(), headers or {})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.model, self._given = options, Model(options.model), vars(options).copy()
        self.reset({})
        super().__init__(("127.0.0.1", options.port), Handler)

    def reset(self, changes: dict[str, Any]) -> None:
        """The options it was started with, but for some; and nothing has happened yet."""
        vars(self.options).update({**self._given, **changes})
        self.n_completions, self._happened = 0, False

    def once(self) -> bool:
        happened, self._happened = self._happened, True
        return not happened


class Running:
    """A server process that a test talks to."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self.address = f"http://127.0.0.1:{port}/v1"
        self.reference = f"{self.address}#{MODEL}"

    def requests(self) -> int:
        """For completions, so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/requests") as answer:
            return int(json.load(answer)["completions"])

    def set(self, **changes: Any) -> None:
        """Other options from now on, such as `fault="slow"`; those that are not named are as it was started."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/control", json.dumps(changes).encode())
        with urllib.request.urlopen(request):
            pass

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def serve(model: Path, *options: str) -> Iterator[Running]:
    """A running server for `model`, on a free port."""
    command = [sys.executable, "-m", "tests.lm.completions_server", str(model), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the server did not start"
        yield Running(process, int(line))
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="a language model's folder")
    parser.add_argument("--name", default=MODEL, help="what it is served as")
    parser.add_argument("--dialect", default="vllm", choices=("vllm", "openai", "text"))
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one, which is printed")
    parser.add_argument("--max-logprobs", type=int, default=20)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--key", help="wanted in the Authorization header")
    parser.add_argument("--fault", default="none", choices=FAULTS)
    parser.add_argument("--after", type=int, default=0, help="requests for completions that go well before the fault")
    server = Server(parser.parse_args())
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
