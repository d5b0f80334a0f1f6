"""Approximate nearest neighbours (HNSW) for buckets that are too large to be compared row by row.

Rows are only ever added: usearch can remove them and reuse their slots, but then a vector takes
over the links of another, and recall fell from 0.995 to 0.97 when each row was replaced once. Rows
of segments that a view does not have are left out of its results instead, and `DenseIndex` builds
the graph anew when they are too many.

Shapes: N = rows, B = queries, D = width.
"""

import threading
from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray
from usearch.index import Index, Matches

from models.retrieval.exact_index import NO_HITS, Hits, rescored
from models.retrieval.segments import chunk_keys, split_key

_CONNECTIVITY = 16  # links of a node, twice as many on the lowest level
_EXPANSION_ADD = 128
_FIRST_EXPANSION_SEARCH = 256  # until the recall is measured
_EXPANSIONS_SEARCH = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
_ROWS_PER_LOCK = 64  # 20 ms of one core: a search waits no longer
_ROWS_PER_PRODUCT = 8192

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
        self._index = Index(
            ndim=width,
            metric="ip",
            dtype="f16",
            connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION_ADD,
        )
        self._expansion_search = _FIRST_EXPANSION_SEARCH
        self._num_threads = num_threads
        self._lock = threading.Lock()  # adding may move what a search reads
        self._segments: dict[int, int] = {}  # number -> rows, in the order of their coming
        self._num_rows = 0
        self._num_bytes = 0
        self._num_tuned_rows = 0
        self._recall: float | None = None

    @property
    def num_rows(self) -> int:
        """All that were ever added."""
        return self._num_rows

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

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
        num_new = self._num_rows - self._num_tuned_rows
        return num_new > self._num_tuned_rows * _TUNE_AFTER_SHARE

    def add(self, number: int, vectors_ND: NDArray[np.float16]) -> None:
        """Link a segment's rows into the graph; searches go on in between."""
        keys = chunk_keys(number, len(vectors_ND))
        for start in range(0, len(keys), _ROWS_PER_LOCK):
            rows = slice(start, start + _ROWS_PER_LOCK)
            with self._lock:
                self._index.add(
                    keys[rows],
                    np.ascontiguousarray(vectors_ND[rows]),
                    threads=self._num_threads,
                )
        with self._lock:  # while rows are added, usearch reads memory that is not there yet
            self._num_bytes = int(self._index.memory_usage)
        self._segments[number] = len(keys)
        self._num_rows += len(keys)

    def vectors(self, keys: NDArray[np.int64]) -> NDArray[np.float16]:
        """The rows of chunks that were added."""
        if not len(keys):
            return np.empty((0, self._index.ndim), np.float16)
        with self._lock:
            rows = self._index.get(keys)
        assert isinstance(rows, tuple)
        return np.stack([row for row in rows if row is not None])

    def search(
        self, queries_BD: NDArray[np.float32], count: int, live: Collection[int]
    ) -> list[Hits]:
        """For each query nearly its best `count` rows of the segments in `live`."""
        if not live or not self._num_rows:
            return [NO_HITS] * len(queries_BD)
        return self._search(queries_BD, count, live, self._expansion_search)

    def tune(self, live: Collection[int], *, seed: int = 0) -> None:
        """Measure recall@10 against exact search, and from now on search with the least effort that
        reaches the target, or with the largest where none does. Goes on beside searches.
        """
        num_rows = self._num_rows
        queries_BD = self._sample_queries(live, seed)
        truth = self._exact_keys(queries_BD, live)
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

    def _search(
        self,
        queries_BD: NDArray[np.float32],
        count: int,
        live: Collection[int],
        expansion: int,
    ) -> list[Hits]:
        all_keys = self._live_keys(queries_BD, count, live, expansion)
        return [
            rescored(query_D, keys, self.vectors(keys), count) if len(keys) else NO_HITS
            for query_D, keys in zip(queries_BD, all_keys, strict=True)
        ]

    def _live_keys(
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
        while open_queries:
            nearest = self._nearest(queries_BD[open_queries], limit, expansion)
            for query, keys in zip(open_queries, nearest, strict=True):
                found[query] = np.array(
                    [key for key in keys.tolist() if split_key(key)[0] in live], np.int64
                )
            if limit >= self._num_rows:
                break
            open_queries = [query for query in open_queries if len(found[query]) < count]
            limit *= 4
        return found

    def _nearest(
        self, queries_BD: NDArray[np.float32], limit: int, expansion: int
    ) -> list[NDArray[np.int64]]:
        queries = np.ascontiguousarray(queries_BD.astype(np.float16))
        limit = min(limit, self._num_rows)
        with self._lock:
            self._index.expansion_search = expansion  # type: ignore[misc]  # has a setter
            found = self._index.search(queries, limit, threads=self._num_threads)
        matches = [found] if isinstance(found, Matches) else [found[i] for i in range(len(found))]
        return [match.keys.astype(np.int64) for match in matches]

    def _sample_queries(self, live: Collection[int], seed: int) -> NDArray[np.float32]:
        """As questions are: near a row (cosine about 0.8), but not on it."""
        rng = np.random.default_rng(seed)
        keys = np.concatenate(list(self._blocks_of_keys(live)))
        near, far = (
            self.vectors(rng.choice(keys, _NUM_SAMPLES)).astype(np.float32) for _ in range(2)
        )
        queries_BD = 0.7 * near + 0.3 * far
        lengths = np.linalg.norm(queries_BD, axis=1, keepdims=True)
        unit_BD: NDArray[np.float32] = queries_BD / np.maximum(lengths, 1e-6)
        return unit_BD

    def _exact_keys(
        self, queries_BD: NDArray[np.float32], live: Collection[int]
    ) -> list[NDArray[np.int64]]:
        """Row by row, in float32."""
        keys = np.empty((len(queries_BD), 0), np.int64)
        scores = np.empty((len(queries_BD), 0), np.float32)
        for block in self._blocks_of_keys(live):
            new = queries_BD @ self.vectors(block).astype(np.float32).T
            scores = np.concatenate([scores, new], axis=1)
            keys = np.concatenate([keys, np.broadcast_to(block, new.shape)], axis=1)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :RECALL_AT]
            scores = np.take_along_axis(scores, best, axis=1)
            keys = np.take_along_axis(keys, best, axis=1)
        return list(keys)

    def _blocks_of_keys(self, live: Collection[int]) -> Iterator[NDArray[np.int64]]:
        block: list[NDArray[np.int64]] = []
        for number, num_rows in self._segments.items():
            if number in live:
                block.append(chunk_keys(number, num_rows))
            if sum(map(len, block)) >= _ROWS_PER_PRODUCT:
                yield np.concatenate(block)
                block = []
        if block:
            yield np.concatenate(block)


def recall_of(found: list[Hits], truth: list[NDArray[np.int64]]) -> float:
    """The share of the true neighbours that were found, on average."""
    shares = [
        len(set(hits.keys.tolist()) & set(true.tolist())) / max(1, len(true))
        for hits, true in zip(found, truth, strict=True)
    ]
    return sum(shares) / max(1, len(shares))
