"""What tenants have used, by day, model and key: counted once, whatever fails on the way.

A process adds up what its requests used and writes the sums down at once, one write at a time, so
that many requests that end together share one. A write has a number, and one that was carried out
is not carried out again: after a time-out it is simply sent again. What a process that is killed
has not written is lost; that is what ended within its last round trip.

Keys begin with `<key_prefix>:1:`; T is a tenant, days are those of UTC. All but the first go after
`usage_retention_days`.

| key | type | holds |
|---|---|---|
| `usage_tenants` | SET | tenants that have used anything |
| `{tenant/T}:usage:<day>` | HASH | count, key id and model -> number; see `_field` |
| `{tenant/T}:usage_by:<writer>` | STRING | the number of a process's last write, for a day |
"""

import asyncio
import datetime
import logging
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import NamedTuple

from cluster.errors import ServiceUnavailableError
from cluster.redis_client import Argument, RedisClient, Script

MAX_DAYS = 400  # of one question
_SECONDS_A_DAY = 24 * 3600
_TRY_AGAIN_S = 1.0
_CLOSE_S = 5.0  # for the last write
_TENANTS_AT_ONCE = 500  # days of tenants that are read in one round trip

# KEYS: usage of a day, the writer's number. ARGV: number, retention in s, life of the number in s,
# field, amount, … -> whether it was new
_ADD = Script(
    """
if tonumber(redis.call('GET', KEYS[2]) or 0) >= tonumber(ARGV[1]) then return 0 end
for at = 4, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[at], ARGV[at + 1]) end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[3])
return 1
"""
)

logger = logging.getLogger(__name__)


class UsageCounts(NamedTuple):
    num_requests: int = 0
    prompt_tokens: int = 0  # those that were cached among them
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: "UsageCounts") -> "UsageCounts":
        return UsageCounts(*(a + b for a, b in zip(self, other, strict=True)))


_COUNTS = ("requests", "prompt", "cached", "completion")  # as fields call them
_SEPARATOR = "\x1f"


class UsageGroup(StrEnum):
    """What rows may be told apart by."""

    DAY = "day"
    TENANT = "tenant"
    MODEL = "model"
    KEY = "key"


class UsageRow(NamedTuple):
    """What was used; "" where rows are not told apart by it."""

    day: str  # 2026-11-26
    tenant: str
    model: str
    key_id: str
    counts: UsageCounts


class _Packet(NamedTuple):
    """One write: of a tenant and a day."""

    tenant: str
    day: str
    by_field: dict[tuple[str, str], UsageCounts]  # by key id and model


class UsageRecorder:
    """Of one process. `following` writes the last of it down."""

    def __init__(self, redis: RedisClient, *, retention_days: int) -> None:
        self._redis = redis
        self._retention_s = retention_days * _SECONDS_A_DAY
        self._writer = uuid.uuid4().hex
        self._num_writes = 0
        self._pending: dict[tuple[str, str], dict[tuple[str, str], UsageCounts]] = {}
        self._writing: asyncio.Task[None] | None = None
        self._known_tenants: set[str] = set()

    def add(self, tenant: str, *, model: str, key_id: str, counts: UsageCounts) -> None:
        """Count what a request used, when it has ended. Returns at once."""
        by_field = self._pending.setdefault((tenant, today()), {})
        field = (key_id, model)
        by_field[field] = by_field.get(field, UsageCounts()).plus(counts)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())

    async def add_once(
        self, name: str, tenant: str, *, model: str, key_id: str, counts: UsageCounts
    ) -> None:
        """Count what something with this name used; the second time changes nothing.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        await self._note_tenant(tenant)
        packet = _Packet(tenant, today(), {(key_id, model): counts})
        await self._write(packet, writer=name, number=1, life_s=self._retention_s)

    async def written(self) -> None:
        """Wait until all that was added is in Redis."""
        if self._writing is not None:
            await self._writing

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Write down what was added within it before it ends."""
        try:
            yield
        finally:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await self.written()
            except TimeoutError:
                logger.error("usage of %d tenants could not be written", len(self._pending))

    async def _write_all(self) -> None:
        packet: _Packet | None = None
        while self._pending or packet is not None:
            if packet is None:
                (tenant, day), by_field = self._pending.popitem()
                packet = _Packet(tenant, day, by_field)
                self._num_writes += 1
            try:
                await self._note_tenant(packet.tenant)
                await self._write(
                    packet, writer=self._writer, number=self._num_writes, life_s=_SECONDS_A_DAY
                )
            except ServiceUnavailableError:
                await asyncio.sleep(_TRY_AGAIN_S)
                continue
            except Exception:  # the top of a task: the others must not wait for ever
                logger.exception("usage of the tenant %s could not be written", packet.tenant)
            packet = None

    async def _write(self, packet: _Packet, *, writer: str, number: int, life_s: int) -> None:
        args: list[Argument] = [number, self._retention_s, life_s]
        for (key_id, model), counts in packet.by_field.items():
            for name, count in zip(_COUNTS, counts, strict=True):
                if count:
                    args += [_field(name, key_id, model), count]
        stem = _stem(self._redis, packet.tenant)
        keys = [f"{stem}:usage:{packet.day}", f"{stem}:usage_by:{writer}"]
        await self._redis.run(_ADD, keys=keys, args=args)

    async def _note_tenant(self, tenant: str) -> None:
        if tenant not in self._known_tenants:
            await self._redis.execute("SADD", self._redis.key("usage_tenants"), tenant)
            self._known_tenants.add(tenant)


