"""What a completions server says about tokens, read with suspicion: every number and every length is looked at.

Two dialects tell the log-probabilities of tokens that were sent. vLLM's `prompt_logprobs` names tokens by id and always
has the actual one among them; the `echo` with `logprobs` of OpenAI's completions names them by text. In both the first
token has nothing before it, so its entry is null. Neither knows a sampling temperature: they are log softmax of the
logits.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ABOVE_ZERO = 1e-3  # of a log-probability: rounding
ABOVE_ONE = 1e-2  # of the sum of the probabilities of some tokens: rounding

_SAME = 0.1  # nats: half precision, and what else is in a batch, move a log-probability by some hundredths

BY_ID = "token_id:"  # how vLLM names a token by its id among texts

IdOf = Callable[[str], int | None]  # the id of a token that a server names; None where that cannot be told


class Nonsense(Exception):
    """An answer that cannot be true; says what is wrong with it."""


class Identity(NamedTuple):
    """Who answers: a model's name, and what it says about a fixed sequence.

    Attributes:
        model: the name as served.
        probe: log-probabilities of the sequence's tokens; empty of a server that tells only text.
    """

    model: str
    probe: tuple[float, ...]

    @property
    def sha256(self) -> str:
        """Over the name and the mean log-probability to a quarter of a nat: coarse, so that rounding hardly ever
        changes it, and enough to tell most other weights under the same name."""
        mean = sum(self.probe) / max(1, len(self.probe))
        return hashlib.sha256(json.dumps([self.model, round(4 * mean)]).encode()).hexdigest()

    def matches(self, other: Identity) -> bool:
        """Whether both may be one model, asked twice. Finer than the checksum."""
        if (self.model, len(self.probe)) != (other.model, len(other.probe)):
            return False
        distance = sum(abs(mine - theirs) for mine, theirs in zip(self.probe, other.probe, strict=True))
        return distance <= _SAME * len(self.probe)


class Position(NamedTuple):
    """What is said about one token of a sequence that was sent.

    Attributes:
        name: the token, as the server names it.
        text: the token's text, where the server tells it.
        logp: its log-probability after those before it.
        others: names and log-probabilities of the most likely tokens there, in no order; may hold the token itself.
    """

    name: str
    text: str | None
    logp: float
    others: Sequence[tuple[str, float]]


class Scores(NamedTuple):
    """Of a sequence of n + 1 tokens; row t is about token t + 1.

    Attributes:
        logp_n: float32, of the token that is there.
        topk_id_nk: int32, the most likely tokens, downwards; 0 where one was not told.
        topk_logp_nk: float32, theirs; -inf there.
    """

    logp_n: NDArray[np.float32]
    topk_id_nk: NDArray[np.int32]
    topk_logp_nk: NDArray[np.float32]


class Written(NamedTuple):
    """One completion, as told.

    Attributes:
        names: its tokens as the server names them, the end token included; None where it tells only text.
        text: its text.
        logps: of those tokens; None where it does not tell.
        ended: by itself, rather than cut off.
    """

    names: list[str] | None
    text: str
    logps: list[float] | None
    ended: bool


def choices(answer: Any, n_prompts: int) -> list[dict[str, Any]]:
    """The choices of an answer, one a prompt, in the order of the prompts."""
    found = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(found, list) or not all(isinstance(choice, dict) for choice in found):
        raise Nonsense("there is no list of `choices`")
    if len(found) != n_prompts:
        raise Nonsense(f"{len(found)} choices for {n_prompts} prompts")
    indices = [choice.get("index", place) for place, choice in enumerate(found)]
    if sorted(map(str, indices)) != sorted(map(str, range(n_prompts))):
        raise Nonsense(f"the choices are numbered {indices[:8]}")
    return [choice for _, choice in sorted(zip(indices, found, strict=True), key=lambda pair: int(pair[0]))]


def prompt_logprobs(choice: dict[str, Any], sequence: Sequence[int]) -> list[Position] | None:
    """vLLM's dialect: one position for every token but the first; None when the server does not speak it."""
    entries = choice.get("prompt_logprobs")
    if entries is None:
        return None
    _require_length(entries, len(sequence))
    positions = []
    for token, entry in zip(sequence[1:], entries[1:], strict=True):
        if not isinstance(entry, dict) or not all(isinstance(value, dict) for value in entry.values()):
            raise Nonsense(f"a position holds {str(entry)[:60]!r} instead of tokens")
        if str(token) not in entry:
            raise Nonsense(f"other tokens were scored than were sent: {token} is not among "
                           f"{', '.join(list(entry)[:5])}")
        pairs = [(name, _logp(value.get("logprob"))) for name, value in entry.items()]
        text = entry[str(token)].get("decoded_token")
        positions.append(Position(str(token), text if isinstance(text, str) else None, dict(pairs)[str(token)], pairs))
    return positions


