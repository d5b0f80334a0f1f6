"""The worker of batches, without Serve. Several may run at once; Redis decides who does what."""

import asyncio
import logging
from collections.abc import Collection

from cluster.api_keys import ApiKeys
from cluster.batch_config import BatchConfig
from cluster.batch_tasks import BatchTasks, RunBatch
from cluster.config import ShoalConfig
from cluster.errors import ServiceUnavailableError, ServingError, TooManyRequestsError
from cluster.file_store import FileStore
from cluster.redis_client import RedisClient
from cluster.task_queue.running_task import RunningTask
from cluster.task_queue.task import Outcome, TaskStatus
from cluster.task_queue.worker_loop import LEASE_S, TaskWorkerLoop
from cluster.tenants.key_directory import KeyDirectory
from cluster.tenants.tenant_store import TenantStore
from cluster.tenants.usage import UsageRecorder
from deployments.batch_run import BatchRun
from deployments.fair_places import FairPlaces
from deployments.ingress.line_calls import LineCalls
from deployments.line_run import BatchTools

logger = logging.getLogger(__name__)

SWEEP_S = 3600.0


class BatchWorker:
    """What it is given stays open when it stops."""

    def __init__(
        self,
        config: ShoalConfig,
        batches: BatchConfig,
        redis: RedisClient,
        files: FileStore,
        calls: LineCalls,
        *,
        name: str,
        lease_s: float = LEASE_S,
    ) -> None:
        self._files = files
        self._tasks = BatchTasks(redis, files, batches)
        store = TenantStore(redis, configured=())
        self._keys = KeyDirectory(ApiKeys([], required=False), config.tenants, store)
        served = _ServedNames(config)
        self._tools = BatchTools(
            queue=self._tasks.queue,
            store=self._tasks.store,
            files=files,
            calls=calls,
            keys=self._keys,
            usage=UsageRecorder(redis, retention_days=config.tenants.usage_retention_days),
            is_served=served,
            default_model=served.default,
            max_requests=batches.max_requests,
            max_line_bytes=config.http.max_body_bytes,
            max_lines_at_once=batches.max_lines_at_once,
            turns=FairPlaces(batches.max_lines_at_once),
        )
        self._loop = TaskWorkerLoop(self._tasks.queue, name=name, lease_s=lease_s)
        self._loop.handle(RunBatch, self._run)

    @property
    def num_running(self) -> int:
        return self._loop.num_running

    async def num_waiting(self) -> int:
        """Batches of the queue that no worker has taken yet.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        return (await self._tasks.queue.counts())[TaskStatus.QUEUED]

    async def run(self) -> None:
        """Work until `stop` is called."""
        sweeping = asyncio.create_task(self._sweep_now_and_then())
        try:
            async with self._keys.following():
                await self._loop.run()
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)

    async def stop(self, *, grace_s: float) -> None:
        """Let running batches end within the time, and give the others back."""
        await self._loop.stop(grace_s=grace_s)

    async def _run(self, body: RunBatch, task: RunningTask) -> Outcome:
        batch = await self._tasks.open(task.record, body)
        run = BatchRun(self._tools, batch, task, body.asked_by(task.record.tenant))
        try:
            await run.run()
        except (ServiceUnavailableError, TooManyRequestsError):
            raise  # it goes on later
        except ServingError as error:
            await run.fail(error.detail)
        return Outcome(status=TaskStatus.SUCCEEDED)

    async def _sweep_now_and_then(self) -> None:
        while True:
            try:
                if await self._tasks.queue.begin_period("sweep files", SWEEP_S):
                    await self._files.sweep()
            except ServingError as error:
                logger.warning("files are not swept: %s", error)
            await asyncio.sleep(SWEEP_S)


class _ServedNames:
    """Whether an endpoint has a model of a name; None is its default one."""

    def __init__(self, config: ShoalConfig) -> None:
        chats = [name for model in config.models for name in model.names]
        embedders = [embedder.name for embedder in config.embedders]
        self._chats, self._default_chat = chats, config.default_model_name
        self._names: dict[str, Collection[str]] = {
            "/v1/chat/completions": chats,
            "/v1/completions": chats,
            "/v1/embeddings": embedders,
        }

    def default(self, endpoint: str) -> str:
        """The model of lines that name none; "" where the endpoint has none."""
        is_chat = self._names[endpoint] is self._chats
        return self._default_chat if is_chat else next(iter(self._names[endpoint]), "")

    def __call__(self, endpoint: str, model: str | None) -> bool:
        names = self._names[endpoint]
        return bool(names) if model is None else model in names
