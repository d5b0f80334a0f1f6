"""The durable queue on a real server: order, fairness, leases, and what its users see."""

import asyncio

import msgspec
import pytest

from cluster.config import RedisConfig
from cluster.errors import NotFoundError, ValidationError
from cluster.redis_client import connect
from cluster.task_queue.leases import Nothing
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.task import (
    LeaseLostError,
    NewTask,
    Outcome,
    Progress,
    TaskPriority,
    TaskStatus,
)
from tests.cluster.task_queue.tasks import (
    COUNT,
    SUCCESS,
    Count,
    Other,
    claim,
    end_leases,
    is_empty,
    leases,
    note_of,
    run_all,
    task,
)


async def test_a_task_goes_through_its_life(queue: TaskQueue) -> None:
    queued = await queue.enqueue(task("first", tenant="acme"))
    assert (queued.status, queued.tenant, queued.task_type) == (TaskStatus.QUEUED, "acme", COUNT)
    worker = leases(queue)
    lease = await claim(worker)
    assert (lease.record.task_id, lease.record.status) == (queued.task_id, TaskStatus.RUNNING)
    await worker.report(lease, Progress(num_total=7, num_done=3, num_failed=1, message="half"))
    running = await queue.get("acme", queued.task_id)
    assert running.progress == Progress(num_total=7, num_done=3, num_failed=1, message="half")
    assert running.started_at is not None
    assert running.finished_at is None
    await worker.finish(lease, Outcome(status=TaskStatus.PARTLY_SUCCEEDED, result=b'{"n":6}'))
    done = await queue.get("acme", queued.task_id)
    assert (done.status, done.result) == (TaskStatus.PARTLY_SUCCEEDED, b'{"n":6}')
    assert done.finished_at is not None
    assert done.created_at <= done.started_at <= done.finished_at  # type: ignore[operator]
    assert await is_empty(queue)


async def test_tasks_of_one_tenant_come_in_order_and_higher_priorities_first(
    queue: TaskQueue,
) -> None:
    for note, priority in [("1", 2), ("2", 2), ("3", 1), ("4", 0), ("5", 1), ("6", 0)]:
        await queue.enqueue(task(note, priority=TaskPriority(priority)))
    assert await run_all(queue) == ["4", "6", "3", "5", "1", "2"]
    assert await is_empty(queue)


async def test_a_thousand_tasks_of_a_tenant_delay_anothers_single_one_by_one_at_most(
    queue: TaskQueue,
) -> None:
    await asyncio.gather(*(queue.enqueue(task("a", tenant="a")) for _ in range(1000)))
    worker = leases(queue)
    first = await claim(worker)
    await queue.enqueue(task("b", tenant="b"))
    await worker.finish(first, SUCCESS)
    notes = []
    for _ in range(4):
        lease = await claim(worker)
        notes.append(note_of(lease.record))
        await worker.finish(lease, SUCCESS)
    assert notes == ["a", "b", "a", "a"]


async def test_tenants_take_turns(queue: TaskQueue) -> None:
    for tenant in "abc":
        for number in range(3):
            await queue.enqueue(task(f"{tenant}{number}", tenant=tenant))
    assert await run_all(queue) == ["a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2"]


async def test_a_tenant_with_as_many_running_as_it_may_waits_for_an_end_and_others_do_not(
    queue: TaskQueue,
) -> None:
    worker = leases(queue, max_running_per_tenant=2)
    for number in range(3):
        await queue.enqueue(task(f"a{number}"))
    running = [await claim(worker) for _ in range(2)]
    nothing = await worker.claim()
    assert isinstance(nothing, Nothing)
    await queue.enqueue(task("a3"))
    await queue.enqueue(task("a4", priority=TaskPriority.HIGH))
    assert isinstance(await worker.claim(), Nothing)
    await queue.enqueue(task("b0", tenant="b"))
    assert note_of((await claim(worker)).record) == "b0"
    nothing = await worker.claim()
    assert isinstance(nothing, Nothing)
    waiting = asyncio.create_task(worker.wait_for_work(nothing))
    await worker.finish(running[0], SUCCESS)
    await waiting  # the end is told to who waits
    assert note_of((await claim(worker)).record) == "a4"
    assert isinstance(await worker.claim(), Nothing)
    await worker.give_back(running[1])
    assert note_of((await claim(worker)).record) == "a2"  # whose turn came with the place
    assert isinstance(await worker.claim(), Nothing)


