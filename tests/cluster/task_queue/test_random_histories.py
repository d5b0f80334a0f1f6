"""Random histories of a queue: whatever happens in whatever order, no task is lost or run twice."""

import asyncio
import random
from collections import Counter

import pytest

from cluster.task_queue.leases import NO_LIMIT, Nothing, TaskLeases
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.task import (
    Lease,
    LeaseLostError,
    Outcome,
    TaskPriority,
    TaskRecord,
    TaskStatus,
)
from tests.cluster.task_queue.tasks import COUNT, SUCCESS, is_empty, leases, task

TENANTS = ("a", "b", "c")
LANES = ("", "", "x", "y")


class History:
    """Does things to a queue by chance, and watches that lanes and leases are exclusive, and that
    no tenant has more running than it may."""

    def __init__(self, queue: TaskQueue, seed: int) -> None:
        self._queue = queue
        self._chance = random.Random(seed)
        self._most = self._chance.choice((1, 2, NO_LIMIT))
        options = {"max_losses": 1000, "max_running_per_tenant": self._most}
        self._worker: TaskLeases = leases(queue, **options)
        self._hasty: TaskLeases = leases(queue, lease_s=0.0, **options)  # all are over
        self.records: list[TaskRecord] = []
        self.held: dict[str, Lease] = {}
        self.ends: Counter[str] = Counter()

    async def step(self) -> None:
        action = self._chance.choices(
            [self._enqueue, self._claim, self._end, self._cancel, self._steal, self._replay],
            weights=[6, 8, 8, 2, 1, 1],
        )[0]
        await action()

    async def drain(self) -> None:
        for lease in list(self.held.values()):
            await self._finish(lease)
        while True:
            claimed = await self._worker.claim()
            if isinstance(claimed, Lease):
                self._note(claimed)
                await self._finish(claimed)
            elif claimed.due_in_s is None:
                return
            else:
                await self._worker.wait_for_work(claimed)

    async def _enqueue(self) -> None:
        tenant = self._chance.choice(TENANTS)
        lane = self._chance.choice(LANES)
        self.records.append(
            await self._queue.enqueue(
                task(
                    tenant=tenant,
                    lane=lane and f"{tenant} {lane}",
                    priority=self._chance.choice(list(TaskPriority)),
                    delay_s=self._chance.choice((0.0, 0.0, 0.002)),
                    coalesce_key=self._chance.choice(("", "", "", f"sync {tenant}")),
                )
            )
        )

    async def _claim(self) -> None:
        claimed = await self._worker.claim()
        if not isinstance(claimed, Nothing):
            self._note(claimed)

    async def _steal(self) -> None:
        """As if a worker had been frozen: another claims what it has."""
        claimed = await self._hasty.claim()
        await self._forget_cancelled()
        if isinstance(claimed, Nothing):
            return
        old = self.held.get(claimed.record.task_id)
        self._note(claimed, is_stolen=old is not None)
        if old is not None:
            with pytest.raises(LeaseLostError):
                await self._worker.finish(old, SUCCESS)

    async def _forget_cancelled(self) -> None:
        """One whose worker is lost and that nobody wants is ended by who would claim it."""
        for task_id, lease in list(self.held.items()):
            now = await self._queue.get(lease.record.tenant, task_id)
            if now.status is TaskStatus.CANCELLED:
                del self.held[task_id]

    async def _end(self) -> None:
        if not self.held:
            return
        lease = self.held[self._chance.choice(list(self.held))]
        how = self._chance.choice(("finish", "finish", "retry", "give back", "die"))
        if how == "finish":
            await self._finish(lease)
            return
        del self.held[lease.record.task_id]
        if how == "retry":
            await self._worker.retry(lease, delay_s=0.001, error="once more", is_failure=True)
        elif how == "give back":
            await self._worker.give_back(lease)
        else:
            failed = Outcome(status=TaskStatus.FAILED, error="dead")
            await self._worker.finish(lease, failed, is_dead=True)

    async def _finish(self, lease: Lease) -> None:
        await self._worker.finish(lease, SUCCESS)
        del self.held[lease.record.task_id]
        self.ends[lease.record.task_id] += 1

    async def _cancel(self) -> None:
        if self.records:
            record = self._chance.choice(self.records)
            await self._queue.cancel(record.tenant, record.task_id)

    async def _replay(self) -> None:
        page = await self._queue.dead_letters(limit=1)
        for record in page.records:
            await self._queue.replay(record.task_id)

    def _note(self, lease: Lease, *, is_stolen: bool = False) -> None:
        record = lease.record
        assert record.status is TaskStatus.RUNNING
        assert is_stolen or record.task_id not in self.held
        for other in self.held.values():
            assert other.token < lease.token
            is_same_lane = record.lane and other.record.lane == record.lane
            assert not is_same_lane or other.record.task_id == record.task_id
        self.held[record.task_id] = lease
        held = Counter(lease.record.tenant for lease in self.held.values())
        assert max(held.values()) <= self._most


@pytest.mark.parametrize("seed", range(12))
async def test_no_task_is_lost_or_run_twice_and_lanes_are_exclusive(
    queue: TaskQueue, seed: int
) -> None:
    history = History(queue, seed)
    async with asyncio.timeout(120):
        for _ in range(150):
            await history.step()
        await history.drain()
    for record in history.records:
        end = await queue.get(record.tenant, record.task_id)
        assert end.status.is_final, end
        if end.status is TaskStatus.SUCCEEDED:
            assert history.ends[record.task_id] == 1
    assert await is_empty(queue)
    for tenant in TENANTS:
        unfinished = [TaskStatus.QUEUED, TaskStatus.RUNNING]
        assert (await queue.find(tenant, [COUNT], unfinished)).num_total == 0
    counted = await queue.counts()
    assert sum(counted.values()) == len({record.task_id for record in history.records})
