"""Whether a server's tokens are the local tokenizer's: asked before training, since a teacher that reads other tokens
than were meant answers as readily as one that does not.

Three questions, as far as a server answers them: what it calls tokens from all over the vocabulary; how it cuts the
task's own texts; and what its chat template makes of the task's messages.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

from opdbench.errors import UserError
from opdbench.lm.endpoint import Refused
from opdbench.lm.server import Server
from opdbench.lm.tokenizer import Tokenizer
from opdbench.task import Example

_TOKENS = 200  # that are looked at
_EXAMPLES = 4
_UNKNOWN = "�"  # what a part of a character is shown as
_FIX = "serve a model whose tokenizer the student shares, or choose a student of the served model's family"


class TokenNames:
    """What servers may call the local tokens: their text, or how the vocabulary writes them.

    Args:
        tokenizer: the local one, which is the student's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._written = {index: token for token, index in tokenizer.vocabulary.items()}

    def of(self, token: int) -> set[str]:
        """Every name of one token; none for one that the vocabulary does not have."""
        if token not in self._written:
            return set()
        written = self._written[token]
        text = str(self._tokenizer.inner.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return {written, text, written.replace("▁", " "), written.replace("Ġ", " ").replace("Ċ", "\n")}

    def id_of(self, name: str) -> int | None:
        """The token of that name; None where there is none, or where several share it."""
        return self._ids.get(name)

    def agree(self, token: int, name: str) -> bool | None:
        """Whether `name` may be the token's; None where it cannot be told (a part of a character, nothing at all)."""
        if not name.strip() or _UNKNOWN in name or name.startswith("bytes:"):
            return None
        return name.strip() in {own.strip() for own in self.of(token)}

    @cached_property
    def _ids(self) -> dict[str, int]:
        tokens: dict[str, set[int]] = defaultdict(set)
        for token in self._written:
            for name in self.of(token):
                tokens[name].add(token)
        return {name: min(having) for name, having in tokens.items() if len(having) == 1}


def check(server: Server, tokenizer: Tokenizer, names: TokenNames, examples: Sequence[Example]) -> None:
    """
    Args:
        examples: problems of the task, whose prompts are compared.

    Raises:
        UserError: server and tokenizer differ; says in what.
    """
    if server.way.dialect != "text":
        _check_names(server, tokenizer, names)
    for example in examples[:_EXAMPLES]:
        _check_prompt(server, tokenizer, example)


def _check_names(server: Server, tokenizer: Tokenizer, names: TokenNames) -> None:
    """Tokens from all over the vocabulary, the special ones included, are called what they are called here."""
    every = sorted(tokenizer.vocabulary.values())
    room = min(_TOKENS, (server.context_length or _TOKENS) - 2)
    tokens = every[::-(-len(every) // room)]
    special = sorted({*tokenizer.inner.all_special_ids, *tokenizer.eos_ids} - {*tokens})
    tokens = [*special, *tokens][:room]
    try:
        positions = server.positions(tokens)
    except Refused as error:
        raise UserError(f"the server at {server.url} does not read the student's tokens ({error.status}: {error.said})",
                        _FIX) from error
    different = [(token, position.text) for token, position in zip(tokens[1:], positions, strict=True)
                 if position.text is not None and names.agree(token, position.text) is False]
    if different:
        token, name = different[0]
        raise UserError(f"the server at {server.url} and the student do not share a tokenizer: {len(different)} of "
                        f"{len(tokens)} tokens differ, such as {token}, which is {name!r} there and "
                        f"{tokenizer.inner.decode([token])!r} here", _FIX)


def _check_prompt(server: Server, tokenizer: Tokenizer, example: Example) -> None:
    """The task's prompt becomes the same tokens there and here, through the chat template where it has messages."""
    here = tokenizer.render(example.prompt)
    if isinstance(example.prompt, str):
        there = server.tokenize(text=example.prompt)
    else:
        there = server.tokenize(messages=[dict(message) for message in example.prompt])
    if there is None or there == here:
        return
    place = next((index for index, pair in enumerate(zip(here, there, strict=False)) if pair[0] != pair[1]),
                 min(len(here), len(there)))
    what = "tokenizers" if isinstance(example.prompt, str) else "chat templates"
    around = slice(max(0, place - 4), place + 8)
    raise UserError(f"the {what} of the server at {server.url} and of the student differ: the prompt of {example.id} "
                    f"is {len(there)} tokens there and {len(here)} here, and from token {place} on "
                    f"{_shown(tokenizer, there[around])} there and {_shown(tokenizer, here[around])} here",
                    _FIX if isinstance(example.prompt, str) else
                    "give both one template: vLLM's --chat-template FILE, or the student's chat_template.jinja")


def _shown(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    known = {*tokenizer.vocabulary.values()}
    return repr(str(tokenizer.inner.decode([token for token in tokens if token in known])))
