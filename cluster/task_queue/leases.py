"""The durable queue as workers see it: claim a task, keep it, save, and let it go.

Each write carries the lease's fencing token and is refused once another worker has a newer one.
A write whose reply was lost may be made again: it is recognized.
"""

from collections.abc import Mapping

import msgspec

from cluster.redis_client import Argument, Script
from cluster.task_queue import scripts
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.records import fields_of, record_of, token_of
from cluster.task_queue.task import (
    Lease,
    LeaseLostError,
    Outcome,
    Progress,
    TaskPriority,
)

NO_LIMIT = 2**31
_MAX_ITEMS_AT_ONCE = 1000  # Lua takes a few thousand arguments


class Nothing(msgspec.Struct, frozen=True, kw_only=True):
    """There was nothing to claim."""

    due_in_s: float | None  # until a delayed task is due
    last_ids: tuple[bytes, ...]  # of the streams, when that was so


class TaskLeases:
    """Claims tasks of a queue under a worker's name."""

    def __init__(
        self,
        queue: TaskQueue,
        *,
        worker: str,
        lease_s: float,
        max_losses: int = 20,
        max_running_per_tenant: int = NO_LIMIT,
    ) -> None:
        """`max_running_per_tenant`: tasks, at all workers of the queue; its others wait."""
        self._queue = queue
        self._max_running_per_tenant = max_running_per_tenant
        self._worker = worker
        self._lease_s = lease_s
        self._max_losses = max_losses

    async def claim(self) -> Lease | Nothing:
        """The next task: by priority; one whose worker is lost first; tenants in turn, those left
        out that have as many running as they may.

        Raises:
            ServiceUnavailableError: Redis does not answer. A task may have been claimed; it will
                be claimed again when the lease is over.
        """
        answer = await self._queue.run(
            scripts.CLAIM,
            *(self._worker, round(self._lease_s * 1000), self._max_losses, len(TaskPriority)),
            self._max_running_per_tenant,
        )
        assert isinstance(answer, list)
        if answer[0] == b"task":
            fields = fields_of(answer[1])
            record = record_of(fields)
            assert record is not None, "a claimed task is remembered"
            return Lease(record=record, token=token_of(fields))
        _, due_in_ms, last_ids = answer
        due_in_s = None if due_in_ms < 0 else due_in_ms / 1000
        return Nothing(due_in_s=due_in_s, last_ids=tuple(last_ids))

    async def wait_for_work(self, nothing: Nothing) -> None:
        """Until there may be something to claim: a new task, a due one, or a lease that is over.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        block_s = self._lease_s if nothing.due_in_s is None else nothing.due_in_s
        block_s = max(0.001, min(block_s, self._lease_s))  # 0 would be for ever
        root = self._queue.root
        streams = [f"{root}:ready:{int(priority)}" for priority in TaskPriority] + [f"{root}:wake"]
        command: list[Argument] = ["XREAD", "COUNT", 1, "BLOCK", max(1, round(block_s * 1000))]
        command += ["STREAMS", *streams, *nothing.last_ids]
        await self._queue.redis.wait(*command, block_s=block_s)

    async def heart_beat(self, lease: Lease) -> bool:
        """Begin the lease's time anew; returns whether the task is to be cancelled.

        Raises:
            LeaseLostError: somebody else has the task.
            ServiceUnavailableError: Redis does not answer.
        """
        return self._checked(lease, await self._run(scripts.HEART_BEAT, lease))

    async def report(self, lease: Lease, progress: Progress) -> bool:
        """As `heart_beat`, without the time."""
        encoded = msgspec.json.encode(progress)
        return self._checked(lease, await self._run(scripts.REPORT, lease, encoded))

    async def save_items(self, lease: Lease, results: Mapping[str, bytes]) -> bool:
        """Keep the results of items; one that has a result keeps it. As `report`."""
        pairs = list(results.items())
        is_cancelled = False
        for start in range(0, len(pairs), _MAX_ITEMS_AT_ONCE):
            flat = [part for pair in pairs[start : start + _MAX_ITEMS_AT_ONCE] for part in pair]
            answer = await self._run(scripts.SAVE_ITEMS, lease, *flat)
            is_cancelled = self._checked(lease, answer)
        return is_cancelled

    async def finish(self, lease: Lease, outcome: Outcome, *, is_dead: bool = False) -> None:
        """Save how the task ended, and acknowledge it, in one step.

        Raises:
            LeaseLostError: somebody else has the task.
            ServiceUnavailableError: Redis does not answer; do it again.
        """
        assert outcome.status.is_final
        arguments = (outcome.status, outcome.result, outcome.error, int(is_dead))
        self._checked(lease, await self._run(scripts.FINISH, lease, *arguments))

    async def retry(self, lease: Lease, *, delay_s: float, error: str, is_failure: bool) -> None:
        """Let the task be tried again later. `is_failure`: the task's own, which are counted.

        Raises:
            as `finish`.
        """
        counter = "failures" if is_failure else "postponed"
        arguments = (round(delay_s * 1000), error, counter)
        self._checked(lease, await self._run(scripts.RETRY, lease, *arguments))

    async def give_back(self, lease: Lease) -> None:
        """Let another worker have the task at once; it does not count as an attempt.

        Raises:
            as `finish`.
        """
        self._checked(lease, await self._run(scripts.GIVE_BACK, lease))

    async def _run(self, script: Script, lease: Lease, *args: Argument) -> object:
        return await self._queue.run(script, lease.record.task_id, lease.token, *args)

    def _checked(self, lease: Lease, answer: object) -> bool:
        if answer == scripts.LOST:
            raise LeaseLostError(
                f"task {lease.record.task_id} was claimed by another worker after {self._worker}"
            )
        return answer == scripts.CANCEL_REQUESTED
