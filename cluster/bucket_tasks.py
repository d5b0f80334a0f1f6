"""The tasks about buckets: what they are, and how they get into the queue.

All tasks of a bucket share a lane: they run one at a time, in order.
"""

import logging
from collections.abc import Sequence

from cluster.errors import NotFoundError, ServiceUnavailableError, TooManyRequestsError
from cluster.task_queue.queue import TaskPage, TaskQueue
from cluster.task_queue.task import (
    NewTask,
    TaskBody,
    TaskPriority,
    TaskRecord,
    TaskStatus,
    type_name,
)
from cluster.types import BucketRef

logger = logging.getLogger(__name__)

MAX_UNFINISHED = 10_000  # tasks that a tenant has asked for; they take memory of everybody's Redis
_RETRY_AFTER_FULL_S = 60.0
SYNC_DELAY_S = 1.0  # changes of objects within it are one task
_SYNC_RETENTION_S = 3600.0
_MAX_LISTED = 1000


class BucketTask(TaskBody, frozen=True, kw_only=True):
    """Base of the tasks about one bucket of the task's tenant."""

    bucket_name: str


class EmbedBucket(BucketTask, frozen=True, kw_only=True, tag="embed_bucket"):
    """Embed all objects of a bucket; those that have not changed are left as they are."""

    embedding_model: str
    chunk_size: int  # tokens
    chunk_overlap: int
    loader: str


class EmbedWebsite(EmbedBucket, frozen=True, kw_only=True, tag="embed_website"):
    """Put the pages of a website into a bucket as objects, and embed the bucket.

    The settings are for a bucket that is not embedded yet; one that is keeps its own.
    """

    url: str


class SyncBucket(BucketTask, frozen=True, kw_only=True, tag="sync_bucket"):
    """Let an embedded bucket follow its objects, with the settings it has."""


#: What a tenant has asked for; syncs come by themselves.
LISTED_TYPES = (type_name(EmbedBucket), type_name(EmbedWebsite))
ALL_TYPES = (*LISTED_TYPES, type_name(SyncBucket))
_UNFINISHED = (TaskStatus.QUEUED, TaskStatus.RUNNING)


class BucketTasks:
    """Puts tasks about buckets into a queue, and finds them there."""

    def __init__(self, queue: TaskQueue) -> None:
        self._queue = queue

    async def request(
        self, tenant: str, body: EmbedBucket, *, idempotency_key: str = ""
    ) -> TaskRecord:
        """
        Raises:
            ValidationError: the idempotency key was used for another request.
            TooManyRequestsError: the tenant has too many tasks that are not done.
            ServiceUnavailableError: Redis does not answer.
        """
        num_unfinished = await self._queue.num_tasks(tenant, LISTED_TYPES, _UNFINISHED)
        if num_unfinished >= MAX_UNFINISHED:
            raise TooManyRequestsError(
                f"{num_unfinished} of your tasks wait or run, as many as are kept; wait until some "
                "are done.",
                retry_after_s=_RETRY_AFTER_FULL_S,
            )
        return await self._queue.enqueue(
            NewTask(
                tenant=tenant,
                body=body,
                lane=_lane(BucketRef(tenant, body.bucket_name)),
                idempotency_key=idempotency_key,
            )
        )

    async def request_sync(self, bucket: BucketRef) -> None:
        """An object of the bucket has changed: its embedding will follow, if it has one.

        What cannot be queued now is only logged: the periodic comparison finds it.
        """
        lane = _lane(bucket)
        task = NewTask(
            tenant=bucket.tenant,
            body=SyncBucket(bucket_name=bucket.name),
            priority=TaskPriority.NORMAL,
            lane=lane,
            coalesce_key=f"sync {lane}",
            delay_s=SYNC_DELAY_S,
            retention_s=_SYNC_RETENTION_S,
        )
        try:
            await self._queue.enqueue(task)
        except ServiceUnavailableError as error:
            logger.warning("the sync of bucket %r waits: %s", bucket.name, error)

    async def get(self, tenant: str, task_id: str) -> TaskRecord:
        """
        Raises:
            NotFoundError: the tenant has no such task.
            ServiceUnavailableError: Redis does not answer.
        """
        record = await self._queue.get(tenant, task_id)
        if record.task_type not in LISTED_TYPES:
            raise NotFoundError(f"There is no task {task_id[:100]!r}.", param="task_id")
        return record

    async def find(
        self, tenant: str, statuses: Sequence[TaskStatus], *, offset: int, limit: int
    ) -> TaskPage:
        """What a tenant has asked for, the newest first.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        return await self._queue.find(tenant, LISTED_TYPES, statuses, offset=offset, limit=limit)

    async def cancel_all(self, bucket: BucketRef) -> int:
        """Cancel what waits or runs for a bucket; returns how many tasks it was.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        found = [
            record
            for record in await self._unfinished(bucket.tenant)
            if record.lane == _lane(bucket)
        ]
        for record in found:
            await self._queue.cancel(bucket.tenant, record.task_id)
        return len(found)

    async def _unfinished(self, tenant: str) -> list[TaskRecord]:
        records: list[TaskRecord] = []
        while True:
            page = await self._queue.find(
                tenant, ALL_TYPES, _UNFINISHED, offset=len(records), limit=_MAX_LISTED
            )
            records += page.records
            if len(page.records) < _MAX_LISTED:
                return records


def _lane(bucket: BucketRef) -> str:
    return f"bucket {bucket.tenant}/{bucket.name}"
