"""What pieces become in a Responses answer: reasoning, text and calls are items of their own."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response

from cluster.openai_schema.response_request import ResponseRequest
from cluster.openai_schema.usage import Usage
from cluster.openai_schema.validation import parse_request
from cluster.types import FinishReason
from deployments.ingress.choice import Piece
from deployments.ingress.response_answer import ResponseAnswer
from deployments.ingress.served_model import ServedModel, load_served_model
from models.tool_parsing.message_parts import CallDelta
from tests.deployments.ingress.scripted_server import ScriptedPool, configuration

USAGE = Usage.of(prompt_tokens=3, completion_tokens=9, cached_tokens=0)
PIECES = [
    Piece(0, "", (), None, reasoning="let me "),
    Piece(0, "I will", (), None, reasoning="see"),
    Piece(0, " call", (), None),
    Piece(0, "", (), None, calls=(CallDelta(0, '{"a"', call_id="call_1", name="f"),)),
    Piece(
        0,
        "",
        (),
        None,
        calls=(CallDelta(0, ": 1}"), CallDelta(1, "", call_id="call_2", name="g")),
    ),
    Piece(0, "", (), FinishReason.STOP, calls=(CallDelta(1, "{}"),)),
]


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> ServedModel:
    config = configuration().models[0]
    return load_served_model(config, checkpoint, ScriptedPool(lambda _: iter(())), max_model_len=64)


def answer_of(model: ServedModel) -> ResponseAnswer:
    return ResponseAnswer("resp_1", model, parse_request(ResponseRequest, {"input": "a"}))


def streamed(model: ServedModel, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    answer = answer_of(model)
    data = answer.opening() + b"".join(map(answer.chunk, pieces)) + answer.closing(USAGE)
    lines = data.decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data")]


def whole(model: ServedModel, pieces: Sequence[Piece]) -> dict[str, Any]:
    answer = answer_of(model)
    for piece in pieces:
        answer.add(piece)
    body: dict[str, Any] = json.loads(answer.whole(USAGE))
    return body


def test_reasoning_text_and_calls_become_items_in_order(model: ServedModel) -> None:
    output = whole(model, PIECES)["output"]
    assert [item["type"] for item in output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "let me see"}]
    assert output[1]["content"][0]["text"] == "I will call"
    calls = [(item["call_id"], item["name"], item["arguments"]) for item in output[2:]]
    assert calls == [("call_1", "f", '{"a": 1}'), ("call_2", "g", "{}")]
    assert {item["status"] for item in output} == {"completed"}
    Response.model_validate(whole(model, PIECES))


def test_streamed_items_open_grow_and_close_one_after_the_other(model: ServedModel) -> None:
    events = streamed(model, PIECES)
    names = [
        (event["type"].removeprefix("response."), event.get("output_index")) for event in events
    ]
    assert names == [
        ("created", None),
        ("in_progress", None),
        ("output_item.added", 0),
        ("content_part.added", 0),
        ("reasoning_text.delta", 0),
        ("reasoning_text.delta", 0),
        ("reasoning_text.done", 0),
        ("content_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("content_part.added", 1),
        ("output_text.delta", 1),
        ("output_text.delta", 1),
        ("output_text.done", 1),
        ("content_part.done", 1),
        ("output_item.done", 1),
        ("output_item.added", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2),
        ("output_item.done", 2),
        ("output_item.added", 3),
        ("function_call_arguments.delta", 3),
        ("function_call_arguments.done", 3),
        ("output_item.done", 3),
        ("completed", None),
    ]
    items = [event["item"] for event in events if event["type"].endswith("item.done")]
    assert items == events[-1]["response"]["output"]
    opened = [event["item"]["id"] for event in events if event["type"].endswith("item.added")]
    assert opened == [item["id"] for item in items]


def test_an_answer_without_a_word_is_an_empty_message(model: ServedModel) -> None:
    (item,) = whole(model, [Piece(0, "", (), FinishReason.STOP)])["output"]
    assert (item["type"], item["content"][0]["text"]) == ("message", "")


def test_only_the_last_item_of_a_cut_answer_is_incomplete(model: ServedModel) -> None:
    cut = [*PIECES[:4], Piece(0, "", (), FinishReason.LENGTH)]
    body = whole(model, cut)
    assert body["status"] == "incomplete"
    assert [item["status"] for item in body["output"]] == ["completed", "completed", "incomplete"]
