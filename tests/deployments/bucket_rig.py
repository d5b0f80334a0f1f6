"""Buckets in a folder, a real Redis, and workers that embed them: where pipeline tests start."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.bucket_tasks import BucketTasks, EmbedBucket
from cluster.chunk_records import FileRecord
from cluster.chunk_store import ChunkStore
from cluster.config import ShoalConfig, parse_config
from cluster.object_store import ObjectStore, open_object_store
from cluster.redis_client import RedisClient, connect
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.task import TaskRecord
from cluster.types import BucketRef
from deployments.bucket_worker import BucketWorker, Surroundings
from deployments.file_embedding import ChunkReader
from tests.cluster.task_queue.tasks import BEAT_S, LEASE_S
from tests.deployments.bucket_fakes import HashEmbedder, LineReader
from tests.redis_server import PATIENCE_S

BUCKET = BucketRef("default", "handbook")


@dataclass
class Rig:
    """Everything around a `BucketWorker`."""

    config: ShoalConfig
    redis: RedisClient
    objects: ObjectStore
    embedders: dict[str, HashEmbedder]
    reader: ChunkReader = field(default_factory=LineReader)

    def __post_init__(self) -> None:
        self.chunks = ChunkStore(self.redis)
        self.queue = TaskQueue(self.redis)
        self.tasks = BucketTasks(self.queue)

    @property
    def filenames(self) -> list[str]:
        """Of all that were read."""
        assert isinstance(self.reader, LineReader)
        return self.reader.filenames

    @property
    def embedder(self) -> HashEmbedder:
        return self.embedders["m"]

    def worker(self, name: str = "w") -> BucketWorker:
        around = Surroundings(
            redis=self.redis,
            objects=self.objects,
            reader=self.reader,
            embedders=dict(self.embedders),
        )
        worker = BucketWorker(
            self.config, around, name=name, lease_s=LEASE_S, crawled_networks=["127.0.0.0/8"]
        )
        worker._loop._beat_s = BEAT_S
        return worker

    @asynccontextmanager
    async def working(self, *, num_workers: int = 1) -> AsyncIterator[None]:
        workers = [self.worker(f"w{n}") for n in range(num_workers)]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        try:
            yield
        finally:
            for worker in workers:
                await worker.stop(grace_s=0)
            await asyncio.gather(*running)

    async def put(self, bucket: BucketRef = BUCKET, **files: str) -> None:
        """Files by name, without their ending."""
        if not await self.objects.bucket_exists(bucket):
            await self.objects.create_bucket(bucket)
        for name, text in files.items():
            await self.objects.put(bucket, f"{name}.txt", text.encode())

    async def request(
        self,
        bucket: BucketRef = BUCKET,
        *,
        model: str = "m",
        chunk_size: int = 64,
        chunk_overlap: int = 0,
    ) -> TaskRecord:
        body = EmbedBucket(
            bucket_name=bucket.name,
            embedding_model=model,
            chunk_size=chunk_size,
            chunk_overlap=chunk_overlap,
            loader="default",
        )
        return await self.tasks.request(bucket.tenant, body)

    async def end_of(self, record: TaskRecord) -> TaskRecord:
        async with asyncio.timeout(120):
            return await self.queue.wait_until_final(record.tenant, record.task_id)

    async def embed(self, bucket: BucketRef = BUCKET, **options: object) -> TaskRecord:
        return await self.end_of(await self.request(bucket, **options))  # type: ignore[arg-type]

    async def texts(self, bucket: BucketRef = BUCKET) -> dict[str, list[str]]:
        """What is searchable, by file, in order."""
        snapshot = await self.chunks.snapshot(bucket)
        found: dict[str, list[str]] = {}
        async for segment, chunks in self.chunks.all_chunks(bucket, snapshot.segments):
            lines = found.setdefault(segment.filename, [])
            assert segment.first_position == len(lines)
            lines += [chunk.text for chunk in chunks]
        return found

    async def files(self, bucket: BucketRef = BUCKET) -> dict[str, FileRecord]:
        return await self.chunks.files(bucket)


@asynccontextmanager
async def rig(
    redis_url: str,
    home: Path,
    *,
    models: Sequence[str] = ("m", "other"),
    **retrieval: object,
) -> AsyncIterator[Rig]:
    config = parse_config(
        {
            "models": [{"name": "chat", "source": "unused"}],
            "embedders": [{"name": name, "source": "unused"} for name in models],
            "redis": {"url": redis_url, "timeout_s": PATIENCE_S},
            "retrieval": retrieval,
        }
    )
    objects = open_object_store(config.storage, home)
    async with connect(config.redis) as redis:
        embedders = {name: HashEmbedder(name) for name in models}
        yield Rig(config, redis, objects, embedders)
    await objects.close()
