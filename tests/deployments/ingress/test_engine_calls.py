"""Forced calls of a model that knows nothing: tiny random weights at temperature 1."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytest_asyncio

from tests.deployments.ingress.engine_server import EngineServer, make_model, serving_engine
from tests.deployments.ingress.scripted_server import MODEL

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER: list[Any] = [{"role": "user", "content": "hello there"}]
SCHEMA = {
    "type": "object",
    "properties": {"unit": {"enum": ["celsius", "kelvin"]}, "days": {"type": "integer"}},
    "required": ["unit"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}
TEMPLATE = """{% for message in messages %}{{ message.content }}{% endfor %}
{% for tool in tools or [] %}{{ '{"name": ' }}{{ tool.function.name }}{{ '"parameters": ' }}
{% endfor %}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EngineServer]:
    folder = tmp_path_factory.mktemp("model")
    make_model(checkpoint, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    async with serving_engine(folder) as running:
        yield running


async def ask(server: EngineServer, **fields: Any) -> Any:
    return await server.openai().chat.completions.create(
        model=MODEL,
        messages=USER,
        tools=[WEATHER, TIME],
        temperature=1,
        max_tokens=200,
        **fields,
    )


def check(name: str, arguments: str) -> None:
    schema = SCHEMA if name == "get_weather" else {"type": "object", "maxProperties": 0}
    jsonschema.validate(json.loads(arguments), schema)


async def test_forced_calls_are_valid_whatever_the_model(server: EngineServer) -> None:
    answer = await ask(server, tool_choice="required", n=8, parallel_tool_calls=False, seed=2)
    for choice in answer.choices:
        assert choice.message.content is None
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        check(call.function.name, call.function.arguments)
    names = {choice.message.tool_calls[0].function.name for choice in answer.choices}
    assert names == {"get_weather", "get_time"}


async def test_a_named_function_is_called_in_every_choice_and_in_beams(
    server: EngineServer,
) -> None:
    named: Any = {"type": "function", "function": {"name": "get_weather"}}
    sampled = await ask(server, tool_choice=named, n=4)
    beams = await server.openai().chat.completions.create(
        model=MODEL,
        messages=USER,
        tools=[WEATHER, TIME],
        tool_choice=named,
        n=2,
        max_tokens=200,
        extra_body={"use_beam_search": True, "best_of": 3},
    )
    for choice in [*sampled.choices, *beams.choices]:
        (call,) = choice.message.tool_calls
        assert call.function.name == "get_weather"
        check(call.function.name, call.function.arguments)


async def test_parallel_forced_calls_stream_as_valid_json(server: EngineServer) -> None:
    calls: dict[tuple[int, int], list[str]] = {}
    reasons = []
    likely = {str(server.tokenizer.encode(";", add_special_tokens=False)[0]): 6}
    answer = await ask(server, tool_choice="required", n=4, stream=True, seed=3, logit_bias=likely)
    async for chunk in answer:
        for choice in chunk.choices:
            assert not choice.delta.content
            for call in choice.delta.tool_calls or ():
                found = calls.setdefault((choice.index, call.index), ["", ""])
                found[0] += call.function.name or ""
                found[1] += call.function.arguments or ""
            if choice.finish_reason:
                reasons.append(choice.finish_reason)
    assert len(reasons) == 4
    assert any(call_index > 0 for _, call_index in calls), "some choice made several calls"
    last = {choice: max(at for which, at in calls if which == choice) for choice, _ in calls}
    for (choice_index, call_index), (name, arguments) in calls.items():
        if "length" not in reasons or call_index < last[choice_index]:
            check(name, arguments)


async def test_free_answers_stay_free(server: EngineServer) -> None:
    answer = await ask(server, n=4, seed=5, logit_bias={str(t): -9 for t in server.end_tokens})
    assert server.pool.requests[-1].sampling_params.grammar is not None
    for choice in answer.choices:
        assert choice.message.content
        assert choice.message.tool_calls is None
