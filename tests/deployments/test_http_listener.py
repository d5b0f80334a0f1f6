"""The API's own socket: shared on purpose, refused otherwise, drained without cutting anybody."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from deployments.http_listener import HTTPListener, bind_shared, check_port_is_free


class SlowApp:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        self.asked.set()
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


@asynccontextmanager
async def listening(app: SlowApp) -> AsyncIterator[tuple[HTTPListener, int]]:
    shared = bind_shared("127.0.0.1", 0)
    port = shared.getsockname()[1]
    listener = HTTPListener(app, shared)
    listener.start()
    async with asyncio.timeout(120):
        while not can_connect(port):  # noqa: ASYNC110 - uvicorn does not say when it listens
            await asyncio.sleep(0.01)
    try:
        yield listener, port
    finally:
        app.may_answer.set()
        await listener.drain()


def can_connect(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_draining_finishes_the_running_response_and_accepts_no_other() -> None:
    app = SlowApp()
    async with (
        listening(app) as (listener, port),
        httpx.AsyncClient(trust_env=False, timeout=120) as client,
    ):
        running = asyncio.create_task(client.get(f"http://127.0.0.1:{port}/"))
        await app.asked.wait()
        drained = asyncio.create_task(listener.drain())
        async with asyncio.timeout(120):
            while can_connect(port):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not drained.done()
        app.may_answer.set()
        assert (await running).text == "done"
        await drained
        with pytest.raises(RuntimeError, match="has stopped"):
            listener.check_health()


async def test_a_listener_that_listens_is_healthy() -> None:
    async with listening(SlowApp()) as (listener, _):
        listener.check_health()


async def test_ingresses_share_a_port_and_a_launcher_sees_that_it_is_taken() -> None:
    async with listening(SlowApp()) as (_, port):
        bind_shared("127.0.0.1", port).close()
        with pytest.raises(ValueError, match=f"port {port} on 127.0.0.1 is in use"):
            check_port_is_free("127.0.0.1", port)


def test_the_port_of_another_program_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for attempt in (bind_shared, check_port_is_free):
            with pytest.raises(ValueError, match=f"port {port} on 127.0.0.1 is in use"):
                attempt("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot listen on 192\.0\.2\.77"):
        check_port_is_free("192.0.2.77", 8000)
