"""Exact nearest neighbours: a bfloat16 product over all rows, then the best of them once more.

The product's error is bounded, so every row that could be among the best is known, and these few
are computed again in float64: the result is that of a full float64 search, at the price of the
product (100k x 384: 0.1 ms per query in a batch of 64, 7 ms alone, one core).

Rows are appended to preallocated arrays and tombstoned; a view is frozen and stays valid while the
index goes on changing, because rows below a view's end are never written again.

Shapes: N = rows, B = queries, D = width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.retrieval.segments import chunk_keys, split_key

#: float32 where the CPU has no bfloat16 products of its own: emulated ones are slower than float32.
PRODUCT_DTYPE = (
    torch.bfloat16
    if torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # no public way to ask
    else torch.float32
)
# How far a product may be from the truth, as a share of both vectors' lengths (Cauchy-Schwarz):
# each factor is rounded once and the sum once, by at most 2^-8 in bfloat16; and a little for the
# sum in float32.
_PRODUCT_ERROR = {torch.bfloat16: 3 * 2.0**-8 + 2.0**-11, torch.float32: 2.0**-11}
_THRESHOLD_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-22}

_MIN_CAPACITY = 1024
_GROWTH = 1.5
_RESERVE = 1.1  # when rows have become fewer
_MAX_DEAD_SHARE = 0.3  # of the rows, before the living are copied together
_MAX_SCORES = 2**25  # in one product: 64 MB of bfloat16
# Rows of a query that are computed again. Where more are about equally near (one text, thousands of
# times), these stand for the rest: a search that ranked them all would hold up everybody's.
_MAX_RESCORED = 8192
_SCORE_DIGITS = 9  # equal vectors have equal scores, however their products were summed


@dataclass(frozen=True, slots=True)
class Hits:
    """The chunks nearest to a query, by their keys; best first, equal ones in any order."""

    keys: NDArray[np.int64]
    scores: NDArray[np.float64]  # cosines


NO_HITS = Hits(np.empty(0, np.int64), np.empty(0, np.float64))


def rescored(
    query_D: NDArray[np.float32],
    keys: NDArray[np.int64],
    vectors_ND: NDArray[np.float16],
    count: int,
) -> Hits:
    """The best `count` of some rows and all that are as good as the last of them, exactly."""
    cosines = vectors_ND.astype(np.float64) @ query_D.astype(np.float64)
    scores = np.round(cosines, _SCORE_DIGITS)
    order = np.argsort(-scores, kind="stable")
    if len(order) > count:
        order = order[: np.searchsorted(-scores[order], -scores[order[count - 1]], side="right")]
    return Hits(keys[order], scores[order])


class ExactView:
    """The rows of an index at one moment."""

    def __init__(
        self,
        *,
        rows: torch.Tensor,
        rows_f16_ND: NDArray[np.float16],
        keys: NDArray[np.int64],
        is_live: NDArray[np.bool_],
        first_rows: dict[int, int],
        max_length: float,
    ) -> None:
        self._rows = rows
        self._rows_f16_ND = rows_f16_ND
        self._keys = keys
        self._num_live = int(is_live.sum())
        # None: all are alive, and no mask is needed.
        self._dead = None if self._num_live == len(keys) else torch.from_numpy(~is_live)
        self._first_rows = first_rows
        self._max_length = max_length  # of any row

    def __len__(self) -> int:
        return self._num_live

    def search(self, queries_BD: NDArray[np.float32], count: int) -> list[Hits]:
        """For each query its best `count` rows and all that are as good as the last of them, but
        no more than `_MAX_RESCORED`.
        """
        if self._num_live == 0:
            return [NO_HITS] * len(queries_BD)
        step = max(1, _MAX_SCORES // len(self._keys))
        return [
            hits
            for start in range(0, len(queries_BD), step)
            for hits in self._search_block(queries_BD[start : start + step], count)
        ]

    def vectors(self, keys: NDArray[np.int64]) -> NDArray[np.float16]:
        """The vectors of chunks that are alive in this view."""
        rows = [self._first_rows[number] + offset for number, offset in map(split_key, keys)]
        return self._rows_f16_ND[rows]

    def holds(self, number: int) -> bool:
        return number in self._first_rows

    def _search_block(self, queries_BD: NDArray[np.float32], count: int) -> list[Hits]:
        queries = torch.from_numpy(np.ascontiguousarray(queries_BD)).to(self._rows.dtype)
        scores_BN = (self._rows @ queries.T).T.contiguous()
        if self._dead is not None:
            scores_BN.masked_fill_(self._dead, -torch.inf)
        best = torch.topk(scores_BN, min(count, self._num_live), dim=1).values
        dtype = self._rows.dtype
        margin = 2 * _PRODUCT_ERROR[dtype] + _THRESHOLD_ROUNDING[dtype]
        lengths_B1 = torch.from_numpy(np.linalg.norm(queries_BD, axis=1, keepdims=True))
        threshold = (best[:, -1:] - margin * self._max_length * lengths_B1).to(dtype)
        is_near_BN = scores_BN >= threshold
        near = map(_nearest_rows, scores_BN, is_near_BN)
        return [
            rescored(query_D, self._keys[rows], self._rows_f16_ND[rows], count)
            for query_D, rows in zip(queries_BD, near, strict=True)
        ]


def _nearest_rows(scores_N: torch.Tensor, is_near_N: torch.Tensor) -> NDArray[np.int64]:
    """The rows that may be among the best, in order; of very many the best by their products."""
    rows = torch.nonzero(is_near_N).flatten()
    if len(rows) > _MAX_RESCORED:
        best = torch.topk(scores_N[rows], _MAX_RESCORED).indices
        rows = rows[best].sort().values
    found: NDArray[np.int64] = rows.numpy()
    return found


class ExactIndex:
    """Rows by segment. One thread changes it; views may be searched on any."""

    def __init__(self, width: int, *, capacity: int = _MIN_CAPACITY) -> None:
        self._width = width
        self._num_rows = 0
        self._num_dead = 0
        self._max_length = 1.0
        self._segments: dict[int, tuple[int, int]] = {}  # number -> first row, rows
        self._is_live: NDArray[np.bool_]
        self._allocate(max(capacity, _MIN_CAPACITY))

    @property
    def num_live(self) -> int:
        return self._num_rows - self._num_dead

    @property
    def num_bytes(self) -> int:
        return self._rows.nbytes + self._rows_f16_ND.nbytes + self._keys.nbytes

    @property
    def numbers(self) -> list[int]:
        """The segments, oldest first."""
        return list(self._segments)

    def add(self, number: int, vectors_ND: NDArray[np.float16]) -> None:
        """Append a segment's rows."""
        first, end = self._num_rows, self._num_rows + len(vectors_ND)
        if end > len(self._keys):
            self._move(np.flatnonzero(self._is_live[:first]), max(end, int(end * _GROWTH)))
            first, end = self._num_rows, self._num_rows + len(vectors_ND)
        self._rows_f16_ND[first:end] = vectors_ND
        self._rows[first:end] = torch.from_numpy(self._rows_f16_ND[first:end])
        self._keys[first:end] = chunk_keys(number, len(vectors_ND))
        self._is_live[first:end] = True
        self._segments[number] = (first, len(vectors_ND))
        self._num_rows = end
        lengths = np.linalg.norm(vectors_ND.astype(np.float32), axis=1)
        self._max_length = max(self._max_length, float(lengths.max(initial=0)))

    def remove(self, number: int) -> None:
        """Tombstone a segment's rows; copy the living together when too many are dead."""
        first, num_rows = self._segments.pop(number)
        self._is_live = self._is_live.copy()  # views have the old one
        self._is_live[first : first + num_rows] = False
        self._num_dead += num_rows
        if self._num_dead > max(_MIN_CAPACITY, self._num_rows * _MAX_DEAD_SHARE):
            live = np.flatnonzero(self._is_live[: self._num_rows])
            self._move(live, int(len(live) * _RESERVE))

    def vectors(self, number: int) -> NDArray[np.float16]:
        """A segment's rows."""
        first, num_rows = self._segments[number]
        return self._rows_f16_ND[first : first + num_rows]

    def view(self) -> ExactView:
        """What is there now."""
        end = self._num_rows
        return ExactView(
            rows=self._rows[:end],
            rows_f16_ND=self._rows_f16_ND[:end],
            keys=self._keys[:end],
            is_live=self._is_live[:end],
            first_rows={number: first for number, (first, _) in self._segments.items()},
            max_length=self._max_length,
        )

    def _allocate(self, capacity: int) -> None:
        self._rows = torch.empty(capacity, self._width, dtype=PRODUCT_DTYPE)
        self._rows_f16_ND = np.empty((capacity, self._width), np.float16)
        self._keys = np.empty(capacity, np.int64)
        self._is_live = np.zeros(capacity, np.bool_)

    def _move(self, live: NDArray[np.int64], capacity: int) -> None:
        """To new arrays, the living rows alone; views keep the old ones."""
        rows, rows_f16_ND, keys = self._rows, self._rows_f16_ND, self._keys
        self._allocate(max(capacity, _MIN_CAPACITY))
        end = len(live)
        torch.index_select(rows, 0, torch.from_numpy(live), out=self._rows[:end])
        np.take(rows_f16_ND, live, axis=0, out=self._rows_f16_ND[:end])
        np.take(keys, live, out=self._keys[:end])
        self._is_live[:end] = True
        self._num_rows, self._num_dead = end, 0
        first = 0
        for number, (_, num_rows) in self._segments.items():  # in the order of their rows
            self._segments[number] = (first, num_rows)
            first += num_rows
