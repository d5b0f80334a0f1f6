"""Whatever is wrong with a request, the answer is a precise 4xx and the server goes on."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from tests.deployments.ingress.scripted_server import MODEL, Server

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def with_messages(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


def part(kind: str) -> dict[str, Any]:
    return with_messages({"role": "user", "content": [{"type": kind, kind: {"url": "data:"}}]})


# Fields of a chat request that are each wrong, and the path that the answer must name.
WRONG_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": [1]}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"min_p": -0.1}, "min_p"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": True}, "n"),
    ({"n": 2, "temperature": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 1e30}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stop": "x" * 2000}, "stop"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.5}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": True}}, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
    ({"stop_token_ids": [99999]}, "stop_token_ids"),
    ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "true"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"model": 5}, "model"),
    ({"unknown_field": 1}, "unknown_field"),
    ({"echo": True}, "echo"),
    # Samples and beams.
    ({"n": 2, "best_of": 1}, "best_of"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": 129}, "best_of"),
    ({"best_of": 2, "temperature": 0}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"length_penalty": 0.8}, "length_penalty"),
    ({"length_penalty": 11, "use_beam_search": True}, "length_penalty"),
    ({"early_stopping": True}, "early_stopping"),
    ({"early_stopping": "never", "use_beam_search": True}, "early_stopping"),
    ({"use_beam_search": True, "best_of": 1}, "best_of"),
    ({"use_beam_search": True, "n": 3, "best_of": 2}, "best_of"),
    ({"use_beam_search": True, "temperature": 0.1}, "temperature"),
    ({"use_beam_search": True, "top_p": 0.9}, "top_p"),
    ({"use_beam_search": True, "top_k": 5}, "top_k"),
    ({"use_beam_search": True, "min_p": 0.1}, "min_p"),
    ({"use_beam_search": "yes"}, "use_beam_search"),
    # Guided decoding.
    ({"guided_json": ""}, "guided_json"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": "[]"}, "guided_json"),
    ({"guided_json": [1]}, "guided_json"),
    ({"guided_json": {}, "ignore_eos": True}, "ignore_eos"),
    ({"guided_json": {}, "min_tokens": 2}, "min_tokens"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_regex": 5}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": "a"}, "guided_choice"),
    ({"guided_choice": ["a", ""]}, "guided_choice.1"),
    ({"guided_choice": ["a", 1]}, "guided_choice.1"),
    ({"guided_grammar": ""}, "guided_grammar"),
    ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice"),
    ({"guided_json": {}, "response_format": {"type": "json_object"}}, "response_format"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs.regex"),
    ({"structured_outputs": {"regex": "a"}, "guided_regex": "a"}, "structured_outputs.regex"),
    ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    # Known, and not served yet, or not by a model that calls no functions.
    ({"tools": [TOOL]}, "tools"),
    ({"tools": [TOOL], "tool_choice": "auto"}, "tools"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tools"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        "tools",
    ),
    ({"tools": []}, "tools"),
    ({"tools": [{"type": "magic"}]}, "tools.0.type"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ({"tools": [{"type": "retrieval", "retrieval": {"bucket_ids": ["b"]}}]}, "tools.0.type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "perhaps"}, "tool_choice"),
    ({"functions": []}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"api_key_ref": "x"}, "api_key_ref"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"audio": {}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"prediction": {}}, "prediction"),
    ({"verbosity": "low"}, "verbosity"),
    ({"enable_thinking": False}, "enable_thinking"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"mode": "strict", "region": "EU"}, "mode"),
    # Messages.
    ({"messages": []}, "messages"),
    ({"messages": "nope"}, "messages"),
    ({"messages": None}, "messages"),
    (with_messages("x"), "messages.0"),
    (with_messages({"role": "wizard", "content": "x"}), "messages.0.role"),
    (with_messages({"content": "x"}), "messages.0.role"),
    (with_messages({"role": ["user"], "content": "x"}), "messages.0.role"),
    (with_messages({"role": "user"}), "messages.0.content"),
    (with_messages({"role": "user", "content": None}), "messages.0.content"),
    (with_messages({"role": "user", "content": 5}), "messages.0.content"),
    (with_messages({"role": "user", "content": []}), "messages.0.content"),
    (with_messages({"role": "user", "content": [{"type": "text"}]}), "messages.0.content.0.text"),
    (with_messages({"role": "user", "content": "x", "x": 1}), "messages.0.x"),
    (with_messages({"role": "assistant", "content": None}), "messages.0.content"),
    (with_messages({"role": "tool", "content": "x"}), "messages.0.tool_call_id"),
    (part("image_url"), "messages.0.content.0.type"),
    (part("input_audio"), "messages.0.content.0.type"),
    (part("hologram"), "messages.0.content.0.type"),
]

WRONG_PLAIN_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [99999]}, "prompt.0"),
    ({"prompt": ["x"] * 257}, "prompt"),
    ({"suffix": "x"}, "suffix"),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"best_of": 3, "stream": True}, "best_of"),
    ({"guided_choice": [], "n": 2}, "guided_choice"),
    ({"messages": USER}, "messages"),
]


def path_of(problem: dict[str, Any]) -> str:
    first, *rest = problem["loc"]
    assert first == "body"
    return ".".join(map(str, rest))


async def assert_refused(client: httpx.AsyncClient, url: str, body: Any, field: str) -> None:
    answer = await client.post(url, json=body)
    assert answer.status_code == 422, answer.text
    problems = answer.json()["detail"]
    assert all(set(problem) == {"loc", "msg", "type"} for problem in problems)
    assert field in [path_of(problem) for problem in problems]
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == path_of(problems[0])


async def assert_alive(client: httpx.AsyncClient) -> None:
    assert (await client.post(CHAT, json={"messages": USER})).status_code == 200


async def test_every_wrong_chat_field_is_named_and_nothing_breaks(server: Server) -> None:
    async with server.http() as client:
        for fields, name in WRONG_FIELDS:
            await assert_refused(client, CHAT, {"messages": USER, **fields}, name)
            await assert_alive(client)
    assert len(server.pool.requests) == len(WRONG_FIELDS)


async def test_every_wrong_completion_field_is_named_and_nothing_breaks(server: Server) -> None:
    async with server.http() as client:
        for fields, name in WRONG_PLAIN_FIELDS:
            await assert_refused(client, PLAIN, {"prompt": "x", **fields}, name)
        await assert_alive(client)


async def test_messages_say_what_is_allowed_and_what_was_given(server: Server) -> None:
    async with server.http() as client:
        body = {"messages": USER, "temperature": 3, "top_p": 0}
        answer = await client.post(CHAT, json=body)
    texts = {path_of(problem): problem["msg"] for problem in answer.json()["detail"]}
    assert texts == {
        "temperature": "must be a number in [0, 2]; given 3",
        "top_p": "must be a number in (0, 1]; given 0",
    }


RAW_BODIES: list[tuple[bytes, int, str, str]] = [
    (b"", 400, "10023", "empty"),
    (b"{", 400, "10023", "line 1 column 2"),
    (b'{"messages": [}', 400, "10023", "line 1 column"),
    (b'{"a": 1} x', 400, "10023", "line 1 column 10"),
    (b'{"a": "\xff"}', 400, "10023", "UTF-8"),
    (b'{"a": "\x00"}', 400, "10023", "line 1"),
    (b"[" * 5000, 400, "10023", "line 1"),
    (b"\xef\xbb\xbf{}", 400, "10023", "line 1"),
    (b"[]", 422, "", "JSON object"),
    (b'"text"', 422, "", "JSON object"),
    (b"null", 422, "", "JSON object"),
    (b"{}", 422, "", "messages: is required"),
    (b'{"temperature": NaN}', 422, "", "temperature: must be a finite number"),
    (b'{"logit_bias": {"1": -Infinity}}', 422, "", "logit_bias.1: must be a finite"),
    (b'{"temperature": 1e999}', 422, "", "temperature: must be a finite number"),
    (b'{"messages": [{"content": "\\ud800"}]}', 422, "", "messages.0.content: contains half"),
    (b'{"messages": [{"\\udfff": 1}]}', 422, "", "messages.0: has a key"),
]


async def test_bytes_that_are_no_request_get_a_precise_answer(server: Server) -> None:
    async with server.http() as client:
        for body, status, code, text in RAW_BODIES:
            headers = {"content-type": "application/json"}
            answer = await client.post(CHAT, content=body, headers=headers)
            assert answer.status_code == status, (body, answer.text)
            assert text in answer.json()["error"]["message"], (body, answer.text)
            if code:
                assert answer.json()["errors"][0]["code"] == code
            await assert_alive(client)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json; charset=latin-1"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json; charset=UTF-8"}, 200),
        ({"content-type": "Application/JSON"}, 200),
        ({"content-type": "application/vnd.api+json"}, 200),
        ({}, 200),
    ],
)
async def test_only_json_is_read(server: Server, headers: dict[str, str], status: int) -> None:
    async with server.http() as client:
        body = json.dumps({"messages": USER}).encode()
        answer = await client.post(CHAT, content=body, headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert answer.json()["errors"][0]["code"] == "10029"


async def test_a_body_over_the_limit_is_refused_by_its_announced_length(server: Server) -> None:
    async with server.http() as client:
        answer = await client.post(
            CHAT, json={"messages": [{"role": "user", "content": "x" * 10**7}]}
        )
        assert answer.status_code == 413
        assert "100000" in answer.json()["error"]["message"]
        await assert_alive(client)


async def test_a_body_over_the_limit_is_refused_while_it_comes_in_chunks(server: Server) -> None:
    async def chunks() -> Any:
        for _ in range(40):
            yield b" " * 5000

    async with server.http() as client:
        headers = {"content-type": "application/json"}
        answer = await client.post(CHAT, content=chunks(), headers=headers)
        assert answer.status_code == 413
        await assert_alive(client)


async def test_a_client_that_leaves_while_sending_costs_nothing(server: Server) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer shoal-test-key\r\n"
        b"content-type: application/json\r\ncontent-length: 5000\r\n\r\n{"
    )
    await writer.drain()
    writer.close()
    async with server.http() as client:
        await assert_alive(client)


async def test_prompts_over_the_context_name_both_numbers(server: Server) -> None:
    async with server.http() as client:
        body: Any = {"messages": [{"role": "user", "content": "x" * 500}]}
        answer = await client.post(CHAT, json=body)
        message = answer.json()["error"]["message"]
        num_tokens = len(server.encode(f"<|bos|><user>{'x' * 500}<|eos|>\n<assistant>"))
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["code"] == "10015"
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert f"{num_tokens} tokens" in message
        assert "256 tokens" in message

        answer = await client.post(CHAT, json={"messages": USER, "max_tokens": 250})
        num_tokens = len(server.encode("<|bos|><user>hi<|eos|>\n<assistant>"))
        message = answer.json()["error"]["message"]
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
        for number in (num_tokens, 250, num_tokens + 250, 256):
            assert str(number) in message

        answer = await client.post(PLAIN, json={"prompt": [5] * 256})
        assert answer.status_code == 400
        answer = await client.post(PLAIN, json={"prompt": [5] * 255})
        assert answer.status_code == 200
        assert server.pool.requests[-1].sampling_params.max_tokens == 1


async def test_unknown_models_are_not_found(server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await server.openai().chat.completions.create(model="no/such", messages=USER)  # type: ignore[arg-type]
    assert caught.value.code == "model_not_found"
    assert MODEL in caught.value.message
    async with server.http() as client:
        for name in ("", "\x00", "x" * 5000, "../etc/passwd"):
            answer = await client.post(CHAT, json={"messages": USER, "model": name})
            assert answer.status_code == 404


async def test_a_template_that_refuses_messages_is_quoted(server: Server) -> None:
    async with server.http() as client:
        body = {"messages": [{"role": "user", "content": "refuse me"}]}
        answer = await client.post(CHAT, json=body)
    assert answer.status_code == 400
    assert "not this one" in answer.json()["error"]["message"]


async def test_thousands_of_messages_are_read_and_a_wrong_one_is_found(server: Server) -> None:
    async with server.http() as client:
        body = {"messages": USER * 2500}
        answer = await client.post(CHAT, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            400,
            "context_length_exceeded",
        )
        wrong = [*USER * 2000, {"role": "user", "content": 1}]
        await assert_refused(client, CHAT, {"messages": wrong}, "messages.2000.content")


async def test_unusual_characters_are_just_text(server: Server) -> None:
    async with server.http() as client:
        for text in ("\x00", "\ufeff", "\u202e", "\U0010ffff", "<|eos|>", "\ud83d\ude42"):
            body = json.dumps({"messages": [{"role": "user", "content": text}]})
            headers = {"content-type": "application/json"}
            answer = await client.post(CHAT, content=body.encode(), headers=headers)
            assert answer.status_code == 200
