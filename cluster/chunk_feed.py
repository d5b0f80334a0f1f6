"""The feed of commits in any bucket: who commits announces, who holds buckets follows.

An announcement is a hint and may be lost with its writer; so followers also compare versions.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any

from cluster import chunk_keys
from cluster.chunk_keys import ChunkKeys
from cluster.errors import ServiceUnavailableError
from cluster.redis_client import RedisClient
from cluster.types import BucketRef

_BLOCK_S = 1.0
_COMPARE_INTERVAL_S = 5.0
_RECONNECT_S = 0.25


class ChangeFeed:
    """The stream `changes` of one Redis."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._key = chunk_keys.changes_key(redis)

    async def announce(self, bucket: BucketRef, version: int) -> None:
        trimming = ("MAXLEN", "~", chunk_keys.MAX_ANNOUNCEMENTS)
        fields = ("tenant", bucket.tenant, "bucket", bucket.name, "version", version)
        await self._redis.execute("XADD", self._key, *trimming, "*", *fields)

    async def versions(self, buckets: Sequence[BucketRef]) -> list[int]:
        """See `ChunkStore.versions`."""
        keys = [ChunkKeys(self._redis, bucket) for bucket in buckets]
        found = await self._redis.execute_many([("HGET", key.head, "version") for key in keys])
        return [int(version or 0) for version in found]

    async def follow(
        self, held: Callable[[], Collection[BucketRef]]
    ) -> AsyncIterator[tuple[BucketRef, int]]:
        """See `ChunkStore.follow`."""
        last_id = b""  # what has been read up to; empty: nothing yet
        compare_at_s = 0.0
        while True:
            found: list[tuple[BucketRef, int]] = []
            try:
                if time.monotonic() >= compare_at_s:
                    last_id = await self._checked(last_id)
                    refs = list(held())
                    found += zip(refs, await self.versions(refs), strict=True)
                    compare_at_s = time.monotonic() + _COMPARE_INTERVAL_S
                else:
                    entries = await self._entries_after(last_id)
                    found += (_bucket_and_version(fields) for _, fields in entries)
                    last_id = entries[-1][0] if entries else last_id
            except ServiceUnavailableError:
                compare_at_s = 0.0
                await asyncio.sleep(_RECONNECT_S)  # nothing tells when a server is back
            for item in found:
                yield item

    async def _entries_after(self, last_id: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Waits for some; empty: there were none for a while."""
        block = ("BLOCK", int(_BLOCK_S * 1000))
        answer: Any = await self._redis.wait(
            *("XREAD", *block, "STREAMS", self._key, last_id), block_s=_BLOCK_S
        )
        return [entry for _, entries in answer or () for entry in entries]

    async def _checked(self, last_id: bytes) -> bytes:
        """`last_id`, unless nothing was read yet or the server has lost what was."""
        newest = await self._redis.execute("XREVRANGE", self._key, "+", "-", "COUNT", 1)
        newest_id: bytes = newest[0][0] if newest else b"0-0"
        if not last_id or _position(newest_id) < _position(last_id):
            return newest_id
        return last_id


def _bucket_and_version(fields: dict[bytes, bytes]) -> tuple[BucketRef, int]:
    bucket = BucketRef(fields[b"tenant"].decode(), fields[b"bucket"].decode())
    return bucket, int(fields[b"version"])


def _position(entry_id: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in entry_id.split(b"-"))
