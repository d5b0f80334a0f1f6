"""Approximate nearest neighbours (HNSW) for buckets that are too large to be compared row by row.

The graph's vectors are int8: half the memory traffic of float16, so it is built and searched in
half the time. What it finds is computed again from the float16 rows, which are kept beside it. A
row costs 3 bytes per number and about 160 for its links.

Rows are only ever added: usearch can remove them and reuse their slots, but then a vector takes
over the links of another, and recall fell from 0.995 to 0.97 when each row was replaced once. Rows
of segments that a view does not have are left out of its results instead, and `DenseIndex` builds
the graph anew when they are too many.

Shapes: N = rows, B = queries, D = width.
"""

import threading
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from usearch.index import Index, Matches

from models.retrieval.exact_index import NO_HITS, Hits, rescored
from models.retrieval.row_blocks import RowBlocks
from models.retrieval.segments import chunk_keys, split_key

_CONNECTIVITY = 16  # links of a node, twice as many on the lowest level
_EXPANSION_ADD = 64  # with 128 a graph of 200k rows takes 1.7 times as long, for 0.1% of recall
_FIRST_EXPANSION_SEARCH = 256  # until the recall is measured
_EXPANSIONS_SEARCH = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_ROWS_PER_LOCK = 16  # and thread: about 5 ms, and a search waits no longer
_QUERIES_PER_THREAD = 4
_LARGEST_CODE = 127
_LEAST_RANGE = 4.0  # standard deviations that codes reach to, whatever the first rows are

RECALL_AT = 10
TARGET_RECALL = 0.99
# Aimed at, so that chance does not bring what is served below the target: 256 sampled queries know
# the recall to 0.2 percent.
_TUNED_RECALL = 0.994
_NUM_SAMPLES = 256
_SAMPLES_PER_LOCK = 8
_TUNE_AFTER_SHARE = 0.1  # of rows added since the recall was measured


