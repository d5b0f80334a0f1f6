"""`/v1/messages` over HTTP, read with Anthropic's own SDK."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from pydantic import BaseModel

from cluster.errors import ServiceUnavailableError, TooManyRequestsError
from cluster.types import FinishReason, GrammarKind, Request
from tests.deployments.ingress.scripted_server import (
    KEY,
    MODEL,
    Server,
    configuration,
    deltas,
    serving,
)

BASES = ["", "/v2/ai/anthropic"]
SAMPLING = ("temperature", "top_p", "top_k")
USER: list[Any] = [{"role": "user", "content": "hi"}]


class Reading(BaseModel):
    number: int


def client_of(server: Server, base: str = "", **options: Any) -> AsyncAnthropic:
    options = options or {"api_key": KEY}
    return AsyncAnthropic(base_url=server.url + base, max_retries=0, timeout=120, **options)


async def create(server: Server, **fields: Any) -> Any:
    """Sampling fields go through `extra_body`: the newest SDK does not name them any more."""
    extra = {name: fields.pop(name) for name in SAMPLING if name in fields}
    fields = {"model": MODEL, "max_tokens": 20, "messages": USER, **fields}
    return await client_of(server).messages.create(**fields, extra_body=extra)


async def events_of(server: Server, **fields: Any) -> list[Any]:
    return [event async for event in await create(server, stream=True, **fields)]


def prompt_of(server: Server) -> str:
    token_ids = server.pool.requests[-1].prompt_token_ids
    return server.tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("base", BASES)
async def test_a_message_is_answered(server: Server, base: str) -> None:
    server.says("hello wörld")
    answer = await client_of(server, base).messages.create(
        model=MODEL, max_tokens=20, messages=USER
    )
    (block,) = answer.content
    assert (block.type, block.text) == ("text", "hello wörld")  # type: ignore[union-attr]
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", MODEL)
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    num_prompt_tokens = len(server.pool.requests[-1].prompt_token_ids)
    assert answer.usage.output_tokens == len(server.encode("hello wörld")) + 1
    assert answer.usage.cache_read_input_tokens == 3
    assert answer.usage.input_tokens == num_prompt_tokens - 3
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


async def test_turns_and_blocks_become_chat_messages(server: Server) -> None:
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": "22"}
    await create(
        server,
        system=[{"type": "text", "text": "be"}, {"type": "text", "text": "kind"}],
        messages=[
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "ok"}, call]},
            {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
        ],
    )
    assert prompt_of(server) == (
        "<system>be\nkind\n<user>a\nb\n<assistant>ok\n<tool>22\n<user>and?\n<assistant>"
    )
    failed = [{**result, "is_error": True, "content": [{"type": "text", "text": "no"}]}]
    await create(server, messages=[{"role": "user", "content": failed}])
    assert prompt_of(server) == "<tool>Error: no\n<assistant>"


async def test_sampling_fields_reach_the_engine(server: Server) -> None:
    await create(server, max_tokens=7, temperature=0.5, top_p=0.25, top_k=9)
    params = server.pool.requests[-1].sampling_params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (7, 0.5, 0.25, 9)


async def test_the_stop_reason_says_what_ended_the_message(server: Server) -> None:
    server.says("hello", finish=FinishReason.LENGTH)
    assert (await create(server)).stop_reason == "max_tokens"
    server.says("hello there STOP and more", finish=FinishReason.LENGTH)
    sequences = ["1", "2", "3", "4", "5", "STOP"]
    answer = await create(server, stop_sequences=sequences)
    assert answer.content[0].text == "hello there "
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "STOP")
    *_, delta, _ = await events_of(server, stop_sequences=sequences)
    assert (delta.delta.stop_reason, delta.delta.stop_sequence) == ("stop_sequence", "STOP")


@pytest.mark.parametrize("group", [1, 100])
async def test_a_stream_is_the_documented_sequence_of_events(server: Server, group: int) -> None:
    server.says("hello wörld 🙂", group=group)
    events = await events_of(server)
    start, block_start, *block_deltas, block_stop, delta, stop = events
    assert start.message.content == []
    assert start.message.stop_reason is None
    assert start.message.usage.input_tokens > 0
    assert (block_start.type, block_start.index) == ("content_block_start", 0)
    assert {event.type for event in block_deltas} == {"content_block_delta"}
    assert "".join(event.delta.text for event in block_deltas) == "hello wörld 🙂"
    assert (block_stop.type, block_stop.index) == ("content_block_stop", 0)
    assert delta.delta.stop_reason == "end_turn"
    assert delta.usage.output_tokens == len(server.encode("hello wörld 🙂")) + 1
    assert stop.type == "message_stop"


async def test_events_are_named_and_a_ping_comes_early(server: Server) -> None:
    body = {"messages": USER, "max_tokens": 5, "stream": True}
    async with server.http() as client:
        answer = await client.post("/v1/messages", json=body)
    names = []
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        names.append(json.loads(data.removeprefix("data: "))["type"])
        assert name == f"event: {names[-1]}"
    assert names[:3] == ["message_start", "content_block_start", "ping"]


async def test_the_sdks_stream_helper_gathers_the_final_message(server: Server) -> None:
    server.says("hello world")
    client = client_of(server)
    async with client.messages.stream(model=MODEL, max_tokens=20, messages=USER) as stream:
        text = "".join([part async for part in stream.text_stream])
        final = await stream.get_final_message()
    assert text == "hello world"
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens == len(server.encode("hello world")) + 1


async def test_structured_output_is_parsed_by_the_sdk_and_guides_the_engine(
    server: Server,
) -> None:
    server.says('{"number": 5}')
    answer = await client_of(server).messages.parse(
        model=MODEL, max_tokens=20, messages=USER, output_format=Reading
    )
    assert answer.parsed_output == Reading(number=5)
    grammar = server.pool.requests[-1].sampling_params.grammar
    assert grammar is not None
    assert grammar.kind is GrammarKind.JSON_SCHEMA


async def test_tokens_are_counted_as_the_model_reads_them(server: Server) -> None:
    fields: Any = {"model": MODEL, "messages": USER, "system": "be kind"}
    for base in BASES:
        counted = await client_of(server, base).messages.count_tokens(**fields)
        await create(server, **fields)
        assert counted.input_tokens == len(server.pool.requests[-1].prompt_token_ids)


async def test_either_way_of_sending_the_key_opens_the_door(server: Server) -> None:
    bearer, own = ("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)
    body = {"messages": USER, "max_tokens": 5}
    async with server.http(key=None) as client:
        for headers in ([bearer], [own], [("authorization", "Bearer x"), own]):
            answer = await client.post("/v1/messages", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
        wrong = await client.post("/v1/messages", json=body, headers={"x-api-key": "x"})
        assert wrong.status_code == 401
    with pytest.raises(anthropic.AuthenticationError) as caught:
        await client_of(server, api_key="wrong").messages.create(
            model=MODEL, max_tokens=5, messages=USER
        )
    assert caught.value.type == "authentication_error"
    async with server.http(key=None) as client:
        elsewhere = await client.get("/v1/models", headers={"x-api-key": KEY})
    assert elsewhere.status_code == 401


async def test_errors_have_anthropics_shape(server: Server) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        await create(server, temperature=1.5)
    assert caught.value.body == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "temperature: must be a number in [0, 1]; given 1.5",
        },
        "request_id": caught.value.request_id,
    }
    assert caught.value.request_id is not None
    with pytest.raises(anthropic.NotFoundError):
        await create(server, model="none")
    server.pool.script = lambda _: iter([TooManyRequestsError("queue full", retry_after_s=2.0)])
    with pytest.raises(anthropic.RateLimitError) as limited:
        await create(server)
    assert limited.value.response.headers["retry-after"] == "2"
    async with server.http() as client:
        for method, path in (("POST", "/v2/ai/anthropic/v1/nothing"), ("GET", "/v1/messages")):
            answer = await client.request(method, path)
            assert answer.status_code in (404, 405)
            assert answer.json()["type"] == "error"
        versioned = await client.post("/v1/messages", headers={"anthropic-version": "2023-01-01"})
        assert versioned.status_code == 400
        assert "2023-06-01" in versioned.json()["error"]["message"]


async def test_a_failure_midway_is_an_error_event(server: Server) -> None:
    def script(request: Request) -> Iterator[Any]:
        yield deltas(request, server.encode("hello world"), finish=None)[0]
        yield ServiceUnavailableError("the replica died")

    server.pool.script = script
    with pytest.raises(anthropic.APIStatusError) as caught:
        await events_of(server)
    assert caught.value.type == "overloaded_error"
    assert "the replica died" in str(caught.value)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens: "),
    ({"max_tokens": 0}, "max_tokens: "),
    ({"messages": []}, "messages: "),
    ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0.type: this model"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: "),
    ({"messages": [*USER, {"role": "assistant", "content": "I"}]}, "messages.1.role: "),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]},
        "messages.0.content.0.type: ",
    ),
    ({"stop_sequences": [""]}, "stop_sequences.0: "),
    ({"stop_sequences": ["a"] * 65}, "stop_sequences: "),
    ({"top_k": -1}, "top_k: "),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking."),
    ({"thinking": {"type": "disabled"}}, "thinking: "),
    ({"output_config": {"effort": "low"}}, "output_config.effort: "),
    ({"output_config": {"format": {"type": "json"}}}, "output_config.format.type: "),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.input_schema: "),
    ({"tool_choice": {"type": "any"}}, "tool_choice: "),
    ({"n": 2}, "n: "),
]


async def test_what_cannot_be_done_is_refused_by_name(server: Server) -> None:
    async with server.http() as client:
        for fields, start in WRONG:
            body = {"max_tokens": 5, "messages": USER, **fields}
            answer = await client.post("/v1/messages", json=body)
            message = answer.json()["error"]["message"]
            assert answer.status_code == 400, (fields, answer.text)
            assert message.startswith(start), (fields, message)
    assert server.pool.requests == []


async def test_system_texts_may_be_empty(server: Server) -> None:
    answer = await create(server, system="")
    assert answer.stop_reason == "end_turn"
    counted = await client_of(server).messages.count_tokens(
        model=MODEL, messages=[{"role": "system", "content": []}]
    )
    assert counted.input_tokens == len(server.encode("<|bos|><system><|eos|>\n<assistant>"))


WEATHER: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
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


async def test_a_call_is_a_block_and_its_result_goes_back(caller: Server) -> None:
    answer = await create(caller, tools=[WEATHER])
    (block,) = answer.content
    assert (block.type, block.name, block.input) == ("tool_use", "get_weather", {"city": "Oslo"})
    assert answer.stop_reason == "tool_use"
    caller.says("22 degrees")
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "22"}
    turns: list[Any] = [
        *USER,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    final = await create(caller, messages=turns, tools=[WEATHER])
    assert final.content[0].text == "22 degrees"
    assert "<tool>22" in prompt_of(caller)


async def test_the_input_of_a_call_is_streamed(caller: Server) -> None:
    client = client_of(caller)
    async with client.messages.stream(
        model=MODEL, max_tokens=99, messages=USER, tools=[WEATHER], tool_choice={"type": "any"}
    ) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_message()
    parts = [event for event in events if event.type == "input_json"]
    assert len(parts) > 1
    assert final.content[0].input == {"city": "Oslo"}  # type: ignore[union-attr]
    assert final.stop_reason == "tool_use"


async def test_every_way_to_choose_a_tool_is_understood(caller: Server) -> None:
    named = {"type": "tool", "name": "get_weather"}
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, named):
        answer = await create(caller, tools=[WEATHER], tool_choice=choice)
        assert [block.type for block in answer.content] == ["tool_use"]
        assert caller.pool.requests[-1].sampling_params.grammar is not None
    answer = await create(caller, tools=[WEATHER], tool_choice={"type": "none"})
    assert answer.content[0].text == CALL


async def test_a_schema_that_cannot_be_enforced_is_named_where_the_client_wrote_it(
    caller: Server,
) -> None:
    tool = {"name": "f", "input_schema": {"type": "object", "properties": {"a": {"not": {}}}}}
    with pytest.raises(anthropic.BadRequestError, match=r"tools\.0\.input_schema"):
        await create(caller, tools=[tool], tool_choice={"type": "any"})


async def test_input_that_is_nested_too_deeply_is_refused(server: Server) -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}
    call = {"type": "tool_use", "id": "c", "name": "f", "input": deep}
    turns: list[Any] = [*USER, {"role": "assistant", "content": [call]}, *USER]
    with pytest.raises(anthropic.BadRequestError, match="nested less deeply"):
        await create(server, messages=turns)
