"""One ASGI app in front of another one that is exchanged while requests run.

A request ends in the app in which it began. The app that was there before is closed when its last
request has ended.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

Message = MutableMapping[str, Any]
ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]
OnClosed = Callable[[], Awaitable[None]]


class RunningApp:
    """An app between its startup and its shutdown, which are ASGI's lifespan."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self._lifespan: asyncio.Task[None] | None = None
        self._num_open = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self) -> None:
        """
        Raises:
            RuntimeError: the app does not start.
        """
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._lifespan = asyncio.ensure_future(
            self._app(scope, self._to_app.get, self._from_app.put)
        )
        await self._say("lifespan.startup")

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        self._num_open += 1
        self._idle.clear()
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_open -= 1
            if self._num_open == 0:
                self._idle.set()

    async def close(self) -> None:
        """Wait for the running requests, then shut down."""
        await self._idle.wait()
        if self._lifespan is not None and not self._lifespan.done():
            await self._say("lifespan.shutdown")
            await self._lifespan

    async def _say(self, message_type: str) -> None:
        assert self._lifespan is not None, "the app was started"
        self._to_app.put_nowait({"type": message_type})
        answering = asyncio.ensure_future(self._from_app.get())
        try:
            await asyncio.wait({answering, self._lifespan}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                await self._lifespan  # raises what went wrong
                raise RuntimeError(f"the app has ended instead of answering {message_type}")
            answer = answering.result()
        finally:
            answering.cancel()
        if answer["type"] != f"{message_type}.complete":
            raise RuntimeError(str(answer.get("message", answer["type"])))


class AppSwitch:
    """An ASGI app: the one that is switched on."""

    def __init__(self) -> None:
        self._current: RunningApp | None = None
        self._on_closed: OnClosed = _nothing_to_do
        self._closing: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
            return
        assert self._current is not None, "the listener is started when there is an app"
        await self._current.serve(scope, receive, send)

    async def switch_to(self, app: ASGIApp, *, on_closed: OnClosed) -> None:
        """From now on requests go to this app.

        `on_closed` is called when the app itself has been replaced and its last request has ended.

        Raises:
            RuntimeError: the app does not start; everything stays as it is.
        """
        running = RunningApp(app)
        await running.start()
        previous, self._current = self._current, running
        if previous is not None:
            self._close_later(previous, self._on_closed)
        self._on_closed = on_closed

    async def close(self) -> None:
        """When no request runs any more: close what there is."""
        if self._current is not None:
            self._close_later(self._current, self._on_closed)
            self._current = None
        while self._closing:
            await asyncio.gather(*self._closing)

    def _close_later(self, app: RunningApp, on_closed: OnClosed) -> None:
        async def close() -> None:
            await app.close()
            await on_closed()

        closing = asyncio.create_task(close(), name="closing a replaced app")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


async def _nothing_to_do() -> None:
    return


async def _answer_lifespan(receive: Any, send: Any) -> None:
    """The listener's own: apps come and go within it."""
    with suppress(asyncio.CancelledError):
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
