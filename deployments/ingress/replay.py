"""A request that may be served once more, by the app that follows: its body, as far as it was read.

`app_switch` puts it into the request's scope. An app that has sent nothing yet and whose model is
being replaced by another checkpoint raises `PoolReplacedError`; the next one reads the same body.
"""

import time
from typing import Any

from starlette.types import Message, Receive

from deployments.ingress.deadline import Deadline

REPLAY_KEY = "shoal.replay"
# Requests that run models are far smaller; of others, such as uploads, nothing is kept.
MAX_KEPT_BYTES = 16 * 2**20


class Replay:
    """Receives for one app after the other."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._num_kept_bytes = 0
        self._num_given = 0  # of the kept ones, to the present app
        self._is_kept = True
        self._is_last = False
        self.started_s = time.perf_counter()
        #: By which the answer has to be complete, whoever gives it.
        self.deadline: Deadline | None = None

    @property
    def is_possible(self) -> bool:
        """Another app can serve the request, and will if this one cannot."""
        return self._is_kept and not self._is_last

    def forget(self) -> None:
        """The answer has begun: this app is the last one."""
        self._is_kept = False
        self._kept.clear()

    def begin_again(self, *, is_last: bool) -> None:
        """The next app reads from the beginning."""
        assert self._is_kept, "`is_possible` was asked"
        self._num_given, self._is_last = 0, is_last

    async def receive(self) -> Message:
        """ASGI's `receive` of the present app."""
        if self._num_given < len(self._kept):
            self._num_given += 1
            return self._kept[self._num_given - 1]
        message = await self._receive()
        if self._is_kept:
            self._keep(message)
        return message

    async def until_client_leaves(self) -> None:
        """Returns when the client has left. Nothing of its body is lost."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    def _keep(self, message: Message) -> None:
        self._kept.append(message)
        self._num_given = len(self._kept)
        self._num_kept_bytes += len(message.get("body", b""))
        if self._num_kept_bytes > MAX_KEPT_BYTES:
            self.forget()


def replay_of(scope: Any) -> Replay | None:
    """None where no app can follow."""
    replay: Replay | None = scope.get(REPLAY_KEY)
    return replay