class ApproximateIndex:
    """A graph over rows. One thread adds; any may search."""

    def __init__(self, width: int, *, num_threads: int) -> None:
        self._graph = Index(
            ndim=width,
            metric="ip",
            dtype="i8",
            connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION_ADD,
        )
        self._expansion_search = _FIRST_EXPANSION_SEARCH
        self._num_threads = num_threads
        self._lock = threading.Lock()  # adding may move what a search reads
        self._rows = RowBlocks(width)
        self._keys = np.empty(0, np.int64)  # of the chunk of each row, with some room at the end
        self._segments: dict[int, tuple[int, int]] = {}  # number -> first row, rows
        self._scale = 0.0  # what the numbers of a vector are multiplied with
        self._graph_bytes = 0
        self._num_tuned_rows = 0
        self._recall: float | None = None

    @property
    def num_rows(self) -> int:
        """All that were ever added."""
        return len(self._rows)

    @property
    def num_bytes(self) -> int:
        return self._graph_bytes + self._rows.num_bytes + self._keys.nbytes

    @property
    def expansion_search(self) -> int:
        """How many rows a search keeps in sight: its effort."""
        return self._expansion_search

    @property
    def recall(self) -> float | None:
        """Recall@10 as last measured; None: not yet."""
        return self._recall

    @property
    def is_tuning_due(self) -> bool:
        """Many rows have come since it was measured."""
        num_new = self.num_rows - self._num_tuned_rows
        return num_new > self._num_tuned_rows * _TUNE_AFTER_SHARE

    def add(self, segments: Sequence[tuple[int, NDArray[np.float16]]]) -> None:
        """Link the rows of segments (number, rows) into the graph; searches go on in between."""
        first = self.num_rows
        vectors_ND = np.concatenate([vectors for _, vectors in segments])
        keys = np.concatenate([chunk_keys(number, len(vectors)) for number, vectors in segments])
        self._keep(keys, vectors_ND)
        codes_ND = self._encoded(vectors_ND.astype(np.float32))
        rows = np.arange(first, first + len(keys))
        step = _ROWS_PER_LOCK * self._num_threads
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            with self._lock:
                self._graph.add(rows[part], codes_ND[part], threads=self._num_threads)
        with self._lock:  # while rows are added, usearch reads memory that is not there yet
            self._graph_bytes = int(self._graph.memory_usage)
        for number, vectors in segments:
            self._segments[number] = (first, len(vectors))
            first += len(vectors)

    def vectors(self, keys: NDArray[np.int64]) -> NDArray[np.float16]:
        """The rows of chunks that were added."""
        rows = [self._segments[number][0] + offset for number, offset in map(split_key, keys)]
        return self._rows.take(np.array(rows, np.int64))

    def segment_vectors(self, number: int) -> NDArray[np.float16]:
        """The rows of a segment that was added."""
        first, num_rows = self._segments[number]
        return self._rows.take(np.arange(first, first + num_rows))

    def search(
        self, queries_BD: NDArray[np.float32], count: int, live: Collection[int]
    ) -> list[Hits]:
        """For each query nearly its best `count` rows of the segments in `live`."""
        if not live or not self.num_rows:
            return [NO_HITS] * len(queries_BD)
        return self._search(queries_BD, count, live, self._expansion_search)

    def tune(self, live: Collection[int], *, seed: int = 0) -> None:
        """Measure recall@10 against exact search, and from now on search with the least effort that
        reaches the target, or with the largest where none does. Goes on beside searches.
        """
        num_rows = self.num_rows
        is_live_N = self._is_live(live, num_rows)
        queries_BD = self._sample_queries(is_live_N, seed)
        truth = self._exact_keys(queries_BD, is_live_N)
        recall, expansion = 0.0, _FIRST_EXPANSION_SEARCH
        for expansion in _EXPANSIONS_SEARCH:
            found = [
                hits
                for start in range(0, len(queries_BD), _SAMPLES_PER_LOCK)
                for hits in self._search(
                    queries_BD[start : start + _SAMPLES_PER_LOCK], RECALL_AT, live, expansion
                )
            ]
            recall = recall_of(found, truth)
            if recall >= _TUNED_RECALL:
                break
        self._expansion_search, self._recall = expansion, recall
        self._num_tuned_rows = num_rows

    def _keep(self, keys: NDArray[np.int64], vectors_ND: NDArray[np.float16]) -> None:
        """Before they are linked: a search may find a row as soon as it is."""
        first, end = self.num_rows, self.num_rows + len(keys)
        if end > len(self._keys):
            self._keys = np.concatenate([self._keys[:first], np.empty(end, np.int64)])
        self._keys[first:end] = keys
        self._rows.append(vectors_ND)

    def _encoded(self, vectors_ND: NDArray[np.float32]) -> NDArray[np.int8]:
        """By one scale for all, so that products are compared rightly; it is chosen by the first
        rows, and what exceeds it later is cut off.
        """
        if not self._scale:
            typical = np.linalg.norm(vectors_ND) / np.sqrt(max(1, vectors_ND.size))
            largest = np.abs(vectors_ND).max(initial=_LEAST_RANGE * typical)
            self._scale = _LARGEST_CODE / max(1e-6, float(largest))
        wide_ND = np.clip(np.rint(vectors_ND * self._scale), -_LARGEST_CODE, _LARGEST_CODE)
        codes_ND: NDArray[np.int8] = wide_ND.astype(np.int8)
        return codes_ND

    def _search(
        self,
        queries_BD: NDArray[np.float32],
        count: int,
        live: Collection[int],
        expansion: int,
    ) -> list[Hits]:
        all_rows = self._live_rows(queries_BD, count, live, expansion)
        return [
            rescored(query_D, self._keys[rows], self._rows.take(rows), count)
            if len(rows)
            else NO_HITS
            for query_D, rows in zip(queries_BD, all_rows, strict=True)
        ]

    def _live_rows(
        self,
        queries_BD: NDArray[np.float32],
        count: int,
        live: Collection[int],
        expansion: int,
    ) -> list[NDArray[np.int64]]:
        """The nearest rows; more of them are asked for where too many belong to dead segments."""
        found: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * len(queries_BD)
        open_queries = list(range(len(queries_BD)))
        limit = 2 * count
        num_rows = self.num_rows
        while open_queries:
            nearest = self._nearest(queries_BD[open_queries], min(limit, num_rows), expansion)
            for query, rows in zip(open_queries, nearest, strict=True):
                keys = self._keys[rows].tolist()
                found[query] = rows[[split_key(key)[0] in live for key in keys]]
            if limit >= num_rows:
                break
            open_queries = [query for query in open_queries if len(found[query]) < count]
            limit *= 4
        return found

    def _nearest(
        self, queries_BD: NDArray[np.float32], limit: int, expansion: int
    ) -> list[NDArray[np.int64]]:
        codes = self._encoded(queries_BD)
        num_threads = min(self._num_threads, -(-len(codes) // _QUERIES_PER_THREAD))
        with self._lock:
            self._graph.expansion_search = expansion  # type: ignore[misc]  # has a setter
            found = self._graph.search(codes, limit, threads=num_threads)
        matches = [found] if isinstance(found, Matches) else [found[i] for i in range(len(found))]
        return [match.keys.astype(np.int64) for match in matches]

    def _is_live(self, live: Collection[int], num_rows: int) -> NDArray[np.bool_]:
        is_live_N = np.zeros(num_rows, np.bool_)
        for number in live:
            first, count = self._segments[number]
            is_live_N[first : first + count] = True
        return is_live_N

    def _sample_queries(self, is_live_N: NDArray[np.bool_], seed: int) -> NDArray[np.float32]:
        """As questions are: near a row (cosine about 0.8), but not on it."""
        rng = np.random.default_rng(seed)
        rows = np.flatnonzero(is_live_N)
        near, far = (
            self._rows.take(rng.choice(rows, _NUM_SAMPLES)).astype(np.float32) for _ in range(2)
        )
        queries_BD = 0.7 * near + 0.3 * far
        lengths = np.linalg.norm(queries_BD, axis=1, keepdims=True)
        unit_BD: NDArray[np.float32] = queries_BD / np.maximum(lengths, 1e-6)
        return unit_BD

    def _exact_keys(
        self, queries_BD: NDArray[np.float32], is_live_N: NDArray[np.bool_]
    ) -> list[NDArray[np.int64]]:
        """Part by part, in float32."""
        rows = np.empty((len(queries_BD), 0), np.int64)
        scores = np.empty((len(queries_BD), 0), np.float32)
        for first, part in self._rows.parts(len(is_live_N)):
            is_live = is_live_N[first : first + len(part)]
            here = np.flatnonzero(is_live) + first
            new = queries_BD @ part[is_live].astype(np.float32).T
            new, places = _largest(new, RECALL_AT)
            scores = np.concatenate([scores, new], axis=1)
            rows = np.concatenate([rows, here[places]], axis=1)
        _, best = _largest(scores, RECALL_AT)
        return list(self._keys[np.take_along_axis(rows, best, axis=1)])


def _largest(
    scores_BN: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The largest of each row, in any order, and their places."""
    places: NDArray[np.int64] = np.argpartition(-scores_BN, min(count, scores_BN.shape[1]) - 1)
    places = places[:, :count]
    return np.take_along_axis(scores_BN, places, axis=1), places


def recall_of(found: list[Hits], truth: list[NDArray[np.int64]]) -> float:
    """The share of the true neighbours that were found, on average."""
    shares = [
        len(set(hits.keys.tolist()) & set(true.tolist())) / max(1, len(true))
        for hits, true in zip(found, truth, strict=True)
    ]
    return sum(shares) / max(1, len(shares))
