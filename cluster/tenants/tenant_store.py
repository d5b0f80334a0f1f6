"""Tenants and their keys in Redis: made, listed, changed, rotated and deleted.

Keys begin with `<key_prefix>:1:`. They are few and seldom read (see `key_directory`), so that all
of them share a slot of a cluster, and every change is one script:

| key | type | holds |
|---|---|---|
| `{access}:version` | STRING | a number that grows with each change below it |
| `{access}:tenants` | HASH | tenant -> `TenantRecord`, JSON |
| `{access}:keys` | HASH | key id -> `KeyRecord`, JSON: a digest, no key |
| `{access}:keys_of:T` | SET | ids of the tenant T's keys |
| `{access}:last_used` | HASH | key id -> Unix time, to the minute |

A tenant of the configuration needs no record; it gets one when a limit of its own is set.
"""

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from cluster.errors import BadRequestError, NotFoundError, ServiceUnavailableError, ServingError
from cluster.redis_client import Argument, RedisClient, Script
from cluster.tenant_config import KeyScope
from cluster.tenants.limits import OwnLimits
from cluster.tenants.records import KeyRecord, NewKey, TenantRecord

MAX_TENANTS = 10_000
MAX_KEYS = 1000  # of a tenant, those included that have expired
_MAX_TRIES = 20  # of a change that others are faster with

# KEYS: version, tenants. ARGV: name, record, most tenants -> 1, 0: it is there, or -1: too many
_CREATE_TENANT = Script(
    """
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 0 end
if redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[3]) then return -1 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('INCR', KEYS[1])
return 1
"""
)
# KEYS: version, hash. ARGV: field, value as it was read ("": absent), as it shall be -> whether it
# still was so
_SWAP = Script(
    """
if (redis.call('HGET', KEYS[2], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('INCR', KEYS[1])
return 1
"""
)
# KEYS: version, tenants, keys, keys_of, last_used. ARGV: name -> number of keys, or -1: no tenant
_DELETE_TENANT = Script(
    """
local ids = redis.call('SMEMBERS', KEYS[4])
if redis.call('HDEL', KEYS[2], ARGV[1]) == 0 and #ids == 0 then return -1 end
for _, id in ipairs(ids) do
  redis.call('HDEL', KEYS[3], id)
  redis.call('HDEL', KEYS[5], id)
end
redis.call('DEL', KEYS[4])
redis.call('INCR', KEYS[1])
return #ids
"""
)
# KEYS: version, tenants, keys, keys_of. ARGV: tenant, whether it needs no record, id, record, most
# keys -> 1, 0: there is no such tenant, or -1: too many
_CREATE_KEY = Script(
    """
if ARGV[2] ~= '1' and redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then return 0 end
if redis.call('SCARD', KEYS[4]) >= tonumber(ARGV[5]) then return -1 end
redis.call('SADD', KEYS[4], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
redis.call('INCR', KEYS[1])
return 1
"""
)
# KEYS: version, keys, keys_of, last_used. ARGV: id -> whether it was there
_DELETE_KEY = Script(
    """
if redis.call('SREM', KEYS[3], ARGV[1]) == 0 then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('INCR', KEYS[1])
return 1
"""
)
# KEYS: version, keys, keys_of. ARGV: old id, its record as it was read, as it shall be, new id, its
# record, most keys -> 1, 0: the old one has changed, or -1: too many
_ROTATE_KEY = Script(
    """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if redis.call('SCARD', KEYS[3]) >= tonumber(ARGV[6]) then return -1 end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3], ARGV[4], ARGV[5])
redis.call('SADD', KEYS[3], ARGV[4])
redis.call('INCR', KEYS[1])
return 1
"""
)
# KEYS: version, keys. ARGV: id -> both, of one moment
_FIND_KEY = Script(
    """
return {redis.call('GET', KEYS[1]), redis.call('HGET', KEYS[2], ARGV[1])}
"""
)
# KEYS: keys, last_used. ARGV: id, time, …: of keys that are there
_TOUCH = Script(
    """
for at = 1, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[1], ARGV[at]) == 1 then
    redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  end
end
"""
)

T = TypeVar("T")


class TenantExistsError(ServingError):
    status, code, title = 409, "10012", "Duplicate resource"
    openai_type = "invalid_request_error"


class FoundKey(NamedTuple):
    version: int
    record: KeyRecord | None


class ListedKey(NamedTuple):
    record: KeyRecord
    last_used_at: float | None  # None: never


class RotatedKey(NamedTuple):
    new: NewKey
    old: KeyRecord


