"""Sequences with made-up keys and values in scattered blocks, and attention written out."""

import random
from collections.abc import Sequence

import torch

from models.attention.backend import AttentionBackend
from models.engine.kv_cache import KVCache
from models.engine.step_inputs import StepInputs

Length = tuple[int, int]  # tokens of a sequence in the step, and in its context after it
NUM_PADDING_ROWS = 2


class PagedCase:
    """What each sequence's tokens ask for and hold, and where the blocks of its context are."""

    def __init__(
        self,
        lengths: Sequence[Length],
        *,
        num_heads: int = 6,
        num_kv_heads: int = 2,
        head_dim: int = 32,
        block_size: int = 16,
        window: int | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.window = window
        self.lengths = sorted(lengths, key=lambda pair: pair[0] > 1)
        counts = [-(-context // block_size) for _, context in self.lengths]
        blocks = random.Random(seed).sample(range(1, sum(counts) + 3), sum(counts))
        self.tables = [[blocks.pop() for _ in range(count)] for count in counts]
        self.block_size = block_size
        self.keys, self.values = (
            [torch.randn(c, num_kv_heads, head_dim).to(dtype) for _, c in self.lengths]
            for _ in range(2)
        )
        self.queries = [torch.randn(c, num_heads, head_dim).to(dtype) for _, c in self.lengths]
        # What former owners left behind must not matter, whatever it was.
        shape = (2, sum(counts) + 3, 2, num_kv_heads, block_size, head_dim)
        self.cache = KVCache(torch.full(shape, float("nan"), dtype=dtype))

    def step(
        self, backend: AttentionBackend, parts: Sequence[tuple[int, int, int]] | None = None
    ) -> torch.Tensor:
        """One step of layer 1 with (sequence, first position, end), by default the last queries of
        each. Rows of padding follow its tokens."""
        if parts is None:
            parts = [(i, c - q, c) for i, (q, c) in enumerate(self.lengths)]
        size = self.block_size
        inputs = StepInputs(
            token_ids=[0] * sum(end - start for _, start, end in parts),
            positions=[p for _, start, end in parts for p in range(start, end)],
            slot_mapping=[
                self.tables[i][p // size] * size + p % size
                for i, start, end in parts
                for p in range(start, end)
            ],
            query_lens=[end - start for _, start, end in parts],
            context_lens=[end for _, _, end in parts],
            block_tables=[self.tables[i] for i, _, _ in parts],
            sampling_rows=[],
        )

        def rows(tensors: list[torch.Tensor]) -> torch.Tensor:
            taken = [tensors[i][start:end] for i, start, end in parts]
            padding = torch.full_like(taken[0][:1].repeat(NUM_PADDING_ROWS, 1, 1), 7.0)
            return torch.cat([*taken, padding])

        out_THD = backend.prepare(inputs).attend(
            rows(self.queries), rows(self.keys), rows(self.values), layer_index=1
        )
        assert bool((out_THD[-NUM_PADDING_ROWS:] == 0).all()), "padding comes back as zeros"
        return out_THD[:-NUM_PADDING_ROWS]

    def expected(self) -> torch.Tensor:
        """What `step` gives, in float64."""
        outputs = [
            written_out(q[-length[0] :], k, v, self.window)
            for q, k, v, length in zip(
                self.queries, self.keys, self.values, self.lengths, strict=True
            )
        ]
        return torch.cat(outputs)


def written_out(
    q_QHD: torch.Tensor, k_LKD: torch.Tensor, v_LKD: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Scores, mask, softmax, sum: in float64, for the last queries of one sequence."""
    group_size = q_QHD.shape[1] // k_LKD.shape[1]
    k_LHD = k_LKD.double().repeat_interleave(group_size, dim=1)
    v_LHD = v_LKD.double().repeat_interleave(group_size, dim=1)
    scores_HQL = torch.einsum("qhd,lhd->hql", q_QHD.double(), k_LHD) / q_QHD.shape[2] ** 0.5
    num_queries, num_keys = len(q_QHD), len(k_LKD)
    positions_Q1 = torch.arange(num_keys - num_queries, num_keys)[:, None]
    distance_QL = positions_Q1 - torch.arange(num_keys)
    is_seen_QL = distance_QL >= 0
    if window is not None:
        is_seen_QL &= distance_QL < window
    weights_HQL = scores_HQL.masked_fill(~is_seen_QL, float("-inf")).softmax(-1)
    return torch.einsum("hql,lhd->qhd", weights_HQL, v_LHD)