async def test_a_lease_that_is_over_goes_to_another_and_the_first_is_fenced_off(
    queue: TaskQueue,
) -> None:
    await queue.enqueue(task("x"))
    slow, quick = leases(queue, lease_s=0.05), leases(queue, lease_s=0.05)
    old = await claim(slow)
    await slow.save_items(old, {"1": b"old"})
    nothing = await quick.claim()
    while isinstance(nothing, Nothing):
        await quick.wait_for_work(nothing)
        nothing = await quick.claim()
    new = nothing
    assert new.token > old.token
    assert (new.record.num_attempts, new.record.num_losses) == (2, 1)
    for write in (
        slow.heart_beat(old),
        slow.report(old, Progress()),
        slow.save_items(old, {"2": b"old"}),
        slow.finish(old, SUCCESS),
        slow.retry(old, delay_s=0, error="", is_failure=True),
        slow.give_back(old),
    ):
        with pytest.raises(LeaseLostError, match=new.record.task_id):
            await write
    await quick.save_items(new, {"1": b"new", "2": b"new"})
    await quick.finish(new, SUCCESS)
    assert await queue.items(new.record.task_id) == {"1": b"old", "2": b"new"}
    assert await queue.item_ids(new.record.task_id) == {"1", "2"}
    assert await is_empty(queue)


async def test_heart_beats_keep_a_lease(queue: TaskQueue) -> None:
    """Time is moved by making what is stored older."""
    await queue.enqueue(task("x"))
    worker, other = leases(queue), leases(queue)
    lease = await claim(worker)
    for _ in range(3):
        await end_leases(queue)
        await worker.heart_beat(lease)
        assert isinstance(await other.claim(), Nothing)
    await end_leases(queue)
    assert (await claim(other)).record.task_id == lease.record.task_id


async def test_a_write_whose_reply_was_lost_may_be_made_again(queue: TaskQueue) -> None:
    record = await queue.enqueue(task("x"))
    worker = leases(queue)
    lease = await claim(worker)
    for _ in range(2):
        await worker.retry(lease, delay_s=0, error="once", is_failure=True)
    again = await claim(worker)
    assert again.record.num_failures == 1
    for _ in range(2):
        await worker.give_back(again)
    third = await claim(worker)
    assert third.record.num_attempts == 2
    for _ in range(2):
        await worker.finish(third, SUCCESS)
    assert (await queue.get("a", record.task_id)).status is TaskStatus.SUCCEEDED
    assert (await queue.counts())[TaskStatus.SUCCEEDED] == 1


async def test_a_task_whose_workers_keep_dying_becomes_a_dead_letter(queue: TaskQueue) -> None:
    record = await queue.enqueue(task("poison"))
    worker = leases(queue, lease_s=0.001, max_losses=2)
    for _ in range(3):
        await claim(worker)
        await asyncio.sleep(0.003)  # its lease is over
    assert isinstance(await worker.claim(), Nothing)
    dead = await queue.get("a", record.task_id)
    assert (dead.status, dead.is_dead, dead.num_attempts) == (TaskStatus.FAILED, True, 3)
    assert "died or froze 3 times" in dead.error
    assert await is_empty(queue)


