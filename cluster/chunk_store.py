"""The chunks and vectors of embedded buckets in Redis: written unseen, committed at once.

Commits of a bucket are numbered by its version. `cluster.chunk_keys` has the keys and says what a
crash leaves behind. Shapes: N = chunks, D = the embedding's width.
"""

import secrets
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cluster import chunk_keys
from cluster.chunk_commit import Commit, encode_record, plan_commit
from cluster.chunk_feed import ChangeFeed
from cluster.chunk_keys import ChunkKeys
from cluster.chunk_records import (
    BucketMeta,
    BucketSettings,
    Change,
    EmbeddedFile,
    FileRecord,
    LiveSegment,
    SegmentRef,
    Snapshot,
    live_segments,
)
from cluster.chunk_removal import empty_trash, remove_from_sight
from cluster.redis_client import Argument, RedisClient
from cluster.types import BucketRef, Chunk

MAX_SEGMENT_CHUNKS = 1_000
_MAX_SEGMENT_BYTES = 2 * 2**20  # of vectors, and of texts
_MAX_READ_BYTES = 4 * 2**20  # of vectors, in one command
_MAX_READ_CHUNKS = 4_000  # texts, in one round trip
_FILES_PER_TIMEOUT = 5_000  # a commit of more may take longer
_BATCH = 500  # files whose status is noted in one round trip

_META = msgspec.msgpack.Decoder(BucketMeta)
_FILE = msgspec.msgpack.Decoder(FileRecord)
_EMBEDDED_FILE = msgspec.msgpack.Decoder(EmbeddedFile)
_CHANGE = msgspec.msgpack.Decoder(Change)
_CHUNK = msgspec.msgpack.Decoder(Chunk)
_REFS = msgspec.msgpack.Decoder(tuple[SegmentRef, ...])
_ENCODER = msgspec.msgpack.Encoder()


class ConflictError(Exception):
    """Someone else has committed to the bucket, or what was staged for it is gone: read again."""


class SegmentGoneError(Exception):
    """A segment was replaced some minutes ago: take a new snapshot."""


