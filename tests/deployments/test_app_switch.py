"""Apps come and go; requests end where they began."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from deployments.app_switch import AppSwitch, Message


class Named:
    """An app that answers with its name, once it is let."""

    def __init__(self, name: str, *, starts: bool = True) -> None:
        self.name = name
        self.may_answer = asyncio.Event()
        self.has_closed = asyncio.Event()
        self.happened: list[str] = []
        self._starts = starts
        self.app = Starlette(routes=[Route("/", self._answer)], lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[None]:
        if not self._starts:
            raise ValueError("no such provider")
        self.happened.append("started")
        yield
        self.happened.append("shut down")

    async def _answer(self, _: Request) -> Response:
        await self.may_answer.wait()
        return PlainTextResponse(self.name)

    async def on_closed(self) -> None:
        self.happened.append("closed")
        self.has_closed.set()


async def get(switch: AppSwitch) -> str:
    """The body of the answer to GET /."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    await switch(scope, receive, send)
    return b"".join(message.get("body", b"") for message in sent).decode()


async def switched_to(switch: AppSwitch, name: str) -> Named:
    named = Named(name)
    await switch.switch_to(named.app, on_closed=named.on_closed)
    return named


async def test_new_requests_go_to_the_new_app_and_old_ones_end_in_the_old_one() -> None:
    switch = AppSwitch()
    old = await switched_to(switch, "old")
    running = asyncio.create_task(get(switch))
    await asyncio.sleep(0)
    new = await switched_to(switch, "new")
    new.may_answer.set()
    assert await get(switch) == "new"
    assert old.happened == ["started"]
    old.may_answer.set()
    assert await running == "old"
    await old.has_closed.wait()
    assert old.happened == ["started", "shut down", "closed"]
    await switch.close()
    assert new.happened == ["started", "shut down", "closed"]


async def test_an_app_that_does_not_start_changes_nothing() -> None:
    switch = AppSwitch()
    old = await switched_to(switch, "old")
    broken = Named("broken", starts=False)
    with pytest.raises(RuntimeError, match="no such provider"):
        await switch.switch_to(broken.app, on_closed=broken.on_closed)
    old.may_answer.set()
    assert await get(switch) == "old"
    await switch.close()
    assert broken.happened == []


async def test_closing_waits_for_all_apps() -> None:
    switch = AppSwitch()
    old = await switched_to(switch, "old")
    running = asyncio.create_task(get(switch))
    await asyncio.sleep(0)
    await switched_to(switch, "new")
    closing = asyncio.create_task(switch.close())
    await asyncio.sleep(0)
    assert not closing.done()
    old.may_answer.set()
    assert await running == "old"
    await closing
    assert old.happened[-1] == "closed"


async def test_the_listeners_own_lifespan_is_answered() -> None:
    switch = AppSwitch()
    said = iter(["lifespan.startup", "lifespan.shutdown"])
    answers: list[str] = []

    async def receive() -> Message:
        return {"type": next(said)}

    async def send(message: Message) -> None:
        answers.append(message["type"])

    await switch({"type": "lifespan"}, receive, send)
    assert answers == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
