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
