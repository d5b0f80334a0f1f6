"""Files of clients (OpenAI's `/files`): their bytes in the object store, their facts in Redis.

Keys begin with `<prefix>:1:files:{<tenant>}`; the braces are a hash tag, so that all of a tenant's
are on one node of a cluster and a script may touch several:

    :file:<id>         HASH    filename, purpose, bytes, sha256, created_ms, expires_ms
    :index             ZSET    ids of all files, by created_ms
    :index:<purpose>   ZSET    the same of one purpose
    :expiry            ZSET    ids, by expires_ms
    :bytes             STRING  of all files together

and one key is of all tenants: `<prefix>:1:files:tenants`, SET of who has ever had a file.

The bytes of a file are the object `files/<id>` of a bucket that is the tenant's and in no listing:
see `open_file_objects`. They are written before the facts and deleted after them; what a crash
leaves behind is swept.
"""

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from cluster.batch_config import MAX_WINDOW_S, BatchConfig
from cluster.config import StorageConfig
from cluster.errors import BodyTooLargeError, NotFoundError
from cluster.object_store import FOLDER_NAME, ObjectStore, open_object_store
from cluster.redis_client import RedisClient, Script
from cluster.redis_pages import read_page
from cluster.storage.errors import BucketExistsError, ObjectNotFoundError
from cluster.storage.folder_store import FolderStore
from cluster.storage.stored_object import OpenObject
from cluster.types import BucketRef

BUCKET_NAME = "files"
FILES_PREFIX = "files/"
BATCHES_PREFIX = "batches/"  # results of lines, while a batch runs: see `batch_results`
_FILES_FOLDER = ".files"  # beside the tenants' folders; no tenant can be called so
# What is so old and belongs to nothing was left by a crash; younger, it may be being written.
_ORPHAN_FILE_S = 24 * 3600.0
_ORPHAN_RESULT_S = 2 * MAX_WINDOW_S

# KEYS: root. ARGV: id, filename, purpose, bytes, sha256, expires_after_ms ("" for never). What is
# there already stays as it is.
_ADD = Script(
    """
local root, id = KEYS[1], ARGV[1]
local file = root .. ':file:' .. id
if redis.call('EXISTS', file) == 1 then return 0 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', file, 'filename', ARGV[2], 'purpose', ARGV[3], 'bytes', ARGV[4],
  'sha256', ARGV[5], 'created_ms', now)
redis.call('ZADD', root .. ':index', now, id)
redis.call('ZADD', root .. ':index:' .. ARGV[3], now, id)
redis.call('INCRBY', root .. ':bytes', ARGV[4])
if ARGV[6] ~= '' then
  redis.call('HSET', file, 'expires_ms', now + ARGV[6])
  redis.call('ZADD', root .. ':expiry', now + ARGV[6], id)
end
return 1
"""
)

# KEYS: root. ARGV: id -> 1, or 0: there is none
_REMOVE = Script(
    """
local root, id = KEYS[1], ARGV[1]
local facts = redis.call('HMGET', root .. ':file:' .. id, 'purpose', 'bytes')
if not facts[1] then return 0 end
redis.call('DEL', root .. ':file:' .. id)
redis.call('ZREM', root .. ':index', id)
redis.call('ZREM', root .. ':index:' .. facts[1], id)
redis.call('ZREM', root .. ':expiry', id)
redis.call('DECRBY', root .. ':bytes', facts[2])
return 1
"""
)


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a file. Times are unix seconds of Redis' clock."""

    file_id: str
    filename: str
    purpose: str
    num_bytes: int
    sha256: str
    created_at: float
    expires_at: float | None  # None: never


class WrittenBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that are stored and not yet a file."""

    file_id: str
    num_bytes: int
    sha256: str


class FilePage(msgspec.Struct, frozen=True, kw_only=True):
    files: list[StoredFile]
    has_more: bool


class FileStore:
    """Every call may raise ServiceUnavailableError: Redis or the storage does not answer."""

    def __init__(self, redis: RedisClient, objects: ObjectStore, *, max_bytes: int) -> None:
        self._redis = redis
        self.objects = objects
        self.max_bytes = max_bytes
        self._known_tenants: set[str] = set()

    async def bucket(self, tenant: str) -> BucketRef:
        """Where a tenant's bytes are; made when it is not there."""
        ref = BucketRef(tenant, BUCKET_NAME)
        if tenant not in self._known_tenants:
            await self._redis.execute("SADD", self._tenants_key, tenant)
            if not await self.objects.bucket_exists(ref):
                with suppress(BucketExistsError):  # somebody else was first
                    await self.objects.create_bucket(ref)
            self._known_tenants.add(tenant)
        return ref

    async def write(
        self, tenant: str, content: AsyncIterable[bytes], *, file_id: str | None = None
    ) -> WrittenBytes:
        """Store the bytes of a file to be, in flat memory. `file_id`: None makes one.

        Raises:
            BodyTooLargeError: there are more than `max_bytes`.
            StorageFullError: there is no room.
        """
        counted = _Counted(content, max_bytes=self.max_bytes if file_id is None else None)
        written_id = new_file_id() if file_id is None else file_id
        await self.objects.put(await self.bucket(tenant), FILES_PREFIX + written_id, counted)
        return WrittenBytes(
            file_id=written_id, num_bytes=counted.num_bytes, sha256=counted.sha256.hexdigest()
        )

    async def add(
        self,
        tenant: str,
        written: WrittenBytes,
        *,
        filename: str,
        purpose: str,
        expires_after_s: float | None,
    ) -> StoredFile:
        """Make bytes a file. Doing so again changes nothing."""
        expires_ms = "" if expires_after_s is None else str(round(expires_after_s * 1000))
        await self._redis.run(
            _ADD,
            keys=[self._root(tenant)],
            args=(
                *(written.file_id, filename, purpose),
                *(written.num_bytes, written.sha256, expires_ms),
            ),
        )
        return await self.get(tenant, written.file_id)

    async def discard(self, tenant: str, written: WrittenBytes) -> None:
        """Forget bytes that will not be a file."""
        await self.objects.delete(await self.bucket(tenant), FILES_PREFIX + written.file_id)

    async def get(self, tenant: str, file_id: str) -> StoredFile:
        """
        Raises:
            NotFoundError: the tenant has no such file, or its time is over.
        """
        (found,) = await self._read(tenant, [file_id])
        if found is None:
            raise file_not_found(file_id)
        return found

    @asynccontextmanager
    async def open(self, tenant: str, file_id: str) -> AsyncIterator[OpenObject]:
        """A file's bytes.

        Raises:
            NotFoundError: the tenant has no such file.
        """
        await self.get(tenant, file_id)
        try:
            async with self.objects.open(
                await self.bucket(tenant), FILES_PREFIX + file_id
            ) as opened:
                yield opened
        except ObjectNotFoundError:
            raise file_not_found(file_id) from None

    async def find(
        self, tenant: str, *, purpose: str = "", after: str = "", limit: int, is_descending: bool
    ) -> FilePage:
        """Files by when they were made.

        Raises:
            BadRequestError: `after` is not in the list.
        """
        key = self._root(tenant) + (f":index:{purpose}" if purpose else ":index")
        ids, has_more = await read_page(
            self._redis, key, after=after, limit=limit, is_descending=is_descending
        )
        found = await self._read(tenant, ids)
        return FilePage(files=[file for file in found if file is not None], has_more=has_more)

    async def delete(self, tenant: str, file_id: str) -> None:
        """
        Raises:
            NotFoundError: the tenant has no such file.
        """
        if not await self._redis.run(_REMOVE, keys=[self._root(tenant)], args=(file_id,)):
            raise file_not_found(file_id)
        await self.objects.delete(await self.bucket(tenant), FILES_PREFIX + file_id)

    async def total_bytes(self, tenant: str) -> int:
        """Of a tenant's files."""
        return int(await self._redis.execute("GET", f"{self._root(tenant)}:bytes") or 0)

    async def sweep(self) -> int:
        """Delete files whose time is over, and bytes that a crash left; returns how many."""
        num_deleted = 0
        for member in await self._redis.execute("SMEMBERS", self._tenants_key):
            tenant = member.decode()
            num_deleted += await self._delete_expired(tenant)
            num_deleted += await self._delete_orphans(tenant)
        return num_deleted

    async def _delete_expired(self, tenant: str) -> int:
        key, now_ms = f"{self._root(tenant)}:expiry", round(time.time() * 1000)
        ids = await self._redis.execute("ZRANGE", key, "-inf", now_ms, "BYSCORE")
        for file_id in ids:
            try:
                await self.delete(tenant, file_id.decode())
            except NotFoundError:
                continue  # its owner was faster
        return len(ids)

    async def _delete_orphans(self, tenant: str) -> int:
        orphans = [
            key
            for key in await self._older_than(tenant, FILES_PREFIX, _ORPHAN_FILE_S)
            if not await self._is_file(tenant, key.removeprefix(FILES_PREFIX))
        ]
        orphans += await self._older_than(tenant, BATCHES_PREFIX, _ORPHAN_RESULT_S)
        for key in orphans:
            await self.objects.delete(await self.bucket(tenant), key)
        return len(orphans)

    async def _older_than(self, tenant: str, prefix: str, age_s: float) -> list[str]:
        limit, objects = time.time() - age_s, self.objects.list_objects
        bucket = await self.bucket(tenant)
        return [info.key async for info in objects(bucket, prefix) if info.modified_at < limit]

    async def _is_file(self, tenant: str, file_id: str) -> bool:
        return bool(await self._redis.execute("EXISTS", f"{self._root(tenant)}:file:{file_id}"))

    async def _read(self, tenant: str, file_ids: list[str]) -> list[StoredFile | None]:
        root = self._root(tenant)
        answers = await self._redis.execute_many(
            [("HGETALL", f"{root}:file:{file_id}") for file_id in file_ids]
        )
        return [
            _file_of(file_id, fields) for file_id, fields in zip(file_ids, answers, strict=True)
        ]

    def _root(self, tenant: str) -> str:
        return self._redis.key("files", f"{{{tenant}}}")

    @property
    def _tenants_key(self) -> str:
        return self._redis.key("files", "tenants")


