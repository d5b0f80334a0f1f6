"""Calls of many callers on one thread: order, bounds, failures, and callers who leave."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest

from cluster.errors import InternalError, TooManyRequestsError
from cluster.retrieval import InputKind
from deployments.embedding_queue import EmbeddingQueue
from tests.deployments.embedding_fakes import FakeComputer, Row

QUERY, PLAIN, PASSAGE = InputKind.QUERY, InputKind.PLAIN, InputKind.PASSAGE


@asynccontextmanager
async def running(
    computer: FakeComputer, *, max_queued_tokens: int = 100_000
) -> AsyncIterator[EmbeddingQueue]:
    queue = EmbeddingQueue(computer, max_queued_tokens=max_queued_tokens, clock=computer.clock)
    queue.start()
    try:
        yield queue
    finally:
        computer.open()
        await queue.stop()


async def embed(queue: EmbeddingQueue, kind: InputKind, rows: Sequence[Row]) -> list[list[float]]:
    with queue.admit(kind, num_tokens=sum(map(len, rows))) as call:
        vectors: list[list[float]] = (await call.compute(rows)).tolist()
        return vectors


def rows_of(first: int, count: int, length: int) -> list[list[int]]:
    return [[first + index] * length for index in range(count)]


async def test_each_call_gets_its_vectors_in_the_order_of_its_rows() -> None:
    async with running(FakeComputer(max_tokens=64, step_tokens=16)) as queue:
        calls = [
            [[100 * number + index] * (1 + (7 * index) % 40) for index in range(20)]
            for number in range(8)
        ]
        found = await asyncio.gather(
            *(embed(queue, list(InputKind)[number % 3], rows) for number, rows in enumerate(calls))
        )
        assert found == [[[row[0], len(row)] for row in rows] for rows in calls]
        assert queue.num_queued_tokens == 0


async def test_a_query_waits_for_one_batch_of_passages_at_most() -> None:
    computer = FakeComputer(max_tokens=64)
    computer.hold()
    async with running(computer) as queue:
        bulk = asyncio.create_task(embed(queue, PASSAGE, rows_of(0, 20, 64)))
        await computer.batch_has_started()
        query = asyncio.create_task(embed(queue, QUERY, [[777] * 8]))
        await asyncio.sleep(0)  # the query is in its lane
        computer.let_pass()
        assert await computer.batch_has_started() == [[777] * 8]
        computer.let_pass()
        assert await query == [[777, 8]]
        assert not bulk.done()
        computer.open()
        assert len(await bulk) == 20


async def test_batches_take_about_a_tenth_of_a_second_however_slow_the_model() -> None:
    computer = FakeComputer(max_tokens=2048)
    computer.tokens_per_s = 2560.0
    async with running(computer) as queue:
        await embed(queue, PASSAGE, rows_of(0, 400, 64))
        assert [len(rows) for rows in computer.batches[-10:]] == [4] * 10  # 256 tokens
        assert len(computer.batches[0]) > 4
        assert queue.queued_s == 0
        computer.tokens_per_s = 1e6
        await embed(queue, PASSAGE, rows_of(0, 4000, 64))
        assert max(len(rows) for rows in computer.batches[-50:]) == 32  # the model's own limit


# Callers who leave.


async def test_a_cancelled_call_is_not_computed_any_further() -> None:
    computer = FakeComputer(max_tokens=64)
    computer.hold()
    async with running(computer) as queue:
        bulk = asyncio.create_task(embed(queue, PASSAGE, rows_of(0, 20, 64)))
        await computer.batch_has_started()
        other = asyncio.create_task(embed(queue, PASSAGE, [[500] * 64]))
        await asyncio.sleep(0)
        assert queue.num_queued_tokens == 21 * 64
        bulk.cancel()
        await asyncio.gather(bulk, return_exceptions=True)
        assert queue.num_queued_tokens == 64
        computer.open()
        assert await other == [[500, 64]]
        assert len(computer.batches) == 2


async def test_a_queue_drains_when_the_last_caller_has_left() -> None:
    computer = FakeComputer()
    computer.hold()
    async with running(computer) as queue:
        call = asyncio.create_task(embed(queue, QUERY, [[1] * 8]))
        await computer.batch_has_started()
        drained = asyncio.create_task(queue.drain())
        await asyncio.sleep(0)
        assert not drained.done()
        computer.open()
        await drained
        assert await call == [[1, 8]]


# Bounds.


async def test_too_much_at_once_is_refused_with_a_time_to_come_back() -> None:
    computer = FakeComputer(max_tokens=64)
    computer.hold()
    computer.tokens_per_s = 100.0
    async with running(computer, max_queued_tokens=1000) as queue:
        bulk = asyncio.create_task(embed(queue, PASSAGE, rows_of(0, 14, 64)))
        await computer.batch_has_started()
        with pytest.raises(TooManyRequestsError, match=r"896 tokens wait .* 128 .* 1000") as caught:
            await embed(queue, PASSAGE, rows_of(0, 2, 64))
        assert caught.value.retry_after_s is not None
        assert 1 <= caught.value.retry_after_s <= 60
        allowed = asyncio.create_task(embed(queue, PASSAGE, rows_of(0, 1, 64)))
        computer.open()
        await asyncio.gather(bulk, allowed)
        assert await embed(queue, PASSAGE, rows_of(0, 2, 64)) == [[0, 64], [1, 64]]


async def test_passages_do_not_keep_queries_out_of_the_queue() -> None:
    computer = FakeComputer(max_tokens=64)
    computer.hold()
    async with running(computer, max_queued_tokens=1000) as queue:
        bulk = asyncio.create_task(embed(queue, PASSAGE, rows_of(0, 15, 64)))
        await computer.batch_has_started()
        query = asyncio.create_task(embed(queue, QUERY, rows_of(0, 2, 64)))
        plain = asyncio.create_task(embed(queue, PLAIN, rows_of(0, 2, 64)))
        computer.open()
        await asyncio.gather(bulk, query, plain)


async def test_a_call_larger_than_the_whole_queue_is_taken_when_nothing_waits() -> None:
    async with running(FakeComputer(), max_queued_tokens=100) as queue:
        assert len(await embed(queue, PASSAGE, rows_of(0, 10, 64))) == 10


# Failures.


async def test_a_failed_batch_fails_its_calls_and_no_others() -> None:
    computer = FakeComputer(max_tokens=64)
    async with running(computer) as queue:
        computer.errors = [RuntimeError("out of memory: secret details")]
        with pytest.raises(InternalError) as caught:
            await embed(queue, PLAIN, rows_of(0, 5, 64))
        assert "secret" not in str(caught.value)
        assert await embed(queue, PLAIN, [[9] * 8]) == [[9, 8]]
        assert queue.num_queued_tokens == 0
        queue.check_health()


async def test_a_device_that_fails_again_and_again_is_not_healthy() -> None:
    computer = FakeComputer()
    async with running(computer) as queue:
        computer.errors = [RuntimeError("device")] * 3
        for _ in range(3):
            with pytest.raises(InternalError):
                await embed(queue, PLAIN, [[1] * 8])
        with pytest.raises(RuntimeError, match="3 batches failed one after the other"):
            queue.check_health()
        assert await embed(queue, PLAIN, [[1] * 8]) == [[1, 8]]
        queue.check_health()


async def test_numbers_that_are_not_finite_fail_only_their_own_call() -> None:
    class Overflowing(FakeComputer):
        def compute(self, rows, shape):  # type: ignore[no-untyped-def]
            vectors = super().compute(rows, shape)
            vectors[vectors[:, 0] == 13] = np.inf
            return vectors

    computer = Overflowing(step_tokens=64)
    computer.hold()
    async with running(computer) as queue:
        first = asyncio.create_task(embed(queue, PLAIN, [[0] * 8]))
        await computer.batch_has_started()
        bad = asyncio.create_task(embed(queue, PLAIN, [[1] * 8, [13] * 8]))
        good = asyncio.create_task(embed(queue, PLAIN, [[2] * 8]))
        await asyncio.sleep(0)
        computer.open()
        await first
        assert await good == [[2, 8]]
        with pytest.raises(InternalError, match=r"no finite numbers for input\.1"):
            await bad
        assert len(computer.batches) == 2


async def test_a_queue_that_does_not_run_is_not_healthy() -> None:
    queue = EmbeddingQueue(FakeComputer(), max_queued_tokens=100)
    with pytest.raises(RuntimeError, match="does not run"):
        queue.check_health()
    queue.start()
    queue.check_health()
    await queue.stop()
    with pytest.raises(RuntimeError, match="does not run"):
        queue.check_health()
