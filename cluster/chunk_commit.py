"""A commit to a bucket: what it adds and removes, given the bucket as it is."""

import hashlib
import time
from collections.abc import Sequence

import msgspec

from cluster import chunk_keys
from cluster.chunk_keys import ChunkKeys
from cluster.chunk_records import (
    BucketMeta,
    BucketSettings,
    Change,
    EmbeddedFile,
    FileRecord,
    live_segments,
)
from cluster.redis_client import Argument, RedisClient

_ENCODER = msgspec.msgpack.Encoder()
_META = msgspec.msgpack.Decoder(BucketMeta)
_EMBEDDED_FILE = msgspec.msgpack.Decoder(EmbeddedFile)


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """What to change."""

    settings: BucketSettings
    put: Sequence[FileRecord]
    drop: Sequence[str]

    def __post_init__(self) -> None:
        assert len(set(self.names)) == len(self.names), "a file is put or dropped once"

    @property
    def names(self) -> list[str]:
        return [*(record.filename for record in self.put), *self.drop]

    @property
    def digest(self) -> str:
        """Equal for a commit that is repeated because its answer was lost."""
        return hashlib.sha256(_ENCODER.encode(self)).hexdigest()


class CommitPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A commit to a bucket of one version."""

    commit: Commit
    version: int
    meta: BucketMeta
    has_trash: bool  # a deletion was broken off
    old_files: dict[str, EmbeddedFile]  # of those put and dropped
    new_files: dict[str, EmbeddedFile]  # of those put

    def change(self) -> Change:
        """For followers. A segment that stays and is described otherwise is in both lists."""
        old = dict.fromkeys(live_segments(self.old_files.items()))
        new = dict.fromkeys(live_segments(self.new_files.items()))
        return Change(
            added=tuple(segment for segment in new if segment not in old),
            removed=tuple(segment.segment_id for segment in old if segment not in new),
        )

    @property
    def new_ids(self) -> list[str]:
        """Segments to be kept from now on."""
        return sorted(_ids(self.new_files) - _ids(self.old_files))

    @property
    def gone_ids(self) -> list[str]:
        """Segments that are not needed any more."""
        return sorted(_ids(self.old_files) - _ids(self.new_files))

    def keys(self, keys: ChunkKeys) -> list[str]:
        """For `chunk_keys.COMMIT`."""
        return [
            *(keys.head, keys.meta, keys.manifest, keys.files, keys.log),
            *(key for segment in self.new_ids for key in keys.segment(segment)),
            *(key for segment in self.gone_ids for key in keys.segment(segment)),
        ]

    def arguments(self) -> list[Argument]:
        """For `chunk_keys.COMMIT`, after the version."""
        arguments: list[Argument] = [
            self.commit.digest,
            _ENCODER.encode(self.meta),
            _ENCODER.encode(self.change()),
            2 * len(self.new_ids),
            chunk_keys.REPLACED_TTL_S,
            chunk_keys.MAX_LOG_ENTRIES,
            len(self.commit.put),
        ]
        for name, file in self.new_files.items():
            arguments += (name, _ENCODER.encode(file))
        for record in self.commit.put:
            arguments += (record.filename, encode_record(record))
        return [*arguments, *self.commit.drop]


async def plan_commit(redis: RedisClient, keys: ChunkKeys, commit: Commit) -> CommitPlan:
    """
    Raises:
        ValueError: files that were embedded with other settings would stay.
    """
    settings, names = commit.settings, commit.names
    # The version is read first: who commits in between makes it too old, and is noticed.
    commands: list[tuple[Argument, ...]] = [
        ("HGET", keys.head, "version"),
        ("GET", keys.meta),
        ("SCARD", keys.trash),
        ("HMGET", keys.manifest, "", *names),  # it wants a field, and no file has an empty name
    ]
    version, raw_meta, num_trashed, (_, *entries) = await redis.execute_many(commands)
    meta = None if raw_meta is None else _META.decode(raw_meta)
    if meta is not None and meta.settings() != settings:
        embedded = await redis.execute("HKEYS", keys.manifest)
        staying = sorted({name.decode() for name in embedded} - set(names))
        if staying:
            raise ValueError(
                f"files that were embedded with other settings would stay ({len(staying)}, like "
                f"{staying[0]!r}): put or drop them in the same commit"
            )
    now = time.time()
    return CommitPlan(
        commit=commit,
        version=int(version or 0),
        has_trash=num_trashed > 0,
        meta=BucketMeta(
            **msgspec.structs.asdict(settings),
            created_at=meta.created_at if meta else now,
            updated_at=now,
        ),
        old_files={
            name: _EMBEDDED_FILE.decode(raw)
            for name, raw in zip(names, entries, strict=True)
            if raw is not None
        },
        new_files={record.filename: _embedded_file(record) for record in commit.put},
    )


def _ids(files: dict[str, EmbeddedFile]) -> set[str]:
    return {segment.segment_id for file in files.values() for segment in file.segments}


def _embedded_file(record: FileRecord) -> EmbeddedFile:
    return EmbeddedFile(etag=record.segments_etag or record.etag, segments=record.segments)


def encode_record(record: FileRecord) -> bytes:
    """Without what the manifest says."""
    return _ENCODER.encode(msgspec.structs.replace(record, segments=(), segments_etag=""))
