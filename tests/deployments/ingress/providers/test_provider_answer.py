"""Answers of providers, true and false ones: rewritten, or refused as the provider's fault."""

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.openai_schema.chat import ChatCompletionRequest, RetrievalSources
from deployments.ingress.exchange import Exchange
from deployments.ingress.providers.provider_answer import ProviderAnswer
from deployments.ingress.providers.provider_errors import FAULTS, ProviderDownError, ProviderWords

MESSAGES = [{"role": "user", "content": "hi"}]
DELTA = {"index": 0, "delta": {"content": "x"}}
END = {"index": 0, "delta": {}, "finish_reason": "stop"}


def answer(*, sources: bool = False, **request: Any) -> ProviderAnswer:
    checked = ChatCompletionRequest.model_validate(
        {"model": "far/big", "messages": MESSAGES, **request}
    )
    found = RetrievalSources(chunks=[]) if sources else None
    exchange = Exchange(answer_id="chatcmpl-1")
    return ProviderAnswer(checked, exchange, ProviderWords("far", None), sources=found)


def events(*values: object) -> bytes:
    return b"".join(b"data: " + orjson.dumps(value) + b"\n\n" for value in values)


def read(data: bytes) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in data.split(b"\n\n") if line]
    return ["[DONE]" if line == b"[DONE]" else orjson.loads(line) for line in lines]


def test_names_and_ids_are_ours_and_the_rest_is_theirs() -> None:
    chunk = {"id": "theirs", "model": "big-0613", "created": 7, "choices": [DELTA], "extra": [1]}
    (written,) = read(answer().feed(events(chunk)))
    assert (written["id"], written["model"]) == ("chatcmpl-1", "far/big")
    assert written["object"] == "chat.completion.chunk"
    assert written["choices"] == [DELTA]
    assert written["extra"] == [1]


def test_a_chunk_of_usage_is_for_those_who_asked() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    data = events({"choices": [DELTA], "usage": None}, {"choices": [], "usage": usage})
    silent = answer(stream=True)
    assert ["usage" in item for item in read(silent.feed(data))] == [False]
    assert silent.num_tokens == (3, 4)
    told = answer(stream=True, stream_options={"include_usage": True})
    assert [item["usage"] for item in read(told.feed(data))] == [None, usage]


@pytest.mark.parametrize("counts", [(-1, 2), ("7", None), (True, 10**12), (1.5, [])])
def test_counts_that_are_none_count_nothing(counts: tuple[Any, Any]) -> None:
    one = answer()
    usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1]}
    one.feed(events({"choices": [], "usage": usage}))
    assert all(0 <= count <= 2 for count in one.num_tokens)


def test_a_reason_of_their_own_invention_is_no_label() -> None:
    for reason, label in (("stop", "stop"), ("sk-1", "other"), (["x"], "other")):
        one = answer()
        one.feed(events({"choices": [{**END, "finish_reason": reason}]}))
        assert one._exchange.finish_reason == label


def test_a_stream_ends_when_every_choice_has() -> None:
    one = answer(n=2)
    one.feed(events({"choices": [END]}))
    with pytest.raises(ProviderDownError):
        one.end()
    one.feed(events({"choices": [{**END, "index": 1}]}))
    assert one.end() == b"data: [DONE]\n\n"
    assert one.end() == b""


def test_nothing_after_the_end_is_passed_on() -> None:
    one = answer()
    data = one.feed(events({"choices": [END]}) + b"data: [DONE]\n\n" + events({"choices": [DELTA]}))
    assert read(data)[-1] == "[DONE]"
    assert one.is_finished


def test_what_is_too_deep_to_write_is_their_fault() -> None:
    nested = b'{"choices": [{"index": 0, "delta": {"a": ' + b"[" * 400 + b"]" * 400 + b"}}]}"
    with pytest.raises(FAULTS):
        answer().feed(b"data: " + nested + b"\n\n")
    with pytest.raises(FAULTS):
        answer().whole(nested.replace(b"delta", b"message"))


NAMES = st.sampled_from(
    [
        *("choices", "index", "delta", "message", "finish_reason", "usage", "error", "x"),
        *("prompt_tokens", "completion_tokens", "content", "id", "model"),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
ANSWERS = st.dictionaries(NAMES, JSON, max_size=5) | st.fixed_dictionaries(
    {"choices": st.lists(st.dictionaries(NAMES, JSON, max_size=5), max_size=3)}
)


@given(values=st.lists(ANSWERS | JSON, max_size=3), sources=st.booleans())
def test_whatever_comes_is_passed_on_or_is_their_fault(values: list[Any], sources: bool) -> None:
    one = answer(sources=sources)
    with suppress(*FAULTS):  # any other error fails the test
        for item in read(one.feed(events(*values)) + one.end()):
            assert item == "[DONE]" or item["model"] == "far/big"
    for value in values:
        with suppress(*FAULTS):
            assert orjson.loads(answer(sources=sources).whole(orjson.dumps(value)))["choices"]


@given(data=st.binary(max_size=200))
def test_bytes_that_mean_nothing_are_their_fault(data: bytes) -> None:
    with suppress(*FAULTS):
        answer().feed(b"data: " + data + b"\n\n")
    with suppress(*FAULTS):
        answer().whole(data)
