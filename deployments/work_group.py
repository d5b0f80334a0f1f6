"""Several things at once: the first error ends the others, and is raised as what it is."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def collect(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of all, in order.

    Raises:
        what one of them raises.
    """
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(work) for work in works]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [done.result() for done in running]


async def do_each(
    items: Iterable[Item], work: Callable[[Item], Awaitable[None]], *, num_at_once: int
) -> None:
    """Do it for every item, in their order, at most so many at once.

    Raises:
        what `work` raises.
    """
    waiting = iter(items)

    async def work_off() -> None:
        for item in waiting:
            await work(item)

    await collect(work_off() for _ in range(num_at_once))
