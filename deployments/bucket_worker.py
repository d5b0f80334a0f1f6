"""The worker of tasks about buckets, without Serve: its handlers, and the comparison of buckets.

Several may run at once; Redis decides who does what.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.bucket_tasks import BucketTasks, EmbedBucket, EmbedWebsite, SyncBucket
from cluster.chunk_store import ChunkStore
from cluster.config import DEFAULT_TENANT, ShoalConfig
from cluster.errors import ServiceUnavailableError, ServingError
from cluster.object_store import ObjectStore
from cluster.redis_client import RedisClient
from cluster.storage.errors import BucketNotFoundError
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.running_task import RunningTask
from cluster.task_queue.task import Outcome, TaskStatus
from cluster.task_queue.worker_loop import LEASE_S, TaskWorkerLoop
from cluster.types import BucketRef
from deployments.bucket_embedding import BucketEmbedding, EmbeddingWish, PassageEmbedder
from deployments.file_embedding import ChunkReader, FileEmbedding
from deployments.website_embedding import WebsiteEmbedding

logger = logging.getLogger(__name__)

_NOTHING_TO_DO = Outcome(status=TaskStatus.SUCCEEDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a worker works with; it stays open when the worker stops."""

    redis: RedisClient
    objects: ObjectStore
    reader: ChunkReader
    embedders: Mapping[str, PassageEmbedder]  # by model name


class BucketWorker:
    """Belongs to one event loop."""

    def __init__(
        self,
        config: ShoalConfig,
        around: Surroundings,
        *,
        name: str,
        lease_s: float = LEASE_S,
        crawled_networks: Sequence[str] = (),
    ) -> None:
        """`crawled_networks`: the operator's, that may be crawled beside the public internet."""
        self._interval_s = config.retrieval.sync_interval_s
        self._tenants = tenants_of(config)
        self._chunks = ChunkStore(around.redis)
        self._queue = TaskQueue(around.redis)
        self._tasks = BucketTasks(self._queue)
        self._files = FileEmbedding(
            around.objects,
            self._chunks,
            around.reader,
            max_object_bytes=config.retrieval.max_object_bytes,
        )
        self._embedding = BucketEmbedding(
            around.objects, self._chunks, self._files, around.embedders
        )
        self._websites = WebsiteEmbedding(
            around.objects, self._embedding, allowed_networks=crawled_networks
        )
        self._loop = TaskWorkerLoop(
            self._queue,
            name=name,
            num_workers=config.retrieval.most_task_workers,
            lease_s=lease_s,
        )
        self._loop.handle(EmbedBucket, self._embed)
        self._loop.handle(EmbedWebsite, self._embed_website)
        self._loop.handle(SyncBucket, self._sync)

    @property
    def num_running(self) -> int:
        return self._loop.num_running

    async def num_waiting(self) -> int:
        """Tasks of the queue that no worker has taken yet, or not again.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        return (await self._queue.counts())[TaskStatus.QUEUED]

    async def run(self) -> None:
        """Work until `stop` is called."""
        comparing = asyncio.create_task(self._compare_now_and_then())
        try:
            await self._loop.run()
        finally:
            comparing.cancel()
            await asyncio.gather(comparing, return_exceptions=True)
            self._files.close()

    async def stop(self, *, grace_s: float) -> None:
        """Let running tasks end within the time, and give the others back."""
        await self._loop.stop(grace_s=grace_s)

    async def _embed(self, body: EmbedBucket, task: RunningTask) -> Outcome:
        bucket = BucketRef(task.record.tenant, body.bucket_name)
        return await self._embedding.embed(bucket, _wish(body), task)

    async def _embed_website(self, body: EmbedWebsite, task: RunningTask) -> Outcome:
        bucket = BucketRef(task.record.tenant, body.bucket_name)
        return await self._websites.embed(bucket, body, _wish(body), task)

    async def _sync(self, body: SyncBucket, task: RunningTask) -> Outcome:
        bucket = BucketRef(task.record.tenant, body.bucket_name)
        wish = await self._embedding.wish_of(bucket)
        if wish is None:
            return _NOTHING_TO_DO
        try:
            return await self._embedding.embed(bucket, wish, task, retries_failures=False)
        except BucketNotFoundError:  # it was deleted, and what was embedded of it goes too
            await task.ensure_wanted()
            await self._chunks.delete(bucket)
            return _NOTHING_TO_DO

    async def _compare_now_and_then(self) -> None:
        """Find what nobody has told: changes at an endpoint of others, or by hand in the folder."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                for bucket in await self._embedded_buckets():
                    await self._compare(bucket)
            except ServiceUnavailableError as error:
                logger.warning("buckets are not compared with their objects: %s", error)
            except Exception:  # nobody else would hear of it, and the next round may do better
                logger.exception("buckets are not compared with their objects")

    async def _embedded_buckets(self) -> list[BucketRef]:
        return [
            BucketRef(tenant, name)
            for tenant in self._tenants
            for name in await self._chunks.buckets(tenant)
        ]

    async def _compare(self, bucket: BucketRef) -> None:
        period = f"compare {bucket.tenant}/{bucket.name}"
        if not await self._queue.begin_period(period, self._interval_s * 0.9):
            return  # another worker does it
        try:
            if await self._embedding.has_changes(bucket):
                await self._tasks.request_sync(bucket)
        except BucketNotFoundError:
            # It may be the endpoint that is wrong: what is embedded is not given up for that.
            logger.warning("bucket %r is embedded, but the object store has none", bucket.name)
        except ServingError as error:
            logger.warning("bucket %r is not compared with its objects: %s", bucket.name, error)
        except Exception:  # the other buckets are compared all the same
            logger.exception("bucket %r is not compared with its objects", bucket.name)


def tenants_of(config: ShoalConfig) -> Sequence[str]:
    """All whose buckets there may be."""
    return sorted({DEFAULT_TENANT, *(key.tenant for key in config.auth.api_keys)})


def _wish(body: EmbedBucket) -> EmbeddingWish:
    return EmbeddingWish(
        embedding_model=body.embedding_model,
        chunk_size=body.chunk_size,
        chunk_overlap=body.chunk_overlap,
        loader=body.loader,
    )
