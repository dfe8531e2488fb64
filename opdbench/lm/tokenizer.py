"""Tokenizers: a thin typed wrapper over transformers' fast tokenizers, and character-level ones for small tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from opdbench.task import Message

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
                 "sentencepiece.bpe.model", "tekken.json")


class Tokenizer:
    """Text to token ids and back. `load` reads a folder; `characters` makes a new one.

    Args:
        inner: the tokenizer of transformers.
        eos_ids: every id that ends a completion; a model may have several (Llama 3, Qwen).
    """

    def __init__(self, inner: PreTrainedTokenizerBase, eos_ids: frozenset[int]) -> None:
        self.inner = inner
        self.eos_ids = eos_ids

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer in a model's folder, with every end token that the folder's configurations name.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        from transformers import PreTrainedTokenizerFast

        folder = Path(folder)
        fix = "the folder needs tokenizer.json and tokenizer_config.json; download it again"
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            # transformers would go on with an empty vocabulary that config.json's model type suggests.
            raise UserError(f"cannot read a tokenizer from {folder}: none of {', '.join(_VOCABULARIES)} is there", fix)
        try:
            if _names_a_class(folder):
                inner: Any = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
            else:
                from transformers import AutoTokenizer

                inner = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # tokenizers raises bare exceptions on malformed files
            raise UserError(f"cannot read a tokenizer from {folder}: {_first_line(error)}", fix) from error
        return cls(inner, _eos_ids(folder, inner))

    @classmethod
    def characters(cls, alphabet: str, *, eos: str = "<eos>", pad: str = "<pad>") -> Tokenizer:
        """One token a character of `alphabet`; id 0 is `pad` and id 1 is `eos`."""
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend
        from transformers import PreTrainedTokenizerFast

        if len(set(alphabet)) != len(alphabet) or eos in alphabet:
            raise ValueError("the alphabet must not repeat a character, nor contain the end token")
        vocabulary = {token: index for index, token in enumerate([pad, eos, *alphabet])}
        backend = Backend(models.WordLevel(vocabulary, unk_token=None))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        fast: Any = PreTrainedTokenizerFast  # its constructor has no annotations
        inner = fast(tokenizer_object=backend, pad_token=pad, eos_token=eos, clean_up_tokenization_spaces=False)
        return cls(inner, frozenset([vocabulary[eos]]))

    @classmethod
    def byte_pairs(cls, texts: Iterable[str], alphabet: str, merges: int, *, eos: str = "<eos>", pad: str = "<pad>"
                   ) -> Tokenizer:
        """The characters of `alphabet`, and up to `merges` joined tokens learned on `texts`. As in most models, numbers
        are kept apart from what stands around them; here every other character stands alone, so only digits join."""
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Backend
        from transformers import PreTrainedTokenizerFast

        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d+|\D"), "isolated")
        backend.decoder = decoders.Fuse()
        backend.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=len(alphabet) + 2 + merges, special_tokens=[pad, eos], initial_alphabet=list(alphabet),
            show_progress=False))
        fast: Any = PreTrainedTokenizerFast  # its constructor has no annotations
        inner = fast(tokenizer_object=backend, pad_token=pad, eos_token=eos, clean_up_tokenization_spaces=False)
        return cls(inner, frozenset([int(inner.eos_token_id)]))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and its companions, which `load` and transformers read back."""
        self.inner.save_pretrained(str(folder))

    @property
    def eos_id(self) -> int:
        """The end token that a reference solution is closed with."""
        own = self.inner.eos_token_id
        return int(own) if own is not None else min(self.eos_ids)

    @property
    def pad_id(self) -> int:
        """What padding is filled with. Nothing depends on it: masks come from lengths."""
        own = self.inner.pad_token_id
        return int(own) if own is not None else 0

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token's text and id, added tokens included."""
        return dict(self.inner.get_vocab())

    @property
    def n_tokens(self) -> int:
        """One more than the largest id; a model's output layer may be padded beyond it."""
        return max(self.vocabulary.values()) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of `text` alone: no special token is added.

        Raises:
            UserError: a character-level tokenizer met a character that it does not know.
        """
        try:
            return list(self.inner.encode(text, add_special_tokens=False))
        except Exception as error:
            raise UserError(f"this tokenizer cannot write {text[:60]!r}: {_first_line(error)}",
                            "use a model whose tokenizer knows these characters") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out, spaces as they are."""
        return str(self.inner.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def render(self, prompt: str | Sequence[Message], *, thinking: bool = False) -> list[int]:
        """Ids of a prompt: text as it is, messages through the chat template, ready for the assistant's turn.

        Args:
            thinking: leave it to the model to think first, where the template can forbid that (Qwen3's can).

        Raises:
            UserError: messages, and no chat template.
        """
        if isinstance(prompt, str):
            return self.encode(prompt)
        if not self.has_chat_template:
            raise UserError("this task's prompts are chat messages and the model's tokenizer has no chat template",
                            "pass a chat model, or add chat_template.jinja to the model's folder")
        # The horizon of most tasks cannot hold a thinking block; templates that do not know the variable ignore it.
        return list(self.inner.apply_chat_template([dict(message) for message in prompt], tokenize=True,
                                                   add_generation_prompt=True, return_dict=False,
                                                   enable_thinking=thinking))

    @property
    def has_chat_template(self) -> bool:
        return bool(self.inner.chat_template)

    def fingerprint(self) -> str:
        """sha256 over vocabulary, special tokens, end tokens and chat template."""
        content = [sorted(self.vocabulary.items()), sorted(self.inner.all_special_tokens), sorted(self.eos_ids),
                   self.inner.chat_template]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def difference(self, other: Tokenizer) -> str | None:
        """What keeps the two from sharing one action space, in words; None when ids mean the same in both.

        Ids that only one of them has may be padding or added tokens, and do not count unless the other gives that token
        another id. Ordinary tokens of several characters do count: with them the same text is cut differently.
        """
        mine, theirs = self.vocabulary, other.vocabulary
        moved = sorted(token for token in mine.keys() & theirs.keys() if mine[token] != theirs[token])
        if moved:
            token = moved[0]
            return f"{len(moved)} tokens have different ids, such as {token!r} ({mine[token]} and {theirs[token]})"
        by_id = {index: token for token, index in mine.items()}
        clash = sorted(index for token, index in theirs.items() if by_id.get(index, token) != token)
        if clash:
            token = next(token for token, index in theirs.items() if index == clash[0])
            return f"{len(clash)} ids mean different tokens, such as {clash[0]} ({by_id[clash[0]]!r} and {token!r})"
        merged = sorted(token for token in self._ordinary ^ other._ordinary if len(token) > 1)
        if merged:
            return f"{len(merged)} tokens are known to one side only, such as {merged[0]!r}"
        return None

    @property
    def _ordinary(self) -> set[str]:
        """Tokens that text is cut into, added ones left out."""
        return set(self.vocabulary) - set(self.inner.get_added_vocab())


def _names_a_class(folder: Path) -> bool:
    """Whether tokenizer.json can be read as it is; only then the heavy AutoTokenizer import can be spared."""
    if not (folder / "tokenizer.json").is_file() or not (folder / "tokenizer_config.json").is_file():
        return False
    name = _json(folder / "tokenizer_config.json").get("tokenizer_class")
    return name in (None, "PreTrainedTokenizerFast", "TokenizersBackend")


def _eos_ids(folder: Path, inner: PreTrainedTokenizerBase) -> frozenset[int]:
    found: set[int] = set() if inner.eos_token_id is None else {int(inner.eos_token_id)}
    for name in ("generation_config.json", "config.json"):
        value = _json(folder / name).get("eos_token_id")
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(int(index) for index in found)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {_first_line(error)}", "download the model again") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
