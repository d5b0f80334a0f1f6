"""What clients see when something goes wrong, and what the server does when they leave."""

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from cluster.errors import ServiceUnavailableError, TooManyRequestsError
from cluster.types import FinishReason, Request
from deployments.ingress import responses
from tests.deployments.ingress.scripted_server import Server, deltas, stream

CHAT_PATHS = ["/v1", "/v2/ai", "/v2/ai/openai"]
MODEL = "shoal/scripted"
USER: list[Any] = [{"role": "user", "content": "hi"}]


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
    async with asyncio.timeout(120):
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
    async with asyncio.timeout(120):
        await server.pool.all_closed.wait()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "START_AFTER_S", 0.02)
    monkeypatch.setattr(responses, "KEEP_ALIVE_S", 0.02)


@pytest.mark.usefixtures("impatient")
async def test_a_late_stream_starts_without_its_first_token_and_says_that_it_is_alive(
    server: Server,
) -> None:
    may_answer = asyncio.Event()

    def script(request: Request) -> Iterator[Any]:
        yield may_answer
        yield from deltas(request, server.encode("hello"), finish=FinishReason.LENGTH)

    server.pool.script = script
    lines = []
    async with (
        server.http() as client,
        client.stream(
            "POST", "/v1/chat/completions", json={"messages": USER, "stream": True}
        ) as response,
    ):
        assert response.status_code == 200
        async for line in response.aiter_lines():
            lines += [line] if line else []
            if lines.count(": keep-alive") == 3:
                may_answer.set()
    comments = [line for line in lines if line.startswith(":")]
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert lines[0].startswith("data: ")
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(comments) >= 3
    assert [event["choices"][0]["delta"].get("role") for event in events].count("assistant") == 1
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert (text, lines[-1]) == ("hello", "data: [DONE]")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_the_sdk_reads_over_keep_alives(server: Server, path: str) -> None:
    starts = asyncio.Event()

    def script(request: Request) -> Iterator[Any]:
        yield starts
        yield from deltas(request, server.encode("hello"), finish=FinishReason.LENGTH)

    server.pool.script = script
    asyncio.get_running_loop().call_later(0.1, starts.set)
    client = server.openai()
    answer: Any
    if path == "/v1/completions":
        answer = await client.completions.create(model=MODEL, prompt="x", stream=True)
        text = "".join([chunk.choices[0].text async for chunk in answer])
    else:
        answer = await client.chat.completions.create(model=MODEL, messages=USER, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in answer])
    assert text == "hello"


@pytest.mark.usefixtures("impatient")
async def test_an_error_after_a_late_start_is_an_event(server: Server) -> None:
    fails = asyncio.Event()

    def script(_: Request) -> Iterator[Any]:
        yield fails
        yield TooManyRequestsError("queue full")

    server.pool.script = script
    answer = await server.openai().chat.completions.create(model=MODEL, messages=USER, stream=True)
    fails.set()  # now that the response has started
    with pytest.raises(openai.APIError, match="queue full"):
        async for _ in answer:
            pass


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_leaves_a_late_stream_aborts_its_request(server: Server) -> None:
    server.pool.script = lambda _: iter([asyncio.Event()])
    await hang_up_after(server, 12, stream=True)
    async with asyncio.timeout(120):
        await server.pool.all_closed.wait()
