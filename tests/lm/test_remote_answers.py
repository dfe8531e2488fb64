"""What a completions server says, read with suspicion; and what a refusal is turned into."""

from __future__ import annotations

import math
from typing import Any

import pytest

from opdbench.lm import answers
from opdbench.lm.answers import Nonsense, Position

SEQUENCE = [5, 7, 6]
ENTRY_7 = {"7": {"logprob": -1.0, "rank": 2, "decoded_token": "b"}, "9": {"logprob": -0.5, "rank": 1}}
ENTRY_6 = {"6": {"logprob": -3.0, "rank": 9}, "2": {"logprob": -0.25, "rank": 1}}
ECHO = {"tokens": ["a", "b", "c"], "token_logprobs": [None, -1.0, -3.0],
        "top_logprobs": [None, {"x": -0.5, "b": -1.0}, {"y": -0.25}]}


def vllm(*entries: Any) -> dict[str, Any]:
    return {"prompt_logprobs": list(entries)}


def test_the_first_entry_is_null_and_the_actual_token_is_always_there() -> None:
    positions = answers.prompt_logprobs(vllm(None, ENTRY_7, ENTRY_6), SEQUENCE)
    assert positions is not None
    assert [(position.name, position.text, position.logp) for position in positions] == [("7", "b", -1.0),
                                                                                         ("6", None, -3.0)]
    scores = answers.scores(SEQUENCE, positions, 1, answers.id_in_name, n_actions=100)
    assert scores.logp_n.tolist() == [-1.0, -3.0]
    assert scores.topk_id_nk.tolist() == [[9], [2]]  # of a token that is no top-1, the server told one more
    assert scores.topk_logp_nk.tolist() == [[-0.5], [-0.25]]


def test_what_is_not_told_is_padded_with_nothing() -> None:
    positions = [Position("7", None, -1.0, [("120", -1.5), ("8", -2.0), ("9", -0.75), ("b", -2.5)])]
    scores = answers.scores([5, 7], positions, 5, answers.id_in_name, n_actions=100)
    # 120 is beyond the student's vocabulary, which token "b" is cannot be told, and there is no fifth.
    assert scores.topk_id_nk.tolist() == [[9, 0, 8, 0, 0]]
    assert scores.topk_logp_nk.tolist() == [[-0.75, -math.inf, -2.0, -math.inf, -math.inf]]


def test_echo_names_tokens_by_text() -> None:
    positions = answers.echoed({"logprobs": ECHO}, SEQUENCE)
    assert positions is not None and [position.text for position in positions] == ["b", "c"]
    scores = answers.scores(SEQUENCE, positions, 2, {"b": 7, "x": 3, "y": 4}.get, n_actions=100)
    assert scores.topk_id_nk.tolist() == [[3, 7], [4, 0]]
    assert scores.topk_logp_nk.tolist() == [[-0.5, -1.0], [-0.25, -math.inf]]


def test_what_was_written_after_an_echo_is_left_out() -> None:
    longer = {"tokens": [*ECHO["tokens"], "d"], "token_logprobs": [*ECHO["token_logprobs"], -9.0],
              "top_logprobs": [*ECHO["top_logprobs"], {}]}
    assert answers.echoed({"logprobs": longer}, SEQUENCE) == answers.echoed({"logprobs": ECHO}, SEQUENCE)


@pytest.mark.parametrize("choice", [{}, {"logprobs": None}, {"logprobs": {"tokens": ["d"], "token_logprobs": [-1.0]}}])
def test_a_server_that_does_not_echo_is_told_from_one_that_errs(choice: dict[str, Any]) -> None:
    assert answers.echoed(choice, SEQUENCE) is None
    assert answers.prompt_logprobs(choice, SEQUENCE) is None


@pytest.mark.parametrize(("choice", "wrong"), [
    (vllm(None, ENTRY_7), "2 entries for 3 tokens"),
    (vllm(None, ENTRY_6, ENTRY_6), "other tokens were scored than were sent: 7"),
    (vllm(None, "x", ENTRY_6), "instead of tokens"),
    (vllm(None, {"7": {"logprob": math.nan}}, ENTRY_6), "a log-probability is nan"),
    (vllm(None, {"7": {"logprob": 0.5}}, ENTRY_6), "a log-probability is 0.5"),
    (vllm(None, {"7": {"logprob": "-1"}}, ENTRY_6), "a log-probability is '-1'"),
    (vllm(None, {"7": {}}, ENTRY_6), "a log-probability is None"),
    ({"prompt_logprobs": "yes"}, "no list for 3 tokens"),
])
def test_nonsense_is_named(choice: dict[str, Any], wrong: str) -> None:
    with pytest.raises(Nonsense, match=wrong):
        answers.prompt_logprobs(choice, SEQUENCE)


def test_an_echo_of_another_length_is_nonsense() -> None:
    with pytest.raises(Nonsense, match="2 entries for 3 tokens"):
        answers.echoed({"logprobs": {**ECHO, "token_logprobs": [None, -1.0]}}, SEQUENCE)


def test_probabilities_do_not_exceed_one() -> None:
    with pytest.raises(Nonsense, match="add up to more than 1"):
        answers.scores([5, 7], [Position("7", None, -0.1, [("7", -0.1), ("9", -0.2)])], 2, answers.id_in_name, 100)


@pytest.mark.parametrize(("answer", "wrong"), [
    ([], "no list of `choices`"), ({"choices": [3]}, "no list of `choices`"), ({"choices": [{}]}, "1 choices for 2"),
    ({"choices": [{"index": 0}, {"index": 0}]}, "numbered"), ({"choices": [{"index": 0}, {"index": "a"}]}, "numbered"),
])
def test_choices_must_belong_to_the_prompts(answer: Any, wrong: str) -> None:
    with pytest.raises(Nonsense, match=wrong):
        answers.choices(answer, 2)


def test_choices_come_in_the_order_of_the_prompts() -> None:
    assert answers.choices({"choices": [{"index": 1, "text": "b"}, {"index": 0, "text": "a"}]}, 2)[0]["text"] == "a"


def test_a_completion_is_tokens_where_they_are_told_and_text_where_not() -> None:
    told = {"text": "ab", "finish_reason": "stop", "token_ids": [4, 1],
            "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0]}}
    assert answers.written(told) == (["token_id:4", "token_id:1"], "ab", [-1.0, -2.0], True)
    assert answers.written({"text": "ab", "finish_reason": "length"}) == (None, "ab", None, False)
    with pytest.raises(Nonsense, match="ended for the reason 'abort'"):
        answers.written({"text": "ab", "finish_reason": "abort"})
    with pytest.raises(Nonsense, match="no `text`"):
        answers.written({"finish_reason": "stop"})
