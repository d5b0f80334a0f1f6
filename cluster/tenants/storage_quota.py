"""How many bytes a tenant has stored, and whether an upload still fits.

What a tenant has is measured (`measure` walks its folder), and what comes and goes since then is
added. An upload reserves its bytes before they are stored, all of them where it says how many they
are, else a step at a time: two uploads at once cannot both take the last room. Where it is full,
or something was deleted, it is measured anew; so an error of the sum does not last.

Keys begin with `<key_prefix>:1:`; T is a tenant, and the braces put its keys into one slot.

| key | type | holds |
|---|---|---|
| `{tenant/T}:stored` | HASH | `bytes`; `at`, when measured (Unix s); `grown`, all that ever came |
| `{tenant/T}:uploads` | HASH | upload -> `<bytes reserved> <Unix s when the reservation ends>` |
"""

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Self

from cluster.errors import PermissionDeniedError, ServiceUnavailableError
from cluster.redis_client import RedisClient, Script

STEP_BYTES = 8 * 2**20
MAX_AGE_S = 60  # of what was measured, before an upload
FULL_AGE_S = 1  # the same, before one is refused
_LEASE_S = 3600  # of a reservation whose process has died
_EXPIRY_S = 24 * 3600  # of the sum of a tenant that uploads nothing
_MAX_MEASUREMENTS = 3  # for one reservation, while others delete

# KEYS: stored, uploads. ARGV: upload, bytes to reserve for it, the limit
# -> 'ok', 'full' or 'measure'
_RESERVE = Script(
    f"""
local now = tonumber(redis.call('TIME')[1])
local reserved = tonumber(ARGV[2])
local uploads = redis.call('HGETALL', KEYS[2])
for at = 1, #uploads, 2 do
  local bytes, ends = string.match(uploads[at + 1], '(%d+) (%d+)')
  if tonumber(ends) < now then
    redis.call('HDEL', KEYS[2], uploads[at])
  elseif uploads[at] ~= ARGV[1] then
    reserved = reserved + bytes
  end
end
local stored = redis.call('HMGET', KEYS[1], 'bytes', 'at')
local age = now - (tonumber(stored[2]) or 0)
if not stored[1] or age > {MAX_AGE_S} then return 'measure' end
if stored[1] + reserved > tonumber(ARGV[3]) then
  return age > {FULL_AGE_S} and 'measure' or 'full'
end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%d %d', ARGV[2], now + {_LEASE_S}))
redis.call('EXPIRE', KEYS[2], {_LEASE_S})
return 'ok'
"""
)
# KEYS: stored, uploads. ARGV: upload, how many bytes more (or, negative, fewer) there are
_END = Script(
    """
redis.call('HDEL', KEYS[2], ARGV[1])
if ARGV[2] ~= '0' then
  redis.call('HINCRBY', KEYS[1], 'bytes', ARGV[2])
  if tonumber(ARGV[2]) > 0 then redis.call('HINCRBY', KEYS[1], 'grown', ARGV[2]) end
end
"""
)
# KEYS: stored. ARGV: bytes, `grown` when the measurement began. What came since then may be in the
# bytes or not: it is added, rather once too often until the next time.
_MEASURED = Script(
    f"""
local grown = tonumber(redis.call('HGET', KEYS[1], 'grown') or 0)
local bytes = ARGV[1] + math.max(0, grown - ARGV[2])
redis.call('HSET', KEYS[1], 'bytes', bytes, 'at', redis.call('TIME')[1])
redis.call('EXPIRE', KEYS[1], {_EXPIRY_S})
"""
)


class StorageLimitError(PermissionDeniedError):
    """A tenant has stored as much as it may. Asking again does not help: something must go."""


