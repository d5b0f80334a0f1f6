"""Chat completions as clients see them, over real sockets, mostly with the official SDK."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.types import FinishReason, Request
from tests.deployments.ingress.scripted_server import Server, configuration, deltas, serving, stream

CHAT_PATHS = ["/v1", "/v2/ai", "/v2/ai/openai"]
MODEL = "shoal/scripted"
USER: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("path", CHAT_PATHS)
async def test_a_whole_chat_answer_has_text_reason_and_usage(server: Server, path: str) -> None:
    server.says("hello world")
    answer = await server.openai(path).chat.completions.create(model=MODEL, messages=USER)
    choice = answer.choices[0]
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    assert (choice.message.role, choice.message.content) == ("assistant", "hello world")
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    prompt = server.encode("<|bos|><user>hi<|eos|>\n<assistant>")
    assert server.pool.requests[0].prompt_token_ids == prompt
    usage: Any = answer.usage
    num_tokens = len(server.encode("hello world")) + 1  # and the end-of-sequence token
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), num_tokens)
    assert usage.total_tokens == len(prompt) + num_tokens
    assert usage.prompt_tokens_details.cached_tokens == 3


async def test_every_sampling_parameter_reaches_the_engine(server: Server) -> None:
    await server.openai().chat.completions.create(
        model=MODEL,
        messages=USER,
        n=2,
        temperature=0.7,
        top_p=0.9,
        max_completion_tokens=9,
        seed=5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"7": -100},
        logprobs=True,
        top_logprobs=3,
        extra_body={
            "top_k": 4,
            "min_p": 0.1,
            "repetition_penalty": 1.2,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [9],
        },
    )
    params = server.pool.requests[0].sampling_params
    assert (params.n, params.temperature, params.top_p, params.max_tokens) == (2, 0.7, 0.9, 9)
    assert (params.seed, params.presence_penalty, params.frequency_penalty) == (5, 0.5, -0.5)
    assert (params.logit_bias, params.logprobs, params.top_k) == ({7: -100.0}, 3, 4)
    assert (params.min_p, params.repetition_penalty, params.min_tokens) == (0.1, 1.2, 2)
    assert (params.ignore_eos, params.stop_token_ids) == (True, (9,))


async def test_a_bare_request_gets_the_configured_defaults(server: Server) -> None:
    async with server.http() as client:
        answer = await client.post("/v1/chat/completions", json={"messages": USER})
    assert answer.json()["model"] == MODEL
    request = server.pool.requests[0]
    params = request.sampling_params
    assert (params.temperature, params.top_p, params.n) == (0.1, 1.0, 1)
    assert (params.seed, params.top_k, params.logprobs) == (None, 0, None)
    assert params.max_tokens == 256 - len(request.prompt_token_ids)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2.0, "max_tokens": None, "stop": None, "seed": -1},
        {"use_beam_search": False, "best_of": 1, "length_penalty": 1, "early_stopping": False},
        {"guided_json": None, "guided_regex": None, "guided_choice": None, "audio": None},
        {"response_format": {"type": "text"}, "modalities": ["text"], "enable_thinking": True},
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h"},
        {"region": "EU", "mode": "preferred", "parallel_tool_calls": True},
        {"max_tokens": 5, "max_completion_tokens": 5, "top_k": -1, "logit_bias": {}},
        {"stream": None, "logprobs": False, "top_logprobs": 0, "stop": []},
    ],
    ids=",".join,
)
async def test_neutral_values_and_fields_without_effect_are_accepted(
    server: Server, fields: dict[str, Any]
) -> None:
    async with server.http() as client:
        answer = await client.post("/v1/chat/completions", json={"messages": USER, **fields})
    assert answer.status_code == 200, answer.text


async def test_messages_in_every_shape_that_clients_send_are_rendered(server: Server) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Any] = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "22"},
    ]
    tools: Any = [{"type": "function", "function": {"name": "weather"}}]
    await server.openai().chat.completions.create(
        model=MODEL, messages=messages, tools=tools, tool_choice="none"
    )
    prompt = server.tokenizer.decode(
        server.pool.requests[0].prompt_token_ids, skip_special_tokens=True
    )
    assert prompt == "<system>be kind\n<user>a\nb\n<assistant>\n<tool>22\n<assistant>"


async def test_long_prompts_are_encoded_beside_the_event_loop(checkpoint: Path) -> None:
    async with serving(checkpoint, configuration()) as server:
        text = "hello there " * 2000
        async with server.http() as client:
            content = [{"role": "user", "content": text}]
            answer = await client.post("/v1/chat/completions", json={"messages": content})
        num_tokens = len(server.encode(f"<|bos|><user>{text}<|eos|>\n<assistant>"))
        assert f"{num_tokens} tokens" in answer.json()["error"]["message"]
        assert answer.json()["error"]["code"] == "context_length_exceeded"


# Streams


@pytest.mark.parametrize("group", [1, 2, 100])
async def test_a_stream_has_role_text_reason_usage_and_done(server: Server, group: int) -> None:
    server.says("hello there, wörld 🙂!", group=group)
    events = await stream(
        server,
        "/v1/chat/completions",
        messages=USER,
        stream_options={"include_usage": True},
    )
    *chunks, usage, done = events
    assert done == "[DONE]"
    heads = {(c["id"], c["object"], c["created"], c["model"]) for c in [*chunks, usage]}
    assert len(heads) == 1
    assert heads.pop()[1] == "chat.completion.chunk"
    first, *middle, last = (chunk["choices"][0] for chunk in chunks)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert first["finish_reason"] is None
    assert "".join(m["delta"]["content"] for m in middle) == "hello there, wörld 🙂!"
    assert all(m["delta"]["content"] for m in middle)
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    num_tokens = len(server.encode("hello there, wörld 🙂!")) + 1
    assert usage["usage"]["completion_tokens"] == num_tokens


async def test_a_stream_without_include_usage_has_no_usage(server: Server) -> None:
    server.says("hello")
    *chunks, done = await stream(server, "/v1/chat/completions", messages=USER)
    assert done == "[DONE]"
    assert not any("usage" in chunk for chunk in chunks)


async def test_the_sdk_reads_streams_with_choices_and_logprobs(server: Server) -> None:
    server.says("hello wörld")
    texts = ["", ""]
    reasons: list[Any] = [None, None]
    entries = 0
    answer = await server.openai().chat.completions.create(
        model=MODEL, messages=USER, n=2, stream=True, logprobs=True, top_logprobs=2
    )
    async for chunk in answer:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            entries += len(choice.logprobs.content or []) if choice.logprobs else 0
    assert texts == ["hello wörld"] * 2
    assert reasons == ["stop", "stop"]
    assert entries == 2 * len(server.encode("hello wörld"))


async def test_logprobs_have_true_bytes_and_the_most_likely_tokens(server: Server) -> None:
    server.says("wé")
    answer: Any = await server.openai().chat.completions.create(
        model=MODEL, messages=USER, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in content) == "wé".encode()
    ids = server.encode("wé")
    assert [entry.logprob for entry in content] == [-i / 1000 for i in ids]
    assert [top.logprob for top in content[0].top_logprobs] == [-1.0, -2.0]
    assert [entry.token for entry in content][1:] == ["\ufffd", "\ufffd"]


async def test_stop_strings_end_the_answer_whatever_the_grouping(server: Server) -> None:
    text = "hello there STOP and more"
    cut = len(server.encode("hello there STOP"))
    for group in range(1, 8):
        server.says(text, group=group, finish=FinishReason.LENGTH)
        events = await stream(
            server,
            "/v1/chat/completions",
            messages=USER,
            stop=["xyz", "STOP"],
            logprobs=True,
            stream_options={"include_usage": True},
        )
        *chunks, usage, _ = events
        shown = [chunk["choices"][0] for chunk in chunks]
        assert "".join(c["delta"].get("content", "") for c in shown) == "hello there "
        assert shown[-1]["finish_reason"] == "stop"
        assert usage["usage"]["completion_tokens"] == cut
        entries = [e for c in shown if c["logprobs"] for e in c["logprobs"]["content"]]
        assert "".join(bytes(e["bytes"]).decode() for e in entries) == "hello there "
        await server.pool.all_closed.wait()


async def test_a_stop_string_in_one_choice_leaves_the_others_alone(server: Server) -> None:
    def script(request: Request) -> Iterator[Any]:
        stopped = deltas(request, server.encode("a STOP b"), index=0, finish=FinishReason.LENGTH)
        other = deltas(request, server.encode("a world b"), index=1, finish=FinishReason.LENGTH)
        yield from stopped[:-1]
        yield from other[:-1]
        yield stopped[-1]
        yield other[-1]

    server.pool.script = script
    answer = await server.openai().chat.completions.create(
        model=MODEL, messages=USER, n=2, stop="STOP"
    )
    assert [choice.message.content for choice in answer.choices] == ["a ", "a world b"]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "length"]
    assert server.pool.ended_sequences == [0]  # the engine need not go on with it


async def test_a_template_that_knows_about_thinking_is_told_what_the_client_wants(
    checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] += (
        "{% if enable_thinking is false %}quiet{% endif %}{{ reasoning_effort | default('') }}"
    )
    path.write_text(json.dumps(config))
    ends = []
    async with serving(tmp_path, configuration()) as server, server.http() as client:
        for fields in ({}, {"enable_thinking": False}, {"reasoning_effort": "high"}):
            body = {"messages": USER, **fields}
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            prompt = server.pool.requests[-1].prompt_token_ids
            text = server.tokenizer.decode(prompt, skip_special_tokens=True)
            ends.append(text.rpartition("<assistant>")[2])
    assert ends == ["", "quiet", "high"]
