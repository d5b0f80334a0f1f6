"""The block tables of a step's sequences, kept on the device: only what changed is sent.

Shapes: N = most sequences of a step, W = most blocks of one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray


class BlockTables:
    """Row i of `table_NW` is the table of the i-th sequence of the latest step, and then whatever
    was there before."""

    def __init__(self, num_rows: int, num_columns: int, *, device: torch.device) -> None:
        self.table_NW = torch.zeros(num_rows, num_columns, dtype=torch.int32, device=device)
        self._rows: list[list[int]] = [[] for _ in range(num_rows)]  # what the device has

    def changes(self, tables: Sequence[list[int]]) -> NDArray[np.int32]:
        """What `apply` has to write so that the rows are these: [2, changes], places in the
        flattened table and block numbers."""
        num_rows, num_columns = self.table_NW.shape
        assert len(tables) <= num_rows, "a step has at most max_num_seqs sequences"
        places: list[NDArray[np.int32]] = []
        blocks: list[int] = []
        for index, table in enumerate(tables):
            known = self._rows[index]
            if known == table:
                continue
            assert len(table) <= num_columns, "a sequence has at most max_model_len tokens"
            first = len(known) if known == table[: len(known)] else 0
            start = index * num_columns
            places.append(np.arange(start + first, start + len(table), dtype=np.int32))
            blocks += table[first:]
            self._rows[index] = table.copy()
        if not places:
            return np.empty((2, 0), dtype=np.int32)
        return np.stack([np.concatenate(places), np.array(blocks, dtype=np.int32)])

    def apply(self, changes_2C: torch.Tensor) -> None:
        """Write changes that have been copied to the device."""
        if changes_2C.shape[1]:
            places_C, blocks_C = changes_2C.unbind(0)
            self.table_NW.view(-1).index_copy_(0, places_C.long(), blocks_C)
