"""`x-request-timeout`: how long a client waits for its answer, in the queue and midway."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import TypeVar

from starlette.types import Scope

from cluster.errors import DeadlineExceededError, FieldProblem, ValidationError

T = TypeVar("T")

HEADER = "x-request-timeout"
MAX_TIMEOUT_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment by the running loop's clock, and the seconds that it was asked for in."""

    at_s: float
    timeout_s: float

    @classmethod
    def of(cls, scope: Scope) -> "Deadline | None":
        """What a request's header says; the time begins now.

        Raises:
            ValidationError: it is not a positive number of seconds.
        """
        given = dict(scope["headers"]).get(HEADER.encode())
        if given is None:
            return None
        text = given.decode("latin-1")
        try:
            timeout_s = float(text)
        except ValueError:
            timeout_s = math.nan
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            problem = FieldProblem(
                loc=(HEADER,),
                message=f"must be a number of seconds above 0 and at most {MAX_TIMEOUT_S:.0f}, "
                f"not {text[:64]!r}",
                place="header",
            )
            raise ValidationError([problem])
        return cls(asyncio.get_running_loop().time() + timeout_s, timeout_s)

    async def bound(self, awaitable: Awaitable[T]) -> T:
        """
        Raises:
            DeadlineExceededError: there was no result in time; the work is cancelled.
            what the awaitable raises.
        """
        try:
            async with asyncio.timeout_at(self.at_s):
                return await awaitable
        except TimeoutError as error:
            raise self._is_over() from error

    def check(self) -> None:
        """
        Raises:
            DeadlineExceededError: it is over already.
        """
        if asyncio.get_running_loop().time() >= self.at_s:
            raise self._is_over()

    def _is_over(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            f"The answer was not complete within the {self.timeout_s:g} seconds that "
            f"{HEADER} allows."
        )


async def bounded(deadline: Deadline | None, awaitable: Awaitable[T]) -> T:
    """The result, by the deadline if there is one; raises as `Deadline.bound`."""
    return await (awaitable if deadline is None else deadline.bound(awaitable))


async def until(deadline: Deadline | None, items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """The items that come by the deadline; raises as `Deadline.bound`."""
    if deadline is None:
        async for item in items:
            yield item
        return
    while True:
        try:
            item = await deadline.bound(anext(items))
        except StopAsyncIteration:
            return
        yield item
