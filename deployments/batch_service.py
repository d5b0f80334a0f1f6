"""A worker of batches with all that it reaches: the files, the models' pools, the embedders."""

import asyncio
from collections.abc import Mapping

from ray.serve.handle import DeploymentHandle

from cluster.config import ShoalConfig, shoal_home
from cluster.file_store import FileStore, open_file_objects
from cluster.redis_client import RedisClient
from cluster.retrieval import Embedder, Retriever
from deployments.batch_worker import BatchWorker
from deployments.cluster_secret import load_cluster_secret
from deployments.ingress.line_calls import LineCalls, line_calls
from deployments.model_pools import ModelPools


class BatchService:
    """Part of a `TaskWorker`. It begins when every model has a replica; buckets need not wait."""

    def __init__(
        self,
        config: ShoalConfig,
        redis: RedisClient,
        models: Mapping[str, DeploymentHandle],
        embedders: Mapping[str, Embedder],
        retriever: Retriever | None,
        *,
        name: str,
    ) -> None:
        """`models`: the replicas of each model, by its name.

        Raises:
            ValueError: the storage cannot be used; says why.
        """
        self._config = config
        self._redis = redis
        self._embedders = embedders
        self._retriever = retriever
        self._name = name
        self._objects = open_file_objects(config.storage, config.batches, shoal_home())
        self._pools = ModelPools(config, models, secret=load_cluster_secret(shoal_home()))
        self._worker: BatchWorker | None = None
        self._calls: LineCalls | None = None
        self._stopping = asyncio.Event()

    @property
    def num_running(self) -> int:
        return 0 if self._worker is None else self._worker.num_running

    async def num_waiting(self) -> int:
        """See `BatchWorker`; 0 until it begins."""
        return 0 if self._worker is None else await self._worker.num_waiting()

    async def run(self) -> None:
        """Work until `stop` is called.

        Raises:
            StartupError: a checkpoint cannot be read; says why.
        """
        starting = asyncio.create_task(self._pools.start())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                return
            models = starting.result()
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)
        batches = self._config.batches
        self._calls = line_calls(self._config, models, self._embedders, self._retriever)
        self._worker = BatchWorker(
            self._config,
            batches,
            self._redis,
            FileStore(self._redis, self._objects, max_bytes=batches.max_file_bytes),
            self._calls,
            name=self._name,
        )
        await self._worker.run()

    async def stop(self, *, grace_s: float) -> None:
        """Let running batches end within the time, and give the others back."""
        self._stopping.set()
        if self._worker is not None:
            await self._worker.stop(grace_s=grace_s)

    async def close(self) -> None:
        """After `run` has returned."""
        if self._calls is not None:
            self._calls.close()
        await self._pools.stop()
        await self._objects.close()
