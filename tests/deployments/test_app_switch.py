"""Apps come and go; requests end where they began."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cluster.errors import PoolReplacedError
from deployments import app_switch as app_switch_module
from deployments.app_switch import AppSwitch, Message
from deployments.ingress.replay import replay_of


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


class Replaced:
    """Reads the body, as much of it as there is, and cannot answer; the last time it does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.was_asked = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        self.bodies.append(await read(receive))
        self.was_asked.set()
        replay = replay_of(scope)
        assert replay is not None
        if replay.is_possible:
            raise PoolReplacedError("another checkpoint")
        await answer(send, b"sorry")


class Echo:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await answer(send, b"echo " + await read(receive))


async def _lifespan(receive: Any, send: Any) -> None:
    for _ in range(2):
        await send({"type": f"{(await receive())['type']}.complete"})


async def read(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body + b" and left"
        body += message["body"]
        if not message["more_body"]:
            return body


async def answer(send: Any, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


class Client:
    """Sends two parts of a body, and may leave."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self.answer = b""
        for part in (b"one", b"two"):
            self.say({"type": "http.request", "body": part, "more_body": part == b"one"})

    def say(self, message: Message) -> None:
        self._messages.put_nowait(message)

    async def ask(self, switch: AppSwitch) -> bytes:
        async def send(message: Message) -> None:
            self.answer += message.get("body", b"")

        await switch({"type": "http", "path": "/"}, self._messages.get, send)
        return self.answer


async def test_a_request_whose_pool_is_replaced_begins_again_in_the_next_app() -> None:
    switch = AppSwitch()
    replaced = Replaced()
    await switch.switch_to(replaced, on_closed=_nothing)
    asking = asyncio.create_task(Client().ask(switch))
    await replaced.was_asked.wait()
    assert switch.num_open == 1
    await switch.switch_to(Echo(), on_closed=_nothing)
    assert await asking == b"echo onetwo"
    assert switch.num_open == 0
    assert replaced.bodies == [b"onetwo"]
    await switch.close()


async def test_it_is_asked_again_when_nothing_is_replaced_after_all() -> None:
    switch = AppSwitch()
    replaced = Replaced()
    await switch.switch_to(replaced, on_closed=_nothing)
    asking = asyncio.create_task(Client().ask(switch))
    for number in (1, 2):
        await asyncio.wait_for(replaced.was_asked.wait(), 120)
        assert replaced.bodies == [b"onetwo"] * number
        replaced.was_asked.clear()
        await asyncio.sleep(0)
        switch.try_again()
    await asyncio.wait_for(replaced.was_asked.wait(), 120)
    await switch.switch_to(Echo(), on_closed=_nothing)
    assert await asking == b"echo onetwo"
    await switch.close()


def _too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_switch_module, "MAX_WAIT_S", 0.01)


def _too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_switch_module, "MAX_WAITING", 0)


@pytest.mark.parametrize("limit", [_too_long, _too_many])
async def test_who_has_waited_too_long_or_is_too_many_is_told_by_the_app(
    monkeypatch: pytest.MonkeyPatch, limit: Callable[[pytest.MonkeyPatch], None]
) -> None:
    limit(monkeypatch)
    switch = AppSwitch()
    replaced = Replaced()
    await switch.switch_to(replaced, on_closed=_nothing)
    assert await asyncio.wait_for(Client().ask(switch), 120) == b"sorry"
    assert replaced.bodies == [b"onetwo"] * 2
    await switch.close()


async def test_who_leaves_while_waiting_is_not_waited_for() -> None:
    switch = AppSwitch()
    replaced = Replaced()
    await switch.switch_to(replaced, on_closed=_nothing)
    client = Client()
    asking = asyncio.create_task(client.ask(switch))
    await replaced.was_asked.wait()
    client.say({"type": "http.disconnect"})
    assert await asyncio.wait_for(asking, 120) == b"sorry"  # sent to nobody
    await switch.close()


async def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    async def begins(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        replay = replay_of(scope)
        assert replay is not None
        replay.forget()
        await answer(send, b"half")
        raise PoolReplacedError("too late")

    switch = AppSwitch()
    await switch.switch_to(begins, on_closed=_nothing)
    with pytest.raises(PoolReplacedError):
        await asyncio.wait_for(Client().ask(switch), 120)
    await switch.close()


async def _nothing() -> None:
    return