class Upload:
    """Bytes on their way into the storage."""

    def __init__(self, quota: "StorageQuota", tenant: str, limit: int | None) -> None:
        self._quota = quota
        self._tenant = tenant
        self._limit = limit
        self.upload_id = uuid.uuid4().hex
        self._num_bytes = self._num_reserved = 0
        self.growth = 0  # what the tenant has more when it is over

    @property
    def is_limited(self) -> bool:
        return self._limit is not None

    async def counted(self, content: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """The content, as long as there is room for it.

        Raises:
            StorageLimitError: there is none.
        """
        async for data in content:
            self._num_bytes += len(data)
            if self._num_bytes > self._num_reserved:
                await self.reserve(self._num_bytes + STEP_BYTES, at_least=self._num_bytes)
            yield data

    def stored(self, *, num_replaced: int = 0) -> None:
        """It is in the storage, in the place of so many bytes."""
        self.growth = self._num_bytes - num_replaced

    async def reserve(self, num_bytes: int, *, at_least: int) -> None:
        """
        Raises:
            StorageLimitError: there is no room for `at_least`.
            ServiceUnavailableError: Redis does not answer.
        """
        if self._limit is None:
            self._num_reserved = num_bytes
            return
        for wanted in dict.fromkeys((num_bytes, at_least)):
            if await self._quota.reserve(self._tenant, self.upload_id, wanted, self._limit):
                self._num_reserved = wanted
                return
        raise StorageLimitError(
            f"The tenant {self._tenant!r} may store at most {self._limit} bytes; with this upload"
            " it would have more. Delete something first.",
            openai_code="storage_limit_exceeded",
        )


class StorageQuota:
    """Of all tenants."""

    def __init__(
        self,
        redis: RedisClient | None,
        *,
        limit_of: Callable[[str], int | None],
        measure: Callable[[str], Awaitable[int]],
    ) -> None:
        """
        Args:
            limit_of: a tenant's limit in bytes; None: it has none.
            measure: how many bytes a tenant has stored.
        """
        self._redis = redis
        self._limit_of = limit_of
        self._measure = measure

    @classmethod
    def unlimited(cls) -> Self:
        async def nothing(_: str) -> int:
            return 0

        return cls(None, limit_of=lambda _: None, measure=nothing)

    @asynccontextmanager
    async def upload(self, tenant: str, *, num_bytes: int | None) -> AsyncIterator[Upload]:
        """Store `Upload.counted` within it, and say when it is `stored`. `num_bytes`: None where
        the client does not say how many they are.

        Raises:
            StorageLimitError: there is no room.
            ServiceUnavailableError: Redis does not answer.
        """
        limit = None if self._redis is None else self._limit_of(tenant)
        upload = Upload(self, tenant, limit)
        if num_bytes is not None:
            await upload.reserve(num_bytes, at_least=num_bytes)
        try:
            yield upload
        finally:
            if self._redis is not None and limit is not None:
                keys = self._keys(self._redis, tenant)
                # Where it fails, the reservation ends by itself.
                with suppress(ServiceUnavailableError):
                    await self._redis.run(_END, keys=keys, args=(upload.upload_id, upload.growth))

    async def note_deleted(self, tenant: str) -> None:
        """Something of a tenant is gone: the next upload measures.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        if self._redis is not None and self._limit_of(tenant) is not None:
            await self._redis.execute("HDEL", self._keys(self._redis, tenant)[0], "at")

    async def reserve(self, tenant: str, upload_id: str, num_bytes: int, limit: int) -> bool:
        """Whether there is room for an upload of so many bytes, reserved so far or not."""
        assert self._redis is not None, "there are limits only where there is Redis"
        keys = self._keys(self._redis, tenant)
        for _ in range(_MAX_MEASUREMENTS):
            args = (upload_id, num_bytes, limit)
            outcome = await self._redis.run(_RESERVE, keys=keys, args=args)
            if outcome != b"measure":
                return bool(outcome == b"ok")
            grown = int(await self._redis.execute("HGET", keys[0], "grown") or 0)
            measured = await self._measure(tenant)
            await self._redis.run(_MEASURED, keys=keys[:1], args=(measured, grown))
        return False

    def _keys(self, redis: RedisClient, tenant: str) -> list[str]:
        stem = redis.key(f"{{tenant/{tenant}}}")
        return [f"{stem}:stored", f"{stem}:uploads"]
