"""The real ingress with buckets: real Redis, folder, reading, demo embedder and worker, no Ray."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tokenizers
from openai import AsyncOpenAI
from telnyx import AsyncTelnyx

from cluster.api_keys import hash_key
from cluster.bucket_tasks import BucketTasks
from cluster.chunk_store import ChunkStore
from cluster.config import EmbedderConfig, ShoalConfig, parse_config
from cluster.errors import NotFoundError
from cluster.model_source import resolve_embedder_source
from cluster.object_store import ObjectStore, open_object_store
from cluster.redis_client import connect
from cluster.retrieval import Embedder, EmbedderFacts, Embeddings, InputKind, SearchMode
from cluster.task_queue.queue import TaskQueue
from cluster.types import BucketRef, FoundChunk
from deployments.bucket_embedding import PassageEmbedder
from deployments.bucket_worker import BucketWorker, Surroundings
from deployments.ingress.services import RetrievalServices
from deployments.local_embedder import LocalEmbedder
from models.documents.reader import DocumentReader
from models.documents.settings import ReadingLimits
from models.embedding.text_embedder import TextEmbedder
from tests.cluster.task_queue.tasks import BEAT_S, LEASE_S
from tests.deployments.ingress.scripted_server import KEY, MODEL, serving
from tests.redis_server import PATIENCE_S

EMBED_MODEL = "shoal/demo-embed"
OTHER_KEY = "shoal-other-key"  # of the tenant "other"
DEMO = EmbedderConfig(name=EMBED_MODEL, source="demo")


def load_demo_embedder() -> TextEmbedder:
    return TextEmbedder(DEMO, resolve_embedder_source("demo"))


@dataclass
class DemoEmbedder:
    """Implements `PassageEmbedder` in this process. Waits at `gate`, if there is one."""

    model: TextEmbedder
    local: LocalEmbedder
    gate: asyncio.Event | None = None

    async def facts(self) -> EmbedderFacts:
        return await self.local.facts()

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], *, kind: InputKind
    ) -> Embeddings:
        if self.gate is not None and kind is InputKind.PASSAGE:
            await self.gate.wait()
        return await self.local.embed(inputs, kind=kind)

    async def tokenizer(self) -> tokenizers.Tokenizer:
        return self.model.tokenizer

    async def max_passage_tokens(self) -> int:
        return self.model.max_passage_tokens


@dataclass
class ExactRetriever:
    """Implements `Retriever` by looking at every vector in Redis."""

    chunks: ChunkStore
    embedder: Embedder

    async def search(
        self,
        buckets: Sequence[BucketRef],
        queries: Sequence[str],
        *,
        max_results: int,
        mode: SearchMode = SearchMode.FUSED,
    ) -> list[FoundChunk]:
        (bucket,) = buckets
        meta = await self.chunks.meta(bucket)
        if meta is None:
            raise NotFoundError(f"The bucket {bucket.name!r} was never embedded.")
        query_D = (await self.embedder.embed([queries[0]], kind=InputKind.QUERY)).vectors_ND[0]
        snapshot = await self.chunks.snapshot(bucket)
        found: list[FoundChunk] = []
        async for segment, vectors_ND in self.chunks.vectors(bucket, snapshot.segments):
            rows = [(segment.segment_id, row) for row in range(segment.num_chunks)]
            cosines = vectors_ND.astype(np.float32) @ query_D
            chunks = await self.chunks.chunks(bucket, rows)
            for row, (cosine, chunk) in enumerate(zip(cosines, chunks, strict=True)):
                assert chunk is not None
                found.append(
                    FoundChunk(
                        bucket=bucket.name,
                        filename=segment.filename,
                        etag=segment.etag,
                        embedding_model=meta.embedder.model_name,
                        chunk=chunk,
                        position=segment.first_position + row,
                        distance=1.0 - float(cosine),
                        score=float(cosine),
                    )
                )
        return sorted(found, key=lambda chunk: -chunk.score)[:max_results]


@dataclass
class BucketServer:
    """A running ingress, a running worker, and what a test needs of them."""

    port: int
    objects: ObjectStore
    chunks: ChunkStore
    tasks: BucketTasks
    queue: TaskQueue
    embedder: DemoEmbedder

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def telnyx(self, key: str = KEY) -> AsyncTelnyx:
        return AsyncTelnyx(api_key=key, base_url=f"{self.url}/v2", max_retries=0, timeout=120)

    def openai(self, path: str = "/v2/ai") -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url + path, api_key=KEY, max_retries=0, timeout=120)

    def http(self, key: str | None = KEY) -> httpx.AsyncClient:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=120)

    async def make(self, bucket: str = "handbook", tenant: str = "default", **files: str) -> None:
        """A bucket of Markdown files, by their names without the ending."""
        ref = BucketRef(tenant, bucket)
        if not await self.objects.bucket_exists(ref):
            await self.objects.create_bucket(ref)
        for name, text in files.items():
            await self.objects.put(ref, f"{name}.md", text.encode())

    async def embed(self, bucket: str = "handbook", key: str = KEY, **options: Any) -> Any:
        """Embed a bucket through the SDK; its task when it has ended."""
        async with self.telnyx(key) as client:
            made = await client.ai.embeddings.create(bucket_name=bucket, **options)
        return await self.end_of(str(made.data.task_id), key)

    async def end_of(self, task_id: str, key: str = KEY) -> Any:
        async with self.telnyx(key) as client, asyncio.timeout(120):
            while True:
                task = await client.ai.embeddings.retrieve(task_id)
                if task.data.status not in ("queued", "processing"):
                    return task.data
                await asyncio.sleep(0.05)


def bucket_configuration(redis_url: str, **retrieval: object) -> ShoalConfig:
    return parse_config(
        {
            "models": [{"name": MODEL, "source": "unused"}],
            "embedders": [{"name": EMBED_MODEL, "source": "demo"}],
            "redis": {"url": redis_url, "timeout_s": PATIENCE_S},
            "retrieval": {"sync_interval_s": 3600, **retrieval},
            "auth": {
                "api_keys": [
                    {"name": "test", "sha256": hash_key(KEY)},
                    {"name": "other", "sha256": hash_key(OTHER_KEY), "tenant": "other"},
                ]
            },
        }
    )


@asynccontextmanager
async def serving_buckets(
    checkpoint: Path, home: Path, redis_url: str, model: TextEmbedder
) -> AsyncIterator[BucketServer]:
    config = bucket_configuration(redis_url)
    objects = open_object_store(config.storage, home)
    reader = DocumentReader(ReadingLimits(max_bytes=10**7, timeout_s=60, memory_bytes=2**30))
    local = LocalEmbedder(DEMO, model)
    local.start()
    embedder = DemoEmbedder(model, local)
    embedders: dict[str, PassageEmbedder] = {EMBED_MODEL: embedder}
    async with connect(config.redis) as redis:
        chunks, queue = ChunkStore(redis), TaskQueue(redis)
        tasks = BucketTasks(queue)
        services = RetrievalServices(
            embedders=embedders,
            retriever=ExactRetriever(chunks, embedder),
            chunks=chunks,
            tasks=tasks,
            objects=objects,
        )
        around = Surroundings(redis=redis, objects=objects, reader=reader, embedders=embedders)
        worker = BucketWorker(
            config, around, name="w", lease_s=LEASE_S, crawled_networks=["127.0.0.0/8"]
        )
        worker._loop._beat_s = BEAT_S
        working = asyncio.create_task(worker.run())
        try:
            async with serving(checkpoint, config, retrieval=services) as server:
                yield BucketServer(server.port, objects, chunks, tasks, queue, embedder)
        finally:
            await worker.stop(grace_s=0)
            await working
            await reader.close()
            await local.stop()
            await objects.close()
