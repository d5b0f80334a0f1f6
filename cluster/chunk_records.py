"""What is kept of an embedded bucket: its settings, its files and their segments, its changes.

All of it is stored as msgpack maps: new fields get a default.
"""

from collections.abc import Iterable, Iterator
from enum import StrEnum

import msgspec

from cluster.retrieval import EmbedderFacts


class FileStatus(StrEnum):
    """How far the embedding of a file is (api.md 5.2)."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCESS = "success"
    FAILURE = "failure"


class SegmentRef(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable run of a file's chunks and their vectors."""

    segment_id: str
    num_chunks: int


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a bucket: how its embedding goes, and what is searchable of it now.

    `etag` is the version of the object that the status speaks of; `segments_etag` the one that the
    segments were made from, which stays while a newer one is read.
    """

    filename: str  # the object's key
    etag: str
    num_bytes: int
    status: FileStatus
    created_at: float  # unix seconds, as all times here
    updated_at: float
    error_reason: str = ""
    last_embedded_at: float | None = None
    segments: tuple[SegmentRef, ...] = ()
    segments_etag: str = ""


class BucketSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the chunks of a bucket are made. Chunks of different settings do not mix."""

    embedder: EmbedderFacts
    chunk_size: int
    chunk_overlap: int
    loader: str


class BucketMeta(BucketSettings, frozen=True, kw_only=True):
    """An embedded bucket."""

    created_at: float
    updated_at: float
    version: int = 0  # of the last commit; a later one is larger, also after a deletion

    def settings(self) -> BucketSettings:
        return BucketSettings(
            embedder=self.embedder,
            chunk_size=self.chunk_size,
            chunk_overlap=self.chunk_overlap,
            loader=self.loader,
        )


class LiveSegment(msgspec.Struct, frozen=True, kw_only=True):
    """A segment that is searchable, and where it belongs."""

    segment_id: str
    filename: str
    etag: str
    first_position: int  # of its first chunk, among the chunks of its file
    num_chunks: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is searchable in a bucket at one version, sorted by filename and position."""

    version: int
    segments: tuple[LiveSegment, ...]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What one commit did to what is searchable; apply `clears`, then `removed`, then `added`."""

    version: int = 0  # after it
    previous: int = 0  # before it
    added: tuple[LiveSegment, ...] = ()
    removed: tuple[str, ...] = ()  # segment ids
    clears: bool = False  # everything that was there before is gone


class EmbeddedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file's part of the manifest."""

    etag: str
    segments: tuple[SegmentRef, ...]

    def live_segments(self, filename: str) -> Iterator[LiveSegment]:
        position = 0
        for segment in self.segments:
            yield LiveSegment(
                segment_id=segment.segment_id,
                filename=filename,
                etag=self.etag,
                first_position=position,
                num_chunks=segment.num_chunks,
            )
            position += segment.num_chunks


def live_segments(files: Iterable[tuple[str, EmbeddedFile]]) -> tuple[LiveSegment, ...]:
    return tuple(s for filename, file in sorted(files) for s in file.live_segments(filename))
