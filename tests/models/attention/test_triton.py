"""The Triton backend against attention written out in float64, by Triton's interpreter on a CPU.

The interpreter takes a tenth of a millisecond for every operation of every program: the cases are
as small as their point allows, and tiles are small so that several are needed.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from models.attention.block_tables import BlockTables
from models.engine.kv_cache import KVCache
from tests.models.attention.paged_case import Length, PagedCase

pytest.importorskip("triton")

from models.attention.triton import Tiling, TritonAttention

SMALL_TILES = Tiling(decode_keys=16, chunk_rows=16, chunk_keys=16)
WINDOWS = (None, 1, 5, 16, 40)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Case(PagedCase):
    """The contexts but for the last queries are written straight into the blocks."""

    def __init__(
        self,
        lengths: Sequence[Length],
        *,
        num_heads: int = 6,
        tiling: Tiling = SMALL_TILES,
        scales: tuple[float, float] | None = None,
        num_processors: int = 4,
        **shape: Any,
    ) -> None:
        """`scales`: of keys and values, in a cache of float8."""
        super().__init__(lengths, num_heads=num_heads, **shape)
        num_kv_heads = self.keys[0].shape[1]
        scales_Y2K = None
        if scales is not None:
            # Heads differ, so that a wrong one shows.
            by_head = torch.tensor(scales)[:, None] * (1 + torch.arange(num_kv_heads))
            scales_Y2K = by_head.expand(2, -1, -1).contiguous()
            self._round(by_head)
            self.cache = KVCache(self.cache.tensor_YB2KSD.to(torch.float8_e4m3fn))
        self._store(scales_Y2K)
        self.cache = KVCache(self.cache.tensor_YB2KSD.to(DEVICE))
        for tensors in (self.queries, self.keys, self.values):
            tensors[:] = [tensor.to(DEVICE) for tensor in tensors]
        self.backend = TritonAttention(
            self.cache,
            num_heads=num_heads,
            layer_windows=(None, self.window),
            max_num_seqs=16,
            max_model_len=1024,
            scales_Y2K=scales_Y2K,
            tiling=tiling,
        )
        self.backend._num_processors = num_processors

    def _round(self, scales_2K: torch.Tensor) -> None:
        """Keys and values become what a float8 cache can hold of them."""
        for tensors, scales_K in ((self.keys, scales_2K[0]), (self.values, scales_2K[1])):
            for tensor in tensors:
                stored = (tensor.float() / scales_K[:, None]).to(torch.float8_e4m3fn)
                tensor.copy_(stored.float() * scales_K[:, None])

    def _store(self, scales_Y2K: torch.Tensor | None) -> None:
        layer = self.cache.layer(1)
        for i, (query_len, context_len) in enumerate(self.lengths):
            for position in range(context_len - query_len):
                block, offset = divmod(position, self.block_size)
                for which, tensors in enumerate((self.keys, self.values)):
                    row = tensors[i][position].float()
                    if scales_Y2K is not None:
                        row = row / scales_Y2K[1, which, :, None]
                    layer[self.tables[i][block], which, :, offset] = row.to(layer.dtype)

    def check(self, atol: float = 5e-6) -> None:
        ours = self.step(self.backend).double().cpu()
        for tensors in (self.queries, self.keys, self.values):
            tensors[:] = [tensor.cpu() for tensor in tensors]
        torch.testing.assert_close(ours, self.expected(), atol=atol, rtol=atol)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("block_size", [1, 4, 32])
def test_random_batches_equal_attention_written_out(block_size: int, window: int | None) -> None:
    random_ = random.Random(f"{block_size} {window}")
    lengths = []
    for _ in range(3):
        context = random_.choice([1, 2, 3, 15, 16, 17, 33, 50])
        lengths.append((random_.choice([1, 1, context, random_.randint(1, context)]), context))
    Case(lengths, block_size=block_size, window=window, num_kv_heads=1, num_heads=2).check()


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("block_size", [1, 2, 8, 16, 64, 128, 256])
def test_many_random_batches_equal_attention_written_out(
    block_size: int, window: int | None
) -> None:
    random_ = random.Random(block_size)
    for seed in range(4):
        lengths = []
        for _ in range(random_.randint(1, 6)):
            context = random_.choice([1, 2, 3, 15, 16, 17, 40, 127, 128, 129, 300])
            lengths.append((random_.choice([1, 1, context, random_.randint(1, context)]), context))
        Case(lengths, block_size=block_size, window=window, seed=seed).check()


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("group_size", [1, 7])
def test_every_width_of_heads_is_served(head_dim: int, group_size: int) -> None:
    Case([(1, 20), (3, 5)], head_dim=head_dim, num_heads=group_size, num_kv_heads=1).check()


@pytest.mark.parametrize("num_kv_heads", [1, 3])
@pytest.mark.parametrize("group_size", [1, 2, 4, 7, 8])
def test_the_heads_of_a_group_are_attended_together(group_size: int, num_kv_heads: int) -> None:
    num_heads = group_size * num_kv_heads
    Case([(1, 18), (9, 12)], num_heads=num_heads, num_kv_heads=num_kv_heads).check()


def test_a_group_may_be_larger_than_the_smallest_tile() -> None:
    tiling = Tiling(decode_keys=16, chunk_rows=32, chunk_keys=16)
    Case([(1, 18), (9, 12)], num_heads=20, num_kv_heads=1, tiling=tiling).check()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_is_right_to_its_last_bits(dtype: torch.dtype, atol: float) -> None:
    Case([(1, 40), (1, 16), (20, 33)], dtype=dtype, head_dim=64).check(atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_float8_cache_holds_numbers_by_their_heads_scales(dtype: torch.dtype) -> None:
    case = Case([(1, 40), (20, 33)], dtype=dtype, scales=(0.5, 0.02))
    # In bfloat16 the numbers in the cache, times their scale, are rounded once more.
    case.check(5e-6 if dtype is torch.float32 else 3e-2)


def test_what_float8_cannot_hold_is_stored_as_the_largest_that_it_can() -> None:
    case = Case([(1, 1)], scales=(1.0, 1.0))
    case.values[0].fill_(1e4)
    ours = case.step(case.backend).cpu()
    largest = 448.0 * torch.tensor([1.0, 1, 1, 2, 2, 2])
    assert torch.equal(ours[0], largest[:, None].expand(6, 32))


@pytest.mark.parametrize(("num_processors", "num_splits"), [(1, 4), (4, 16), (132, 32)])
def test_a_context_may_be_shared_among_few_programs_or_many(
    num_processors: int, num_splits: int
) -> None:
    case = Case([(1, 150)], num_heads=2, num_kv_heads=1, num_processors=num_processors)
    assert case.backend.num_splits(1) == num_splits
    assert case.backend.num_splits(300) == 1
    case.check()


def test_lengths_far_apart_and_splits_without_work_do_not_matter() -> None:
    for window in (None, 20):
        Case([(1, 1), (1, 150), (1, 17)], num_heads=2, num_kv_heads=1, window=window).check()


def test_the_tiles_of_a_gpu_give_the_same() -> None:
    for head_dim, dtype in itertools.product((64, 256), (torch.float32, torch.bfloat16)):
        tiling = Tiling.of(head_dim, 2, dtype)
        case = Case(
            [(1, 70), (40, 80)],
            num_heads=2,
            num_kv_heads=1,
            head_dim=head_dim,
            dtype=dtype,
            tiling=tiling,
        )
        case.check(5e-6 if dtype is torch.float32 else 2e-2)


def test_large_scores_do_not_overflow() -> None:
    case = Case([(1, 50), (4, 20)], num_kv_heads=1, num_heads=2)
    for tensor in (*case.queries, *case.keys):
        tensor.mul_(30)
    case._store(None)
    case.check(1e-4)


def test_a_sequence_full_of_nans_does_not_reach_its_neighbours() -> None:
    lengths = [(1, 9), (1, 60), (7, 7)]
    healthy = Case(lengths)
    healthy_out = healthy.step(healthy.backend)
    case = Case(lengths)
    case.queries[1].fill_(float("nan"))
    case.keys[1][-1] = case.values[1][-1] = float("nan")
    poisoned = case.step(case.backend)
    assert bool(poisoned[1].isnan().all())
    torch.testing.assert_close(poisoned[[0, *range(2, 9)]], healthy_out[[0, *range(2, 9)]])


def test_block_tables_send_what_changed_and_nothing_else() -> None:
    tables = BlockTables(3, 4, device=torch.device("cpu"))

    def update(*rows: list[int]) -> int:
        changes_2C = tables.changes(rows)
        tables.apply(torch.from_numpy(changes_2C))
        for row, kept in zip(rows, tables.table_NW, strict=False):
            assert kept[: len(row)].tolist() == row
        return changes_2C.shape[1]

    assert update([1, 2], [3]) == 3
    assert update([1, 2], [3]) == 0
    assert update([1, 2, 5], [3, 6]) == 2  # appended
    assert update([1, 9, 5], [3, 6]) == 3  # copied on write: the row is sent anew
    assert update([3, 6], [7]) == 3  # the first one left
    assert update([3], [7], [8]) == 2  # a shorter one, which may grow otherwise
    assert update([3, 4]) == 1