def echoed(choice: dict[str, Any], sequence: Sequence[int]) -> list[Position] | None:
    """OpenAI's dialect, likewise. What the server may have added after the sequence is left out."""
    told = choice.get("logprobs")
    if not isinstance(told, dict) or told.get("token_logprobs") is None:
        return None
    names, logps, tops = told.get("tokens"), told["token_logprobs"], told.get("top_logprobs")
    if tops is None:
        tops = [None] * len(sequence)
    n = len(sequence)
    if not isinstance(names, list) or not all(isinstance(part, list) for part in (logps, tops)):
        raise Nonsense("`logprobs` holds no lists of tokens and their log-probabilities")
    if len(names) == len(logps) == 0 or (len(names) < n and logps and logps[0] is not None):
        return None  # it does not echo: these are of what it wrote
    for part in (names, logps, tops):
        _require_length(part[:n] if len(part) == n + 1 else part, n)
    return [Position(str(name), _without_prefix(str(name)), _logp(logp),
                     [(other, _logp(value)) for other, value in (top or {}).items()])
            for name, logp, top in zip(names[1:n], logps[1:n], tops[1:n], strict=True)]


def scores(sequence: Sequence[int], positions: Sequence[Position], top_k: int, id_of: IdOf, n_actions: int) -> Scores:
    """The positions as arrays. A token whose id cannot be told, or that the student does not have, is left out: what
    remains is true, of fewer tokens.

    Raises:
        Nonsense: the probabilities of a position add up to more than one.
    """
    n = len(sequence) - 1
    topk_id_nk = np.zeros((n, top_k), np.int32)
    topk_logp_nk = np.full((n, top_k), -np.inf, np.float32)
    for row, position in enumerate(positions):
        best = sorted(position.others, key=lambda pair: -pair[1])[:top_k]
        if sum(math.exp(logp) for _, logp in best) > 1 + ABOVE_ONE:
            raise Nonsense("the probabilities of one position add up to more than 1")
        for column, (name, logp) in enumerate(best):
            token = id_of(name)
            if token is not None and token < n_actions:
                topk_id_nk[row, column], topk_logp_nk[row, column] = token, logp
    logp_n = np.array([position.logp for position in positions], np.float32)
    return Scores(logp_n, topk_id_nk, topk_logp_nk)


def written(choice: dict[str, Any]) -> Written:
    """A completion: its tokens if they are told (vLLM's `token_ids`, or `logprobs`), its text otherwise."""
    text, told = choice.get("text"), choice.get("logprobs")
    if not isinstance(text, str):
        raise Nonsense("a completion has no `text`")
    names = logps = None
    if isinstance(told, dict) and isinstance(told.get("tokens"), list):
        names = [str(name) for name in told["tokens"]]
        if isinstance(told.get("token_logprobs"), list):
            _require_length(told["token_logprobs"], len(names))
            logps = [_logp(value) for value in told["token_logprobs"]]
    ids = choice.get("token_ids")
    if isinstance(ids, list):
        logps = logps if names is not None and len(names) == len(ids) else None
        names = [f"{BY_ID}{token}" for token in ids]
    if choice.get("finish_reason") not in ("stop", "length"):
        raise Nonsense(f"a completion ended for the reason {choice.get('finish_reason')!r}")
    return Written(names, text, logps, choice["finish_reason"] == "stop")


def id_in_name(name: str) -> int | None:
    """Of a token that is named by its id, as "17" or "token_id:17"."""
    digits = name.removeprefix(BY_ID)
    return int(digits) if digits.isdecimal() else None


def _without_prefix(name: str) -> str | None:
    return None if name.startswith(BY_ID) else name


def _require_length(part: Any, n: int) -> None:
    if not isinstance(part, list) or len(part) != n:
        got = f"{len(part)} entries" if isinstance(part, list) else "no list"
        raise Nonsense(f"{got} for {n} tokens")


def _logp(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Nonsense(f"a log-probability is {value!r}")
    if math.isnan(value) or value > ABOVE_ZERO:
        raise Nonsense(f"a log-probability is {value}")
    return min(float(value), 0.0)
