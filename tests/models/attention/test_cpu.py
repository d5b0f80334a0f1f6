"""The backend alone, against attention written out: scores, mask, softmax, sum."""

import random
from collections.abc import Sequence

import pytest
import torch

from cluster.config import EngineConfig
from models.attention import cpu
from models.attention.cpu import CPUAttention
from models.engine.kv_cache import KVCache
from models.engine.step_inputs import StepInputs
from tests.models.conftest import MakeCheckpoint
from tests.models.step_driver import StepDriver, random_tokens, reference_logprobs

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 6, 2, 8


class Case:
    """Sequences with made-up keys and values, of which all but the last queries are cached."""

    def __init__(
        self,
        lengths: Sequence[tuple[int, int]],  # (query_len, context_len)
        *,
        block_size: int,
        window: int | None,
        seed: int = 0,
    ) -> None:
        random_ = random.Random(seed)
        torch.manual_seed(seed)
        self.window = window
        self.lengths = sorted(lengths, key=lambda pair: pair[0] > 1)
        counts = [-(-context // block_size) for _, context in self.lengths]
        # Block 0 is nobody's.
        blocks = random_.sample(range(1, sum(counts) + 3), sum(counts))
        self.tables = [[blocks.pop() for _ in range(count)] for count in counts]
        self.keys = [torch.randn(c, NUM_KV_HEADS, HEAD_DIM) for _, c in self.lengths]
        self.values = [torch.randn(c, NUM_KV_HEADS, HEAD_DIM) for _, c in self.lengths]
        self.queries = [torch.randn(q, NUM_HEADS, HEAD_DIM) for q, _ in self.lengths]
        # What former owners left behind must not matter, whatever it was.
        self.cache = KVCache(
            torch.full((2, sum(counts) + 3, 2, NUM_KV_HEADS, block_size, HEAD_DIM), float("nan"))
        )
        slots = [
            [table[p // block_size] * block_size + p % block_size for p in range(c)]
            for table, (_, c) in zip(self.tables, self.lengths, strict=True)
        ]
        for sequence, (query_len, context_len) in enumerate(self.lengths):
            cached = context_len - query_len
            self.cache.clear_blocks(
                self.tables[sequence][cached // block_size : -(-cached // block_size)]
            )
            for position in range(cached):
                block, offset = divmod(slots[sequence][position], block_size)
                self.cache.tensor_YB2KSD[1, block, 0, :, offset] = self.keys[sequence][position]
                self.cache.tensor_YB2KSD[1, block, 1, :, offset] = self.values[sequence][position]
        num_tokens = sum(q for q, _ in self.lengths)
        self.inputs = StepInputs(
            token_ids=[0] * num_tokens,
            positions=[p for q, c in self.lengths for p in range(c - q, c)],
            slot_mapping=[
                s for own, (q, _) in zip(slots, self.lengths, strict=True) for s in own[-q:]
            ],
            query_lens=[q for q, _ in self.lengths],
            context_lens=[c for _, c in self.lengths],
            block_tables=self.tables,
            sampling_rows=[],
        )

    def attend(self) -> torch.Tensor:
        backend = CPUAttention(self.cache, num_heads=NUM_HEADS, layer_windows=(None, self.window))
        new = [q for q, _ in self.lengths]
        return backend.prepare(self.inputs).attend(
            torch.cat(self.queries),
            torch.cat([k[-q:] for k, q in zip(self.keys, new, strict=True)]),
            torch.cat([v[-q:] for v, q in zip(self.values, new, strict=True)]),
            layer_index=1,
        )

    def expected(self) -> torch.Tensor:
        return torch.cat(
            [
                written_out(q, k, v, self.window)
                for q, k, v in zip(self.queries, self.keys, self.values, strict=True)
            ]
        )

    def check(self) -> None:
        torch.testing.assert_close(self.attend(), self.expected(), atol=2e-6, rtol=1e-5)


def written_out(
    q_QHD: torch.Tensor, k_LKD: torch.Tensor, v_LKD: torch.Tensor, window: int | None
) -> torch.Tensor:
    group_size = NUM_HEADS // NUM_KV_HEADS
    k_LHD = k_LKD.repeat_interleave(group_size, dim=1)
    v_LHD = v_LKD.repeat_interleave(group_size, dim=1)
    scores_HQL = torch.einsum("qhd,lhd->hql", q_QHD, k_LHD) / HEAD_DIM**0.5
    num_queries, num_keys = len(q_QHD), len(k_LKD)
    distance_QL = (torch.arange(num_queries)[:, None] + num_keys - num_queries) - torch.arange(
        num_keys
    )
    is_seen_QL = distance_QL >= 0
    if window is not None:
        is_seen_QL &= distance_QL < window
    weights_HQL = scores_HQL.masked_fill(~is_seen_QL, float("-inf")).softmax(-1)
    return torch.einsum("hql,lhd->qhd", weights_HQL, v_LHD)


WINDOWS = pytest.mark.parametrize("window", [None, 1, 5, 16, 300])


@WINDOWS
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_random_batches_equal_attention_written_out(block_size: int, window: int | None) -> None:
    random_ = random.Random(block_size)
    for seed in range(8):
        lengths = []
        for _ in range(random_.randint(1, 6)):
            context = random_.choice([1, 2, 3, 15, 16, 17, 40, 90])
            lengths.append((random_.choice([1, 1, context, random_.randint(1, context)]), context))
        Case(lengths, block_size=block_size, window=window, seed=seed).check()


@WINDOWS
def test_prompts_longer_than_a_span_equal_attention_written_out(window: int | None) -> None:
    Case([(600, 600), (400, 700), (1, 650)], block_size=16, window=window).check()


def test_lengths_far_apart_are_attended_in_groups_of_similar_ones() -> None:
    contexts = [600, 3, 590, 40, 310, 17, 600, 160]
    case = Case([(1, c) for c in contexts], block_size=4, window=None)
    backend = CPUAttention(case.cache, num_heads=NUM_HEADS, layer_windows=(None, None))
    groups = list(backend._similar_lengths(contexts, None))
    assert groups == [[0, 2, 4, 6], [7], [3, 5], [1]]
    assert sorted(index for group in groups for index in group) == list(range(len(contexts)))
    case.check()


def test_what_is_gathered_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_per_block = 2 * NUM_KV_HEADS * 4 * HEAD_DIM * 4
    monkeypatch.setattr(cpu, "MAX_GATHER_BYTES", 20 * bytes_per_block)
    case = Case([(1, 40)] * 7 + [(1, 200)], block_size=4, window=None)
    backend = CPUAttention(case.cache, num_heads=NUM_HEADS, layer_windows=(None, None))
    groups = list(backend._similar_lengths([40] * 7 + [200], None))
    assert [len(group) for group in groups] == [1, 2, 2, 2, 1]
    case.check()


def test_a_mask_takes_no_more_memory_than_a_row() -> None:
    case = Case([(1, 4)], block_size=4, window=None)
    backend = CPUAttention(case.cache, num_heads=NUM_HEADS, layer_windows=(None, None))
    mask_QL = backend._reversed_causal_mask(300, 1000, None)
    assert mask_QL.shape == (300, 1000)
    assert mask_QL.untyped_storage().nbytes() == 1299 * 4


def test_a_sequence_full_of_nans_does_not_reach_its_neighbours_or_the_next_owner() -> None:
    """Neighbours in the batch, and whoever gets its blocks next, see only themselves."""
    case = Case([(1, 9), (1, 30), (7, 7)], block_size=4, window=None)
    healthy = case.attend()
    case = Case([(1, 9), (1, 30), (7, 7)], block_size=4, window=None)
    case.queries[1].fill_(float("nan"))
    case.keys[1][-1] = float("nan")
    case.values[1][-1] = float("nan")
    poisoned = case.attend()
    assert bool(poisoned[1].isnan().all())
    torch.testing.assert_close(poisoned[[0, *range(2, 9)]], healthy[[0, *range(2, 9)]])


@pytest.mark.parametrize("window", [None, 8])
def test_a_float8_cache_is_near_and_the_same_however_steps_are_cut(
    make_checkpoint: MakeCheckpoint, window: int | None
) -> None:
    folder = make_checkpoint("mistral", sliding_window=window)
    tokens = random_tokens(50)
    config = EngineConfig(block_size=4, kv_cache_memory_bytes=2**22, kv_cache_dtype="fp8")
    driver = StepDriver(folder, engine_config=config)
    whole, cut = driver.add(tokens), driver.add(tokens)
    driver.finish(whole, 50)
    driver.finish(cut, 7, 1, 20, 1)
    logprobs = torch.stack(whole.logprobs)
    torch.testing.assert_close(torch.stack(cut.logprobs), logprobs, atol=2e-3, rtol=0)
    expected = reference_logprobs(folder, tokens)
    divergence = (expected.exp() * (expected - logprobs)).sum(-1)
    assert 0 < divergence.mean() < 0.02
