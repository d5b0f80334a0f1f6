"""A worker process to be killed: `python -m tests.deployments.bucket_process URL HOME`.

Real reading processes, real folder, real Redis; the embedder takes some milliseconds per batch and
counts its texts in the key `embedded`.
"""

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.redis_client import RedisClient
from cluster.retrieval import Embeddings, InputKind
from models.documents.reader import DocumentReader
from models.documents.settings import ReadingLimits
from tests.deployments.bucket_fakes import HashEmbedder
from tests.deployments.bucket_rig import rig

EMBEDDED_KEY = "embedded"
_BATCH_S = 0.05


@dataclass
class SlowEmbedder(HashEmbedder):
    """Takes a while, and says what it has done."""

    redis: RedisClient | None = None

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], *, kind: InputKind
    ) -> Embeddings:
        assert self.redis is not None
        await asyncio.sleep(_BATCH_S)
        embeddings = await super().embed(inputs, kind=kind)
        await self.redis.execute("INCRBY", EMBEDDED_KEY, len(inputs))
        return embeddings


async def work(url: str, home: Path) -> None:
    limits = ReadingLimits(max_bytes=10**7, timeout_s=60, memory_bytes=2**30)
    async with rig(url, home) as made:
        made.reader = DocumentReader(limits)
        made.embedders["m"] = SlowEmbedder("m", redis=made.redis)
        worker = made.worker(f"process {os.getpid()}")
        await worker.run()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], Path(sys.argv[2])))
