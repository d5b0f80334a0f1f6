"""Work beside an event loop or a stepping engine, on a thread that is gone afterwards."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def submit_in_passing(
    name: str, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> "Future[Result]":
    """Start `work`. `name`: the thread's, for whoever looks at them.

    With the thread go the OpenMP threads that its tensor operations were given, which is why
    checkpoints are read like this: while a process has more of those than cores, each that waits
    for another at a barrier goes to sleep at once, which cost 4 of the 16 ms of a small model's
    step. (Pools, and `asyncio.to_thread`, keep their threads.)
    """
    threads = ThreadPoolExecutor(1, thread_name_prefix=name)
    future = threads.submit(work, *args, **kwargs)
    threads.shutdown(wait=False)  # takes nothing more; the thread ends with its work
    return future


async def run_in_passing(
    name: str, work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """What `work` returns or raises; see `submit_in_passing`."""
    return await asyncio.wrap_future(submit_in_passing(name, work, *args, **kwargs))
