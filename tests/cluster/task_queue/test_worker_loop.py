"""Workers on a real queue: what becomes of tasks whose handlers end well, badly, or not at all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cluster.errors import NotFoundError, ServiceUnavailableError
from cluster.redis_client import connect
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.retry_policy import RetryPolicy
from cluster.task_queue.running_task import RunningTask
from cluster.task_queue.task import (
    NewTask,
    Outcome,
    Progress,
    TaskBody,
    TaskRecord,
    TaskStatus,
)
from cluster.task_queue.worker_loop import TaskWorkerLoop
from tests.cluster.task_queue.tasks import LEASE_S, SUCCESS, Count, Other, is_empty, task
from tests.redis_server import RedisServer, patient_config

Run = Callable[[Count, RunningTask], Awaitable[Outcome]]
QUICK = RetryPolicy(max_attempts=3, max_postponements=4, first_delay_s=0.001, max_delay_s=0.002)


@asynccontextmanager
async def working(
    queue: TaskQueue, run: Run, *, beat_s: float | None = None, num_workers: int | None = None
) -> AsyncIterator[TaskWorkerLoop]:
    """Leases last longer than any test; `beat_s`: where a heart-beat is what is waited for."""
    loop = TaskWorkerLoop(
        queue,
        name="w",
        num_slots=2,
        num_workers=num_workers,
        lease_s=LEASE_S,
        retries=QUICK,
    )
    loop._beat_s = beat_s or loop._beat_s
    loop.handle(Count, run)
    running = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        await loop.stop(grace_s=0)
        await running


async def end_of(queue: TaskQueue, record: TaskRecord) -> TaskRecord:
    async with asyncio.timeout(120):
        return await queue.wait_until_final(record.tenant, record.task_id)


async def test_a_handler_gets_the_body_reports_and_ends_the_task(queue: TaskQueue) -> None:
    async def run(body: Count, running: RunningTask) -> Outcome:
        await running.report(Progress(num_total=body.num_items, message="counting"))
        for number in range(body.num_items):
            await running.save_item(str(number), b"done")
        return Outcome(status=TaskStatus.SUCCEEDED, result=body.note.encode())

    record = await queue.enqueue(NewTask(tenant="a", body=Count(num_items=3, note="n")))
    async with working(queue, run):
        done = await end_of(queue, record)
    assert (done.status, done.result) == (TaskStatus.SUCCEEDED, b"n")
    assert done.progress == Progress(num_total=3, message="counting")
    assert await queue.item_ids(done.task_id) == {"0", "1", "2"}
    assert await is_empty(queue)


async def test_a_tenant_whose_tasks_last_leaves_a_slot_to_others(queue: TaskQueue) -> None:
    go_on = asyncio.Event()

    async def run(body: Count, running: RunningTask) -> Outcome:
        if running.record.tenant == "a":
            await go_on.wait()
        return SUCCESS

    lasting = [await queue.enqueue(task(tenant="a")) for _ in range(3)]
    async with working(queue, run, num_workers=1):
        short = await queue.enqueue(task(tenant="b"))
        assert (await end_of(queue, short)).status is TaskStatus.SUCCEEDED
        go_on.set()
        for record in lasting:
            assert (await end_of(queue, record)).status is TaskStatus.SUCCEEDED
    assert await is_empty(queue)


async def test_an_error_is_tried_again_and_then_becomes_a_dead_letter(queue: TaskQueue) -> None:
    async def run(body: Count, running: RunningTask) -> Outcome:
        if body.note == "twice" and running.record.num_failures == 2:
            return SUCCESS
        raise OSError("no good")

    twice = await queue.enqueue(task("twice"))
    always = await queue.enqueue(task("always"))
    async with working(queue, run):
        assert (await end_of(queue, twice)).status is TaskStatus.SUCCEEDED
        dead = await end_of(queue, always)
    assert (dead.status, dead.is_dead, dead.num_attempts) == (TaskStatus.FAILED, True, 3)
    assert dead.error == "OSError: no good"
    page = await queue.dead_letters()
    assert [record.task_id for record in page.records] == [always.task_id]


async def test_what_a_tenant_can_mend_fails_at_once_and_is_no_dead_letter(queue: TaskQueue) -> None:
    async def run(body: Count, running: RunningTask) -> Outcome:
        raise NotFoundError("There is no bucket 'b'.")

    record = await queue.enqueue(task())
    async with working(queue, run):
        failed = await end_of(queue, record)
    assert (failed.status, failed.is_dead) == (TaskStatus.FAILED, False)
    assert (failed.num_attempts, failed.error) == (1, "There is no bucket 'b'.")


async def test_what_does_not_answer_is_waited_for_and_not_counted_as_failure(
    queue: TaskQueue,
) -> None:
    async def run(body: Count, running: RunningTask) -> Outcome:
        if body.note == "soon" and running.record.num_postponed == 2:
            return SUCCESS
        raise ServiceUnavailableError("No replica answers.")

    soon, never = await queue.enqueue(task("soon")), await queue.enqueue(task("never"))
    async with working(queue, run):
        ended = await end_of(queue, soon)
        dead = await end_of(queue, never)
    assert (ended.status, ended.num_failures) == (TaskStatus.SUCCEEDED, 0)
    assert (dead.is_dead, dead.num_attempts, dead.error) == (True, 4, "No replica answers.")


async def test_a_running_task_is_cancelled(queue: TaskQueue) -> None:
    has_started, was_cancelled = asyncio.Event(), asyncio.Event()

    async def run(body: Count, running: RunningTask) -> Outcome:
        has_started.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()
        return SUCCESS

    record = await queue.enqueue(task())
    async with working(queue, run, beat_s=0.02):
        await has_started.wait()
        await queue.cancel("a", record.task_id)
        assert (await end_of(queue, record)).status is TaskStatus.CANCELLED
    assert was_cancelled.is_set()
    assert await is_empty(queue)


async def test_a_handler_that_reports_hears_of_a_cancel_at_once(queue: TaskQueue) -> None:
    has_started, go_on = asyncio.Event(), asyncio.Event()

    async def run(body: Count, running: RunningTask) -> Outcome:
        has_started.set()
        await go_on.wait()
        await running.report(Progress(num_done=1))
        await asyncio.Event().wait()
        return SUCCESS

    record = await queue.enqueue(task())
    async with working(queue, run):
        await has_started.wait()
        await queue.cancel("a", record.task_id)
        go_on.set()
        assert (await end_of(queue, record)).status is TaskStatus.CANCELLED


async def test_a_handler_that_asks_before_its_last_step_does_not_do_it_in_vain(
    queue: TaskQueue,
) -> None:
    has_started, go_on = asyncio.Event(), asyncio.Event()
    took_the_step = False

    async def run(body: Count, running: RunningTask) -> Outcome:
        nonlocal took_the_step
        await running.ensure_wanted()
        has_started.set()
        await go_on.wait()
        await running.ensure_wanted()
        took_the_step = True
        return SUCCESS

    record = await queue.enqueue(task())
    async with working(queue, run):
        await has_started.wait()
        await queue.cancel("a", record.task_id)
        go_on.set()
        assert (await end_of(queue, record)).status is TaskStatus.CANCELLED
    assert not took_the_step


async def test_a_loop_that_stops_lets_tasks_end_within_the_time(queue: TaskQueue) -> None:
    has_started, go_on = asyncio.Event(), asyncio.Event()

    async def run(body: Count, running: RunningTask) -> Outcome:
        has_started.set()
        await go_on.wait()
        return SUCCESS

    record = await queue.enqueue(task())
    async with working(queue, run) as loop:
        await has_started.wait()
        stopping = asyncio.create_task(loop.stop(grace_s=60))
        await asyncio.sleep(0)
        later = await queue.enqueue(task())
        go_on.set()
        await stopping
        assert loop.num_running == 0
    assert (await queue.get("a", record.task_id)).status is TaskStatus.SUCCEEDED
    assert (await queue.get("a", later.task_id)).status is TaskStatus.QUEUED


async def test_a_loop_that_must_end_gives_back_what_it_has(queue: TaskQueue) -> None:
    has_started = asyncio.Event()

    async def run(body: Count, running: RunningTask) -> Outcome:
        has_started.set()
        await asyncio.Event().wait()
        return SUCCESS

    record = await queue.enqueue(task())
    async with working(queue, run):
        await has_started.wait()
    given_back = await queue.get("a", record.task_id)
    assert (given_back.status, given_back.num_attempts) == (TaskStatus.QUEUED, 0)

    async def finish(body: Count, running: RunningTask) -> Outcome:
        return SUCCESS

    async with working(queue, finish):
        assert (await end_of(queue, record)).status is TaskStatus.SUCCEEDED


async def test_a_handler_whose_task_another_worker_has_is_cancelled(queue: TaskQueue) -> None:
    was_cancelled = asyncio.Event()

    async def run(body: Count, running: RunningTask) -> Outcome:
        # As if this process had been frozen for longer than the lease.
        key = f"{queue.root}:task:{running.record.task_id}"
        await queue.redis.execute("HSET", key, "token", 0)
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()
        return SUCCESS

    await queue.enqueue(task())
    async with working(queue, run, beat_s=0.02), asyncio.timeout(120):
        await was_cancelled.wait()


async def test_a_type_that_a_worker_does_not_know_is_left_to_others(queue: TaskQueue) -> None:
    async def run(body: Count, running: RunningTask) -> Outcome:
        return SUCCESS

    unknown = await queue.enqueue(NewTask(tenant="a", body=Other()))
    known = await queue.enqueue(task())
    async with working(queue, run):
        await end_of(queue, known)
    left = await queue.get("a", unknown.task_id)
    assert (left.status, left.num_failures) == (TaskStatus.QUEUED, 0)
    assert "does not know tasks of type 'other'" in left.error


class OldCount(TaskBody, tag="count"):
    """As another version of the program wrote it."""

    num_items: str


async def test_a_body_that_cannot_be_read_is_a_dead_letter_at_once(queue: TaskQueue) -> None:
    async def run(body: Count, running: RunningTask) -> Outcome:
        return SUCCESS

    record = await queue.enqueue(NewTask(tenant="a", body=OldCount(num_items="three")))
    async with working(queue, run):
        dead = await end_of(queue, record)
    assert (dead.is_dead, dead.num_attempts) == (True, 1)
    assert "num_items" in dead.error


async def test_workers_wait_for_a_server_that_is_away_and_record_what_they_did(
    breakable_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    has_started, go_on = asyncio.Event(), asyncio.Event()
    num_runs = 0

    async def run(body: Count, running: RunningTask) -> Outcome:
        nonlocal num_runs
        num_runs += 1
        has_started.set()
        await go_on.wait()
        return SUCCESS

    server = breakable_redis_server
    async with connect(patient_config(server.url)) as redis:
        queue = TaskQueue(redis)
        record = await queue.enqueue(task())
        async with working(queue, run):
            await has_started.wait()
            server.kill()
            go_on.set()
            with pytest.raises(ServiceUnavailableError):
                await queue.get("a", record.task_id)
            server.start()
            assert (await end_of(queue, record)).status is TaskStatus.SUCCEEDED
            second = await queue.enqueue(task())
            assert (await end_of(queue, second)).status is TaskStatus.SUCCEEDED
        assert num_runs == 2
        assert await is_empty(queue)


def test_delays_grow_to_a_limit_and_differ() -> None:
    policy = RetryPolicy(first_delay_s=1, max_delay_s=60)
    for num_before, longest_s in [(0, 1), (1, 2), (5, 32), (6, 60), (1000, 60)]:
        delays = {policy.delay_s(num_before) for _ in range(20)}
        assert len(delays) > 1
        assert all(longest_s / 2 <= delay_s <= longest_s for delay_s in delays)
