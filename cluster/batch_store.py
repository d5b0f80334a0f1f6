"""What a batch is and how far it is, in Redis: written by whoever asks for it and whoever runs it.

Keys begin with `<prefix>:1:batches:{<tenant>}`; the braces are a hash tag, so that all of a
tenant's are on one node of a cluster:

    :batch:<id>   HASH  the batch: the fields of `Batch`, times in ms of Redis' clock
    :index        ZSET  ids of all batches, by created_ms

A batch moves in one direction, by one script that looks where it is:

    validating ──▶ in_progress ──▶ finalizing ──▶ completed, expired or failed
        │               └──▶ cancelling ──▶ cancelled
        └──▶ failed, expired, cancelled
"""

import time
from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec
import orjson

from cluster.batch_results import TokenCounts
from cluster.errors import NotFoundError
from cluster.redis_client import Argument, RedisClient, Script
from cluster.redis_pages import read_page


class BatchState(StrEnum):
    """OpenAI's words."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in _FINAL


_FINAL = (BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED)

# KEYS: root. ARGV: id, created_ms, retention_ms, field, value, … -> 1, or 0: it is there already
_CREATE = Script(
    """
local root, id = KEYS[1], ARGV[1]
local batch = root .. ':batch:' .. id
if redis.call('EXISTS', batch) == 1 then return 0 end
redis.call('HSET', batch, 'created_ms', ARGV[2], 'status', 'validating', unpack(ARGV, 4))
redis.call('PEXPIRE', batch, ARGV[3])
redis.call('ZADD', root .. ':index', ARGV[2], id)
redis.call('ZREMRANGEBYSCORE', root .. ':index', '-inf', ARGV[2] - ARGV[3])
return 1
"""
)

# KEYS: root. ARGV: id, the statuses it may have (joined by spaces), the new one, field, value, …
# -> its status now, or false: there is none
_MOVE = Script(
    """
local batch = KEYS[1] .. ':batch:' .. ARGV[1]
local status = redis.call('HGET', batch, 'status')
if not status then return false end
for allowed in string.gmatch(ARGV[2], '%S+') do
  if allowed == status then
    local t = redis.call('TIME')
    redis.call('HSET', batch, 'status', ARGV[3],
      ARGV[3] .. '_ms', t[1] * 1000 + math.floor(t[2] / 1000), unpack(ARGV, 4))
    return ARGV[3]
  end
end
return status
"""
)

# KEYS: root. ARGV: id, completed, failed -> its status
_COUNT = Script(
    """
local batch = KEYS[1] .. ':batch:' .. ARGV[1]
local status = redis.call('HGET', batch, 'status')
if status then redis.call('HSET', batch, 'num_completed', ARGV[2], 'num_failed', ARGV[3]) end
return status
"""
)


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """One thing wrong with the input; `line` counts from 1."""

    code: str
    line: int | None
    message: str
    param: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as it is now. Times are unix seconds of Redis' clock, by state."""

    batch_id: str
    task_id: str
    endpoint: str
    input_file_id: str
    created_at: float
    expires_at: float
    status: BatchState
    reached_at: Mapping[BatchState, float]
    metadata: Mapping[str, str] | None
    output_retention_s: float
    model: str | None
    num_total: int
    num_completed: int
    num_failed: int
    errors: Sequence[LineError]
    output_file_id: str | None
    error_file_id: str | None
    tokens: TokenCounts | None
    ending: BatchState | None  # what it will be once it is finalized


class BatchPage(msgspec.Struct, frozen=True, kw_only=True):
    batches: list[Batch]
    has_more: bool