class UsageStore:
    """Reads what was recorded. Every call may raise ServiceUnavailableError."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def tenants(self) -> list[str]:
        """Those that have used anything, deleted ones too; by name."""
        members = await self._redis.execute("SMEMBERS", self._redis.key("usage_tenants"))
        return sorted(member.decode() for member in members)

    async def find(
        self, tenants: Sequence[str], *, first: datetime.date, last: datetime.date
    ) -> list[UsageRow]:
        """Everything of these tenants on these days."""
        wanted = [(day, tenant) for day in _days(first, last) for tenant in tenants]
        rows: list[UsageRow] = []
        for start in range(0, len(wanted), _TENANTS_AT_ONCE):
            part = wanted[start : start + _TENANTS_AT_ONCE]
            hashes = await self._redis.execute_many(
                [("HGETALL", f"{_stem(self._redis, one)}:usage:{day}") for day, one in part]
            )
            for (day, tenant), fields in zip(part, hashes, strict=True):
                rows += _rows(day, tenant, fields)
        return rows


def grouped(rows: Iterable[UsageRow], groups: Sequence[UsageGroup]) -> list[UsageRow]:
    """The sums of rows that are equal in the groups, in their order."""
    sums: dict[tuple[str, str, str, str], UsageCounts] = {}
    for row in rows:
        key = (
            row.day if UsageGroup.DAY in groups else "",
            row.tenant if UsageGroup.TENANT in groups else "",
            row.model if UsageGroup.MODEL in groups else "",
            row.key_id if UsageGroup.KEY in groups else "",
        )
        sums[key] = sums.get(key, UsageCounts()).plus(row.counts)
    return [UsageRow(*key, counts) for key, counts in sorted(sums.items())]


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _days(first: datetime.date, last: datetime.date) -> list[str]:
    num_days = (last - first).days + 1
    return [(first + datetime.timedelta(days=n)).isoformat() for n in range(num_days)]


def _rows(day: str, tenant: str, fields: Mapping[bytes, bytes]) -> list[UsageRow]:
    found: dict[tuple[str, str], list[int]] = {}
    for field, value in fields.items():
        name, key_id, model = field.decode().split(_SEPARATOR)
        counts = found.setdefault((key_id, model), [0] * len(_COUNTS))
        counts[_COUNTS.index(name)] += int(value)
    return [
        UsageRow(day, tenant, model, key_id, UsageCounts(*counts))
        for (key_id, model), counts in found.items()
    ]


def _field(count: str, key_id: str, model: str) -> str:
    parts = (part.replace(_SEPARATOR, " ") for part in (count, key_id, model))
    return _SEPARATOR.join(parts)


def _stem(redis: RedisClient, tenant: str) -> str:
    return redis.key(f"{{tenant/{tenant}}}")
