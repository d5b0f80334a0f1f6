"""The tasks that run batches: what they are, how they get into their queue, and how they are seen.

Batches have a queue of their own: they last for hours, and buckets are not to wait for them.
"""

import hashlib
import uuid

import msgspec
import orjson

from cluster.batch_config import BatchConfig
from cluster.batch_store import Batch, BatchPage, BatchState, BatchStore, LineError
from cluster.errors import BadRequestError, NotFoundError, TooManyRequestsError
from cluster.file_store import FileStore
from cluster.openai_schema.batches import BatchRequest
from cluster.openai_schema.files import BATCH_PURPOSE
from cluster.redis_client import Argument, RedisClient
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.task import NewTask, TaskBody, TaskRecord, TaskStatus, type_name
from cluster.tenant_config import PLAIN_SCOPES, KeyScope
from cluster.tenants.records import ANONYMOUS_ID, ApiKey

QUEUE_NAME = "batches"
_NUM_LANES = 2  # batches of a tenant that run at once: others have some of the workers too
MAX_UNFINISHED = 1_000  # batches of a tenant; more are refused until some have ended
_RETRY_AFTER_FULL_S = 60.0
_TASK_RETENTION_S = 24 * 3600.0  # of a finished one; the batch itself is remembered for longer


class RunBatch(TaskBody, frozen=True, kw_only=True, tag="run_batch"):
    """Run the lines of a file of the task's tenant."""

    batch_id: str
    endpoint: str
    input_file_id: str
    window_s: float
    output_retention_s: float
    metadata: dict[str, str] | None = None
    # Of the key that asked for it.
    key_id: str = ANONYMOUS_ID
    scopes: tuple[KeyScope, ...] = PLAIN_SCOPES

    def asked_by(self, tenant: str) -> ApiKey:
        """As whom its lines run."""
        return ApiKey(key_id=self.key_id, name="", tenant=tenant, scopes=frozenset(self.scopes))