async def test_dead_letters_are_listed_and_played_again(queue: TaskQueue) -> None:
    worker = leases(queue)
    ids = []
    for note in "xyz":
        ids.append((await queue.enqueue(task(note, tenant=note))).task_id)
        failed = Outcome(status=TaskStatus.FAILED, error=f"no {note}")
        await worker.finish(await claim(worker), failed, is_dead=True)
    page = await queue.dead_letters(limit=2)
    assert page.num_total == 3
    assert {record.error for record in page.records} <= {"no x", "no y", "no z"}
    again = await queue.replay(ids[0])
    assert (again.status, again.is_dead, again.num_failures) == (TaskStatus.QUEUED, False, 0)
    with pytest.raises(NotFoundError, match="no dead letter"):
        await queue.replay(ids[0])
    assert await run_all(queue) == ["x"]
    assert (await queue.dead_letters()).num_total == 2


async def test_a_delayed_task_wakes_the_worker_when_it_is_due(queue: TaskQueue) -> None:
    await queue.enqueue(task("later", delay_s=600))
    worker = leases(queue)
    claimed = await worker.claim()
    assert isinstance(claimed, Nothing)
    assert claimed.due_in_s is not None
    assert 0 < claimed.due_in_s <= 600
    await queue.enqueue(task("soon", delay_s=0.05))
    async with asyncio.timeout(120):
        while isinstance(claimed := await worker.claim(), Nothing):
            assert claimed.due_in_s is not None
            assert claimed.due_in_s <= 0.05
            await worker.wait_for_work(claimed)
    assert note_of(claimed.record) == "soon"


async def test_a_task_that_is_delayed_while_a_worker_waits_is_not_overslept(
    queue: TaskQueue,
) -> None:
    worker = leases(queue)
    nothing = await worker.claim()
    assert isinstance(nothing, Nothing)
    waiting = asyncio.create_task(worker.wait_for_work(nothing))
    await queue.enqueue(task("later", delay_s=0.05))
    async with asyncio.timeout(120):
        await waiting
        nothing = await worker.claim()
        while isinstance(nothing, Nothing):
            await worker.wait_for_work(nothing)
            nothing = await worker.claim()


async def test_a_new_task_wakes_a_worker_that_waits(queue: TaskQueue) -> None:
    worker = leases(queue)
    nothing = await worker.claim()
    assert isinstance(nothing, Nothing)
    waiting = asyncio.create_task(worker.wait_for_work(nothing))
    await queue.enqueue(task("x"))
    async with asyncio.timeout(120):
        await waiting
    await queue.enqueue(task("y"))
    async with asyncio.timeout(120):  # what came between the claim and the wait is not missed
        await worker.wait_for_work(nothing)


async def test_tasks_of_a_lane_run_one_at_a_time_in_their_order(queue: TaskQueue) -> None:
    for note in ("1", "2", "3"):
        await queue.enqueue(task(note, lane="bucket"))
    await queue.enqueue(task("free", tenant="b"))
    worker = leases(queue)
    first = await claim(worker)
    assert note_of(first.record) == "1"
    assert note_of((await claim(worker)).record) == "free"
    assert isinstance(await worker.claim(), Nothing)
    await worker.retry(first, delay_s=0.01, error="again", is_failure=True)
    nothing = await worker.claim()
    while isinstance(nothing, Nothing):  # the lane stays with a task that will be tried again
        await worker.wait_for_work(nothing)
        nothing = await worker.claim()
    assert note_of(nothing.record) == "1"
    await queue.enqueue(task("4", lane="bucket"))
    await worker.finish(nothing, SUCCESS)
    assert await run_all(queue) == ["2", "3", "4"]


async def test_a_cancelled_task_leaves_its_lane(queue: TaskQueue) -> None:
    ids = [(await queue.enqueue(task(note, lane="bucket"))).task_id for note in "1234"]
    worker = leases(queue)
    lease = await claim(worker)
    assert isinstance(await worker.claim(), Nothing)  # the others have been parked
    await queue.cancel("a", ids[1])
    await worker.finish(lease, SUCCESS)  # the lane goes to the third
    await queue.cancel("a", ids[2])
    assert await run_all(queue) == ["4"]
    assert await is_empty(queue)


