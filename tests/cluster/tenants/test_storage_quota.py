"""Stored bytes: never more than the limit, whatever is uploaded at once."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from cluster.redis_client import RedisClient
from cluster.tenants.storage_quota import STEP_BYTES, StorageLimitError, StorageQuota

LIMIT = 100


@dataclass
class Shelf:
    """What a tenant has stored."""

    num_bytes: int = 0
    num_measured: int = 0

    async def measure(self, tenant: str) -> int:
        self.num_measured += 1
        return self.num_bytes


def quota_of(redis: RedisClient, shelf: Shelf, limit: int | None = LIMIT) -> StorageQuota:
    return StorageQuota(redis, limit_of=lambda _: limit, measure=shelf.measure)


async def pieces(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield bytes(size)
        await asyncio.sleep(0)


async def put(
    quota: StorageQuota, shelf: Shelf, *sizes: int, is_declared: bool = False, replaced: int = 0
) -> bool:
    """Whether there was room."""
    try:
        async with quota.upload("acme", num_bytes=sum(sizes) if is_declared else None) as upload:
            num_bytes = 0
            async for data in upload.counted(pieces(*sizes)):
                num_bytes += len(data)
            shelf.num_bytes += num_bytes - replaced
            upload.stored(num_replaced=replaced)
    except StorageLimitError:
        return False
    return True


@pytest.mark.parametrize("is_declared", [True, False])
async def test_uploads_at_once_never_exceed_the_limit(
    redis_client: RedisClient, is_declared: bool
) -> None:
    shelf = Shelf()
    quotas = [quota_of(redis_client, shelf) for _ in range(3)]
    assert await put(quotas[0], shelf, 7)
    outcomes = await asyncio.gather(
        *(put(quotas[n % 3], shelf, 3, 4, is_declared=is_declared) for n in range(40))
    )
    # The undeclared reserve as they come: those that share the last room may all find none.
    num_stored = 1 + sum(outcomes)
    assert num_stored <= LIMIT // 7
    assert shelf.num_bytes == 7 * num_stored <= LIMIT
    if is_declared:
        assert num_stored == LIMIT // 7
    has_room = True
    while has_room:
        # What was measured meanwhile may count some twice, until it is older than a moment.
        await redis_client.execute("HSET", redis_client.key("{tenant/acme}", "stored"), "at", 1)
        has_room = await put(quotas[0], shelf, 7)
    assert shelf.num_bytes == LIMIT // 7 * 7


async def test_a_large_file_is_refused_midway_and_leaves_nothing(redis_client: RedisClient) -> None:
    shelf = Shelf()
    quota = quota_of(redis_client, shelf, STEP_BYTES * 2)
    assert not await put(quota, shelf, STEP_BYTES, STEP_BYTES, 1)
    assert await put(quota, shelf, STEP_BYTES, STEP_BYTES)


async def test_replacing_an_object_frees_what_it_had(redis_client: RedisClient) -> None:
    shelf = Shelf()
    quota = quota_of(redis_client, shelf)
    assert await put(quota, shelf, 60)
    assert await put(quota, shelf, 30, replaced=60)
    assert await put(quota, shelf, 70)
    assert shelf.num_measured == 1


async def test_after_a_deletion_it_is_measured(redis_client: RedisClient) -> None:
    shelf = Shelf(num_bytes=90)
    quota = quota_of(redis_client, shelf)
    assert not await put(quota, shelf, 20)
    shelf.num_bytes = 10
    await quota.note_deleted("acme")
    assert await put(quota, shelf, 20)


async def test_without_a_limit_nothing_is_asked(redis_client: RedisClient) -> None:
    shelf = Shelf()
    assert await put(quota_of(redis_client, shelf, None), shelf, 10**6)
    assert await put(StorageQuota.unlimited(), shelf, 10**6)
    assert shelf.num_measured == 0
