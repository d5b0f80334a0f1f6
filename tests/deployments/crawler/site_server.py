"""A website on a real socket, and what it was asked for."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

ALLOWED = ("127.0.0.0/8",)


@dataclass
class Request:
    target: str
    headers: dict[str, str]


@dataclass
class Answer:
    """`body` may be an iterator that never ends."""

    body: bytes | AsyncIterator[bytes] = b""
    status: int = 200
    content_type: str = "text/html"
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Answer]]


def page(*links: str, text: str = "text", head: str = "") -> Answer:
    anchors = "".join(f'<a href="{link}">link</a>' for link in links)
    return Answer(f"<html><head>{head}</head><body><p>{text}</p>{anchors}</body></html>".encode())


def redirect(target: str, status: int = 302) -> Answer:
    return Answer(status=status, headers={"Location": target})


@dataclass
class Site:
    """Answers from `answers` by path with query; what is not there is a 404."""

    port: int = 0
    answers: dict[str, Answer | Handler] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    num_connections: int = 0
    num_open: int = 0  # requests that are being answered
    most_open: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[str]:
        """Pages that were asked for, without robots.txt."""
        return [r.target for r in self.requests if r.target != "/robots.txt"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the crawler has had enough
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines if line)
        request = Request(first.split()[1], {name.lower(): value for name, value in fields.items()})
        self.requests.append(request)
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            found = self.answers.get(request.target, Answer(b"no", 404))
            answer = found if isinstance(found, Answer) else await found(request)
            await self._send(writer, answer)
        finally:
            self.num_open -= 1
        return isinstance(answer.body, bytes)

    async def _send(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        lines = [f"HTTP/1.1 {answer.status} Any", f"Content-Type: {answer.content_type}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        if isinstance(answer.body, bytes):
            lines.append(f"Content-Length: {len(answer.body)}")
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + answer.body)
            await writer.drain()
            return
        writer.write(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode())
        async for piece in answer.body:
            writer.write(piece)
            await writer.drain()


@asynccontextmanager
async def running(site: Site, *, ssl_context: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=ssl_context)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