class BatchStore:
    """Every call may raise ServiceUnavailableError: Redis does not answer."""

    def __init__(self, redis: RedisClient, *, retention_s: float) -> None:
        self._redis = redis
        self._retention_ms = round(retention_s * 1000)

    async def create(
        self, tenant: str, batch_id: str, *, created_at: float, fields: Mapping[str, Argument]
    ) -> None:
        """`validating` from now on; what is there already stays as it is."""
        flat = [part for pair in fields.items() for part in pair]
        created_ms = round(created_at * 1000)
        arguments = (batch_id, created_ms, self._retention_ms, *flat)
        await self._redis.run(_CREATE, keys=[self._root(tenant)], args=arguments)

    async def get(self, tenant: str, batch_id: str) -> Batch:
        """
        Raises:
            NotFoundError: the tenant has no such batch (any more).
        """
        key = f"{self._root(tenant)}:batch:{batch_id}"
        found = _batch_of(batch_id, await self._redis.execute("HGETALL", key))
        if found is None:
            raise batch_not_found(batch_id)
        return found

    async def find(self, tenant: str, *, after: str, limit: int) -> BatchPage:
        """The newest first.

        Raises:
            BadRequestError: `after` is not in the list.
        """
        root = self._root(tenant)
        ids, has_more = await read_page(
            self._redis, f"{root}:index", after=after, limit=limit, is_descending=True
        )
        answers = await self._redis.execute_many(
            [("HGETALL", f"{root}:batch:{batch_id}") for batch_id in ids]
        )
        found = [_batch_of(*pair) for pair in zip(ids, answers, strict=True)]
        return BatchPage(batches=[b for b in found if b is not None], has_more=has_more)

    async def move(
        self,
        tenant: str,
        batch_id: str,
        allowed: Sequence[BatchState],
        to: BatchState,
        fields: Mapping[str, Argument] | None = None,
    ) -> BatchState:
        """To a new state with these fields, if it is in one of those; the state it is in then.

        Raises:
            NotFoundError: there is no such batch.
        """
        flat = [part for pair in (fields or {}).items() for part in pair]
        arguments = (batch_id, " ".join(allowed), to, *flat)
        status = await self._redis.run(_MOVE, keys=[self._root(tenant)], args=arguments)
        return _state(batch_id, status)

    async def count(
        self, tenant: str, batch_id: str, *, num_completed: int, num_failed: int
    ) -> BatchState:
        """Say how many lines are done; its state.

        Raises:
            NotFoundError: there is no such batch.
        """
        arguments = (batch_id, num_completed, num_failed)
        status = await self._redis.run(_COUNT, keys=[self._root(tenant)], args=arguments)
        return _state(batch_id, status)

    def _root(self, tenant: str) -> str:
        return self._redis.key("batches", f"{{{tenant}}}")


def batch_not_found(batch_id: str) -> NotFoundError:
    return NotFoundError(f"There is no batch {batch_id[:100]!r}.", param="batch_id")


def _state(batch_id: str, status: bytes | None) -> BatchState:
    if status is None:
        raise batch_not_found(batch_id)
    return BatchState(status.decode())


def _batch_of(batch_id: str, fields: Mapping[bytes, bytes]) -> Batch | None:
    if b"created_ms" not in fields:
        return None

    def text(name: str) -> str | None:
        return fields[name.encode()].decode() if fields.get(name.encode()) else None

    def count(name: str) -> int:
        return int(fields.get(name.encode(), b"0"))

    ending = text("ending")
    return Batch(
        batch_id=batch_id,
        task_id=text("task_id") or "",
        endpoint=text("endpoint") or "",
        input_file_id=text("input_file_id") or "",
        created_at=count("created_ms") / 1000,
        expires_at=count("expires_ms") / 1000,
        status=BatchState(text("status") or ""),
        reached_at={
            state: count(f"{state}_ms") / 1000
            for state in BatchState
            if f"{state}_ms".encode() in fields
        },
        metadata=orjson.loads(fields.get(b"metadata", b"null")),
        output_retention_s=count("output_retention_ms") / 1000,
        model=text("model"),
        num_total=count("num_total"),
        num_completed=count("num_completed"),
        num_failed=count("num_failed"),
        errors=msgspec.json.decode(fields.get(b"errors", b"[]"), type=list[LineError]),
        output_file_id=text("output_file_id"),
        error_file_id=text("error_file_id"),
        tokens=msgspec.json.decode(fields[b"tokens"], type=TokenCounts)
        if b"tokens" in fields
        else None,
        ending=None if ending is None else BatchState(ending),
    )


def is_expired(batch: Batch) -> bool:
    return time.time() >= batch.expires_at
