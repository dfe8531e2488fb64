"""A completions server (vLLM, or any that is OpenAI-compatible): who it is, what it can tell, and asking it.

Which dialect it speaks is found out by asking, and named by what is in its answers (opdbench.lm.answers): nothing is
assumed of a server's name or version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeVar

from opdbench.errors import UserError, nearest
from opdbench.lm import answers
from opdbench.lm.answers import Identity, IdOf, Nonsense, Position, Scores, Written
from opdbench.lm.endpoint import Endpoint, Refused

Dialect = Literal["prompt_logprobs", "echo", "text"]
T = TypeVar("T")

# Token ids that every vocabulary has: what a model says about them identifies it.
PROBE = [(7 * step * step + 3 * step) % 29 + 3 for step in range(24)]
_USUAL = (20, 5, 1)  # tokens that servers tell at most unless they are started otherwise: vLLM 20, OpenAI 5
_NUMBERS_A_REQUEST = 50_000  # log-probabilities: some 4 MB of JSON
_PROMPTS_A_REQUEST = 64


class Way(NamedTuple):
    """How one server wants to be asked for log-probabilities."""

    dialect: Dialect
    max_tokens: int = 1  # some servers refuse 0 with `echo`, others need no 1
    named_by_id: bool = False  # whether it knows vLLM's `return_tokens_as_token_ids`


def is_address(reference: str) -> bool:
    """Whether a model's reference is the address of a server."""
    return reference.startswith(("http://", "https://"))


