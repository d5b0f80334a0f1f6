"""A provider on a free port that behaves as a test says, down to the bytes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

EVENTS = "text/event-stream"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came."""

    line: str
    headers: dict[str, str]
    body: dict[str, Any]


class Connection:
    """The provider's end of one request."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int = 200, media_type: str = EVENTS, *headers: str) -> None:
        """Of a body that goes on until it ends in chunks."""
        lines = [f"HTTP/1.1 {status} X", f"content-type: {media_type}", *headers]
        await self.send(("\r\n".join([*lines, "transfer-encoding: chunked"]) + "\r\n\r\n").encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, value: object) -> None:
        await self.chunk(b"data: " + orjson.dumps(value) + b"\n\n")

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def whole(
        self, value: object, status: int = 200, *headers: str, media_type: str = JSON
    ) -> None:
        body = value if isinstance(value, bytes) else orjson.dumps(value)
        lines = [f"HTTP/1.1 {status} X", f"content-type: {media_type}", *headers]
        head = "\r\n".join([*lines, f"content-length: {len(body)}"]) + "\r\n\r\n"
        await self.send(head.encode() + body)

    async def cut(self) -> None:
        """Break the connection off."""
        self._writer.transport.abort()


Script = Callable[[Received, Connection], Awaitable[None]]


@dataclass
class FakeProvider:
    port: int = 0
    script: Script = field(default_factory=lambda: says("ok"))
    requests: list[Received] = field(default_factory=list)
    num_connections: int = 0
    client_left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        begun = b""
        try:
            while (request := await _read(begun, reader)) is not None:
                self.requests.append(request)
                serving = asyncio.ensure_future(self.script(request, Connection(writer)))
                # The client says nothing more until it is answered: what comes is its end.
                watching = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({serving, watching}, return_when=asyncio.FIRST_COMPLETED)
                if not serving.done():
                    self.client_left.set()
                    serving.cancel()
                if not watching.done():
                    watching.cancel()
                outcome, seen = await asyncio.gather(serving, watching, return_exceptions=True)
                if isinstance(outcome, ConnectionError):
                    self.client_left.set()
                begun = seen if isinstance(seen, bytes) else b""
        except ConnectionError:
            pass  # the test wanted it so
        finally:
            writer.transport.abort()


@asynccontextmanager
async def running_provider() -> AsyncIterator[FakeProvider]:
    provider = FakeProvider()
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.ensure_future(provider.serve(reader, writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**24)
    provider.port = server.sockets[0].getsockname()[1]
    try:
        yield provider
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def says(*texts: str, usage: bool = True) -> Script:
    """Streamed or whole, as the request asks, with usage where it asks for it."""

    async def script(request: Received, connection: Connection) -> None:
        tokens = {"prompt_tokens": 7, "completion_tokens": len(texts)}
        counts = {**tokens, "total_tokens": 7 + len(texts)}
        if not request.body.get("stream"):
            message = {"role": "assistant", "content": "".join(texts)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            await connection.whole({**_head(request), "choices": [choice], "usage": counts})
            return
        await connection.head()
        await connection.event(piece(request, {"role": "assistant", "content": ""}))
        for text in texts:
            await connection.event(piece(request, {"content": text}))
        await connection.event(piece(request, {}, finish_reason="stop"))
        if usage and (request.body.get("stream_options") or {}).get("include_usage"):
            await connection.event({**_head(request), "choices": [], "usage": counts})
        await connection.chunk(b"data: [DONE]\n\n")
        await connection.end()

    return script


def answers(value: object, status: int = 200, *headers: str, media_type: str = JSON) -> Script:
    async def script(request: Received, connection: Connection) -> None:
        await connection.whole(value, status, *headers, media_type=media_type)

    return script


def fails(status: int, message: str, *headers: str, **error: object) -> Script:
    return answers({"error": {"message": message, **error}}, status, *headers)


def in_turn(*scripts: Script) -> Script:
    """The first request gets the first script, and so on; the last one goes on."""
    left = list(scripts)

    async def script(request: Received, connection: Connection) -> None:
        now = left.pop(0) if len(left) > 1 else left[0]
        await now(request, connection)

    return script


def piece(request: Received, delta: object, finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {**_head(request), "choices": [choice]}


def _head(request: Received) -> dict[str, Any]:
    return {"id": "theirs-1", "object": "x", "created": 1, "model": request.body["model"] + "-0613"}


async def _read(begun: bytes, reader: asyncio.StreamReader) -> Received | None:
    try:
        head = (begun + await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    line, *fields = head.strip().split("\r\n")
    headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in fields)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Received(line, headers, orjson.loads(body))
