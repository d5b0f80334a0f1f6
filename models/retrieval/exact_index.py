"""Exact nearest neighbours: a bfloat16 product over all rows, then the best of them once more.

The product's error is bounded, so every row that could be among the best is known, and these few
are computed again in float64: the result is that of a full float64 search, at the price of the
product (100k x 384: 0.1 ms per query in a batch of 64, 7 ms alone, one core).

Rows are appended to blocks and tombstoned there; a block without living rows is let go. A view is
frozen and stays valid while the index goes on changing, because rows below a view's end are never
written again.

Shapes: N = rows, B = queries, D = width.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from models.retrieval.row_blocks import rows_per_block
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
_GROWTH = 1.5  # of the first block, until it has the size of the others
_MAX_DEAD_SHARE = 0.3  # of a block's rows, before the living are copied out of it
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


class _Block:
    """Rows one after the other, and which of them are alive. Views share its arrays."""

    def __init__(self, width: int, capacity: int) -> None:
        self.rows = torch.empty(capacity, width, dtype=PRODUCT_DTYPE)
        self.rows_f16_ND = np.empty((capacity, width), np.float16)
        self.keys = np.empty(capacity, np.int64)
        self.is_live = np.zeros(capacity, np.bool_)
        self.num_rows = 0
        self.num_dead = 0
        self.segments: dict[int, tuple[int, int]] = {}  # number -> first row, rows

    @property
    def capacity(self) -> int:
        return len(self.keys)

    @property
    def num_bytes(self) -> int:
        return self.rows.nbytes + self.rows_f16_ND.nbytes + self.keys.nbytes

    def add(self, number: int, vectors_ND: NDArray[np.float16]) -> None:
        first, end = self.num_rows, self.num_rows + len(vectors_ND)
        self.rows_f16_ND[first:end] = vectors_ND
        self.rows[first:end] = torch.from_numpy(self.rows_f16_ND[first:end])
        self.keys[first:end] = chunk_keys(number, len(vectors_ND))
        self.is_live[first:end] = True
        self.segments[number] = (first, len(vectors_ND))
        self.num_rows = end

    def vectors(self, number: int) -> NDArray[np.float16]:
        first, num_rows = self.segments[number]
        return self.rows_f16_ND[first : first + num_rows]

    def remove(self, numbers: Collection[int]) -> None:
        self.is_live = self.is_live.copy()  # views have the old one
        for number in numbers:
            first, num_rows = self.segments.pop(number)
            self.is_live[first : first + num_rows] = False
            self.num_dead += num_rows

    def view(self) -> "_BlockView":
        end = self.num_rows
        return _BlockView(
            rows=self.rows[:end],
            rows_f16_ND=self.rows_f16_ND[:end],
            keys=self.keys[:end],
            dead=torch.from_numpy(~self.is_live[:end]) if self.num_dead else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _BlockView:
    """The rows of a block at one moment."""

    rows: torch.Tensor
    rows_f16_ND: NDArray[np.float16]
    keys: NDArray[np.int64]
    dead: torch.Tensor | None  # None: all are alive, and no mask is needed


class ExactView:
    """The rows of an index at one moment."""

    def __init__(
        self,
        width: int,
        *,
        blocks: list[_BlockView],
        num_live: int,
        first_rows: dict[int, int],
        max_length: float,
    ) -> None:
        self._width = width
        self._blocks = blocks
        # The rows of all blocks are counted on: where each block begins, and the end.
        self._starts = np.cumsum([0, *(len(block.keys) for block in blocks)])
        self._num_live = num_live
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
        step = max(1, _MAX_SCORES // int(self._starts[-1]))
        return [
            hits
            for start in range(0, len(queries_BD), step)
            for hits in self._search_block(queries_BD[start : start + step], count)
        ]

    def vectors(self, keys: NDArray[np.int64]) -> NDArray[np.float16]:
        """The vectors of chunks that are alive in this view."""
        rows = [self._first_rows[number] + offset for number, offset in map(split_key, keys)]
        return self._taken(np.array(rows, np.int64))[1]

    def holds(self, number: int) -> bool:
        return number in self._first_rows

    def _search_block(self, queries_BD: NDArray[np.float32], count: int) -> list[Hits]:
        dtype = self._blocks[0].rows.dtype
        scores_BN = self._scores(torch.from_numpy(np.ascontiguousarray(queries_BD)).to(dtype))
        best = torch.topk(scores_BN, min(count, self._num_live), dim=1).values
        margin = 2 * _PRODUCT_ERROR[dtype] + _THRESHOLD_ROUNDING[dtype]
        lengths_B1 = torch.from_numpy(np.linalg.norm(queries_BD, axis=1, keepdims=True))
        threshold = (best[:, -1:] - margin * self._max_length * lengths_B1).to(dtype)
        is_near_BN = scores_BN >= threshold
        near = map(_nearest_rows, scores_BN, is_near_BN)
        return [
            rescored(query_D, *self._taken(rows), count)
            for query_D, rows in zip(queries_BD, near, strict=True)
        ]

    def _scores(self, queries: torch.Tensor) -> torch.Tensor:
        """The products with all rows; those of the dead are below all others."""
        scores_NB = torch.empty(int(self._starts[-1]), len(queries), dtype=queries.dtype)
        for (first, end), block in zip(pairwise(self._starts.tolist()), self._blocks, strict=True):
            if len(queries) == 1:  # half the time of the product of matrices
                torch.mv(block.rows, queries[0], out=scores_NB[first:end, 0])
            else:
                torch.mm(block.rows, queries.T, out=scores_NB[first:end])
            if block.dead is not None:
                scores_NB[first:end].masked_fill_(block.dead[:, None], -torch.inf)
        return scores_NB.T.contiguous()

    def _taken(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """The keys and the vectors of some rows, in their order."""
        if len(self._blocks) == 1:
            return self._blocks[0].keys[rows], self._blocks[0].rows_f16_ND[rows]
        keys = np.empty(len(rows), np.int64)
        vectors_ND = np.empty((len(rows), self._width), np.float16)
        places = np.searchsorted(self._starts, rows, side="right") - 1
        for place in np.unique(places).tolist():
            block, is_here = self._blocks[place], places == place
            here = rows[is_here] - self._starts[place]
            keys[is_here], vectors_ND[is_here] = block.keys[here], block.rows_f16_ND[here]
        return keys, vectors_ND


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

    def __init__(self, width: int, *, capacity: int = 0) -> None:
        self._width = width
        self._capacity = max(capacity, _MIN_CAPACITY)  # of the first block
        self._num_live = 0
        self._max_length = 1.0
        self._blocks: list[_Block] = []
        self._block_of: dict[int, _Block] = {}  # by segment number, in the order of their coming

    @property
    def num_live(self) -> int:
        return self._num_live

    @property
    def num_bytes(self) -> int:
        return sum(block.num_bytes for block in self._blocks)

    def numbers(self) -> Iterator[int]:
        """The segments, oldest first."""
        return iter(self._block_of)

    def add(self, number: int, vectors_ND: NDArray[np.float16]) -> None:
        """Append a segment's rows."""
        block = self._block_with_room(len(vectors_ND))
        block.add(number, vectors_ND)
        self._block_of[number] = block
        self._num_live += len(vectors_ND)
        lengths = np.linalg.norm(vectors_ND.astype(np.float32), axis=1)
        self._max_length = max(self._max_length, float(lengths.max(initial=0)))

    def remove(self, numbers: Collection[int]) -> None:
        """Tombstone the rows of segments; let go of blocks that have no others. Rows stay where
        they are: see `gather`.
        """
        by_block: dict[int, list[int]] = {}
        for number in numbers:
            block = self._block_of.pop(number)
            self._num_live -= len(block.vectors(number))
            by_block.setdefault(id(block), []).append(number)
        for block in self._blocks:
            if gone := by_block.get(id(block)):
                block.remove(gone)
        self._blocks = [block for block in self._blocks if block.segments]

    def gather(self) -> None:
        """Copy the living out of blocks where too many are dead."""
        for block in list(self._blocks):
            if block.num_dead <= max(_MIN_CAPACITY, block.num_rows * _MAX_DEAD_SHARE):
                continue
            self._blocks.remove(block)
            for number in block.segments:
                room = self._block_with_room(len(block.vectors(number)))
                room.add(number, block.vectors(number))
                self._block_of[number] = room

    def vectors(self, number: int) -> NDArray[np.float16]:
        """A segment's rows."""
        return self._block_of[number].vectors(number)

    def view(self) -> ExactView:
        """What is there now."""
        first_rows: dict[int, int] = {}
        start = 0
        for block in self._blocks:
            first_rows |= {number: start + first for number, (first, _) in block.segments.items()}
            start += block.num_rows
        return ExactView(
            self._width,
            blocks=[block.view() for block in self._blocks],
            num_live=self._num_live,
            first_rows=first_rows,
            max_length=self._max_length,
        )

    def _block_with_room(self, num_rows: int) -> _Block:
        """The last one, a larger copy of it while it is small, or a new one."""
        size = rows_per_block(self._width)
        if not self._blocks:
            self._blocks.append(_Block(self._width, max(num_rows, min(self._capacity, size))))
        last = self._blocks[-1]
        wanted = last.num_rows + num_rows
        if wanted <= last.capacity:
            return last
        if wanted > size:
            block = _Block(self._width, max(num_rows, size))
            self._blocks.append(block)
            return block
        larger = _Block(self._width, min(size, int(wanted * _GROWTH)))
        for number in last.segments:
            larger.add(number, last.vectors(number))
            self._block_of[number] = larger
        self._blocks[-1] = larger
        return larger
