"""One ASGI app in front of another one that is exchanged while requests run.

A request ends in the app in which it began, unless that one has sent nothing and says that a
model's checkpoint is being replaced: such requests wait for the next app, and begin again there.
The app that was there before is closed when its last request has ended.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from cluster.errors import PoolReplacedError
from deployments.ingress.replay import REPLAY_KEY, Replay

# As long as `channel_pool` lets requests wait while replicas are swapped, and as many.
MAX_WAIT_S = 300.0
MAX_WAITING = 2048

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
        self._next = asyncio.Event()  # set, and replaced, when those that wait should try again
        self._num_waiting = 0
        #: Requests that run, those that wait for the next app among them.
        self.num_open = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
            return
        self.num_open += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self.num_open -= 1

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        replay = Replay(receive)
        wait_until_s = asyncio.get_running_loop().time() + MAX_WAIT_S
        while True:
            assert self._current is not None, "the listener is started when there is an app"
            following = self._next
            # An app, or its router, may write into the scope.
            try:
                await self._current.serve({**scope, REPLAY_KEY: replay}, replay.receive, send)
            except PoolReplacedError:
                if not replay.is_possible:
                    raise
                has_next = await self._wait(following, replay, until_s=wait_until_s)
                replay.begin_again(is_last=not has_next)
            else:
                return

    def try_again(self) -> None:
        """Requests that wait for the next app begin again in the present one."""
        self._next.set()
        self._next = asyncio.Event()

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
        self.try_again()

    async def close(self) -> None:
        """When no request runs any more: close what there is."""
        if self._current is not None:
            self._close_later(self._current, self._on_closed)
            self._current = None
        while self._closing:
            await asyncio.gather(*self._closing)

    async def _wait(self, following: asyncio.Event, replay: Replay, *, until_s: float) -> bool:
        """Whether the request should begin again; else it gets its last chance to be answered."""
        if self._num_waiting >= MAX_WAITING:
            return False
        if replay.deadline is not None:
            until_s = min(until_s, replay.deadline.at_s)
        waiting = asyncio.ensure_future(following.wait())
        leaving = asyncio.ensure_future(replay.until_client_leaves())
        self._num_waiting += 1
        try:
            wait_s = until_s - asyncio.get_running_loop().time()
            await asyncio.wait(
                {waiting, leaving}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
            )
            return waiting.done()
        finally:
            self._num_waiting -= 1
            waiting.cancel()
            leaving.cancel()
            await asyncio.gather(waiting, leaving, return_exceptions=True)

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