class _Counted:
    """Bytes on their way, counted and digested."""

    def __init__(self, content: AsyncIterable[bytes], *, max_bytes: int | None) -> None:
        self._content = content
        self._max_bytes = max_bytes
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for data in self._content:
            self.num_bytes += len(data)
            if self._max_bytes is not None and self.num_bytes > self._max_bytes:
                raise file_too_large(f"more than {self._max_bytes}", self._max_bytes)
            self.sha256.update(data)
            yield data
            await asyncio.sleep(0)  # a body may come faster than anything else is done


def open_file_objects(storage: StorageConfig, batches: BatchConfig, home: Path) -> ObjectStore:
    """Where files are: beside the tenants' buckets, where no name of a bucket leads.

    In a folder that is `<folder>/.files/<tenant>/files/`; at an endpoint, a bucket for each tenant
    named by `batches.s3_bucket_name`.

    Raises:
        ConfigError: there are no credentials for the endpoint.
    """
    if storage.s3_endpoint is not None:
        named = storage.model_copy(update={"s3_bucket_name": batches.s3_bucket_name})
        return open_object_store(named, home)
    folder = home / FOLDER_NAME if storage.folder is None else Path(storage.folder).expanduser()
    return FolderStore(folder / _FILES_FOLDER)


def new_file_id() -> str:
    return f"file-{uuid.uuid4().hex}"


def file_not_found(file_id: str) -> NotFoundError:
    return NotFoundError(f"There is no file {file_id[:100]!r}.", param="file_id")


def file_too_large(given: str, limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(
        f"The file has {given} bytes; the limit is {limit}.", param="file", openai_code="too_large"
    )


def _file_of(file_id: str, fields: dict[bytes, bytes]) -> StoredFile | None:
    if not fields:
        return None
    expires_at = int(fields[b"expires_ms"]) / 1000 if b"expires_ms" in fields else None
    if expires_at is not None and expires_at <= time.time():
        return None  # it waits for the sweep
    return StoredFile(
        file_id=file_id,
        filename=fields[b"filename"].decode(),
        purpose=fields[b"purpose"].decode(),
        num_bytes=int(fields[b"bytes"]),
        sha256=fields[b"sha256"].decode(),
        created_at=int(fields[b"created_ms"]) / 1000,
        expires_at=expires_at,
    )
