"""`/responses` over HTTP, read with OpenAI's own SDK."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from cluster.errors import ServiceUnavailableError
from cluster.types import FinishReason, GrammarKind, Request
from tests.deployments.ingress.scripted_server import MODEL, Server, configuration, deltas, serving

PATHS = ["/v1", "/v2/ai", "/v2/ai/openai"]


class Reading(BaseModel):
    number: int


async def create(server: Server, **fields: Any) -> Response:
    answer = await server.openai().responses.create(model=MODEL, **fields)
    assert isinstance(answer, Response)
    return answer


async def events_of(server: Server, **fields: Any) -> list[Any]:
    stream = await server.openai().responses.create(model=MODEL, stream=True, **fields)
    return [event async for event in stream]


def prompt_of(server: Server) -> str:
    token_ids = server.pool.requests[-1].prompt_token_ids
    return server.tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("path", PATHS)
async def test_a_string_is_answered_with_a_message(server: Server, path: str) -> None:
    server.says("hello wörld")
    answer = await server.openai(path).responses.create(model=MODEL, input="hi", store=True)
    assert answer.output_text == "hello wörld"
    assert (answer.status, answer.object, answer.model) == ("completed", "response", MODEL)
    assert answer.id.startswith("resp_")
    assert answer.store is False  # type: ignore[attr-defined]
    assert answer.usage is not None
    num_tokens = len(server.encode("hello wörld")) + 1
    assert answer.usage.output_tokens == num_tokens
    assert answer.usage.input_tokens == len(server.pool.requests[-1].prompt_token_ids)
    assert answer.usage.total_tokens == answer.usage.input_tokens + num_tokens
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert prompt_of(server) == "<user>hi\n<assistant>"


async def test_a_conversation_with_calls_becomes_messages(server: Server) -> None:
    items: list[Any] = [
        {"role": "developer", "content": "be kind"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "w"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "ok", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call_output", "call_id": "c", "output": "22"},
    ]
    await create(server, input=items, instructions="briefly")
    assert prompt_of(server) == (
        "<system>briefly\n<system>be kind\n<user>w\n<assistant>ok\n<tool>22\n<assistant>"
    )


async def test_an_answer_can_be_replayed_as_input(server: Server) -> None:
    server.says("the first")
    first = await create(server, input="a")
    items: list[Any] = [{"role": "user", "content": "a"}, *first.output]
    await create(server, input=[*items, {"role": "user", "content": "b"}])
    assert prompt_of(server) == "<user>a\n<assistant>the first\n<user>b\n<assistant>"


async def test_sampling_fields_reach_the_engine_and_come_back(server: Server) -> None:
    answer = await create(
        server, input="a", temperature=0.5, top_p=0.25, max_output_tokens=7, metadata={"a": "b"}
    )
    params = server.pool.requests[-1].sampling_params
    assert (params.temperature, params.top_p, params.max_tokens) == (0.5, 0.25, 7)
    assert (answer.temperature, answer.top_p, answer.max_output_tokens) == (0.5, 0.25, 7)
    assert answer.metadata == {"a": "b"}
    default = await create(server, input="a")
    assert default.temperature == server.pool.requests[-1].sampling_params.temperature == 0.1


async def test_an_answer_that_is_cut_is_incomplete(server: Server) -> None:
    server.says("hello", finish=FinishReason.LENGTH)
    answer = await create(server, input="a")
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    (message,) = answer.output
    assert getattr(message, "status", None) == "incomplete"
    *_, last = await events_of(server, input="a")
    assert last.type == "response.incomplete"


@pytest.mark.parametrize("group", [1, 100])
async def test_a_stream_is_the_documented_sequence_of_events(server: Server, group: int) -> None:
    server.says("hello wörld 🙂", group=group)
    events = await events_of(server, input="a")
    types = [event.type for event in events]
    deltas_at = [i for i, kind in enumerate(types) if kind == "response.output_text.delta"]
    assert [kind for i, kind in enumerate(types) if i not in deltas_at[1:]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(events[i].delta for i in deltas_at)
    assert text == "hello wörld 🙂" == events[-1].response.output_text
    assert events[-4].text == events[-3].part.text == text
    assert events[-2].item == events[-1].response.output[0]
    assert {getattr(e, "item_id", events[2].item.id) for e in events} == {events[2].item.id}
    assert events[0].response.status == "in_progress"
    assert events[0].response.usage is None
    assert events[-1].response.usage.output_tokens == len(server.encode(text)) + 1


async def test_events_are_named_and_there_is_no_done_line(server: Server) -> None:
    async with server.http() as client:
        answer = await client.post("/v1/responses", json={"input": "a", "stream": True})
    blocks = answer.text.strip().split("\n\n")
    for block in blocks:
        name, data = block.split("\n")
        assert name.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]


async def test_the_sdks_stream_helper_gathers_the_final_response(server: Server) -> None:
    server.says('{"number": 5}')
    client = server.openai()
    async with client.responses.stream(model=MODEL, input="a", text_format=Reading) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert final.output_parsed == Reading(number=5)


async def test_structured_output_is_parsed_by_the_sdk_and_guides_the_engine(
    server: Server,
) -> None:
    server.says('{"number": 5}')
    answer = await server.openai().responses.parse(model=MODEL, input="a", text_format=Reading)
    assert answer.output_parsed == Reading(number=5)
    grammar = server.pool.requests[-1].sampling_params.grammar
    assert grammar is not None
    assert grammar.kind is GrammarKind.JSON_SCHEMA
    assert json.loads(grammar.text)["properties"]["number"]["type"] == "integer"
    assert answer.text is not None
    assert json.loads(grammar.text) == answer.text.format.schema_  # type: ignore[union-attr]
    await create(server, input="a", text={"format": {"type": "json_object"}})
    grammar = server.pool.requests[-1].sampling_params.grammar
    assert grammar is not None
    assert grammar.kind is GrammarKind.JSON_OBJECT


async def test_logprobs_come_when_they_are_included(server: Server) -> None:
    server.says("hello")
    fields: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer: Any = await create(server, input="a", **fields)
    entries = answer.output[0].content[0].logprobs
    assert b"".join(bytes(entry.bytes) for entry in entries) == b"hello"
    assert [len(entry.top_logprobs) for entry in entries] == [2] * len(entries)
    events = await events_of(server, input="a", **fields)
    streamed = [e for event in events if event.type.endswith("text.delta") for e in event.logprobs]
    assert [e.logprob for e in streamed] == [e.logprob for e in entries]


async def test_a_failure_midway_is_an_event(server: Server) -> None:
    def script(request: Request) -> Iterator[Any]:
        yield deltas(request, server.encode("hello world"), finish=None)[0]
        yield ServiceUnavailableError("the replica died")

    server.pool.script = script
    *_, last = await events_of(server, input="a")
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error.message == "the replica died"
    async with server.http() as client:
        answer = await client.post("/v1/responses", json={"input": "a"})
    assert answer.status_code == 503


IMAGE = {"type": "input_image", "image_url": "data:", "detail": "auto"}
WRONG: list[tuple[dict[str, Any], int, str]] = [
    ({"input": None}, 422, "input"),
    ({"input": []}, 422, "input"),
    ({"input": [{"role": "user", "content": [IMAGE]}]}, 422, "input.0.content.0.type"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, 422, "input.0.type"),
    ({"input": [{"role": "user"}]}, 422, "input.0.content"),
    ({"input": "refuse me"}, 400, "input"),
    ({"input": "x" * 500}, 400, "input"),
    ({"max_output_tokens": 250}, 400, "max_output_tokens"),
    ({"max_output_tokens": 0}, 422, "max_output_tokens"),
    ({"temperature": 3}, 422, "temperature"),
    ({"previous_response_id": "resp_1"}, 422, "previous_response_id"),
    ({"conversation": "conv_1"}, 422, "conversation"),
    ({"background": True}, 422, "background"),
    ({"prompt": {"id": "p"}}, 422, "prompt"),
    ({"truncation": "auto"}, 422, "truncation"),
    ({"include": ["reasoning.encrypted_content"]}, 422, "include.0"),
    ({"top_logprobs": 2}, 422, "top_logprobs"),
    ({"text": {"verbosity": "low"}}, 422, "text.verbosity"),
    ({"text": {"format": {"type": "xml"}}}, 422, "text.format.type"),
    ({"reasoning": {"effort": "low"}}, 422, "reasoning.effort"),
    ({"reasoning": {"summary": "auto"}}, 422, "reasoning.summary"),
    ({"stream_options": {"include_obfuscation": False}}, 422, "stream_options"),
    ({"tools": [{"type": "web_search"}]}, 422, "tools.0.type"),
    ({"tools": [{"type": "function", "name": "a b"}]}, 422, "tools.0.name"),
    ({"tool_choice": "required"}, 422, "tool_choice"),
    ({"max_tool_calls": 3}, 422, "max_tool_calls"),
    ({"messages": []}, 422, "messages"),
    ({"model": "none"}, 404, "model"),
]


async def test_what_cannot_be_done_is_refused_in_the_endpoints_own_words(server: Server) -> None:
    async with server.http() as client:
        for fields, status, param in WRONG:
            answer = await client.post("/v1/responses", json={"input": "a", **fields})
            assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), fields
    assert server.pool.requests == []


async def test_values_that_change_nothing_pass(server: Server) -> None:
    nulls = dict.fromkeys(("previous_response_id", "conversation", "reasoning", "tools", "include"))
    fields: dict[str, Any] = {
        **nulls,
        "truncation": "disabled",
        "background": False,
        "tool_choice": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "user": "u",
        "service_tier": "auto",
    }
    async with server.http() as client:
        answer = await client.post("/v1/responses", json={"input": "a", **fields})
    assert answer.status_code == 200, answer.text


async def test_responses_are_not_stored(server: Server) -> None:
    answer = await create(server, input="a", store=True)
    with pytest.raises(openai.NotFoundError):
        await server.openai().responses.retrieve(answer.id)


WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
CALL = '{"name": "get_weather", "parameters": {"city": "Oslo"}}'


@pytest.fixture
async def caller(checkpoint: Path) -> AsyncIterator[Server]:
    """A server whose model writes calls as Llama 3 does."""
    config = configuration()
    model = config.models[0].model_copy(update={"tool_parser": "llama3_json"})
    async with serving(checkpoint, config.model_copy(update={"models": (model,)})) as running:
        running.says(CALL)
        yield running


async def test_a_function_call_is_an_item_and_its_output_goes_back(caller: Server) -> None:
    question: Any = {"role": "user", "content": "weather?"}
    answer = await create(caller, input=[question], tools=[WEATHER])
    (call,) = answer.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Oslo"})
    assert answer.tools[0].name == "get_weather"  # type: ignore[union-attr]
    caller.says("22 degrees")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "22"}
    final = await create(caller, input=[question, call, result], tools=[WEATHER])
    assert final.output_text == "22 degrees"
    assert "<tool>22" in prompt_of(caller)


async def test_the_arguments_of_a_call_are_streamed(caller: Server) -> None:
    events = await events_of(caller, input="weather?", tools=[WEATHER], tool_choice="required")
    parts = [event.delta for event in events if event.type.endswith("arguments.delta")]
    (done,) = [event for event in events if event.type.endswith("arguments.done")]
    assert len(parts) > 1
    assert "".join(parts) == done.arguments == events[-1].response.output[0].arguments
    assert caller.pool.requests[-1].sampling_params.grammar is not None


async def test_every_way_to_choose_a_tool_is_understood(caller: Server) -> None:
    named = {"type": "function", "name": "get_weather"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    for choice in ("required", named, allowed):
        answer = await create(caller, input="a", tools=[WEATHER], tool_choice=choice)
        assert [item.type for item in answer.output] == ["function_call"]
        assert caller.pool.requests[-1].sampling_params.grammar is not None
    answer = await create(caller, input="a", tools=[WEATHER], tool_choice="none")
    assert answer.output_text == CALL


async def test_a_schema_that_cannot_be_enforced_is_named_where_the_client_wrote_it(
    caller: Server,
) -> None:
    tool = {**WEATHER, "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    async with caller.http() as client:
        for bad in (tool, {**WEATHER, "parameters": deep}):
            body = {"input": "a", "tools": [bad], "tool_choice": "required"}
            answer = await client.post("/v1/responses", json=body)
            assert answer.status_code == 422
            assert answer.json()["error"]["param"] == "tools.0.parameters"