class Server:
    """One model at one address. It is asked who it is when this is made.

    Args:
        reference: `http://HOST:PORT/v1#MODEL`; the model may be left out where only one is served.
        timeout: seconds that one attempt at a request may take.
        parallel: requests at one time.

    Raises:
        UserError: it cannot be reached, does not serve the model, or completes nothing.
    """

    def __init__(self, reference: str, *, timeout: float = 60.0, parallel: int = 8) -> None:
        self.endpoint = Endpoint(reference, timeout=timeout)
        self.parallel = parallel
        self._no = ""  # what it said when it was last asked for log-probabilities
        self.model, self.context_length = self._choose(reference.partition("#")[2])
        self.way = self._find_way()

    @property
    def url(self) -> str:
        return self.endpoint.url

    @property
    def longest(self) -> int | None:
        """The longest sequence that it scores, in tokens: some servers want room for one more."""
        return None if self.context_length is None else self.context_length - self.way.max_tokens

    def why_text_only(self) -> str:
        """What it says to a question for log-probabilities."""
        return f"asked for more it says: {self._no}" if self._no else "asked for more it answers without"

    def identity(self) -> Identity:
        """Who it is, asked now."""
        if self.way.dialect == "text":
            return Identity(self.model, ())
        with self._checked():
            return Identity(self.model, tuple(position.logp for position in self._ask([PROBE], 0)[0]))

    def most(self, wanted: int) -> int:
        """How many of its most likely tokens it tells: `wanted`, or the largest of the usual limits that is less."""
        for top_k in (wanted, *(usual for usual in _USUAL if usual < wanted)):
            with self._checked():
                try:
                    told = self._tells(top_k)
                except Refused:
                    continue
            if told >= top_k:
                return top_k
        return 0

    def _tells(self, top_k: int) -> int:
        return min(len(position.others) for position in self._ask([PROBE], top_k)[0])

    def score(self, sequences: Sequence[Sequence[int]], top_k: int, id_of: IdOf, n_actions: int
              ) -> Iterator[tuple[int, Scores]]:
        """(index, scores) of every sequence of at least two tokens, as they arrive.

        Args:
            top_k: 0 when only the tokens' own log-probabilities are wanted.
            id_of: turns a token's name into its id, where it is not one.
            n_actions: tokens from this on are left out.
        """
        parts = list(_parts([len(sequence) * (top_k + 1) for sequence in sequences], _NUMBERS_A_REQUEST))

        def ask(part: range) -> list[Scores]:
            asked = [sequences[index] for index in part]
            with self._checked():
                return [answers.scores(sequence, positions, top_k, self._namer(id_of), n_actions)
                        for sequence, positions in zip(asked, self._ask(asked, top_k), strict=True)]

        for number, found in self._each([lambda part=part: ask(part) for part in parts]):  # type: ignore[misc]
            yield from zip(parts[number], found, strict=True)

    def complete(self, prompts: Sequence[Sequence[int]], texts: Sequence[str], *, max_tokens: int, temperature: float,
                 seeds: Sequence[int], stop_ids: Sequence[int]) -> Iterator[tuple[int, Written]]:
        """(index, completion) of every prompt, as they arrive.

        Args:
            prompts: token ids; `texts` are the same as text, for a server whose tokens nothing is known of.
            temperature: 0 takes the most likely token; nothing else shapes the distribution.
            seeds: one a prompt. Those of one request would share one, so that each prompt goes alone to be sampled.
            stop_ids: tokens that end a completion, besides the server's own; without any it does not end by itself.
        """
        size = _PROMPTS_A_REQUEST if temperature == 0 else 1
        parts = list(_parts([1] * len(prompts), size))

        def ask(part: range) -> list[Written]:
            by_text = self.way.dialect == "text"
            body = {"prompt": [texts[index] if by_text else list(prompts[index]) for index in part],
                    "max_tokens": max_tokens, "temperature": temperature, "top_p": 1.0}
            if temperature > 0:
                body["seed"] = seeds[part.start]
            if not by_text:
                body |= {"logprobs": 1}
            if self.way.named_by_id:
                body |= {"return_tokens_as_token_ids": True}
            if self.way.dialect == "prompt_logprobs":
                # vLLM takes what it is not told from the model's generation_config.json.
                body |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True,
                         "stop_token_ids": sorted(stop_ids), "ignore_eos": not stop_ids}
            with self._checked():
                return [answers.written(choice) for choice in self._choices(body, len(part))]

        for number, found in self._each([lambda part=part: ask(part) for part in parts]):  # type: ignore[misc]
            yield from zip(parts[number], found, strict=True)

    def positions(self, sequence: Sequence[int]) -> list[Position]:
        """What it says about one sequence, with the texts of its tokens where it tells them.

        Raises:
            Refused: such as of tokens that it does not have.
        """
        with self._checked():
            try:
                return self._ask([sequence], 0)[0]
            except Refused as error:
                refused = error
        raise refused

    def tokenize(self, *, text: str | None = None, messages: Sequence[dict[str, str]] | None = None
                 ) -> list[int] | None:
        """Token ids that the server makes of a text, or of chat messages through its template; None where it does not
        say (only vLLM's does)."""
        body = ({"prompt": text, "add_special_tokens": False} if messages is None else
                {"messages": list(messages), "add_generation_prompt": True,
                 "chat_template_kwargs": {"enable_thinking": False}})
        try:
            answer = self.endpoint.call("//tokenize", {"model": self.model, **body})
        except Refused:
            return None
        ids = answer.get("tokens") if isinstance(answer, dict) else None
        return ids if isinstance(ids, list) and all(isinstance(token, int) for token in ids) else None

    # -------------------------------------------------------------------------------------------------- finding out

    def _choose(self, name: str) -> tuple[str, int | None]:
        """The model's name as served, and its context length where the server tells it."""
        with self._checked():
            try:
                answer = self.endpoint.call("/models")
            except Refused as error:
                if name and error.status in (404, 405):
                    return name, None  # some servers have no such list
                raise
        listed = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(listed, list) or not all(isinstance(model, dict) and "id" in model for model in listed):
            raise UserError(f"the server at {self.url} does not say which models it serves",
                            "the address must be that of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
        served = {str(model["id"]): model for model in listed}
        if not name and len(served) == 1:
            name = next(iter(served))
        if name not in served:
            what = f"does not serve {name!r}" if name else f"serves {len(served)} models"
            raise UserError(f"the server at {self.url} {what}", f"write --teacher {self.url}#MODEL; "
                                                               f"{nearest(name, served)}")
        length = served[name].get("max_model_len")
        return name, length if isinstance(length, int) else None

    def _find_way(self) -> Way:
        """The first way of asking that is answered with log-probabilities; else the first that is answered at all."""
        ways = [Way("prompt_logprobs", named_by_id=True),
                *(Way("echo", max_tokens, named) for max_tokens in (0, 1) for named in (True, False))]
        for way in ways:
            found = self._try(way)
            if found is not None:
                # An unknown field is ignored by some servers and refused by others.
                by_id = way.dialect == "prompt_logprobs" or found[0].name.startswith(answers.BY_ID)
                return way._replace(named_by_id=by_id)
        with self._checked():
            self._choices({"prompt": ["1"], "max_tokens": 1}, 1)
        return Way("text")

    def _try(self, way: Way) -> list[Position] | None:
        self.way = way
        with self._checked():
            try:
                found = self._parse([PROBE], self._choices(self._question([PROBE], 1), 1))
            except Refused as error:
                self._no = error.said
                return None
        return None if found is None else found[0]

    # -------------------------------------------------------------------------------------------------------- asking

    def _ask(self, sequences: Sequence[Sequence[int]], top_k: int) -> list[list[Position]]:
        found = self._parse(sequences, self._choices(self._question(sequences, top_k), len(sequences)))
        if found is None:
            raise Nonsense("the log-probabilities are missing")
        return found

    def _question(self, sequences: Sequence[Sequence[int]], top_k: int) -> dict[str, Any]:
        body: dict[str, Any] = {"prompt": [list(sequence) for sequence in sequences], "temperature": 0.0,
                                "max_tokens": self.way.max_tokens}
        if self.way.dialect == "prompt_logprobs":
            return {**body, "prompt_logprobs": top_k}
        named = {"return_tokens_as_token_ids": True} if self.way.named_by_id else {}
        return {**body, "echo": True, "logprobs": max(1, top_k), **named}

    def _parse(self, sequences: Sequence[Sequence[int]], found: Sequence[dict[str, Any]]
               ) -> list[list[Position]] | None:
        read = answers.prompt_logprobs if self.way.dialect == "prompt_logprobs" else answers.echoed
        parsed = [read(choice, sequence) for choice, sequence in zip(found, sequences, strict=True)]
        return None if any(positions is None for positions in parsed) else [each for each in parsed if each is not None]

    def _choices(self, body: dict[str, Any], n_prompts: int) -> list[dict[str, Any]]:
        return answers.choices(self.endpoint.call("/completions", {"model": self.model, **body}), n_prompts)

    def _namer(self, id_of: IdOf) -> IdOf:
        return answers.id_in_name if self.way.named_by_id else id_of

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """Turn what a server refuses, and what cannot be true, into a sentence."""
        try:
            yield
        except Nonsense as error:
            raise UserError(f"the server at {self.url} answers nonsense: {error}",
                            "look at its log, and at how it was started; the run goes on from its last checkpoint when "
                            "the same command is typed again") from error
        except Refused as error:
            raise UserError(f"the server at {self.url} refuses ({error.status}): {error.said}",
                            _remedy(error)) from error

    def _each(self, jobs: Sequence[Callable[[], T]]) -> Iterator[tuple[int, T]]:
        """(number, result) of every job, as they end, `parallel` at a time. One that fails ends them all."""
        self.endpoint.go()
        with ThreadPoolExecutor(max_workers=self.parallel) as pool:
            futures = {pool.submit(job): number for number, job in enumerate(jobs)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.endpoint.stop()
                raise


def _remedy(error: Refused) -> str:
    said = error.said.lower()
    if "logprobs" in said:
        return "ask for less with --set top_k=K, or let the server tell more (vLLM: --max-logprobs K)"
    if any(word in said for word in ("context", "length", "maximum", "model_len")):
        return "lower the length of completions with --set horizon=N, or serve the model with a longer context"
    if error.status == 404:
        return "see that the address ends as the server's does (usually in /v1), and that it has /completions"
    return "look at the server's log; it must have /v1/completions as OpenAI's or vLLM's server"


def _parts(costs: Sequence[int], most: int) -> Iterator[range]:
    """Neighbours, together while their costs add up to no more than `most`; one alone may cost more."""
    start = total = 0
    for index, cost in enumerate(costs):
        if index > start and (total + cost > most or index - start == _PROMPTS_A_REQUEST):
            yield range(start, index)
            start, total = index, 0
        total += cost
    if costs:
        yield range(start, len(costs))
