"""The CPU kernels' attention, against attention written out in float64.

The layout of a block is the kernels' own, so every key and value enters through the backend: a
context is stored by one step and attended to by the next.
"""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from models.attention.native import MAX_GROUP_SIZE, NativeAttention, native_attention
from models.engine.kv_cache import KVCache
from tests.models.attention.paged_case import Length, PagedCase


class Case(PagedCase):
    """Sequences whose contexts are stored by a first step, all but their last queries."""

    def __init__(self, lengths: Sequence[Length], *, num_heads: int = 6, **shape: Any) -> None:
        super().__init__(lengths, num_heads=num_heads, **shape)
        windows = (None, self.window)
        found = native_attention(self.cache, num_heads=num_heads, layer_windows=windows)
        assert isinstance(found, NativeAttention), "the tests need a C++ compiler"
        self.backend = found

    def attend(self) -> torch.Tensor:
        """Store the contexts, then attend with the last queries of each sequence."""
        before = [(i, 0, c - q) for i, (q, c) in enumerate(self.lengths) if c > q]
        if before:
            before.sort(key=lambda part: part[2] > 1)
            self.step(self.backend, before)
        return self.step(self.backend)

    def check(self) -> None:
        ours = self.attend()
        tolerance = 5e-6 if ours.dtype is torch.float32 else 2e-2
        torch.testing.assert_close(ours.double(), self.expected(), atol=tolerance, rtol=tolerance)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@DTYPES
@pytest.mark.parametrize("window", [None, 1, 5, 16, 300])
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_random_batches_equal_attention_written_out(
    block_size: int, window: int | None, dtype: torch.dtype
) -> None:
    random_ = random.Random(block_size)
    for seed in range(6):
        lengths = []
        for _ in range(random_.randint(1, 6)):
            context = random_.choice([1, 2, 3, 15, 16, 17, 40, 127, 128, 129, 300])
            lengths.append((random_.choice([1, 1, context, random_.randint(1, context)]), context))
        Case(lengths, block_size=block_size, window=window, dtype=dtype, seed=seed).check()


@DTYPES
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 3])
@pytest.mark.parametrize("group_size", [1, 3, 5, 8, 16, 40])
def test_every_shape_of_heads_is_served(
    head_dim: int, num_kv_heads: int, group_size: int, dtype: torch.dtype
) -> None:
    Case(
        [(1, 50), (1, 1), (20, 33), (9, 9)],
        num_heads=num_kv_heads * group_size,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=dtype,
    ).check()


@DTYPES
def test_a_long_context_is_shared_among_threads_and_put_together_again(dtype: torch.dtype) -> None:
    for window in (None, 3000):
        Case([(1, 5000)], num_heads=3, num_kv_heads=1, window=window, dtype=dtype).check()
        Case([(3, 4100), (1, 2500)], num_heads=2, num_kv_heads=1, dtype=dtype).check()


@DTYPES
@pytest.mark.parametrize("window", [None, 70, 500])
@pytest.mark.parametrize("block_size", [16, 48, 64, 80, 112])
def test_a_tile_of_many_strips_sees_what_each_of_its_queries_sees(
    block_size: int, window: int | None, dtype: torch.dtype
) -> None:
    for num_heads, num_kv_heads in ((4, 4), (9, 3)):
        Case(
            [(1, 77), (350, 700), (130, 130), (2, 129)],
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            block_size=block_size,
            window=window,
            dtype=dtype,
        ).check()


def test_large_scores_do_not_overflow() -> None:
    case = Case([(1, 200), (4, 90)])
    for tensor in (*case.queries, *case.keys):
        tensor.mul_(30)
    torch.testing.assert_close(case.attend().double(), case.expected(), atol=1e-4, rtol=1e-4)


def test_a_sequence_full_of_nans_does_not_reach_its_neighbours() -> None:
    lengths = [(1, 9), (1, 30), (7, 7)]
    healthy = Case(lengths).attend()
    case = Case(lengths)
    case.queries[1].fill_(float("nan"))
    case.keys[1][-1] = case.values[1][-1] = float("nan")
    poisoned = case.attend()
    assert bool(poisoned[1].isnan().all())
    torch.testing.assert_close(poisoned[[0, *range(2, 9)]], healthy[[0, *range(2, 9)]])


def test_shapes_that_the_kernels_do_not_know_are_left_to_torch() -> None:
    def cache(
        block_size: int = 16, head_dim: int = 64, dtype: torch.dtype = torch.float32
    ) -> KVCache:
        return KVCache(torch.zeros(1, 2, 2, 1, block_size, head_dim, dtype=dtype))

    for odd in (cache(block_size=8), cache(head_dim=80), cache(dtype=torch.float16)):
        assert native_attention(odd, num_heads=2, layer_windows=(None,)) is None
    for num_heads, is_served in ((MAX_GROUP_SIZE, True), (MAX_GROUP_SIZE + 1, False)):
        found = native_attention(cache(), num_heads=num_heads, layer_windows=(None,))
        assert (found is not None) is is_served