class BatchTasks:
    """Puts batches into their queue, and finds them again."""

    def __init__(self, redis: RedisClient, files: FileStore, config: BatchConfig) -> None:
        self.queue = batch_queue(redis)
        self.store = BatchStore(redis, retention_s=config.retention_s)
        self._files = files
        self._config = config

    async def request(
        self, key: ApiKey, request: BatchRequest, *, idempotency_key: str = ""
    ) -> Batch:
        """`key`: who asks.

        Raises:
            NotFoundError: there is no such file.
            BadRequestError: the file is not for batches.
            ValidationError: the idempotency key was used for another request.
            TooManyRequestsError: the tenant has too many batches that have not ended.
            ServiceUnavailableError: Redis does not answer.
        """
        tenant = key.tenant
        await self._refuse_too_many(tenant)
        file = await self._files.get(tenant, request.input_file_id)
        if file.purpose != BATCH_PURPOSE:
            raise BadRequestError(
                f"input_file_id: the file's purpose must be {BATCH_PURPOSE!r}; it is "
                f"{file.purpose!r}",
                param="input_file_id",
            )
        expiry = request.output_expires_after
        body = RunBatch(
            batch_id=_new_batch_id(tenant, idempotency_key),
            endpoint=request.endpoint,
            input_file_id=request.input_file_id,
            window_s=self._config.completion_window_s,
            output_retention_s=self._config.retention_s if expiry is None else expiry.seconds,
            metadata=request.metadata,
            key_id=key.key_id,
            scopes=tuple(sorted(key.scopes)),
        )
        # The task first: it carries all, and who claims it makes the batch when nobody else has.
        record = await self.queue.enqueue(
            NewTask(
                tenant=tenant,
                body=body,
                lane=_lane(tenant, body.batch_id),
                idempotency_key=idempotency_key,
                retention_s=_TASK_RETENTION_S,
            )
        )
        return await self.open(record, body)

    async def _refuse_too_many(self, tenant: str) -> None:
        unfinished = (TaskStatus.QUEUED, TaskStatus.RUNNING)
        num_unfinished = await self.queue.num_tasks(tenant, [type_name(RunBatch)], unfinished)
        if num_unfinished >= MAX_UNFINISHED:
            raise TooManyRequestsError(
                f"{num_unfinished} of your batches wait or run, as many as are kept; wait until "
                "some have ended.",
                retry_after_s=_RETRY_AFTER_FULL_S,
            )

    async def open(self, record: TaskRecord, body: RunBatch) -> Batch:
        """The batch of a task, made if it is not there."""
        fields: dict[str, Argument] = {
            "task_id": record.task_id,
            "endpoint": body.endpoint,
            "input_file_id": body.input_file_id,
            "expires_ms": round((record.created_at + body.window_s) * 1000),
            "output_retention_ms": round(body.output_retention_s * 1000),
            "metadata": orjson.dumps(body.metadata),
        }
        await self.store.create(
            record.tenant, body.batch_id, created_at=record.created_at, fields=fields
        )
        return await self.store.get(record.tenant, body.batch_id)

    async def get(self, tenant: str, batch_id: str) -> Batch:
        """
        Raises:
            NotFoundError: the tenant has no such batch.
            ServiceUnavailableError: Redis does not answer.
        """
        return await self._seen(tenant, await self.store.get(tenant, batch_id))

    async def find(self, tenant: str, *, after: str, limit: int) -> BatchPage:
        """The newest first.

        Raises:
            BadRequestError: `after` is not in the list.
            ServiceUnavailableError: Redis does not answer.
        """
        page = await self.store.find(tenant, after=after, limit=limit)
        return BatchPage(
            batches=[await self._seen(tenant, batch) for batch in page.batches],
            has_more=page.has_more,
        )

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """At once while it is validated, soon while it runs. What is done is kept.

        Raises:
            NotFoundError: the tenant has no such batch.
            BadRequestError: it has ended, or is about to.
            ServiceUnavailableError: Redis does not answer.
        """
        batch = await self.get(tenant, batch_id)
        state = batch.status
        if state is BatchState.VALIDATING:
            state = await self.store.move(
                tenant, batch_id, [BatchState.VALIDATING], BatchState.CANCELLED
            )
        if state is BatchState.IN_PROGRESS:
            state = await self.store.move(
                tenant, batch_id, [BatchState.IN_PROGRESS], BatchState.CANCELLING
            )
        if state not in (BatchState.CANCELLING, BatchState.CANCELLED):
            raise BadRequestError(
                f"The batch {batch_id!r} is {state} and cannot be cancelled.", param="batch_id"
            )
        return await self.store.get(tenant, batch_id)

    async def _seen(self, tenant: str, batch: Batch) -> Batch:
        """The batch; one whose task has ended without it has failed."""
        if batch.status.is_final or not await self._has_ended(tenant, batch.task_id):
            return batch
        error = LineError(
            code="server_error", line=None, message="The batch could not be run; see the log."
        )
        fields = {"errors": msgspec.json.encode([error])}
        await self.store.move(tenant, batch.batch_id, [batch.status], BatchState.FAILED, fields)
        return await self.store.get(tenant, batch.batch_id)

    async def _has_ended(self, tenant: str, task_id: str) -> bool:
        try:
            return (await self.queue.get(tenant, task_id)).status.is_final
        except NotFoundError:
            return True


def batch_queue(redis: RedisClient) -> TaskQueue:
    return TaskQueue(redis, name=QUEUE_NAME)


def _new_batch_id(tenant: str, idempotency_key: str) -> str:
    """The same key is the same batch."""
    if not idempotency_key:
        return f"batch_{uuid.uuid4().hex}"
    digest = hashlib.sha256(f"{tenant} {idempotency_key}".encode()).hexdigest()
    return f"batch_{digest[:32]}"


def _lane(tenant: str, batch_id: str) -> str:
    number = int(batch_id.removeprefix("batch_"), 16) % _NUM_LANES
    return f"batches {number} of {tenant}"
