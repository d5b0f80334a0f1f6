"""A retrieval service before a real Redis, with an embedder whose vectors follow from the texts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from cluster.chunk_records import BucketSettings, FileRecord, FileStatus
from cluster.chunk_store import ChunkStore
from cluster.config import RedisConfig, RetrievalConfig
from cluster.redis_client import RedisClient, connect
from cluster.retrieval import EmbedderFacts, Embeddings, InputKind
from cluster.types import BucketRef, Chunk, FoundChunk
from deployments.retrieval_service import RetrievalService
from models.retrieval.reranker import Reranker
from tests.models.retrieval.bucket_samples import WIDTH, vector_of

BUCKET = BucketRef("default", "handbook")
_PATIENCE_S = 120  # only what is broken takes as long


class SampleEmbedder:
    """Implements `Embedder` with `vector_of`."""

    def __init__(self, name: str = "m", *, revision: str = "r", width: int = WIDTH) -> None:
        self.name = name
        self.revision = revision
        self.width = width
        self.num_calls = 0

    async def facts(self) -> EmbedderFacts:
        return EmbedderFacts(
            model_name=self.name, revision=self.revision, width=self.width, max_input_tokens=256
        )

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], *, kind: InputKind
    ) -> Embeddings:
        assert kind is InputKind.QUERY
        self.num_calls += 1
        rows = np.stack([vector_of(str(text)) for text in inputs])[:, : self.width]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return Embeddings(vectors_ND=rows, num_tokens=len(inputs))


class Rig:
    """A service, and the store that others write to."""

    def __init__(
        self, service: RetrievalService, redis: RedisClient, embedders: dict[str, SampleEmbedder]
    ) -> None:
        self.service = service
        self.redis = redis
        self.store = ChunkStore(redis)
        self.embedders = embedders

    async def search(
        self, *queries: str, buckets: Sequence[BucketRef] = (BUCKET,), count: int = 5, **how: Any
    ) -> list[FoundChunk]:
        async with asyncio.timeout(120):
            return await self.service.search(buckets, queries, max_results=count, **how)

    async def texts(self, *queries: str, **how: Any) -> list[str]:
        return [found.chunk.text for found in await self.search(*queries, **how)]

    async def put(
        self,
        *,
        bucket: BucketRef = BUCKET,
        model: str = "m",
        drop: Sequence[str] = (),
        **files: Sequence[str],
    ) -> int:
        """Commit files, a chunk per text; the new version."""
        embedder = self.embedders[model]
        settings = BucketSettings(
            embedder=await embedder.facts(), chunk_size=1024, chunk_overlap=512, loader="default"
        )
        records = []
        for name, texts in files.items():
            rows = np.stack([vector_of(text) for text in texts])[:, : embedder.width]
            segments = await self.store.write_segments(
                bucket,
                f"{name}.txt",
                f"etag of {name}",
                [
                    Chunk(text=text, start=9 * row, end=9 * row + 9)
                    for row, text in enumerate(texts)
                ],
                rows / np.linalg.norm(rows, axis=1, keepdims=True),
                settings=settings,
            )
            records.append(record_of(f"{name}.txt", f"etag of {name}", segments))
        return await self.store.commit(bucket, settings=settings, put=records, drop=drop)

    def loaded(self) -> dict[str, int]:
        """Names of the loaded buckets, and their versions."""
        return {one.name: one.version for one in self.service.stats().buckets}


def record_of(filename: str, etag: str, segments: Any) -> FileRecord:
    return FileRecord(
        filename=filename,
        etag=etag,
        num_bytes=1,
        status=FileStatus.SUCCESS,
        created_at=1.0,
        updated_at=1.0,
        segments=segments,
    )


@asynccontextmanager
async def rig(
    redis_config: RedisConfig, *, reranker: Reranker | None = None, **retrieval: Any
) -> AsyncIterator[Rig]:
    embedders = {name: SampleEmbedder(name) for name in ("m", "other")}
    async with connect(redis_config) as redis:
        config = RetrievalConfig(**{"search_timeout_s": 60, **retrieval})
        service = RetrievalService(config, redis, embedders, num_threads=1, reranker=reranker)
        service.start()
        try:
            yield Rig(service, redis, embedders)
        finally:
            await service.stop()


async def until(is_so: Callable[[], bool]) -> None:
    """There is no event to await: it happens in the background of a replica."""
    async with asyncio.timeout(_PATIENCE_S):
        while not is_so():  # noqa: ASYNC110  # nothing tells when
            await asyncio.sleep(0.005)


async def eventually(work: Callable[[], Awaitable[bool]]) -> None:
    """As `until`, for what has to be asked for."""
    async with asyncio.timeout(_PATIENCE_S):
        while not await work():  # noqa: ASYNC110  # nothing tells when
            await asyncio.sleep(0.02)
