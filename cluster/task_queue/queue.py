"""The durable queue as its users see it: tasks in, their state, lists, cancel, dead letters.

Workers see `leases.TaskLeases`. What is in Redis is described in `scripts`.
"""

import asyncio
import hashlib
import uuid
from collections.abc import Sequence
from itertools import product

import msgspec

from cluster.errors import FieldProblem, NotFoundError, ValidationError
from cluster.redis_client import Argument, RedisClient, Script
from cluster.task_queue import scripts
from cluster.task_queue.records import fields_of, record_of
from cluster.task_queue.task import NewTask, TaskRecord, TaskStatus, type_name

DEFAULT_QUEUE = "tasks"
RETENTION_S = 7 * 24 * 3600.0
_WATCH_S = 10.0  # one blocking read while an end is awaited


class TaskPage(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a list, the newest first."""

    records: list[TaskRecord]
    num_total: int  # of the whole list


class TaskQueue:
    """One queue. Any number of processes may have it open."""

    def __init__(
        self, redis: RedisClient, *, name: str = DEFAULT_QUEUE, retention_s: float = RETENTION_S
    ) -> None:
        self.redis = redis
        self.root = redis.key(f"{{{name}}}")
        self._retention_s = retention_s

    async def run(self, script: Script, *args: Argument) -> object:
        """For this package: one of `scripts`."""
        return await self.redis.run(script, keys=[self.root], args=args)

    async def enqueue(self, task: NewTask) -> TaskRecord:
        """Put a task in, and return it; or the one that it is the same as (see `NewTask`).

        Raises:
            ValidationError: its idempotency key was used for another task.
            ServiceUnavailableError: Redis does not answer; the task may be in or not.
        """
        body = msgspec.json.encode(task.body)
        name = type_name(type(task.body))
        retention_s = self._retention_s if task.retention_s is None else task.retention_s
        answer = await self.run(
            scripts.ENQUEUE,
            *(str(uuid.uuid4()), name, body, task.tenant, int(task.priority), task.lane),
            *(_digest(task.coalesce_key), round(task.delay_s * 1000)),
            round(retention_s * 1000),
            *(_digest(task.idempotency_key), _digest(f"{name} {body.decode()}")),
        )
        assert isinstance(answer, list)
        record = record_of(fields_of(answer[1]))
        assert record is not None, "a task that was just found is remembered"
        if answer[0] == b"conflict":
            raise _key_reused(task.idempotency_key, record.task_id)
        return record

    async def get(self, tenant: str, task_id: str) -> TaskRecord:
        """
        Raises:
            NotFoundError: the tenant has no such task (any more).
            ServiceUnavailableError: Redis does not answer.
        """
        record = await self._read(task_id)
        if record is None or record.tenant != tenant:
            raise NotFoundError(f"There is no task {task_id[:100]!r}.", param="task_id")
        return record

    async def find(
        self,
        tenant: str,
        types: Sequence[str],
        statuses: Sequence[TaskStatus],
        *,
        offset: int = 0,
        limit: int = 100,
    ) -> TaskPage:
        """
        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        keys = self._index_keys(tenant, types, statuses)
        last = offset + limit - 1
        sizes = await self.redis.execute_many([("ZCARD", key) for key in keys])
        parts = await self.redis.execute_many(
            [("ZRANGE", key, 0, last, "REV", "WITHSCORES") for key in keys]
        )
        found = [
            (float(score), task_id.decode())
            for part in parts
            for task_id, score in zip(part[::2], part[1::2], strict=True)
        ]
        found.sort(reverse=True)
        records = await self._read_many([task_id for _, task_id in found[offset : offset + limit]])
        return TaskPage(records=records, num_total=sum(sizes))

    async def num_tasks(
        self, tenant: str, types: Sequence[str], statuses: Sequence[TaskStatus]
    ) -> int:
        """How many `find` would find.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        keys = self._index_keys(tenant, types, statuses)
        return sum(await self.redis.execute_many([("ZCARD", key) for key in keys]))

    async def cancel(self, tenant: str, task_id: str) -> TaskRecord:
        """Cancel a task: at once when it waits, soon when it runs, not when it has ended.

        Raises:
            NotFoundError, ServiceUnavailableError: as `get`.
        """
        await self.get(tenant, task_id)
        await self.run(scripts.CANCEL, task_id)
        return await self.get(tenant, task_id)

    async def wait_until_final(self, tenant: str, task_id: str) -> TaskRecord:
        """The task once it has ended; bound it with `asyncio.timeout`.

        Raises:
            NotFoundError, ServiceUnavailableError: as `get`.
        """
        key = f"{self.root}:finished"
        while True:
            last = await self.redis.execute("XREVRANGE", key, "+", "-", "COUNT", 1)
            record = await self.get(tenant, task_id)
            if record.status.is_final:
                return record
            last_id = last[0][0] if last else "0"
            block = ("BLOCK", round(_WATCH_S * 1000))
            await self.redis.wait("XREAD", *block, "STREAMS", key, last_id, block_s=_WATCH_S)

    async def counts(self) -> dict[TaskStatus, int]:
        """How many tasks there are, finished and remembered ones too.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        counted = await self.redis.execute("HGETALL", f"{self.root}:counts")
        return {status: int(counted.get(status.encode(), 0)) for status in TaskStatus}

    async def dead_letters(self, *, offset: int = 0, limit: int = 100) -> TaskPage:
        """Tasks of all tenants that failed for good by an error; each says by which.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        key = f"{self.root}:dead"
        size, ids = await self.redis.execute_many(
            [("ZCARD", key), ("ZRANGE", key, offset, offset + limit - 1, "REV")]
        )
        records = await self._read_many([task_id.decode() for task_id in ids])
        return TaskPage(records=records, num_total=size)

    async def replay(self, task_id: str) -> TaskRecord:
        """Queue a dead letter again, as if it had not been tried; saved items stay.

        Raises:
            NotFoundError: it is none.
            ServiceUnavailableError: Redis does not answer.
        """
        if not await self.run(scripts.REPLAY, task_id):
            raise NotFoundError(f"There is no dead letter {task_id[:100]!r}.", param="task_id")
        record = await self._read(task_id)
        assert record is not None, "a task that is queued is remembered"
        return record

    async def items(self, task_id: str) -> dict[str, bytes]:
        """What was saved of a task, item by item.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        found: dict[str, bytes] = {}
        cursor = 0
        while True:
            cursor, part = await self.redis.execute(
                "HSCAN", f"{self.root}:items:{task_id}", cursor, "COUNT", 1000
            )
            found |= {item_id.decode(): result for item_id, result in part.items()}
            if cursor == 0:
                return found

    async def item_ids(self, task_id: str) -> set[str]:
        """The items of a task that have a result.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        ids = await self.redis.execute("HKEYS", f"{self.root}:items:{task_id}")
        return {item_id.decode() for item_id in ids}

    async def begin_period(self, name: str, period_s: float) -> bool:
        """Whether the caller is the one who does what is due once in this time.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        key = f"{self.root}:period:{name}"
        return bool(await self.redis.execute("SET", key, 1, "NX", "PX", round(period_s * 1000)))

    async def sweep(self) -> int:
        """Forget finished tasks whose time is over; returns how many.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        num_forgotten = 0
        while True:
            num_now = await self.run(scripts.SWEEP, 100)
            assert isinstance(num_now, int)
            num_forgotten += num_now
            if num_now < 100:
                return num_forgotten
            await asyncio.sleep(0)  # others use the connection too

    def _index_keys(
        self, tenant: str, types: Sequence[str], statuses: Sequence[TaskStatus]
    ) -> list[str]:
        return [
            f"{self.root}:index:{tenant}:{name}:{status}"
            for name, status in product(dict.fromkeys(types), dict.fromkeys(statuses))
        ]

    async def _read(self, task_id: str) -> TaskRecord | None:
        return record_of(await self.redis.execute("HGETALL", f"{self.root}:task:{task_id}"))

    async def _read_many(self, task_ids: Sequence[str]) -> list[TaskRecord]:
        """Those that have not been forgotten meanwhile."""
        answers = await self.redis.execute_many(
            [("HGETALL", f"{self.root}:task:{task_id}") for task_id in task_ids]
        )
        return [record for record in map(record_of, answers) if record is not None]


def _digest(text: str) -> str:
    """Of clients' texts, which may be long and have any character; "" stays ""."""
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def _key_reused(key: str, task_id: str) -> ValidationError:
    message = (
        f"was used before for another request, which made task {task_id}; a new request needs a "
        f"new key; given {key[:100]!r}"
    )
    return ValidationError(
        [
            FieldProblem(
                loc=("Idempotency-Key",),
                message=message,
                kind="idempotency_key_reused",
                place="header",
            )
        ]
    )