async def test_a_queued_task_is_cancelled_at_once(queue: TaskQueue) -> None:
    ids = [(await queue.enqueue(task(note))).task_id for note in "xyz"]
    delayed = await queue.enqueue(task("later", delay_s=60))
    for task_id in (ids[1], delayed.task_id):
        assert (await queue.cancel("a", task_id)).status is TaskStatus.CANCELLED
    assert await run_all(queue) == ["x", "z"]
    assert await is_empty(queue)


async def test_who_works_on_a_cancelled_task_hears_of_it(queue: TaskQueue) -> None:
    record = await queue.enqueue(task("x"))
    worker = leases(queue)
    lease = await claim(worker)
    assert not await worker.heart_beat(lease)
    cancelled = await queue.cancel("a", record.task_id)
    assert (cancelled.status, cancelled.is_cancel_requested) == (TaskStatus.RUNNING, True)
    assert await worker.heart_beat(lease)
    assert await worker.report(lease, Progress())
    assert await worker.save_items(lease, {"1": b""})
    await worker.retry(lease, delay_s=0, error="", is_failure=True)  # not any more
    assert (await queue.get("a", record.task_id)).status is TaskStatus.CANCELLED
    assert await is_empty(queue)


async def test_a_cancelled_task_whose_worker_died_is_not_started_again(queue: TaskQueue) -> None:
    record = await queue.enqueue(task("x"))
    worker = leases(queue, lease_s=0.001)
    await claim(worker)
    await queue.cancel("a", record.task_id)
    await asyncio.sleep(0.005)
    assert isinstance(await worker.claim(), Nothing)
    assert (await queue.get("a", record.task_id)).status is TaskStatus.CANCELLED
    assert await is_empty(queue)


async def test_the_same_key_and_body_is_the_same_task(queue: TaskQueue) -> None:
    first = await queue.enqueue(task("x", idempotency_key="k"))
    assert await queue.enqueue(task("x", idempotency_key="k")) == first
    assert await run_all(queue) == ["x"]
    again = await queue.enqueue(task("x", idempotency_key="k"))
    assert (again.task_id, again.status) == (first.task_id, TaskStatus.SUCCEEDED)
    other_tenant = await queue.enqueue(task("x", idempotency_key="k", tenant="b"))
    assert other_tenant.task_id != first.task_id


async def test_the_same_key_and_another_body_is_refused_by_name(queue: TaskQueue) -> None:
    first = await queue.enqueue(task("x", idempotency_key="k" * 3000))
    for body in (Count(note="y"), Other()):
        with pytest.raises(ValidationError) as caught:
            await queue.enqueue(NewTask(tenant="a", body=body, idempotency_key="k" * 3000))
        (problem,) = caught.value.body()["detail"]  # type: ignore[misc]
        assert problem["loc"] == ["header", "Idempotency-Key"]
        assert first.task_id in problem["msg"]


async def test_tasks_that_have_not_started_coalesce(queue: TaskQueue) -> None:
    first = await queue.enqueue(task("x", coalesce_key="sync bucket", delay_s=0.001))
    assert (await queue.enqueue(task("x", coalesce_key="sync bucket"))).task_id == first.task_id
    await asyncio.sleep(0.003)
    worker = leases(queue)
    lease = await claim(worker)
    second = await queue.enqueue(task("x", coalesce_key="sync bucket"))
    assert second.task_id != first.task_id
    await queue.cancel("a", second.task_id)
    third = await queue.enqueue(task("x", coalesce_key="sync bucket"))
    assert third.task_id != second.task_id
    await worker.finish(lease, SUCCESS)
    assert await run_all(queue) == ["x"]


