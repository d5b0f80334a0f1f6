"""What embedding a bucket means: which objects are read, which stay, which are forgotten."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.chunk_records import FileRecord, FileStatus, SegmentRef
from cluster.storage.stored_object import ObjectInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingPlan:
    """The difference between a bucket's objects and what is embedded of it."""

    todo: tuple[ObjectInfo, ...]
    kept: tuple[FileRecord, ...]  # neither object nor settings have changed
    gone: tuple[str, ...]  # there is no such object any more

    @property
    def num_files(self) -> int:
        return len(self.todo) + len(self.kept)

    @property
    def has_changes(self) -> bool:
        return bool(self.todo or self.gone)


def plan_embedding(
    objects: Iterable[ObjectInfo],
    files: Mapping[str, FileRecord],
    *,
    are_settings_new: bool,
    retries_failures: bool,
) -> EmbeddingPlan:
    """`retries_failures`: read again what could not be read, though it has not changed."""
    todo, kept, seen = [], [], set()
    for info in objects:
        seen.add(info.key)
        record = files.get(info.key)
        if record is None or are_settings_new or not _is_done(record, info, retries_failures):
            todo.append(info)
        else:
            kept.append(record)
    gone = tuple(name for name in files if name not in seen)
    return EmbeddingPlan(todo=tuple(todo), kept=tuple(kept), gone=gone)


def file_record(
    info: ObjectInfo,
    status: FileStatus,
    previous: FileRecord | None,
    *,
    segments: tuple[SegmentRef, ...] = (),
    error_reason: str = "",
) -> FileRecord:
    """The record of a version of a file; `previous`: the file's latest."""
    now = time.time()
    embedded_at = None if previous is None else previous.last_embedded_at
    return FileRecord(
        filename=info.key,
        etag=info.etag,
        num_bytes=info.num_bytes,
        status=status,
        created_at=now if previous is None else previous.created_at,
        updated_at=now,
        error_reason=error_reason,
        last_embedded_at=now if status is FileStatus.SUCCESS else embedded_at,
        segments=segments,
    )


def _is_done(record: FileRecord, info: ObjectInfo, retries_failures: bool) -> bool:
    if record.etag != info.etag:
        return False
    if record.status is FileStatus.FAILURE:
        return not retries_failures
    return record.status is FileStatus.SUCCESS and record.segments_etag == info.etag
