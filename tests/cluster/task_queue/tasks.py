"""Tasks for tests, and what is left in Redis when none is left."""

from typing import Any

from cluster.redis_client import Script
from cluster.task_queue.leases import Nothing, TaskLeases
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.task import (
    Lease,
    NewTask,
    Outcome,
    TaskBody,
    TaskPriority,
    TaskRecord,
    TaskStatus,
    type_name,
)


class Count(TaskBody, tag="count"):
    """Save an item for each number below `num_items`."""

    num_items: int = 0
    note: str = ""


class Other(TaskBody, tag="other"):
    pass


COUNT = type_name(Count)
SUCCESS = Outcome(status=TaskStatus.SUCCEEDED)
LEASE_S = 600.0
BEAT_S = 0.2  # a running task hears that it is cancelled as often
_END_LEASES = Script("""
local pending = redis.pcall('XPENDING', KEYS[1], 'workers', '-', '+', 1000)
for _, entry in ipairs(pending) do
  redis.call('XCLAIM', KEYS[1], 'workers', 'workers', 0, entry[1], 'IDLE', 1000000, 'JUSTID')
end
""")


def task(note: str = "", *, tenant: str = "a", **options: Any) -> NewTask:
    return NewTask(tenant=tenant, body=Count(note=note), **options)


def note_of(record: TaskRecord) -> str:
    return record.decode_body(Count).note


def leases(queue: TaskQueue, *, lease_s: float = LEASE_S, **options: Any) -> TaskLeases:
    return TaskLeases(queue, worker="w", lease_s=lease_s, **options)


async def claim(of: TaskLeases) -> Lease:
    lease = await of.claim()
    assert isinstance(lease, Lease)
    return lease


async def end_leases(queue: TaskQueue) -> None:
    """As if time had gone by without a heart-beat. Leases of tests are longer than any test lasts,
    so that a busy machine does not end one whose worker is well.
    """
    for priority in TaskPriority:
        await queue.redis.run(_END_LEASES, keys=[f"{queue.root}:ready:{int(priority)}"])


async def is_empty(queue: TaskQueue) -> bool:
    """Nothing waits and nothing is pending."""
    for priority in TaskPriority:
        stream = f"{queue.root}:ready:{int(priority)}"
        if not await queue.redis.execute("EXISTS", stream):
            continue
        if await queue.redis.execute("XLEN", stream):
            return False
        if (await queue.redis.execute("XPENDING", stream, "workers"))["pending"]:
            return False
        if await queue.redis.execute("SCARD", f"{queue.root}:turns:{int(priority)}"):
            return False
    for left in ("running", "capped"):
        if await queue.redis.execute("KEYS", f"{queue.root}:{left}:*"):
            return False
    return not await queue.redis.execute("HLEN", f"{queue.root}:lanes")


async def run_all(queue: TaskQueue, of: TaskLeases | None = None) -> list[str]:
    """Claim and finish whatever is there; returns the notes in the order of claims."""
    of = of or leases(queue)
    notes = []
    while not isinstance(lease := await of.claim(), Nothing):
        notes.append(note_of(lease.record))
        await of.finish(lease, SUCCESS)
    return notes
