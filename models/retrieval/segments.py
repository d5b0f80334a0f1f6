"""Which chunks an index holds: segments, each an immutable run of chunks, and each chunk's key.

A chunk's key is its segment's number and its place in the segment, in one integer. Numbers are
given in the order in which segments arrive, so keys differ between replicas: what a client sees is
ordered by `ChunkPlace`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_OFFSET_BITS = 20
MAX_SEGMENT_CHUNKS = 1 << _OFFSET_BITS


class ChunkPlace(NamedTuple):
    """Where a chunk stands in its bucket; the order of chunks that are equally good."""

    filename: str
    position: int  # among the chunks of its object, from 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSegment:
    """What is indexed: a run of chunks of one object. N = chunks, D = the embedding's width."""

    segment_id: str
    filename: str
    etag: str
    first_position: int
    vectors_ND: NDArray[np.float16]  # of length 1
    texts: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEntry:
    """What stays known of a segment once its vectors and texts are indexed."""

    number: int
    segment_id: str
    filename: str
    etag: str
    first_position: int
    num_chunks: int

    def place(self, offset: int) -> ChunkPlace:
        return ChunkPlace(self.filename, self.first_position + offset)


def chunk_key(number: int, offset: int) -> int:
    return number << _OFFSET_BITS | offset


def chunk_keys(number: int, num_chunks: int) -> NDArray[np.int64]:
    """The keys of all chunks of a segment, in order."""
    return np.arange(num_chunks, dtype=np.int64) + (number << _OFFSET_BITS)


def split_key(key: int) -> tuple[int, int]:
    """A chunk's segment number, and its place in the segment."""
    return key >> _OFFSET_BITS, key & (MAX_SEGMENT_CHUNKS - 1)


class SegmentTable:
    """The segments of one version of a bucket. Never changes: `changed` makes another."""

    def __init__(self, entries: Mapping[int, SegmentEntry] | None = None) -> None:
        self._entries = dict(entries or {})
        self._numbers = {entry.segment_id: number for number, entry in self._entries.items()}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[SegmentEntry]:
        return iter(self._entries.values())

    def __contains__(self, segment_id: str) -> bool:
        return segment_id in self._numbers

    @property
    def num_chunks(self) -> int:
        return sum(entry.num_chunks for entry in self)

    def number_of(self, segment_id: str) -> int | None:
        return self._numbers.get(segment_id)

    def has_number(self, number: int) -> bool:
        return number in self._entries

    def entry(self, key: int) -> tuple[SegmentEntry, int]:
        """A chunk's segment, and its place in it."""
        number, offset = split_key(key)
        return self._entries[number], offset

    def place(self, key: int) -> ChunkPlace:
        entry, offset = self.entry(key)
        return entry.place(offset)

    def changed(self, *, added: Sequence[SegmentEntry], removed: Sequence[int]) -> "SegmentTable":
        entries = self._entries.copy()
        for number in removed:
            del entries[number]
        entries.update({entry.number: entry for entry in added})
        return SegmentTable(entries)
