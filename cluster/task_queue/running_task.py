"""A task in the hands of its handler: what the handler may say and save about it."""

import asyncio
from collections.abc import Mapping

from cluster.task_queue.leases import TaskLeases
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.task import Lease, Progress, TaskCancelledError, TaskRecord


class RunningTask:
    """Every method raises `LeaseLostError` once another worker has the task, and
    `ServiceUnavailableError` when Redis does not answer: a handler lets both pass.
    """

    def __init__(self, queue: TaskQueue, leases: TaskLeases, lease: Lease) -> None:
        self.lease = lease
        self.cancel_requested = asyncio.Event()  # the loop then cancels the handler
        self._queue = queue
        self._leases = leases

    @property
    def record(self) -> TaskRecord:
        """As it was claimed."""
        return self.lease.record

    async def heart_beat(self) -> None:
        self._note(await self._leases.heart_beat(self.lease))

    async def ensure_wanted(self) -> None:
        """To be asked before something final is written elsewhere.

        Raises:
            TaskCancelledError: nobody wants the task any more.
        """
        await self.heart_beat()
        if self.cancel_requested.is_set():
            raise TaskCancelledError

    async def report(self, progress: Progress) -> None:
        self._note(await self._leases.report(self.lease, progress))

    async def save_item(self, item_id: str, result: bytes) -> None:
        """A check-point: an item that has a result keeps it, whoever comes later."""
        await self.save_items({item_id: result})

    async def save_items(self, results: Mapping[str, bytes]) -> None:
        """Several at once cost one round trip."""
        self._note(await self._leases.save_items(self.lease, results))

    async def saved_item_ids(self) -> set[str]:
        """What attempts before this one have done."""
        return await self._queue.item_ids(self.record.task_id)

    def _note(self, is_cancel_requested: bool) -> None:
        if is_cancel_requested:
            self.cancel_requested.set()
