"""An event loop's time that stands still until it is moved on: what has to happen at a deadline,
and not after it, can be seen on a machine of any speed.
"""

import asyncio
from collections.abc import Callable
from typing import Self

import pytest

_STEP_S = 0.05


class StoppedClock:
    """Of the running loop, inside of `with`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._now_s = self._loop.time()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        self._patch.setattr(self._loop, "time", lambda: self._now_s)
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def move_on(self, seconds: float) -> None:
        self._now_s += seconds

    async def pass_until(self, is_so: Callable[[], bool]) -> None:
        """Time goes by, quickly, for what is read from sockets meanwhile."""
        while not is_so():
            self.move_on(_STEP_S)
            await asyncio.sleep(0)
