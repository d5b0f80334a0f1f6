"""One Serve replica that works off the durable queue.

Any number of replicas may run; one that dies costs repeated work at most. What it embeds waits
behind what people ask the embedders for.
"""

import asyncio
import logging
from collections.abc import Mapping

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from cluster.config import LogSettings, ShoalConfig, shoal_home
from cluster.errors import ServiceUnavailableError
from cluster.object_store import open_object_store
from cluster.redis_client import connect
from deployments.batch_service import BatchService
from deployments.bucket_worker import BucketWorker, Surroundings
from deployments.embedder_handle import ServeEmbedder
from deployments.process_logs import write_to_serve_log
from deployments.retriever_handle import ServeRetriever
from deployments.serve_private import keep_replica_server_off_other_interfaces
from deployments.startup_error import StartupError
from models.documents.reader import DocumentReader
from models.documents.settings import ReadingLimits

logger = logging.getLogger(__name__)

#: For tasks to end in when the replica is drained; then they are given back. Serve's
#: `graceful_shutdown_timeout_s` must be longer.
GRACE_S = 10.0
COUNT_S = 5.0  # between two looks at how many tasks wait


class TaskWorker:
    """The Serve deployment class; `app.build_application` sets its options."""

    async def __init__(  # type: ignore[misc]  # Serve awaits the constructor
        self,
        config: ShoalConfig,
        models: Mapping[str, DeploymentHandle],
        embedders: Mapping[str, DeploymentHandle],
        retrieval_handle: DeploymentHandle | None,
        *,
        log_settings: LogSettings,
    ) -> None:
        """`models`, `embedders`: the replicas of each model, by its name.

        Raises:
            StartupError: Redis' URL or the storage cannot be used; says why.
        """
        write_to_serve_log(log_settings)
        keep_replica_server_off_other_interfaces(ray.util.get_node_ip_address())
        try:
            self._redis = connect(config.redis)
            self._objects = open_object_store(config.storage, shoal_home())
        except ValueError as error:
            raise StartupError(str(error)) from error
        retrieval = config.retrieval
        self._reader = DocumentReader(
            ReadingLimits(
                max_bytes=retrieval.max_object_bytes,
                timeout_s=retrieval.parse_timeout_s,
                memory_bytes=retrieval.parse_memory_bytes,
            )
        )
        timeout_s = retrieval.search_timeout_s
        name = serve.get_replica_context().replica_id.unique_id
        reached = {
            model: ServeEmbedder(handle, model_name=model, timeout_s=timeout_s)
            for model, handle in embedders.items()
        }
        self._worker = BucketWorker(
            config,
            Surroundings(
                redis=self._redis,
                objects=self._objects,
                reader=self._reader,
                embedders=reached,
            ),
            name=name,
            crawled_networks=[str(network) for network in retrieval.crawled_networks],
        )
        retriever = (
            None
            if retrieval_handle is None
            else ServeRetriever(retrieval_handle, timeout_s=timeout_s)
        )
        try:
            self._batches = BatchService(config, self._redis, models, reached, retriever, name=name)
        except ValueError as error:
            raise StartupError(str(error)) from error
        self._running = asyncio.create_task(self._worker.run())
        self._running_batches = asyncio.create_task(self._batches.run())
        self._num_waiting = 0
        self._counting = asyncio.create_task(self._count_now_and_then())

    # Called by Serve.

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling_policy` decides by: all workers see the same queues, and each its own
        running tasks."""
        num_running = self._worker.num_running + self._batches.num_running
        return {
            "num_tasks_waiting": float(self._num_waiting),
            "num_tasks_running": float(num_running),
        }

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: nothing is worked off any more; Serve replaces the replica.
        """
        for running in (self._running, self._running_batches):
            if running.done():
                error = None if running.cancelled() else running.exception()
                raise RuntimeError("a worker's loop has ended") from error

    async def __del__(self) -> None:
        """Serve awaits this before it kills the process: end the tasks, or give them back."""
        if not hasattr(self, "_running"):
            return  # the constructor failed
        self._counting.cancel()
        await asyncio.gather(
            self._worker.stop(grace_s=GRACE_S), self._batches.stop(grace_s=GRACE_S)
        )
        # `check_health` has told of errors.
        everything = (self._running, self._running_batches, self._counting)
        await asyncio.gather(*everything, return_exceptions=True)
        await self._batches.close()
        await self._reader.close()
        await self._objects.close()
        await self._redis.close()

    # Called through handles.

    def stats(self) -> dict[str, float]:
        """For `shoal status`."""
        return self.record_autoscaling_stats()

    async def _count_now_and_then(self) -> None:
        while True:
            try:
                of_buckets = await self._worker.num_waiting()
                self._num_waiting = of_buckets + await self._batches.num_waiting()
            except ServiceUnavailableError as error:
                logger.warning("waiting tasks are not counted: %s", error)
            await asyncio.sleep(COUNT_S)
