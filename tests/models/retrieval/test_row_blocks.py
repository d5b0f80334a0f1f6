"""Rows are found again wherever they lie, and stay where they are."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retrieval.row_blocks import RowBlocks, rows_per_block

WIDTH = 6144  # blocks of 1,024 rows


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(0, 1500), max_size=5), seed=st.integers(0, 1000))
def test_all_rows_are_found_again(lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks, all_rows = RowBlocks(WIDTH), np.empty((0, WIDTH), np.float16)
    for length in lengths:
        rows = rng.integers(-100, 100, size=(length, 1)).astype(np.float16)
        rows = np.broadcast_to(rows, (length, WIDTH))
        blocks.append(rows)
        all_rows = np.concatenate([all_rows, rows])
    assert len(blocks) == len(all_rows)
    asked = rng.permutation(len(all_rows))[:50]
    assert np.array_equal(blocks.take(asked), all_rows[asked])
    num_rows = len(all_rows) // 2
    parts = list(blocks.parts(num_rows))
    assert [first for first, _ in parts] == list(range(0, num_rows, rows_per_block(WIDTH)))
    assert sum(len(part) for _, part in parts) == num_rows
    for first, part in parts:
        assert np.array_equal(part, all_rows[first : first + len(part)])


def test_what_was_appended_is_not_moved_by_what_comes_later() -> None:
    blocks = RowBlocks(WIDTH)
    blocks.append(np.ones((10, WIDTH), np.float16))
    ((_, before),) = blocks.parts(10)
    blocks.append(np.zeros((3000, WIDTH), np.float16))
    (_, after), *_ = blocks.parts(1024)
    assert np.shares_memory(before, after)
    assert blocks.num_bytes == 3 * 1024 * WIDTH * 2
