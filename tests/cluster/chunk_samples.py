"""Chunks, vectors and files whose content can be computed in the head."""

import time

import numpy as np
from numpy.typing import NDArray

from cluster.chunk_records import BucketSettings, FileRecord, FileStatus, SegmentRef
from cluster.chunk_store import ChunkStore
from cluster.retrieval import EmbedderFacts
from cluster.types import BucketRef, Chunk

BUCKET = BucketRef("default", "handbook")
WIDTH = 4
SETTINGS = BucketSettings(
    embedder=EmbedderFacts(model_name="m", revision="r", width=WIDTH, max_input_tokens=256),
    chunk_size=1024,
    chunk_overlap=512,
    loader="default",
)


def chunks_of(text: str, count: int) -> list[Chunk]:
    return [Chunk(text=f"{text} {i}", start=i, end=i + 1, page=i) for i in range(count)]


def vectors_of(count: int, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def record_of(
    filename: str,
    segments: tuple[SegmentRef, ...] = (),
    *,
    etag: str = "e1",
    status: FileStatus = FileStatus.SUCCESS,
) -> FileRecord:
    now = time.time()
    return FileRecord(
        filename=filename,
        etag=etag,
        num_bytes=1,
        status=status,
        created_at=now,
        updated_at=now,
        segments=segments,
    )


async def write(
    store: ChunkStore, filename: str, count: int, *, etag: str = "e1", bucket: BucketRef = BUCKET
) -> FileRecord:
    """Write chunks that say `filename etag row`; the record is to be committed."""
    chunks, vectors = chunks_of(f"{filename} {etag}", count), vectors_of(count)
    segments = await store.write_segments(
        bucket, filename, etag, chunks, vectors, settings=SETTINGS
    )
    return record_of(filename, segments, etag=etag)


async def searchable_texts(store: ChunkStore, bucket: BucketRef = BUCKET) -> list[str]:
    """All texts of a snapshot, which must all be there."""
    snapshot = await store.snapshot(bucket)
    parts = [part async for _, part in store.all_chunks(bucket, snapshot.segments)]
    return [chunk.text for part in parts for chunk in part]