class ChunkStore:
    """All buckets of one Redis. Every method raises what `RedisClient.execute` raises."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._feed = ChangeFeed(redis)

    async def buckets(self, tenant: str) -> list[str]:
        """Names of the tenant's embedded buckets, sorted."""
        members = await self._redis.execute("SMEMBERS", chunk_keys.buckets_key(self._redis, tenant))
        names = sorted(name.decode() for name in members)
        refs = [BucketRef(tenant, name) for name in names]
        found = await self._redis.execute_many([("EXISTS", self._keys(r).meta) for r in refs])
        return [name for name, exists in zip(names, found, strict=True) if exists]

    async def meta(self, bucket: BucketRef) -> BucketMeta | None:
        """None: it was never embedded, or its embedding is deleted."""
        keys = self._keys(bucket)
        meta, version = await self._redis.execute_many(
            [("GET", keys.meta), ("HGET", keys.head, "version")]
        )
        if meta is None:
            return None
        return msgspec.structs.replace(_META.decode(meta), version=int(version or 0))

    async def versions(self, buckets: Sequence[BucketRef]) -> list[int]:
        """The version of each bucket; 0: never embedded. One round trip."""
        return await self._feed.versions(buckets)

    async def files(self, bucket: BucketRef) -> dict[str, FileRecord]:
        """All files by name, sorted: those noted and those embedded."""
        keys = self._keys(bucket)
        _, manifest, files = await self._redis.run(
            chunk_keys.READ, keys=[keys.head, keys.manifest, keys.files], args=[1]
        )
        embedded = {name: _EMBEDDED_FILE.decode(raw) for name, raw in _pairs(manifest)}
        records = {}
        for name, raw in sorted(_pairs(files)):
            record, file = _FILE.decode(raw), embedded.get(name)
            if file is not None:
                record = msgspec.structs.replace(
                    record, segments=file.segments, segments_etag=file.etag
                )
            records[name.decode()] = record
        return records

    async def write_segments(
        self,
        bucket: BucketRef,
        filename: str,
        etag: str,
        chunks: Sequence[Chunk],
        vectors_ND: NDArray[np.float32],
        *,
        settings: BucketSettings,
    ) -> tuple[SegmentRef, ...]:
        """Write the chunks of a version of a file. Nobody sees them until they are committed, and
        who resumes the work within a day finds them with `staged`.
        """
        assert len(chunks) == len(vectors_ND), (len(chunks), vectors_ND.shape)
        keys, refs = self._keys(bucket), []
        raw_chunks = [_ENCODER.encode(chunk) for chunk in chunks]
        commands: list[tuple[Argument, ...]] = []
        for first, last in _segment_bounds(raw_chunks, vectors_ND):
            await self._redis.execute_many(commands)  # those of the previous segment
            segment_id = secrets.token_hex(8)
            vectors = np.ascontiguousarray(vectors_ND[first:last], dtype="<f2").tobytes()
            rows = [x for row in enumerate(raw_chunks[first:last]) for x in row]
            vectors_key, texts_key = keys.segment(segment_id)
            commands = [
                ("SET", vectors_key, vectors, "EX", chunk_keys.STAGED_TTL_S),
                ("HSET", texts_key, *rows),
                ("EXPIRE", texts_key, chunk_keys.STAGED_TTL_S),
            ]
            refs.append(SegmentRef(segment_id=segment_id, num_chunks=last - first))
        key = keys.staged(*_identity(filename, etag, settings))
        staging = ("SET", key, _ENCODER.encode(refs), "EX", chunk_keys.STAGED_TTL_S)
        await self._redis.execute_many([*commands, staging])
        return tuple(refs)

    async def staged(
        self, bucket: BucketRef, filename: str, etag: str, *, settings: BucketSettings
    ) -> tuple[SegmentRef, ...] | None:
        """What `write_segments` has finished for this version; None: nothing that still exists.

        It is kept for another day. After a commit it is what was committed.
        """
        keys = self._keys(bucket)
        staged_key = keys.staged(*_identity(filename, etag, settings))
        raw = await self._redis.execute("GETEX", staged_key, "EX", chunk_keys.STAGED_TTL_S)
        if raw is None:
            return None
        refs = _REFS.decode(raw)
        segment_keys = [key for ref in refs for key in keys.segment(ref.segment_id)]
        # XX: one that is committed has no end, and gets none.
        renewed = await self._redis.execute_many(
            [
                command
                for key in segment_keys
                for command in (
                    ("EXPIRE", key, chunk_keys.STAGED_TTL_S, "XX"),
                    ("EXISTS", key),
                )
            ]
        )
        return refs if all(renewed[1::2]) else None

    async def commit(
        self,
        bucket: BucketRef,
        *,
        settings: BucketSettings,
        put: Sequence[FileRecord] = (),
        drop: Sequence[str] = (),
        expected_version: int | None = None,
    ) -> int:
        """Replace and drop files of a bucket, at once, and create it where there is none; return
        the new version. A record's `segments` become what is searchable of its file (those that
        were written, or those it has already; none: nothing is).

        `expected_version` is the bucket's version the caller has seen, 0 for none: who was
        overtaken is refused. None: whatever it is. To repeat a commit whose answer was lost, with
        the same arguments, is harmless.

        Raises:
            ConflictError: the version is another one, or a segment does not exist any more.
            ValueError: settings differ from the bucket's and files made with those would stay.
        """
        keys = self._keys(bucket)
        commit = Commit(settings=settings, put=put, drop=drop)
        await self._list_name(bucket)
        while True:
            plan = await plan_commit(self._redis, keys, commit)
            is_overtaken = expected_version is not None and plan.version != expected_version
            new_version = int(
                await self._redis.run(
                    chunk_keys.COMMIT,
                    keys=plan.keys(keys),
                    # Even then: it may be this very commit that made the newer version.
                    args=[-1 if is_overtaken else plan.version, *plan.arguments()],
                    timeout_s=self._redis.timeout_s * (1 + len(commit.names) / _FILES_PER_TIMEOUT),
                )
            )
            if new_version > 0:
                await self._announce(bucket, new_version)
                if plan.has_trash:
                    await empty_trash(self._redis, keys)
                return new_version
            if new_version == -2:
                raise ConflictError(f"{_name(bucket)}: a segment that was written is gone")
            if expected_version is not None:
                raise ConflictError(
                    f"{_name(bucket)}: version {expected_version} was expected, but someone else "
                    "has committed"
                )

    async def note_files(
        self,
        bucket: BucketRef,
        records: Sequence[FileRecord],
        *,
        expected_version: int | None = None,
    ) -> None:
        """Write the status of files without touching what is searchable.

        Raises:
            ConflictError: the bucket's version is not `expected_version`.
        """
        keys = self._keys(bucket)
        expected = -1 if expected_version is None else expected_version
        for first in range(0, len(records), _BATCH):
            pairs = [
                x for r in records[first : first + _BATCH] for x in (r.filename, encode_record(r))
            ]
            is_noted = await self._redis.run(
                chunk_keys.NOTE_FILES, keys=[keys.head, keys.files], args=[expected, *pairs]
            )
            if not is_noted:
                raise ConflictError(f"{_name(bucket)}: its version is not {expected_version}")

    async def note_file(
        self, bucket: BucketRef, record: FileRecord, *, expected_version: int | None = None
    ) -> None:
        """`note_files`, of one."""
        await self.note_files(bucket, [record], expected_version=expected_version)

    async def delete(self, bucket: BucketRef) -> bool:
        """Remove a bucket's embedding: at once from sight, in small steps from memory. False:
        there was none.
        """
        keys = self._keys(bucket)
        version = await remove_from_sight(self._redis, keys)
        if version > 0:
            await self._forget_name(bucket)
            await self._feed.announce(bucket, version)
        await empty_trash(self._redis, keys)  # also what a crash has left of an earlier deletion
        return version > 0

    async def snapshot(self, bucket: BucketRef) -> Snapshot:
        """All that is searchable, of one moment. Its segments can be read for some minutes more
        after they were replaced. A bucket that does not exist has none.
        """
        keys = self._keys(bucket)
        version, manifest = await self._redis.run(
            chunk_keys.READ, keys=[keys.head, keys.manifest, keys.files], args=[0]
        )
        files = [(name.decode(), _EMBEDDED_FILE.decode(raw)) for name, raw in _pairs(manifest)]
        return Snapshot(version=int(version), segments=live_segments(files))

    async def vectors(
        self, bucket: BucketRef, segments: Sequence[LiveSegment]
    ) -> AsyncIterator[tuple[LiveSegment, NDArray[np.float16]]]:
        """The vectors of each segment, in order, [num_chunks, D]; some MB are held at a time. The
        arrays cannot be written to.

        Raises:
            SegmentGoneError: one was replaced some minutes ago.
        """
        keys, width = self._keys(bucket), 0
        first = 0
        while first < len(segments):
            last = _read_until(segments, first, _MAX_READ_BYTES // 2 // width if width else 1)
            part = segments[first:last]
            blobs = await self._redis.execute("MGET", *(keys.vectors(s.segment_id) for s in part))
            for segment, blob in zip(part, blobs, strict=True):
                if blob is None:
                    raise SegmentGoneError(f"{_name(bucket)}: segment {segment.segment_id}")
                array = np.frombuffer(blob, dtype="<f2").reshape(segment.num_chunks, -1)
                width = array.shape[1]
                yield segment, array
            first = last

    async def chunks(
        self, bucket: BucketRef, refs: Sequence[tuple[str, int]]
    ) -> list[Chunk | None]:
        """Chunks by segment id and row in the segment, in the order asked for, in one round trip.
        None: replaced some minutes ago.
        """
        keys = self._keys(bucket)
        commands = [("HGET", keys.texts(segment_id), row) for segment_id, row in refs]
        raw_chunks = await self._redis.execute_many(commands)
        return [None if raw is None else _CHUNK.decode(raw) for raw in raw_chunks]

    async def all_chunks(
        self, bucket: BucketRef, segments: Sequence[LiveSegment]
    ) -> AsyncIterator[tuple[LiveSegment, list[Chunk]]]:
        """The chunks of each segment, in order; some MB are held at a time.

        Raises:
            SegmentGoneError: one was replaced some minutes ago.
        """
        keys = self._keys(bucket)
        first = 0
        while first < len(segments):
            last = _read_until(segments, first, _MAX_READ_CHUNKS)
            part = segments[first:last]
            answers = await self._redis.execute_many(
                [("HMGET", keys.texts(s.segment_id), *range(s.num_chunks)) for s in part]
            )
            for segment, raw_chunks in zip(part, answers, strict=True):
                if None in raw_chunks:
                    raise SegmentGoneError(f"{_name(bucket)}: segment {segment.segment_id}")
                yield segment, [_CHUNK.decode(raw) for raw in raw_chunks]
            first = last

    async def changes_since(self, bucket: BucketRef, version: int) -> list[Change] | None:
        """What happened after `version`, oldest first. None: that is not known any more, take a
        snapshot.
        """
        keys = self._keys(bucket)
        current, entries = await self._redis.execute_many(
            [("HGET", keys.head, "version"), ("XRANGE", keys.log, f"{version + 1}-0", "+")]
        )
        if not entries:
            return [] if int(current or 0) == version else None
        changes = [_decode_change(*entry) for entry in entries]
        # What clears everything follows on whatever was there before.
        first = changes[0].previous if changes[0].clears else version
        expected = [first, *(change.version for change in changes[:-1])]
        return changes if [change.previous for change in changes] == expected else None

    def follow(
        self, held: Callable[[], Collection[BucketRef]] = tuple
    ) -> AsyncIterator[tuple[BucketRef, int]]:
        """Buckets that have changed and their versions, from now on and without end; a deletion
        is a change. An outage of Redis is waited for. At the start, after an outage and every few
        seconds, the versions of the `held` buckets are given whether or not they have changed.
        """
        return self._feed.follow(held)

    async def _announce(self, bucket: BucketRef, version: int) -> None:
        await self._list_name(bucket)  # again: a deletion may have been about to forget it
        await self._feed.announce(bucket, version)

    async def _list_name(self, bucket: BucketRef) -> None:
        key = chunk_keys.buckets_key(self._redis, bucket.tenant)
        await self._redis.execute("SADD", key, bucket.name)

    async def _forget_name(self, bucket: BucketRef) -> None:
        key = chunk_keys.buckets_key(self._redis, bucket.tenant)
        await self._redis.execute("SREM", key, bucket.name)
        if await self.meta(bucket) is not None:  # embedded again meanwhile
            await self._list_name(bucket)

    def _keys(self, bucket: BucketRef) -> ChunkKeys:
        return ChunkKeys(self._redis, bucket)


def _segment_bounds(
    raw_chunks: Sequence[bytes], vectors_ND: NDArray[np.float32]
) -> Iterator[tuple[int, int]]:
    """Where segments begin and end, none of them too large to be read at once."""
    first, num_bytes = 0, 0
    max_chunks = MAX_SEGMENT_CHUNKS
    if len(raw_chunks):
        max_chunks = max(1, min(max_chunks, _MAX_SEGMENT_BYTES // (2 * vectors_ND.shape[1])))
    for index, raw in enumerate(raw_chunks):
        is_full = index - first == max_chunks or num_bytes + len(raw) > _MAX_SEGMENT_BYTES
        if is_full and index > first:
            yield first, index
            first, num_bytes = index, 0
        num_bytes += len(raw)
    if raw_chunks:
        yield first, len(raw_chunks)


def _read_until(segments: Sequence[LiveSegment], first: int, max_chunks: int) -> int:
    """The end of a run of segments that holds at most `max_chunks`, or one segment."""
    last, num_chunks = first + 1, segments[first].num_chunks
    while last < len(segments) and num_chunks + segments[last].num_chunks <= max_chunks:
        num_chunks += segments[last].num_chunks
        last += 1
    return last


def _identity(filename: str, etag: str, settings: BucketSettings) -> tuple[str, ...]:
    return filename, etag, msgspec.json.encode(settings).decode()


def _decode_change(entry_id: bytes, fields: dict[bytes, bytes]) -> Change:
    return msgspec.structs.replace(
        _CHANGE.decode(fields[b"change"]),
        version=int(entry_id.split(b"-")[0]),
        previous=int(fields[b"previous"]),
    )


def _pairs(flat: Sequence[bytes]) -> Iterable[tuple[Any, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _name(bucket: BucketRef) -> str:
    return f"bucket {bucket.name!r} of {bucket.tenant!r}"
