"""The HTTP side as clients see it: over real sockets, mostly with the official SDK."""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cluster.api_keys import ApiKeys
from cluster.errors import ServiceUnavailableError, TooManyRequestsError
from cluster.types import FinishReason, Request
from tests.deployments.ingress.scripted_server import Server, configuration, deltas, serving

CHAT_PATHS = ["/v1", "/v2/ai", "/v2/ai/openai"]
MODEL = "shoal/scripted"
USER: list[Any] = [{"role": "user", "content": "hi"}]


async def events_of(response: httpx.Response) -> list[Any]:
    """The stream's events; the last is "[DONE]" if it was sent."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line async for line in response.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    datas = [line.removeprefix("data: ") for line in lines]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


async def stream(server: Server, path: str, **body: Any) -> list[Any]:
    async with (
        server.http() as client,
        client.stream("POST", path, json={"stream": True, **body}) as response,
    ):
        assert response.status_code == 200, await response.aread()
        return await events_of(response)


# Whole answers


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


# Trouble


async def test_an_error_before_the_first_token_keeps_its_status(server: Server) -> None:
    server.pool.script = lambda _: iter([TooManyRequestsError("queue full", retry_after_s=2.0)])
    async with server.http() as client:
        for streamed in (True, False):
            body = {"messages": USER, "stream": streamed}
            answer = await client.post("/v1/chat/completions", json=body)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
            assert answer.json()["errors"][0]["code"] == "10011"


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ServiceUnavailableError("the replica died"), "the replica died"),
        (RuntimeError("secret detail"), "Unexpected error"),
    ],
)
async def test_an_error_midway_becomes_an_event_without_done(
    server: Server, failure: Exception, message: str
) -> None:
    def script(request: Request) -> Iterator[Any]:
        yield deltas(request, server.encode("hello world"), finish=None)[0]
        yield failure

    server.pool.script = script
    *_, last = await stream(server, "/v1/chat/completions", messages=USER)
    assert last["error"]["type"] == "server_error"
    assert message in last["error"]["message"]
    assert "secret" not in last["error"]["message"]
    answer = await server.openai().chat.completions.create(model=MODEL, messages=USER, stream=True)
    with pytest.raises(openai.APIError):
        async for _ in answer:
            pass


async def test_a_stream_that_ends_too_early_is_an_error(server: Server) -> None:
    server.pool.script = lambda request: iter(deltas(request, [70, 71], finish=None))
    async with server.http() as client:
        answer = await client.post("/v1/chat/completions", json={"messages": USER})
    assert answer.status_code == 503


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
async def test_a_sequence_that_the_engine_gave_up_is_an_error(server: Server, reason: Any) -> None:
    server.says("", finish=reason)
    async with server.http() as client:
        answer = await client.post("/v1/chat/completions", json={"messages": USER})
    assert answer.status_code in (500, 503)


async def hang_up_after(server: Server, num_lines: int, **body: Any) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    data = json.dumps({"messages": USER, **body}).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer shoal-test-key\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)
    )
    for _ in range(num_lines):
        await reader.readline()
    await server.pool.has_opened.wait()
    writer.close()


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_client_that_leaves_aborts_its_request(
    server: Server, streamed: bool, has_begun: bool
) -> None:
    def script(request: Request) -> Iterator[Any]:
        if has_begun:
            yield deltas(request, server.encode("hello"), finish=None)[0]
        yield asyncio.Event()  # never set

    server.pool.script = script
    await hang_up_after(server, 1 if streamed and has_begun else 0, stream=streamed)
    async with asyncio.timeout(5):
        await server.pool.all_closed.wait()
    async with server.http() as client:
        metrics = (await client.get("/metrics")).text
    assert 'status="499"' in metrics


async def test_a_slow_reader_holds_back_its_own_stream_only(server: Server) -> None:
    num_repeats = 25_000  # 20 MB of events, more than sockets buffer

    def talkative(request: Request) -> Iterator[Any]:
        ids = server.encode("hello there world ") * 2000
        yield from deltas(request, ids, finish=FinishReason.LENGTH)

    server.pool.script = talkative
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect(("127.0.0.1", server.port))
    reader, writer = await asyncio.open_connection(sock=narrow, limit=1024)
    data = json.dumps({"messages": USER, "stream": True}).encode()
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer shoal-test-key\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)
    )
    await reader.readline()
    # The stream fills the sockets' buffers and then stands still.
    before = -1
    while server.pool.num_yielded != before:
        before = server.pool.num_yielded
        async with server.http() as client:
            assert (await client.get("/v1/models")).status_code == 200
    total = num_repeats * len(server.encode("hello there world "))
    assert 0 < server.pool.num_yielded < total
    writer.close()
    async with asyncio.timeout(5):
        await server.pool.all_closed.wait()


# Plain completions


async def test_plain_completions_take_texts_and_tokens(server: Server) -> None:
    server.says(" world")
    client = server.openai()
    ids = server.encode("hello")
    for prompt, num_prompts in (("hello", 1), (["hello", "there"], 2), (ids, 1), ([ids, ids], 2)):
        server.pool.requests.clear()
        answer: Any = await client.completions.create(model=MODEL, prompt=prompt, n=2)
        assert [choice.index for choice in answer.choices] == list(range(2 * num_prompts))
        assert {choice.text for choice in answer.choices} == {" world"}
        assert answer.usage.completion_tokens == 2 * num_prompts * (
            len(server.encode(" world")) + 1
        )
        first = server.pool.requests[0]
        assert first.prompt_token_ids == (ids if isinstance(prompt[0], (int, list)) else [0, *ids])
        assert first.sampling_params.max_tokens == 16


async def test_plain_completions_stream_every_prompt(server: Server) -> None:
    server.says("hello world")
    *chunks, usage, done = await stream(
        server,
        "/v1/completions",
        prompt=["a", "b", "c"],
        echo=True,
        stream_options={"include_usage": True},
    )
    assert done == "[DONE]"
    texts, reasons = ["", "", ""], [None, None, None]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == ["ahello world", "bhello world", "chello world"]
    assert reasons == ["stop"] * 3
    assert usage["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize("streamed", [True, False])
async def test_echo_with_logprobs_scores_the_prompt(server: Server, streamed: bool) -> None:
    server.says("world")
    body = {"prompt": "hello", "echo": True, "logprobs": 2}
    if streamed:
        events = await stream(server, "/v1/completions", **body)
        parts = [event["choices"][0]["logprobs"] for event in events[:-1]]
        keys = parts[0].keys()
        logprobs = {key: [x for part in parts if part for x in part[key]] for key in keys}
    else:
        async with server.http() as client:
            answer = (await client.post("/v1/completions", json=body)).json()
        assert answer["choices"][0]["text"] == "helloworld"
        logprobs = answer["choices"][0]["logprobs"]
    prompt_ids, ids = [0, *server.encode("hello")], server.encode("world")
    assert logprobs["token_logprobs"] == [None, *(-i / 1000 for i in (prompt_ids[1:] + ids))]
    assert "".join(logprobs["tokens"]) == "<|bos|>helloworld"
    assert logprobs["text_offset"][1] == 0
    assert logprobs["text_offset"][len(prompt_ids)] == len("hello")
    assert logprobs["top_logprobs"][0] is None
    assert len(logprobs["top_logprobs"][1]) == 3  # the two most likely and the chosen one
    assert server.pool.requests[0].sampling_params.prompt_logprobs == 2


async def test_max_tokens_zero_with_echo_only_scores(server: Server) -> None:
    server.says("x", finish=FinishReason.LENGTH)
    async with server.http() as client:
        body = {"prompt": "hello", "echo": True, "logprobs": 0, "max_tokens": 0}
        answer = (await client.post("/v1/completions", json=body)).json()
    assert answer["choices"][0]["text"] == "hello"
    assert answer["usage"]["completion_tokens"] == 0
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 1 + len(server.encode("hello"))


async def test_one_failing_prompt_fails_the_call_and_frees_the_others(server: Server) -> None:
    def script(request: Request) -> Iterator[Any]:
        if request.request_id.endswith("-1"):
            yield ServiceUnavailableError("no replica")
        yield asyncio.Event()

    server.pool.script = script
    async with server.http() as client:
        answer = await client.post("/v1/completions", json={"prompt": ["a", "b", "c"]})
    assert answer.status_code == 503
    assert server.pool.num_open == 0


# Other routes


@pytest.mark.parametrize("path", CHAT_PATHS)
async def test_models_are_listed_and_found_by_id(server: Server, path: str) -> None:
    client = server.openai(path)
    listed = [model async for model in client.models.list()]
    assert [model.id for model in listed] == [MODEL]
    found = await client.models.retrieve(MODEL)
    assert found == listed[0]
    assert isinstance(found.created, int)
    extra = found.model_extra or {}
    assert (extra["context_length"], extra["license"], extra["languages"]) == (
        256,
        "apache-2.0",
        ["en"],
    )
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("no/such")


async def test_health_readiness_and_metrics_need_no_key(server: Server) -> None:
    async with server.http(key=None) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        server.pool.ready = False
        not_ready = await client.get("/ready")
        assert not_ready.status_code == 503
        assert MODEL in not_ready.text
        assert (await client.get("/metrics")).status_code == 200


async def test_metrics_count_requests_tokens_and_latencies(server: Server) -> None:
    server.says("hello world")
    await server.openai().chat.completions.create(model=MODEL, messages=USER)
    async with server.http(key=None) as client:
        await client.post("/v1/chat/completions", json={})
        page = (await client.get("/metrics")).text
    num_tokens = len(server.encode("hello world")) + 1
    label = f'model_name="{MODEL}"'
    assert (
        f'shoal:requests_total{{finish_reason="stop",{label},route="/v1/chat/completions",'
        'status="200"} 1.0' in page
    )
    assert 'status="401"' in page
    assert f"shoal:generation_tokens_total{{{label}}} {num_tokens}.0" in page
    assert f"shoal:time_to_first_token_seconds_count{{{label}}} 1.0" in page
    assert f"shoal:inter_token_latency_seconds_count{{{label}}} {num_tokens - 1}.0" in page
    assert f"shoal:e2e_request_latency_seconds_count{{{label}}} 1.0" in page
    assert f'shoal:kv_cache_usage_perc{{{label},replica="replica-a"}} 0.25' in page
    assert f'shoal:num_requests_running{{{label},replica="replica-a"}} 2.0' in page


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic shoal-test-key", "Bearer"])
async def test_wrong_keys_are_refused_everywhere(server: Server, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as client:
        for method, path in (
            ("POST", "/v1/chat/completions"),
            ("GET", "/v2/ai/models"),
            ("GET", "/nowhere"),
        ):
            answer = await client.request(method, path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["errors"][0]["code"] == "10009"
    with pytest.raises(openai.AuthenticationError):
        await server.openai(key="wrong").models.list()


async def test_no_key_is_needed_when_that_was_chosen(checkpoint: Path) -> None:
    keys = ApiKeys([], required=False)
    async with serving(checkpoint, configuration(), keys) as server, server.http(None) as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_unknown_paths_and_methods_have_our_error_shape(server: Server) -> None:
    async with server.http() as client:
        missing = await client.post("/v1/nothing", json={})
        assert (missing.status_code, missing.json()["errors"][0]["code"]) == (404, "10005")
        wrong = await client.get("/v1/chat/completions")
        assert (wrong.status_code, wrong.json()["errors"][0]["code"]) == (405, "10030")
        assert wrong.headers["allow"] == "POST"
        assert (await client.options("/v1/models")).status_code == 405


def test_the_ingress_needs_neither_torch_nor_ray_nor_transformers() -> None:
    code = (
        "import sys, deployments.ingress.app\n"
        "print([name for name in ('torch', 'transformers', 'ray') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert result.stdout.strip() == "[]"
