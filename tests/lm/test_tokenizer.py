"""Tokenizers: exact round trips, end tokens, and when two of them mean the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from opdbench.errors import UserError
from opdbench.lm.tokenizer import Tokenizer

TEMPLATE = ("{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}")


@pytest.mark.parametrize("text", ["1+2=3", "a b  c", " leading and trailing ", "line\nbreak\n\n", "..,;"])
def test_characters_come_back_as_they_went_in(text: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.characters("abcdefghijklmnopqrstuvwxyz0123456789+= .,;\n", eos="$")
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.decode(again.encode(text)) == text
    assert again.fingerprint() == tokenizer.fingerprint()


def test_the_end_token_is_one_id_and_is_left_out_of_text() -> None:
    tokenizer = Tokenizer.characters("12", eos="$")
    assert tokenizer.encode("12$") == [2, 3, 1]
    assert tokenizer.eos_ids == {1} and tokenizer.eos_id == 1 and tokenizer.pad_id == 0 and tokenizer.n_tokens == 4
    assert tokenizer.decode([2, 3, 1]) == "12"


def test_an_unknown_character_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="cannot write 'abc'"):
        Tokenizer.characters("123").encode("abc")


def test_every_end_token_of_the_folder_counts(tmp_path: Path) -> None:
    """Llama 3 lists three; a run that knows only the tokenizer's own never stops."""
    Tokenizer.characters("abc").save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    assert Tokenizer.load(tmp_path).eos_ids == {1, 2, 3, 4}


def test_messages_need_a_chat_template_and_text_does_not(tmp_path: Path) -> None:
    plain = Tokenizer.characters("abc<>untsier")
    messages = [{"role": "user", "content": "abc"}]
    assert plain.render("abc") == plain.encode("abc")
    with pytest.raises(UserError, match="no chat template"):
        plain.render(messages)
    plain.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    chat = Tokenizer.load(tmp_path)
    assert chat.decode(chat.render(messages)) == "<user>abc<assistant>"
    assert chat.fingerprint() != plain.fingerprint()


def test_agreement_is_about_what_ids_mean(tmp_path: Path) -> None:
    short, long = Tokenizer.characters("abc"), Tokenizer.characters("abcd")
    assert short.difference(short) is short.difference(long) is long.difference(short) is None
    swapped = short.difference(Tokenizer.characters("acb"))
    assert swapped is not None and "2 tokens have different ids" in swapped and "'b' (3 and 4)" in swapped
    replaced = short.difference(Tokenizer.characters("abx"))
    assert replaced is not None and "4 ('c' and 'x')" in replaced


@pytest.mark.parametrize("damage", ["absent", "cut"])
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, damage: str) -> None:
    Tokenizer.characters("abc").save(tmp_path)
    if damage == "absent":
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    else:
        (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(UserError, match="cannot read a tokenizer"):
        Tokenizer.load(tmp_path)
