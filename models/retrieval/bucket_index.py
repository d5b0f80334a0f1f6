"""The index of one bucket: its vectors and its words, version by version.

Changes make a new view and publish it in one assignment. A search takes the view once and sees one
version entirely, whatever is changed meanwhile.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from models.retrieval.dense_index import DenseFacts, DenseIndex, DenseView
from models.retrieval.lexical_index import LexicalIndex, LexicalView
from models.retrieval.segments import IndexSegment, SegmentEntry, SegmentTable


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketView:
    """One version of a bucket."""

    version: int
    segments: SegmentTable
    dense: DenseView
    lexical: LexicalView


class BucketIndex:
    """One thread at a time changes it; `view` may be read on any."""

    def __init__(
        self, width: int, *, max_exact_chunks: int, num_threads: int, capacity: int = 0
    ) -> None:
        self._dense = DenseIndex(
            width, max_exact_chunks=max_exact_chunks, num_threads=num_threads, capacity=capacity
        )
        self._lexical = LexicalIndex(num_threads=num_threads)
        self._next_number = 0
        self._is_whole = True
        self._view = BucketView(
            version=0,
            segments=SegmentTable(),
            dense=self._dense.view(),
            lexical=self._lexical.change(added=(), removed=()),
        )

    @property
    def view(self) -> BucketView:
        """The newest version."""
        return self._view

    @property
    def is_whole(self) -> bool:
        """False after a change that raised: the view is still good, but cannot be changed any more.
        Also while a change is made.
        """
        return self._is_whole

    @property
    def num_chunks(self) -> int:
        return self._view.segments.num_chunks

    @property
    def num_bytes(self) -> int:
        return self._dense.facts().num_bytes + self._lexical.num_bytes

    def dense_facts(self) -> DenseFacts:
        return self._dense.facts()

    def change(
        self, version: int, *, added: Iterable[IndexSegment], removed: Collection[str]
    ) -> None:
        """Bring the index to a version. `added` is read once, as it is indexed; a segment that is
        in both lists is replaced. Segments to remove that are not there are no error.
        """
        self._is_whole = False
        table = self._view.segments
        gone = [number for id_ in removed if (number := table.number_of(id_)) is not None]
        entries: list[SegmentEntry] = []
        lexical = self._lexical.change(added=self._indexed(added, entries), removed=gone)
        self._dense.remove(gone)
        self._view = BucketView(
            version=version,
            segments=table.changed(added=entries, removed=gone),
            dense=self._dense.view(),
            lexical=lexical,
        )
        self._is_whole = True

    def upkeep(self) -> bool:
        """Do one bounded piece of the work that may wait; False where there was none."""
        lexical = self._lexical.settle()
        if lexical is None and not self._dense.upkeep():
            return False
        self._view = replace(
            self._view, dense=self._dense.view(), lexical=lexical or self._view.lexical
        )
        return True

    def measure(self) -> bool:
        """Measure the recall of approximate search where that is due, and set its effort by it.
        False where it is not. May go on beside changes.
        """
        return self._view.dense.measure()

    def _indexed(
        self, segments: Iterable[IndexSegment], entries: list[SegmentEntry]
    ) -> Iterator[tuple[int, Sequence[str]]]:
        """Put vectors into the dense index on the way of the texts to the lexical one."""
        for segment in segments:
            number = self._next_number
            self._next_number += 1
            self._dense.add(number, segment.vectors_ND)
            entries.append(
                SegmentEntry(
                    number=number,
                    segment_id=segment.segment_id,
                    filename=segment.filename,
                    etag=segment.etag,
                    first_position=segment.first_position,
                    num_chunks=len(segment.vectors_ND),
                )
            )
            yield number, segment.texts
