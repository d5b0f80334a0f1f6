"""Function calling as clients see it, over real sockets, mostly with the official SDK."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import tokenizers

from cluster.config import ShoalConfig
from cluster.errors import FieldProblem, ValidationError
from cluster.types import GRAMMAR_FIELD, FinishReason, GrammarKind, GrammarSpec, Request
from models.grammar.source import grammar_source
from tests.deployments.ingress.scripted_server import (
    MODEL,
    Server,
    configuration,
    deltas,
    serving,
    stream,
)

CHAT = "/v1/chat/completions"
USER: list[Any] = [{"role": "user", "content": "Weather?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
TIME: Any = {"type": "function", "function": {"name": "get_time"}}
TOOLS = [WEATHER, TIME]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
OSLO = '{"city": "Oslo", "note": "a } b é"}'
ONE = f'{{"name": "get_weather", "parameters": {OSLO}}}'
TWO = f'{ONE}; {{"name": "get_time", "parameters": {{}}}}'


def configured(**of_model: Any) -> ShoalConfig:
    config = configuration()
    model = config.models[0].model_copy(update=of_model)
    return config.model_copy(update={"models": (model,)})


@asynccontextmanager
async def speaking(checkpoint: Path, tool_parser: str, **how: Any) -> AsyncIterator[Server]:
    async with serving(checkpoint, configured(tool_parser=tool_parser, **how)) as server:
        yield server


@pytest.fixture
async def llama(checkpoint: Path) -> AsyncIterator[Server]:
    async with speaking(checkpoint, "llama3_json") as server:
        yield server


async def ask(server: Server, **fields: Any) -> Any:
    fields.setdefault("messages", USER)
    fields.setdefault("tools", TOOLS)
    return await server.openai().chat.completions.create(model=MODEL, **fields)


async def refusal(server: Server, **fields: Any) -> list[str]:
    """The paths that a 422 names."""
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        await ask(server, **fields)
    problems = caught.value.response.json()["detail"]
    return [".".join(map(str, problem["loc"][1:])) for problem in problems]


def grammar(server: Server) -> GrammarSpec:
    spec = server.pool.requests[-1].sampling_params.grammar
    assert spec is not None
    assert spec.kind is GrammarKind.LARK
    assert grammar_source(spec), "the back end's own syntax"
    return spec


# -- whole answers ---------------------------------------------------------------------------------


async def test_calls_have_no_content_and_say_tool_calls(llama: Server) -> None:
    llama.says(TWO)
    answer = await ask(llama)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    first, second = choice.message.tool_calls
    assert (first.type, first.function.name, first.function.arguments) == (
        "function",
        "get_weather",
        OSLO,
    )
    assert (second.function.name, second.function.arguments) == ("get_time", "{}")
    assert first.id.startswith("call_")
    assert first.id != second.id
    assert answer.usage.completion_tokens == len(llama.encode(TWO)) + 1


async def test_text_before_a_call_is_content(llama: Server) -> None:
    llama.says(f"Let me see; {ONE}")
    choice = (await ask(llama)).choices[0]
    assert choice.message.content == "Let me see"
    assert choice.message.tool_calls[0].function.arguments == OSLO
    assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("text", ["Hello {", '{"name": "Bob"}', '{"name": "get_weather", "par'])
async def test_an_answer_that_is_no_call_is_content_without_a_key_for_calls(
    llama: Server, text: str
) -> None:
    llama.says(text)
    async with llama.http() as client:
        answer = await client.post(CHAT, json={"messages": USER, "tools": TOOLS})
    choice = answer.json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    assert choice["finish_reason"] == "stop"


async def test_a_call_that_the_limit_cuts_says_length(llama: Server) -> None:
    llama.says(ONE[:-9], finish=FinishReason.LENGTH)
    choice = (await ask(llama)).choices[0]
    assert choice.finish_reason == "length"
    assert OSLO.startswith(choice.message.tool_calls[0].function.arguments)


async def test_a_named_function_is_an_ordinary_stop_as_at_openai(llama: Server) -> None:
    llama.says(ONE)
    choice = (await ask(llama, tool_choice=NAMED)).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.tool_calls[0].function.name == "get_weather"


async def test_every_choice_has_its_own_calls(llama: Server) -> None:
    def script(request: Request) -> Iterator[Any]:
        yield from deltas(request, llama.encode(ONE), index=0)
        yield from deltas(request, llama.encode("No."), index=1)

    llama.pool.script = script
    called, spoken = (await ask(llama, n=2)).choices
    assert (called.message.content, called.finish_reason) == (None, "tool_calls")
    assert (spoken.message.content, spoken.finish_reason) == ("No.", "stop")
    assert spoken.message.tool_calls is None


async def test_a_stop_string_cuts_a_call_too(llama: Server) -> None:
    llama.says(ONE, finish=FinishReason.LENGTH)
    choice = (await ask(llama, stop="note")).choices[0]
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Oslo", "'


async def test_tool_choice_none_leaves_everything_as_it_is(llama: Server) -> None:
    llama.says(ONE)
    choice = (await ask(llama, tool_choice="none")).choices[0]
    assert (choice.message.content, choice.finish_reason) == (ONE, "stop")
    assert llama.pool.requests[-1].sampling_params.grammar is None


@pytest.mark.parametrize("is_stream", [False, True])
async def test_without_parallel_calls_the_answer_ends_after_the_first(
    llama: Server, is_stream: bool
) -> None:
    llama.says(TWO)
    fields: dict[str, Any] = {"parallel_tool_calls": False}
    if is_stream:
        *chunks, _ = await stream(llama, CHAT, messages=USER, tools=TOOLS, **fields)
        indices = {
            call["index"]
            for chunk in chunks
            for call in chunk["choices"][0]["delta"].get("tool_calls", ())
        }
        assert indices == {0}
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    else:
        answer = await ask(llama, **fields)
        assert [call.function.name for call in answer.choices[0].message.tool_calls] == [
            "get_weather"
        ]
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.usage.completion_tokens < len(llama.encode(ONE)) + 1
    await llama.pool.all_closed.wait()


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 3, 200])
async def test_streamed_calls_have_openais_shape(llama: Server, group: int) -> None:
    llama.says(TWO, group=group)
    events = await stream(
        llama, CHAT, messages=USER, tools=TOOLS, stream_options={"include_usage": True}
    )
    opening, *chunks, usage, done = events
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] == len(llama.encode(TWO)) + 1
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert [
        c["choices"][0]["finish_reason"] for c in chunks if c["choices"][0]["finish_reason"]
    ] == ["tool_calls"]
    deltas_ = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert all(set(delta) <= {"tool_calls"} for delta in deltas_)
    calls = [call for delta in deltas_ for call in delta.get("tool_calls", ())]
    heads = [call for call in calls if "id" in call]
    assert [(c["index"], c["type"], c["function"]) for c in heads] == [
        (0, "function", {"name": "get_weather", "arguments": ""}),
        (1, "function", {"name": "get_time", "arguments": ""}),
    ]
    assert all(set(c) == {"index", "function"} for c in calls if "id" not in c)
    for index, expected in enumerate([OSLO, "{}"]):
        parts = [c["function"]["arguments"] for c in calls if c["index"] == index]
        assert "".join(parts) == expected
    if group == 1:
        assert len(calls) > 15, "arguments are streamed as they come"


async def test_the_sdks_stream_helper_reads_parallel_calls(llama: Server) -> None:
    llama.says(f"Well. {TWO}")
    seen = []
    async with llama.openai().chat.completions.stream(
        model=MODEL, messages=USER, tools=TOOLS
    ) as answer:
        async for item in answer:
            seen.append(item)
        final = await answer.get_final_completion()
    kinds = {item.type for item in seen}
    assert {"content.delta", "tool_calls.function.arguments.delta"} <= kinds
    done = [item for item in seen if item.type == "tool_calls.function.arguments.done"]
    assert [(item.index, item.name, item.arguments) for item in done] == [
        (0, "get_weather", OSLO),
        (1, "get_time", "{}"),
    ]
    message = final.choices[0].message
    assert message.content == "Well."
    calls = message.tool_calls or []
    assert [call.function.arguments for call in calls] == [OSLO, "{}"]
    assert final.choices[0].finish_reason == "tool_calls"


async def test_half_a_marker_is_never_on_the_wire(checkpoint: Path) -> None:
    call = f'<tool_call>\n{{"name": "get_weather", "arguments": {OSLO}}}\n</tool_call>'
    async with speaking(checkpoint, "hermes") as server:
        server.says(f"I <tool it.\n{call}\n{call}\n")
        *chunks, _ = await stream(server, CHAT, messages=USER, tools=TOOLS)
    shown = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(shown) == "I <tool it."
    calls = [c for e in chunks for c in e["choices"][0]["delta"].get("tool_calls", ())]
    assert {call["index"] for call in calls} == {0, 1}


async def test_logprobs_cover_the_tokens_of_calls(llama: Server) -> None:
    llama.says(f"Well. {ONE}")
    num_tokens = len(llama.encode(f"Well. {ONE}"))
    whole = await ask(llama, logprobs=True, top_logprobs=1)
    assert len(whole.choices[0].logprobs.content) == num_tokens
    *chunks, _ = await stream(llama, CHAT, messages=USER, tools=TOOLS, logprobs=True)
    entries = [
        entry
        for chunk in chunks
        for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert b"".join(bytes(e["bytes"]) for e in entries).decode() == f"Well. {ONE}"
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == "Well."


# -- other formats, special tokens -----------------------------------------------------------------


async def test_mistrals_calls_are_read_and_have_its_ids(checkpoint: Path) -> None:
    async with speaking(checkpoint, "mistral") as server:
        server.says(f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {OSLO}}}]')
        choice = (await ask(server)).choices[0]
    assert choice.message.content is None
    assert choice.message.tool_calls[0].function.arguments == OSLO
    assert len(choice.message.tool_calls[0].id) == 9


@pytest.fixture
def with_special_markers(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint with two more special tokens."""
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_special_tokens(["[TOOL_CALLS]", "<|other|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


async def test_markers_that_are_special_tokens_are_seen_and_others_stay_hidden(
    with_special_markers: Path,
) -> None:
    async with speaking(with_special_markers, "mistral") as server:
        server.says(f'Yes<|other|>.[TOOL_CALLS][{{"name": "get_weather", "arguments": {OSLO}}}]')
        message = (await ask(server)).choices[0].message
        assert (message.content, message.tool_calls[0].function.arguments) == ("Yes.", OSLO)
        marker = server.tokenizer.token_id("[TOOL_CALLS]")
        assert f"<[{marker}]>" in grammar(server).text
        plain = (await ask(server, tools=None)).choices[0].message.content
        assert plain.startswith("Yes.[{")


# -- grammars --------------------------------------------------------------------------------------


async def test_forced_calls_get_a_grammar_of_calls_alone(llama: Server) -> None:
    llama.says(ONE)
    await ask(llama, tool_choice="required")
    text = grammar(llama).text
    assert "get_weather" in text
    assert "get_time" in text
    assert 'object ("; " object)*' in text
    await ask(llama, tool_choice="required", parallel_tool_calls=False)
    assert '"; "' not in grammar(llama).text


async def test_a_named_function_is_the_only_one_in_its_grammar(llama: Server) -> None:
    llama.says(ONE)
    await ask(llama, tool_choice=NAMED)
    text = grammar(llama).text
    assert "get_weather" in text
    assert "get_time" not in text
    assert '"; "' not in text


async def test_allowed_tools_are_the_only_ones_that_can_be_called(llama: Server) -> None:
    llama.says(TWO)
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": allowed}
    message = (await ask(llama, tool_choice=choice)).choices[0].message
    assert [call.function.name for call in message.tool_calls] == ["get_time"]
    assert message.content == ONE
    prompt = llama.tokenizer.decode(
        llama.pool.requests[-1].prompt_token_ids, skip_special_tokens=True
    )
    assert "get_weather" in prompt, "the prompt is the same whatever is allowed"
    allowed["mode"] = "required"
    await ask(llama, tool_choice=choice)
    assert grammar(llama).text.startswith("start: calls")


async def test_auto_is_guided_unless_that_could_be_in_the_way(llama: Server) -> None:
    await ask(llama)
    assert "TEXT" in grammar(llama).text
    await ask(llama, extra_body={"ignore_eos": True})
    assert llama.pool.requests[-1].sampling_params.grammar is None
    await ask(llama, extra_body={"min_tokens": 1})
    assert llama.pool.requests[-1].sampling_params.grammar is None
    enum = [f"{number:08}" for number in range(8000)]
    long = {
        **WEATHER["function"],
        "parameters": {"type": "object", "properties": {"x": {"enum": enum}}},
    }
    await ask(llama, tools=[{"type": "function", "function": long}])
    assert llama.pool.requests[-1].sampling_params.grammar is None
    long["strict"] = True
    await ask(llama, tools=[{"type": "function", "function": long}])
    assert "00007999" in grammar(llama).text


async def test_a_schema_too_long_to_enforce_is_refused_only_where_it_must_be(
    llama: Server,
) -> None:
    enum = [f"{number:08}" for number in range(30_000)]
    tools = with_parameters(parameters={"type": "object", "properties": {"x": {"enum": enum}}})
    place = "tools.1.function.parameters"
    assert await refusal(llama, tools=tools, tool_choice="required") == [place]
    await ask(llama, tools=tools)
    assert 'arguments_1: %json {"type": "object"}' in grammar(llama).text


def with_parameters(**fields: Any) -> Any:
    return [TIME, {"type": "function", "function": {"name": "g", **fields}}]


async def test_a_schema_that_cannot_be_enforced_is_refused_where_it_must_be(
    llama: Server,
) -> None:
    tools = with_parameters(parameters={"type": "object", "not": {"required": ["x"]}})
    place = "tools.1.function.parameters"
    assert await refusal(llama, tools=tools, tool_choice="required") == [place]
    await ask(llama, tools=tools)
    assert 'arguments_1: %json {"type": "object"}' in grammar(llama).text
    tools[1]["function"]["strict"] = True
    assert await refusal(llama, tools=tools) == [place]


async def test_what_a_replica_refuses_is_named_after_the_tools(llama: Server) -> None:
    problem = FieldProblem(loc=(GRAMMAR_FIELD,), message="compiling takes longer than 3 s")
    llama.pool.script = lambda _: iter([ValidationError([problem])])
    assert await refusal(llama, tool_choice="required") == ["tools"]


async def test_structured_answers_and_calls_beside_each_other(
    llama: Server, checkpoint: Path
) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}
    place = "response_format.json_schema.schema"
    for choice in ("required", NAMED):
        assert await refusal(llama, tool_choice=choice, response_format=wanted) == [place]
    assert await refusal(llama, response_format=wanted) == [place]
    await ask(llama, response_format=wanted, tool_choice="none")
    async with speaking(checkpoint, "hermes") as server:
        await ask(server, response_format=wanted)
        assert grammar(server).text.startswith("start: calls | answer")
        await ask(server, extra_body={"guided_choice": ["a", "b"]})
        assert 'answer: "a" | "b"' in grammar(server).text
        assert await refusal(server, extra_body={"guided_regex": "a+"}) == ["guided_regex"]


# -- requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools.1.function.name"),
        ({"tools": [TIME] * 129}, "tools"),
        (
            {"tools": with_parameters(parameters={"type": "array"})},
            "tools.1.function.parameters.type",
        ),
        ({"tools": with_parameters(parameters=[])}, "tools.1.function.parameters"),
        ({"tools": with_parameters(strict="yes")}, "tools.1.function.strict"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "other"}}},
            "tool_choice.function.name",
        ),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}},
            "tool_choice.allowed_tools.tools",
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [NAMED, {**NAMED, "function": {"name": "h"}}],
                    },
                }
            },
            "tool_choice.allowed_tools.tools.1.function.name",
        ),
        ({"tool_choice": "required", "extra_body": {"ignore_eos": True}}, "ignore_eos"),
        ({"tool_choice": "required", "extra_body": {"min_tokens": 3}}, "min_tokens"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ],
)
async def test_wrong_tools_are_named(llama: Server, fields: Any, place: str) -> None:
    assert place in await refusal(llama, **fields)


async def test_a_model_that_calls_no_functions_refuses_tools_by_name(server: Server) -> None:
    assert await refusal(server) == ["tools"]
    await ask(server, tool_choice="none")


async def test_results_are_sent_back_in_every_shape_that_clients_send(llama: Server) -> None:
    llama.says(ONE)
    message = (await ask(llama)).choices[0].message
    call_id = message.tool_calls[0].id
    llama.says("It is cold.")
    parts = [{"type": "text", "text": "-3"}, {"type": "text", "text": "degrees"}]
    for content in ("-3\ndegrees", parts):
        result = {
            "role": "tool",
            "tool_call_id": call_id,
            "name": "get_weather",
            "content": content,
        }
        answer = await ask(llama, messages=[*USER, message, result])
        assert answer.choices[0].message.content == "It is cold."
        prompt = llama.tokenizer.decode(
            llama.pool.requests[-1].prompt_token_ids, skip_special_tokens=True
        )
        assert "<tool>-3\ndegrees" in prompt
    stray = {"role": "tool", "tool_call_id": "never-made", "content": "x"}
    assert (await ask(llama, messages=[*USER, stray])).choices