class TenantStore:
    """Every call may raise ServiceUnavailableError: Redis does not answer."""

    def __init__(self, redis: RedisClient, *, configured: Sequence[str]) -> None:
        """`configured`: tenants that are there without a record."""
        self._redis = redis
        self._configured = sorted(set(configured))

    # -- tenants -------------------------------------------------------------------------------

    async def create_tenant(self, name: str, limits: OwnLimits) -> TenantRecord:
        """
        Raises:
            TenantExistsError: there is one.
            BadRequestError: there are too many.
        """
        record = TenantRecord(name=name, created_at=round(time.time(), 3), limits=limits)
        if name in self._configured:
            raise _exists(name)
        outcome = await self._redis.run(
            _CREATE_TENANT,
            keys=[self._key("version"), self._key("tenants")],
            args=(name, msgspec.json.encode(record), MAX_TENANTS),
        )
        if outcome == 0:
            raise _exists(name)
        if outcome == -1:
            raise BadRequestError(f"There are {MAX_TENANTS} tenants already.")
        return record

    async def tenants(self) -> list[TenantRecord]:
        """By name, those of the configuration among them."""
        values = await self._redis.execute("HVALS", self._key("tenants"))
        records = {record.name: record for record in map(_tenant_of, values)}
        for name in self._configured:
            records.setdefault(name, TenantRecord(name=name, created_at=None))
        return [records[name] for name in sorted(records)]

    async def tenant(self, name: str) -> TenantRecord:
        """
        Raises:
            NotFoundError: there is none.
        """
        return self._found(name, await self._redis.execute("HGET", self._key("tenants"), name))

    async def change_limits(
        self, name: str, change: Callable[[OwnLimits], OwnLimits]
    ) -> TenantRecord:
        """
        Raises:
            NotFoundError: there is no such tenant.
        """

        async def try_once() -> TenantRecord | None:
            stored = await self._redis.execute("HGET", self._key("tenants"), name)
            record = self._found(name, stored)
            changed = msgspec.structs.replace(
                record,
                limits=change(record.limits),
                created_at=record.created_at or round(time.time(), 3),
            )
            done = await self._redis.run(
                _SWAP,
                keys=[self._key("version"), self._key("tenants")],
                args=(name, stored or b"", msgspec.json.encode(changed)),
            )
            return changed if done else None

        return await _until_done(try_once)

    async def delete_tenant(self, name: str) -> int:
        """Forget a tenant, its limits and its keys, and say how many keys those were. What it has
        stored, and its usage, stay.

        Raises:
            NotFoundError: there is none.
            BadRequestError: the configuration names it.
        """
        if name in self._configured:
            raise BadRequestError(
                f"The tenant {name!r} is one of the configuration (the default one, or one of"
                " auth.api_keys); it cannot be deleted here."
            )
        num_keys = await self._redis.run(
            _DELETE_TENANT,
            keys=[
                *(self._key("version"), self._key("tenants"), self._key("keys")),
                *(self._keys_of(name), self._key("last_used")),
            ],
            args=(name,),
        )
        if num_keys == -1:
            raise _no_tenant(name)
        return int(num_keys)

    # -- keys ----------------------------------------------------------------------------------

    async def create_key(
        self, tenant: str, name: str, *, scopes: tuple[KeyScope, ...], expires_at: float | None
    ) -> NewKey:
        """
        Raises:
            NotFoundError: there is no such tenant.
            BadRequestError: it has too many keys.
        """
        new = NewKey.make(tenant, name, scopes=scopes, expires_at=expires_at)
        outcome = await self._redis.run(
            _CREATE_KEY,
            keys=[
                *(self._key("version"), self._key("tenants")),
                *(self._key("keys"), self._keys_of(tenant)),
            ],
            args=(
                *(tenant, "1" if tenant in self._configured else "0"),
                *(new.record.key_id, msgspec.json.encode(new.record), MAX_KEYS),
            ),
        )
        if outcome == 0:
            raise _no_tenant(tenant)
        if outcome == -1:
            raise _too_many_keys()
        return new

    async def keys(self, tenant: str) -> list[ListedKey]:
        """A tenant's keys, the oldest first.

        Raises:
            NotFoundError: there is no such tenant.
        """
        await self.tenant(tenant)
        members = await self._redis.execute("SMEMBERS", self._keys_of(tenant))
        ids = [member.decode() for member in members]
        if not ids:
            return []
        values, used = await self._redis.execute_many(
            [("HMGET", self._key("keys"), *ids), ("HMGET", self._key("last_used"), *ids)]
        )
        listed = [
            ListedKey(_key_of(value), None if last is None else float(last))
            for value, last in zip(values, used, strict=True)
            if value is not None  # deleted at this moment
        ]
        return sorted(listed, key=lambda key: (key.record.created_at, key.record.key_id))

    async def delete_key(self, tenant: str, key_id: str) -> None:
        """
        Raises:
            NotFoundError: the tenant has no such key.
        """
        keys = [
            *(self._key("version"), self._key("keys")),
            *(self._keys_of(tenant), self._key("last_used")),
        ]
        if not await self._redis.run(_DELETE_KEY, keys=keys, args=(key_id,)):
            raise _no_key(key_id)

    async def rotate_key(self, tenant: str, key_id: str, *, overlap_s: float) -> RotatedKey:
        """Make a new key with the name, the scopes and the end of an old one, which lives on for
        the overlap.

        Raises:
            NotFoundError: the tenant has no such key.
            BadRequestError: it has expired; or the tenant has too many.
        """

        async def try_once() -> RotatedKey | None:
            stored = await self._redis.execute("HGET", self._key("keys"), key_id)
            old = None if stored is None else _key_of(stored)
            if old is None or old.tenant != tenant:
                raise _no_key(key_id)
            if old.is_expired():
                raise BadRequestError(f"The key {key_id!r} has expired; make a new one.")
            new = NewKey.make(tenant, old.name, scopes=old.scopes, expires_at=old.expires_at)
            # Never later than was asked for: with no overlap, the key has ended.
            end = math.floor((time.time() + overlap_s) * 1000) / 1000
            ending = msgspec.structs.replace(
                old, expires_at=end if old.expires_at is None else min(end, old.expires_at)
            )
            args: list[Argument] = [key_id, stored, msgspec.json.encode(ending)]
            args += [new.record.key_id, msgspec.json.encode(new.record), MAX_KEYS]
            outcome = await self._redis.run(
                _ROTATE_KEY,
                keys=[self._key("version"), self._key("keys"), self._keys_of(tenant)],
                args=args,
            )
            if outcome == -1:
                raise _too_many_keys()
            return RotatedKey(new, ending) if outcome else None

        return await _until_done(try_once)

    # -- for whoever checks keys ---------------------------------------------------------------

    async def version(self) -> int:
        """Changes with every change to tenants and keys."""
        return int(await self._redis.execute("GET", self._key("version")) or 0)

    async def find_key(self, key_id: str) -> FoundKey:
        version, value = await self._redis.run(
            _FIND_KEY, keys=[self._key("version"), self._key("keys")], args=(key_id,)
        )
        return FoundKey(int(version or 0), None if value is None else _key_of(value))

    async def touch(self, used_at: Mapping[str, float]) -> None:
        """Write down when keys, by their ids, were last used."""
        args = [part for key_id, at in used_at.items() for part in (key_id, round(at))]
        await self._redis.run(_TOUCH, keys=[self._key("keys"), self._key("last_used")], args=args)

    def _found(self, name: str, stored: bytes | None) -> TenantRecord:
        if stored is not None:
            return _tenant_of(stored)
        if name in self._configured:
            return TenantRecord(name=name, created_at=None)
        raise _no_tenant(name)

    def _key(self, name: str) -> str:
        return self._redis.key("{access}", name)

    def _keys_of(self, tenant: str) -> str:
        return self._redis.key("{access}", "keys_of", tenant)


async def _until_done(try_once: Callable[[], Awaitable[T | None]]) -> T:
    for _ in range(_MAX_TRIES):
        done = await try_once()
        if done is not None:
            return done
    raise ServiceUnavailableError("Others change the same at this moment.", retry_after_s=1.0)


def _tenant_of(data: bytes) -> TenantRecord:
    return msgspec.json.decode(data, type=TenantRecord)


def _key_of(data: bytes) -> KeyRecord:
    return msgspec.json.decode(data, type=KeyRecord)


def _exists(name: str) -> TenantExistsError:
    return TenantExistsError(f"There is a tenant {name!r} already.", param="name")


def _no_tenant(name: str) -> NotFoundError:
    return NotFoundError(f"There is no tenant {name[:100]!r}.", param="tenant")


def _no_key(key_id: str) -> NotFoundError:
    return NotFoundError(f"The tenant has no key {key_id[:100]!r}.", param="key_id")


def _too_many_keys() -> BadRequestError:
    return BadRequestError(f"The tenant has {MAX_KEYS} keys already; revoke some first.")
