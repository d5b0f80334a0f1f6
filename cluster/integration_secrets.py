"""Integration secrets: a tenant's keys for other services, encrypted, in Redis.

Keys begin with `<key_prefix>:1:`; the braces put a tenant's into one slot of a cluster. No time to
live: a secret stays until it is deleted.

| key | type | holds |
|---|---|---|
| `{secrets/T}:ids` | HASH | id -> identifier |
| `{secrets/T}:records` | HASH | identifier -> `SecretRecord`, JSON: nothing secret |
| `{secrets/T}:sealed` | HASH | identifier -> the value, sealed for (tenant, identifier, id) |
| `secret_tenants` | SET | tenants that have, or once had, secrets: for rotation |

An identifier is there in all three or in none: two scripts change them. A tenant is entered into
the set before its first secret is written.
"""

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import msgspec

from cluster.errors import BadRequestError, NotFoundError, ServingError
from cluster.redis_client import RedisClient, Script
from cluster.secret_box import SecretBox, SecretSealedError
from cluster.secret_keys import SecretKey, replace_keys, rotation_lock

MAX_SECRETS = 1000  # of a tenant

# KEYS: ids, records, sealed. ARGV: id, identifier, record, sealed, most secrets
# -> 1, or 0: the identifier is taken, or -1: there are too many
_CREATE = Script(
    """
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 1 then return 0 end
if redis.call('HLEN', KEYS[2]) >= tonumber(ARGV[5]) then return -1 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[4])
return 1
"""
)
# KEYS: ids, records, sealed. ARGV: id -> whether it was there
_DELETE = Script(
    """
local identifier = redis.call('HGET', KEYS[1], ARGV[1])
if not identifier then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], identifier)
redis.call('HDEL', KEYS[3], identifier)
return 1
"""
)
# KEYS: records, sealed. ARGV: identifier -> both, of one moment
_READ = Script(
    """
return {redis.call('HGET', KEYS[1], ARGV[1]), redis.call('HGET', KEYS[2], ARGV[1])}
"""
)
# KEYS: sealed. ARGV: identifier, as it was read, as it shall be -> whether it still was so
_RESEAL = Script(
    """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""
)


class SecretType(StrEnum):
    BEARER = "bearer"
    BASIC = "basic"


class SecretRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What may be seen of a secret."""

    secret_id: str
    identifier: str
    secret_type: SecretType
    created_at: float  # Unix time


@dataclass(frozen=True, slots=True, repr=False)
class BearerValue:
    token: str

    @property
    def secret_type(self) -> SecretType:
        return SecretType.BEARER


@dataclass(frozen=True, slots=True, repr=False)
class BasicValue:
    username: str
    password: str

    @property
    def secret_type(self) -> SecretType:
        return SecretType.BASIC


SecretValue = BearerValue | BasicValue


class DuplicateSecretError(ServingError):
    status, code, title = 409, "10012", "Duplicate resource"
    openai_type = "invalid_request_error"


class SecretPage(NamedTuple):
    records: list[SecretRecord]
    num_total: int


class RotationReport(NamedTuple):
    num_rewritten: int
    num_unreadable: int  # as they were: their key is not here, or they were changed
    num_dropped_keys: int = 0


class _Keys(NamedTuple):
    ids: str
    records: str
    sealed: str


class _Stored(NamedTuple):
    record: SecretRecord
    sealed: bytes


class IntegrationSecrets:
    """Stores, lists, opens and deletes secrets, tenant by tenant."""

    def __init__(self, redis: RedisClient, box: SecretBox) -> None:
        self._redis = redis
        self._box = box

    async def create(self, tenant: str, identifier: str, value: SecretValue) -> SecretRecord:
        """
        Raises:
            DuplicateSecretError: the tenant has a secret with this identifier.
            BadRequestError: the tenant has too many.
            ServiceUnavailableError: Redis does not answer.
        """
        record = SecretRecord(
            secret_id=str(uuid.uuid4()),
            identifier=identifier,
            secret_type=value.secret_type,
            created_at=round(time.time(), 3),
        )
        sealed = self._box.seal(_encoded(value), context=_context(tenant, record))
        await self._redis.execute("SADD", self._tenants_key, tenant)
        outcome = await self._redis.run(
            _CREATE,
            keys=self._keys(tenant),
            args=(
                record.secret_id,
                identifier,
                msgspec.json.encode(record),
                sealed,
                MAX_SECRETS,
            ),
        )
        if outcome == 0:
            raise DuplicateSecretError(
                "There is a secret with this identifier already; delete it first, or choose"
                " another identifier.",
                param="identifier",
            )
        if outcome == -1:
            raise BadRequestError(f"There are {MAX_SECRETS} secrets already; delete some first.")
        return record

    async def find(
        self, tenant: str, *, secret_type: SecretType | None, offset: int, limit: int
    ) -> SecretPage:
        """A tenant's secrets, the newest first; None: of every type.

        Raises:
            ServiceUnavailableError: Redis does not answer.
        """
        values = await self._redis.execute("HVALS", self._keys(tenant).records)
        records = [
            record
            for record in map(_decoded_record, values)
            if secret_type in (None, record.secret_type)
        ]
        records.sort(key=lambda record: (-record.created_at, record.secret_id))
        return SecretPage(records[offset : offset + limit], len(records))

    async def delete(self, tenant: str, secret_id: str) -> None:
        """
        Raises:
            NotFoundError: the tenant has no such secret.
            ServiceUnavailableError: Redis does not answer.
        """
        if not await self._redis.run(_DELETE, keys=self._keys(tenant), args=(secret_id,)):
            raise NotFoundError("There is no integration secret with this id.", param="id")

    async def value(self, tenant: str, identifier: str) -> SecretValue | None:
        """A secret, opened; None: the tenant has none with this identifier.

        Raises:
            ServiceUnavailableError: Redis does not answer.
            SecretSealedError: it cannot be opened.
        """
        stored = await self._stored(tenant, identifier)
        return None if stored is None else self._opened(tenant, stored)

    async def rotate(self, *, makes_key: bool = True) -> RotationReport:
        """Seal every secret with a new key, or (`makes_key=False`) with the first key there is.

        Nobody notices: values open with the old key until they are rewritten, and processes read
        the file again when they meet a key that they do not know. Of the old keys the last one
        stays, since a process may just be writing with it; those before it go.

        Raises:
            SecretsKeyError: a new key is to be made, and the keys are not in a file.
            ServiceUnavailableError: Redis does not answer; what is rewritten so far is good.
        """
        if not makes_key:
            return await self._reseal_all()
        with rotation_lock(self._box.keys):
            keys = self._box.keys
            keys = replace_keys(keys, [SecretKey.new(), *keys.keys])
            report = await self._reseal_all()
            kept = keys.keys[:2]
            if report.num_unreadable or len(kept) == len(keys.keys):
                return report
            replace_keys(keys, kept)
            return report._replace(num_dropped_keys=len(keys.keys) - len(kept))

    async def _reseal_all(self) -> RotationReport:
        num_rewritten = num_unreadable = 0
        async for tenant, stored in self._every():
            if self._box.is_current(stored.sealed):
                continue
            try:
                num_rewritten += await self._reseal(tenant, stored)
            except SecretSealedError:
                num_unreadable += 1
        return RotationReport(num_rewritten, num_unreadable)

    async def _every(self) -> AsyncIterator[tuple[str, _Stored]]:
        for tenant in await self._redis.execute("SMEMBERS", self._tenants_key):
            name = tenant.decode()
            for identifier in await self._redis.execute("HKEYS", self._keys(name).records):
                stored = await self._stored(name, identifier.decode())
                if stored is not None:  # deleted meanwhile
                    yield name, stored

    async def _reseal(self, tenant: str, stored: _Stored) -> bool:
        """False: it was deleted meanwhile, and perhaps made anew."""
        record = stored.record
        value = self._box.open(stored.sealed, context=_context(tenant, record))
        sealed = self._box.seal(value, context=_context(tenant, record))
        done = await self._redis.run(
            _RESEAL,
            keys=[self._keys(tenant).sealed],
            args=(record.identifier, stored.sealed, sealed),
        )
        return bool(done)

    async def _stored(self, tenant: str, identifier: str) -> _Stored | None:
        keys = self._keys(tenant)
        record, sealed = await self._redis.run(
            _READ, keys=[keys.records, keys.sealed], args=(identifier,)
        )
        if record is None or sealed is None:
            return None
        return _Stored(_decoded_record(record), sealed)

    def _opened(self, tenant: str, stored: _Stored) -> SecretValue:
        opened = self._box.open(stored.sealed, context=_context(tenant, stored.record))
        fields: dict[str, str] = msgspec.msgpack.decode(opened, type=dict[str, str])
        if stored.record.secret_type is SecretType.BEARER:
            return BearerValue(fields["token"])
        return BasicValue(fields["username"], fields["password"])

    @property
    def _tenants_key(self) -> str:
        return self._redis.key("secret_tenants")

    def _keys(self, tenant: str) -> _Keys:
        stem = self._redis.key(f"{{secrets/{tenant}}}")
        return _Keys(f"{stem}:ids", f"{stem}:records", f"{stem}:sealed")


def _encoded(value: SecretValue) -> bytes:
    if isinstance(value, BearerValue):
        return msgspec.msgpack.encode({"token": value.token})
    return msgspec.msgpack.encode({"username": value.username, "password": value.password})


def _decoded_record(data: bytes) -> SecretRecord:
    return msgspec.json.decode(data, type=SecretRecord)


def _context(tenant: str, record: SecretRecord) -> tuple[str, ...]:
    return (tenant, record.identifier, record.secret_id, record.secret_type.value)
