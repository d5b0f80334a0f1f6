"""A choice shows the same text, logprobs and counts however its tokens were grouped."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import InternalError, ServiceUnavailableError
from cluster.types import FinishReason, Request, SamplingParams, TokenDelta
from deployments.ingress.choice import Choice, TextRules, TokenEntry
from models.tokenizer import Tokenizer
from tests.deployments.ingress.scripted_server import deltas


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_folder(checkpoint)


def answered(
    tokenizer: Tokenizer,
    ids: list[int],
    rules: TextRules,
    *,
    group: int,
    finish: FinishReason = FinishReason.LENGTH,
) -> Any:
    """(text, token ids with logprobs, tokens counted, reason, offsets) of a whole answer."""
    params = SamplingParams(logprobs=0)
    request = Request(request_id="r", prompt_token_ids=[0], sampling_params=params)
    choice = Choice(0, tokenizer, rules)
    text = ""
    entries: list[TokenEntry] = []
    for delta in deltas(request, ids, group=group, finish=finish):
        piece = choice.push(delta)
        text += piece.text
        entries += piece.entries
        for entry in piece.entries:
            assert entry.text_offset <= len(text), "logprobs leave with their text, not before"
        if piece.finish_reason is not None:
            break
    offsets = [entry.text_offset for entry in entries]
    return text, [e.token_id for e in entries], choice.num_tokens, choice.finish_reason, offsets


@settings(
    max_examples=150,
    suppress_health_check=[
        *settings.default.suppress_health_check,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(
    text=st.text(alphabet="abé🙂 ", max_size=20),
    stops=st.lists(st.text(alphabet="abé🙂 ", min_size=1, max_size=3), max_size=3),
    min_tokens=st.integers(0, 4),
    group=st.integers(2, 30),
    stops_by_token=st.booleans(),
)
def test_grouping_changes_nothing(
    tokenizer: Tokenizer,
    text: str,
    stops: list[str],
    min_tokens: int,
    group: int,
    stops_by_token: bool,
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    rules = TextRules(stop_strings=tuple(stops), min_tokens=min_tokens, has_logprobs=True)
    finish = FinishReason.STOP if stops_by_token else FinishReason.LENGTH
    one_by_one = answered(tokenizer, ids, rules, group=1, finish=finish)
    assert answered(tokenizer, ids, rules, group=group, finish=finish) == one_by_one
    shown, token_ids, num_tokens, reason, offsets = one_by_one
    assert text.startswith(shown)
    assert token_ids == ids[: len(token_ids)]
    assert offsets == sorted(offsets)
    if shown == text and not any(stop in text for stop in stops):
        assert token_ids == ids
        assert num_tokens == len(ids) + stops_by_token
        assert reason is finish
    if min_tokens == 0:
        assert not any(stop in shown for stop in stops)


def test_without_logprobs_and_stop_strings_the_text_is_the_same(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("héllo 🙂 there", add_special_tokens=False)
    for group in (1, 3, 50):
        fast = answered(tokenizer, ids, TextRules(), group=group)
        slow = answered(tokenizer, ids, TextRules(has_logprobs=True), group=group)
        assert (fast[0], fast[2:4]) == (slow[0], slow[2:4])


def test_the_stop_token_is_counted_but_not_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello", add_special_tokens=False)
    stop_word = tokenizer.encode("a", add_special_tokens=False)[0]
    choice = Choice(0, tokenizer, TextRules())
    delta = TokenDelta("r", 0, [*ids, stop_word], FinishReason.STOP, stop_word)
    assert choice.push(delta).text == "hello"
    assert choice.num_tokens == len(ids) + 1


def test_stop_strings_do_not_count_before_min_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("abab", add_special_tokens=False)
    assert len(ids) == 4
    rules = TextRules(stop_strings=("b",), min_tokens=2)
    text, _, num_tokens, reason, _ = answered(tokenizer, ids, rules, group=4)
    assert (text, num_tokens, reason) == ("aba", 4, FinishReason.STOP)


def test_a_character_cut_off_at_the_end_is_replaced(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    text, token_ids, *_ = answered(tokenizer, ids, TextRules(has_logprobs=True), group=1)
    assert text == "a\ufffd"
    assert token_ids == ids


@pytest.mark.parametrize(
    ("reason", "error"),
    [(FinishReason.ABORT, ServiceUnavailableError), (FinishReason.ERROR, InternalError)],
)
def test_a_sequence_given_up_raises(
    tokenizer: Tokenizer, reason: FinishReason, error: type[Exception]
) -> None:
    with pytest.raises(error):
        Choice(0, tokenizer, TextRules()).push(TokenDelta("r", 0, [], reason))
