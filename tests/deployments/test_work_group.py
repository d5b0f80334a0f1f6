"""Several things at once: in order, bounded, and ended by the first error."""

import asyncio

import pytest

from deployments.work_group import collect, do_each


async def test_results_come_in_the_order_of_the_works() -> None:
    first_may_end = asyncio.Event()

    async def first() -> int:
        await first_may_end.wait()
        return 1

    async def second() -> int:
        first_may_end.set()
        return 2

    assert await collect([first(), second()]) == [1, 2]


async def test_the_first_error_ends_the_others_and_is_raised_as_it_is() -> None:
    was_cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    async def fail() -> None:
        raise OSError("no good")

    with pytest.raises(OSError, match="no good"):
        await collect([wait(), fail()])
    assert was_cancelled.is_set()


async def test_no_more_than_so_many_are_done_at_once() -> None:
    num_running = most = 0
    done: list[int] = []

    async def work(item: int) -> None:
        nonlocal num_running, most
        num_running += 1
        most = max(most, num_running)
        await asyncio.sleep(0)
        num_running -= 1
        done.append(item)

    await do_each(range(20), work, num_at_once=3)
    assert sorted(done) == list(range(20))
    assert most == 3
