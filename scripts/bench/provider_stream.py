"""What a stream from an external provider costs the ingress, against a plain httpx pass-through.

    python -m scripts.bench.provider_stream --streams 32 --events 400 --step-ms 10

Three processes: a provider that sends an event per step on each stream, the server under test, and
this one, which reads. The peer hands bytes on and looks at nothing: no key, no check of a request,
no events, no names. CPU is that of the server's process, per event.
"""

import argparse
import asyncio
import multiprocessing
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable

import httpx
import orjson
import psutil
import uvicorn
import uvloop
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from cluster.config import RetrievalConfig
from cluster.provider_config import ProviderConfig
from cluster.telemetry import Telemetry
from deployments.ingress.app import ErrorBoundary
from deployments.ingress.chat_generation import ChatGenerations
from deployments.ingress.chat_routes import ROUTE, ChatCompletions
from deployments.ingress.grounding import Grounding
from deployments.ingress.prompts import PromptBuilder
from deployments.ingress.providers.external_chat import ExternalChat
from deployments.ingress.providers.providers import Providers
from deployments.ingress.served_model import ModelDirectory
from scripts.bench.report import Figure, environment, table

_EVENT = (
    b'data: {"id":"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT","object":"chat.completion.chunk",'
    b'"created":1741569952,"model":"gpt-4.1-2025-04-14","service_tier":"default",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"content":" Hello"},'
    b'"logprobs":null,"finish_reason":null}],"obfuscation":"k3JxQ"}\n\n'
)
_LAST = (
    b'data: {"id":"x","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    b"connection: close\r\n\r\n"
)


def main() -> None:
    arguments = _arguments()
    servers = {"Shoal": build_shoal, "httpx, bytes alone": build_peer}
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
    for _ in range(arguments.rounds):
        for name, build in servers.items():
            seen[name].append(asyncio.run(_measure(build, arguments)))
    rows = [
        (
            name,
            f"{Figure(tuple(r[0] for r in runs)):.1f}",
            f"{Figure(tuple(r[1] for r in runs)):.0f}",
        )
        for name, runs in seen.items()
    ]
    print(environment(["httpx", "httpcore", "uvicorn", "uvloop"]))
    print(
        f"{arguments.streams} streams, {arguments.events} events each, {arguments.step_ms} ms apart"
    )
    print(table(["server", "CPU µs per event", "events/s"], rows))


async def _measure(
    build: Callable[[str], ASGIApp], arguments: argparse.Namespace
) -> tuple[float, float]:
    """CPU µs per event, events/s."""
    context = multiprocessing.get_context("spawn")
    ports = [_free_port(), _free_port()]
    provider = context.Process(
        target=run_provider, args=(ports[0], arguments.events, arguments.step_ms / 1000)
    )
    server = context.Process(target=run_server, args=(ports[1], build, ports[0]))
    for process in (provider, server):
        process.start()
    try:
        await _ready(ports)
        await asyncio.gather(*(_read(ports[1]) for _ in range(4)))  # connections, first imports
        counter = psutil.Process(server.pid)
        before, started_s = counter.cpu_times(), time.perf_counter()
        num_bytes = await asyncio.gather(*(_read(ports[1]) for _ in range(arguments.streams)))
        elapsed_s, after = time.perf_counter() - started_s, counter.cpu_times()
        assert min(num_bytes) > arguments.events * 100, "every stream came through"
        cpu_s = after.user + after.system - before.user - before.system
        num_events = arguments.streams * arguments.events
        return 1e6 * cpu_s / num_events, num_events / elapsed_s
    finally:
        for process in (provider, server):
            process.terminate()
            process.join()


def run_provider(port: int, num_events: int, step_s: float) -> None:
    """Each event in a chunk of its own, as services behind proxies send them."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await reader.read(1):
            return  # somebody who looks whether anybody listens
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_HEAD)
        for _ in range(num_events):
            await asyncio.sleep(step_s)
            writer.write(b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT))
            await writer.drain()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_LAST), _LAST))
        await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(run())


def run_server(port: int, build: Callable[[str], ASGIApp], provider_port: int) -> None:
    app = build(f"http://127.0.0.1:{provider_port}/v1")
    uvicorn.run(
        app, port=port, http="httptools", loop="uvloop", access_log=False, log_level="error"
    )


def build_shoal(base_url: str) -> ASGIApp:
    config = ProviderConfig(name="far", base_url=base_url, prefix="far/", auth="none")
    telemetry, prompts = Telemetry(), PromptBuilder()
    grounding = Grounding(None, prompts, RetrievalConfig())
    directory = ModelDirectory({}, default_name="none")
    generations = ChatGenerations(directory, prompts, telemetry, grounding)
    external = ExternalChat(
        Providers([config], is_served=lambda name: False), None, grounding, telemetry
    )
    chat = ChatCompletions(generations, max_body_bytes=2**20, external=external)
    return ErrorBoundary(Router([Route(ROUTE, chat, methods=["POST"])]), telemetry)


def build_peer(base_url: str) -> ASGIApp:
    client = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None))

    async def chat(request: Request) -> StreamingResponse:
        body = await request.body()
        return StreamingResponse(stream(body), media_type="text/event-stream")

    async def stream(body: bytes) -> AsyncIterator[bytes]:
        url = f"{base_url}/chat/completions"
        async with client.stream("POST", url, content=body) as response:
            async for chunk in response.aiter_raw():
                yield chunk

    return Router([Route(ROUTE, chat, methods=["POST"])])


async def _read(port: int) -> int:
    """Bytes of one stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    messages = [{"role": "user", "content": "hi"}]
    body = orjson.dumps({"model": "far/big", "messages": messages, "stream": True})
    head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    data = await reader.read()
    assert b"200 OK" in data[:20], data[:500]
    assert b"data: [DONE]" in data[-100:], data[-500:]
    writer.close()
    return len(data)


async def _ready(ports: list[int]) -> None:
    deadline_s = time.monotonic() + 60
    for port in ports:
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                if time.monotonic() > deadline_s:
                    sys.exit(f"nothing listens on port {port}")
                await asyncio.sleep(0.1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--events", type=int, default=400)
    parser.add_argument("--step-ms", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
