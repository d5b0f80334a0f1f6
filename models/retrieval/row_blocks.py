"""float16 rows that are only ever appended: in blocks, so that none is moved or copied again.

Shapes: N = rows, D = width.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_BLOCK_NUMBERS = 6_291_456  # 16,384 rows of 384


def rows_per_block(width: int) -> int:
    """How many rows are kept together: some MB, whatever their width."""
    return max(1024, _BLOCK_NUMBERS // width)


class RowBlocks:
    """One thread appends; any may read the rows that were there when it began."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._blocks: list[NDArray[np.float16]] = []
        self._num_rows = 0
        self._block_rows = rows_per_block(width)

    def __len__(self) -> int:
        return self._num_rows

    @property
    def num_bytes(self) -> int:
        return len(self._blocks) * self._block_rows * self._width * 2

    def append(self, rows_ND: NDArray[np.float16]) -> None:
        done = 0
        while done < len(rows_ND):
            place = self._num_rows % self._block_rows
            if place == 0:
                self._blocks.append(np.empty((self._block_rows, self._width), np.float16))
            part = rows_ND[done : done + self._block_rows - place]
            self._blocks[-1][place : place + len(part)] = part
            self._num_rows += len(part)
            done += len(part)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Some rows, in the order asked for."""
        taken = np.empty((len(rows), self._width), np.float16)
        blocks, places = np.divmod(rows, self._block_rows)
        for block in np.unique(blocks).tolist():
            is_here = blocks == block
            taken[is_here] = self._blocks[block][places[is_here]]
        return taken

    def parts(self, num_rows: int) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """The first `num_rows` rows: the number of each part's first row, and the part."""
        for first in range(0, num_rows, self._block_rows):
            block = self._blocks[first // self._block_rows]
            yield first, block[: min(self._block_rows, num_rows - first)]