async def test_lists_are_per_tenant_type_and_status_and_have_pages(queue: TaskQueue) -> None:
    for number in range(5):
        await queue.enqueue(task(str(number)))
        await asyncio.sleep(0.002)  # the list is ordered by the millisecond
    await queue.enqueue(NewTask(tenant="a", body=Other()))
    await queue.enqueue(task("foreign", tenant="b"))
    worker = leases(queue)
    await worker.finish(await claim(worker), SUCCESS)
    both = [TaskStatus.QUEUED, TaskStatus.SUCCEEDED]
    page = await queue.find("a", [COUNT], both, offset=1, limit=3)
    assert [note_of(record) for record in page.records] == ["3", "2", "1"]
    assert page.num_total == 5
    queued = await queue.find("a", [COUNT], [TaskStatus.QUEUED])
    assert [note_of(record) for record in queued.records] == ["4", "3", "2", "1"]
    assert (await queue.find("a", ["other", COUNT], both)).num_total == 6
    assert (await queue.find("c", [COUNT], both)).records == []


async def test_another_tenant_does_not_find_a_task(queue: TaskQueue) -> None:
    record = await queue.enqueue(task("x", tenant="a"))
    for ask in (queue.get, queue.cancel):
        with pytest.raises(NotFoundError, match=record.task_id):
            await ask("b", record.task_id)


async def test_finished_tasks_are_forgotten_when_their_time_is_over(queue: TaskQueue) -> None:
    short = await queue.enqueue(task("x", retention_s=0.001))
    kept = await queue.enqueue(task("y"))
    worker = leases(queue)
    lease = await claim(worker)
    await worker.save_items(lease, {"1": b""})
    await worker.finish(lease, SUCCESS)
    await run_all(queue)
    await asyncio.sleep(0.005)
    assert await queue.sweep() == 1
    with pytest.raises(NotFoundError):
        await queue.get("a", short.task_id)
    assert await queue.items(short.task_id) == {}
    found = await queue.find("a", [COUNT], list(TaskStatus))
    assert [record.task_id for record in found.records] == [kept.task_id]
    assert (await queue.counts())[TaskStatus.SUCCEEDED] == 1


async def test_who_waits_for_the_end_of_a_task_is_told(queue: TaskQueue) -> None:
    record = await queue.enqueue(task("x"))
    waiting = asyncio.create_task(queue.wait_until_final("a", record.task_id))
    await run_all(queue)
    async with asyncio.timeout(120):
        assert (await waiting).status is TaskStatus.SUCCEEDED


async def test_work_of_a_period_is_begun_once(queue: TaskQueue) -> None:
    assert await queue.begin_period("compare", 60)
    assert not await queue.begin_period("compare", 60)
    assert await queue.begin_period("other", 60)


async def test_bodies_are_kept_as_json(queue: TaskQueue) -> None:
    record = await queue.enqueue(NewTask(tenant="a", body=Count(num_items=3)))
    assert msgspec.json.decode(record.body) == {"type": "count", "num_items": 3, "note": ""}
    assert record.decode_body(Count) == Count(num_items=3)


async def test_a_queue_works_on_a_cluster(redis_cluster_config: RedisConfig) -> None:
    async with connect(redis_cluster_config) as redis:
        queues = [TaskQueue(redis, name=f"queue{number}") for number in range(4)]
        for queue in queues:
            for tenant in "ab":
                for number in range(3):
                    await queue.enqueue(task(f"{tenant}{number}", tenant=tenant, lane="l"))
            worker = leases(queue)
            lease = await claim(worker)
            await worker.save_items(lease, {"1": b"x"})
            await worker.finish(lease, SUCCESS)
            assert len(await run_all(queue)) == 5
            assert (await queue.find("a", [COUNT], list(TaskStatus))).num_total == 3
            nothing = await worker.claim()
            assert isinstance(nothing, Nothing)
            waiting = asyncio.create_task(worker.wait_for_work(nothing))
            await queue.enqueue(task("x"))
            async with asyncio.timeout(120):
                await waiting
