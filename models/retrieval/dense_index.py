"""The vectors of a bucket: searched exactly while they are few, through a graph when they are many.

New rows are always searched exactly at first. In a large bucket `upkeep` moves them into the graph
bit by bit, while both halves are searched together; so a bucket can be searched as soon as it is
loaded, and a commit as soon as it is appended, however long the graph takes.

Shapes: N = rows, B = queries, D = width.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from models.retrieval.approximate_index import ApproximateIndex
from models.retrieval.exact_index import NO_HITS, ExactIndex, ExactView, Hits
from models.retrieval.segments import split_key

_MAX_DEAD_SHARE = 0.3  # of the graph's rows, before it is built anew
_ROWS_PER_STEP = 1000  # of upkeep: a commit waits no longer than for one step


class SearchKind(StrEnum):
    """How a bucket's vectors are searched."""

    EXACT = "exact"
    APPROXIMATE = "approximate"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseFacts:
    """What is reported of a bucket's vectors."""

    kind: SearchKind
    num_bytes: int
    recall: float | None  # recall@10 of the graph, as last measured
    expansion_search: int | None  # the effort that was needed for it
    num_waiting: int  # rows that are still to be linked into the graph


class DenseView:
    """The vectors of one version of a bucket. Never changes."""

    def __init__(
        self, exact: ExactView, graph: ApproximateIndex | None, in_graph: frozenset[int]
    ) -> None:
        self._exact = exact
        self._graph = graph
        self._in_graph = in_graph

    def search(self, queries_BD: NDArray[np.float32], count: int) -> list[Hits]:
        """For each query its best `count` chunks and all that are as good as the last of them."""
        exact = self._exact.search(queries_BD, count)
        if self._graph is None or not self._in_graph:
            return exact
        approximate = self._graph.search(queries_BD, count, self._in_graph)
        return [_merged(pair, count) for pair in zip(exact, approximate, strict=True)]

    def measure(self) -> bool:
        """See `ApproximateIndex.tune`; False where there is no graph, or where it is as it was
        measured.
        """
        if self._graph is None or not self._in_graph or not self._graph.is_tuning_due:
            return False
        self._graph.tune(self._in_graph)
        return True

    def vectors(self, keys: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of some chunks of this view."""
        if self._graph is None:
            return self._exact.vectors(keys).astype(np.float32)
        is_exact = np.array([self._exact.holds(split_key(key)[0]) for key in keys.tolist()], bool)
        exact = self._exact.vectors(keys[is_exact])
        vectors_ND = np.empty((len(keys), exact.shape[1]), np.float32)
        vectors_ND[is_exact] = exact
        vectors_ND[~is_exact] = self._graph.vectors(keys[~is_exact])
        return vectors_ND


class DenseIndex:
    """One thread at a time changes it; its views may be searched on any."""

    def __init__(
        self, width: int, *, max_exact_chunks: int, num_threads: int, capacity: int = 0
    ) -> None:
        self._width = width
        self._max_exact_chunks = max_exact_chunks
        self._num_threads = num_threads
        self._exact = ExactIndex(width, capacity=capacity)
        self._graph: ApproximateIndex | None = None
        self._in_graph: dict[int, int] = {}  # number -> rows, of the living
        self._num_in_graph = 0  # rows

    @property
    def num_live(self) -> int:
        return self._exact.num_live + self._num_in_graph

    def facts(self) -> DenseFacts:
        graph = self._graph
        return DenseFacts(
            kind=SearchKind.EXACT if graph is None else SearchKind.APPROXIMATE,
            num_bytes=self._exact.num_bytes + (graph.num_bytes if graph else 0),
            recall=graph.recall if graph else None,
            expansion_search=graph.expansion_search if graph else None,
            num_waiting=self._exact.num_live if graph else 0,
        )

    def add(self, number: int, vectors_ND: NDArray[np.float16]) -> None:
        self._exact.add(number, vectors_ND)

    def remove(self, numbers: Collection[int]) -> None:
        for number in numbers:
            self._num_in_graph -= self._in_graph.get(number, 0)
        self._exact.remove([number for number in numbers if number not in self._in_graph])
        self._exact.gather()
        for number in numbers:
            self._in_graph.pop(number, None)

    def view(self) -> DenseView:
        return DenseView(self._exact.view(), self._graph, frozenset(self._in_graph))

    def upkeep(self) -> bool:
        """Do one bounded piece of the work that may wait; False where there was none.

        What is found stays the same, but later views find it with less effort.
        """
        if self._graph is None:
            if self.num_live <= self._max_exact_chunks:
                return False
            self._graph = ApproximateIndex(self._width, num_threads=self._num_threads)
            return True
        if self._is_graph_outdated(self._graph):
            self._leave_graph(self._graph)
        elif self._exact.num_live:
            self._enter_graph(self._graph)
        else:
            return False
        return True

    def _is_graph_outdated(self, graph: ApproximateIndex) -> bool:
        has_shrunk = self.num_live <= self._max_exact_chunks // 2
        return has_shrunk or self._num_in_graph < graph.num_rows * (1 - _MAX_DEAD_SHARE)

    def _enter_graph(self, graph: ApproximateIndex) -> None:
        """The oldest segments, some thousand rows."""
        moved: dict[int, NDArray[np.float16]] = {}
        num_rows = 0
        for number in self._exact.numbers():
            moved[number] = self._exact.vectors(number)
            num_rows += len(moved[number])
            if num_rows >= _ROWS_PER_STEP:
                break
        graph.add(list(moved.items()))
        self._in_graph |= {number: len(vectors) for number, vectors in moved.items()}
        self._num_in_graph += num_rows
        self._exact.remove(moved)

    def _leave_graph(self, graph: ApproximateIndex) -> None:
        """All rows are searched exactly again; from there they may enter a new graph."""
        for number in self._in_graph:
            self._exact.add(number, graph.segment_vectors(number))
        self._in_graph, self._num_in_graph = {}, 0
        self._graph = None


def _merged(pair: tuple[Hits, Hits], count: int) -> Hits:
    """The best of two results; a chunk is in one of them only."""
    if not len(pair[0].keys):
        return pair[1]
    keys = np.concatenate([hits.keys for hits in pair])
    scores = np.concatenate([hits.scores for hits in pair])
    order = np.argsort(-scores, kind="stable")
    if len(order) > count:
        order = order[scores[order] >= scores[order[count - 1]]]
    return Hits(keys[order], scores[order]) if len(order) else NO_HITS
