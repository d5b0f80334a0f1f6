"""Attention over the paged KV cache in plain torch operations: written for CPUs, right anywhere.

Decoding sequences are gathered in groups of similar length and attended together; each prefill
chunk is attended on its own, in spans. A mask never takes more than one row of memory.

Shapes: T = tokens in the step, H = query heads, K = key/value heads, G = H / K, D = head width,
B = sequences of a group, Q = queries of a span, L = keys attended over, S = slots of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from models.attention.backend import begun_blocks
from models.engine.kv_cache import KVCache
from models.engine.step_inputs import StepInputs

FLOAT8 = torch.float8_e4m3fn
MAX_FLOAT8 = 448.0  # beyond it, float8_e4m3fn has no number

# Keys and values gathered at once for decoding, so that long contexts do not double the memory.
MAX_GATHER_BYTES = 128 * 2**20
# Groups of sequences up to this many blocks are not split further: padding costs less than a call.
MAX_UNSPLIT_BLOCKS = 8
# Queries of a sliding-window prefill attended at once; more would mostly compute masked scores.
MIN_WINDOW_SPAN = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _DecodeGroup:
    """Sequences of one query token each, padded to the longest of them."""

    query_rows_B: torch.Tensor | None  # among the step's tokens; None: the first B, in order
    num_sequences: int
    cache_rows: torch.Tensor  # of [block, key or value, head], in the order B2K and then blocks
    mask_BKGL: torch.Tensor  # 0 or -inf


@dataclass(frozen=True, slots=True, kw_only=True)
class _CachedSpan:
    """Queries of one sequence that see keys from before their own span."""

    first_row: int
    num_queries: int
    cache_rows: torch.Tensor  # in the order 2K and then blocks
    num_keys: int  # of the gathered ones, up to the last query's own
    mask_QL: torch.Tensor  # 0 or -inf, for the queries in reverse order


@dataclass(frozen=True, slots=True, kw_only=True)
class _FreshSpan:
    """Queries of one sequence that see each other and nothing else."""

    first_row: int
    num_queries: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """One step for the layers of one window."""

    decode_groups: list[_DecodeGroup]
    cached_spans: list[_CachedSpan]
    fresh_spans: list[_FreshSpan]


class CPUAttention:
    """Satisfies `AttentionBackend`."""

    def __init__(
        self,
        kv_cache: KVCache,
        *,
        num_heads: int,
        layer_windows: Sequence[int | None],
        dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype`: of queries, keys and values, where the cache's is float8; None: the cache's."""
        self.kv_cache = kv_cache
        self.layer_windows = tuple(layer_windows)
        tensor = kv_cache.tensor_YB2KSD
        self._num_kv_heads, self._head_dim = tensor.shape[3], tensor.shape[5]
        self._group_size = num_heads // self._num_kv_heads
        self._block_size = kv_cache.block_size
        self._dtype, self._device = dtype or tensor.dtype, tensor.device
        bytes_per_block = tensor[0, 0].numel() * self._dtype.itemsize
        self._max_gather_blocks = max(1, MAX_GATHER_BYTES // bytes_per_block)

    def prepare(self, inputs: StepInputs) -> "CPUStepAttention":
        """Plan the step, once for each distinct window; empties blocks that the step begins."""
        self.kv_cache.clear_blocks(begun_blocks(inputs, self._block_size))
        return CPUStepAttention(
            self.kv_cache,
            layer_windows=self.layer_windows,
            write_rows=self._write_rows(inputs.slot_mapping),
            plans={window: self._plan(inputs, window) for window in set(self.layer_windows)},
        )

    def _write_rows(self, slot_mapping: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of a layer's [block, key or value, head, slot], for keys and values: [T·K]."""
        slots_T1 = np.array(slot_mapping, dtype=np.int64)[:, None]
        blocks_T1, offsets_T1 = np.divmod(slots_T1, self._block_size)
        heads_K = np.arange(self._num_kv_heads)
        keys_TK = (blocks_T1 * 2 * self._num_kv_heads + heads_K) * self._block_size + offsets_T1
        values_TK = keys_TK + self._num_kv_heads * self._block_size
        return self._to_device(keys_TK.ravel()), self._to_device(values_TK.ravel())

    def _plan(self, inputs: StepInputs, window: int | None) -> _Plan:
        num_decodes = next(
            (i for i, length in enumerate(inputs.query_lens) if length > 1), len(inputs.query_lens)
        )
        plan = _Plan([], [], [])
        contexts = inputs.context_lens[:num_decodes]
        plan.decode_groups.extend(
            self._decode_group(inputs, members, window)
            for members in self._similar_lengths(contexts, window)
        )
        first_row = num_decodes
        for index in range(num_decodes, len(inputs.query_lens)):
            assert inputs.query_lens[index] > 1, "sequences with one query token come first"
            self._plan_prefill(plan, inputs, index, first_row=first_row, window=window)
            first_row += inputs.query_lens[index]
        return plan

    def _similar_lengths(self, contexts: Sequence[int], window: int | None) -> Iterator[list[int]]:
        """Split sequences so that padding at most doubles the work, and memory is bounded."""
        sizes = [
            _num_blocks(context - _first_key(context, window, self._block_size), self._block_size)
            for context in contexts
        ]
        by_size = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
        start = 0
        while start < len(by_size):
            longest = sizes[by_size[start]]
            shortest = 0 if longest <= MAX_UNSPLIT_BLOCKS else longest // 2
            limit = start + max(1, self._max_gather_blocks // longest)
            end = start + 1
            while end < min(limit, len(by_size)) and sizes[by_size[end]] >= shortest:
                end += 1
            yield sorted(by_size[start:end])
            start = end

    def _decode_group(
        self, inputs: StepInputs, members: list[int], window: int | None
    ) -> _DecodeGroup:
        size = self._block_size
        contexts_B = np.array([inputs.context_lens[m] for m in members], dtype=np.int64)
        first_keys = [_first_key(inputs.context_lens[m], window, size) for m in members]
        tables = [
            inputs.block_tables[m][first // size : _num_blocks(inputs.context_lens[m], size)]
            for m, first in zip(members, first_keys, strict=True)
        ]
        width = max(map(len, tables))
        # A sequence's own last block pads its table: nobody else's values come near it.
        padded_BL = np.array([table + table[-1:] * (width - len(table)) for table in tables])
        last_B1 = (contexts_B - np.array(first_keys))[:, None]
        keys_L = np.arange(width * size)
        is_seen_BL = keys_L < last_B1
        if window is not None:
            is_seen_BL &= keys_L >= last_B1 - window
        shape = (len(members), self._num_kv_heads, self._group_size, width * size)
        mask_BL = self._mask(is_seen_BL)
        is_prefix = members == list(range(len(members)))
        return _DecodeGroup(
            query_rows_B=None if is_prefix else self._to_device(np.array(members)),
            num_sequences=len(members),
            cache_rows=self._cache_rows(padded_BL),
            mask_BKGL=mask_BL[:, None, None].expand(shape),
        )

    def _plan_prefill(
        self, plan: _Plan, inputs: StepInputs, index: int, *, first_row: int, window: int | None
    ) -> None:
        query_len, context_len = inputs.query_lens[index], inputs.context_lens[index]
        first_position = context_len - query_len
        span = query_len if window is None else max(window, MIN_WINDOW_SPAN)
        for offset in range(0, query_len, span):
            num_queries = min(span, query_len - offset)
            first_query = first_position + offset
            row = first_row + offset
            if first_query == 0 and (window is None or num_queries <= window):
                plan.fresh_spans.append(_FreshSpan(first_row=row, num_queries=num_queries))
                continue
            end = first_query + num_queries
            first_key = _first_key(first_query + 1, window, self._block_size)
            table = inputs.block_tables[index]
            blocks = table[first_key // self._block_size : _num_blocks(end, self._block_size)]
            num_keys = end - first_key
            plan.cached_spans.append(
                _CachedSpan(
                    first_row=row,
                    num_queries=num_queries,
                    cache_rows=self._cache_rows(np.array([blocks])),
                    num_keys=num_keys,
                    mask_QL=self._reversed_causal_mask(num_queries, num_keys, window),
                )
            )

    def _reversed_causal_mask(
        self, num_queries: int, num_keys: int, window: int | None
    ) -> torch.Tensor:
        """A causal mask whose last query is row 0, as a view of a single row.

        With the queries reversed, whether query q sees key l depends on q + l alone, so all rows
        overlap in memory: Q + L numbers instead of Q · L.
        """
        sums = np.arange(num_queries + num_keys - 1)
        is_seen = sums < num_keys
        if window is not None:
            is_seen &= sums >= num_keys - window
        return self._mask(is_seen).as_strided((num_queries, num_keys), (1, 1))

    def _cache_rows(self, blocks: np.ndarray) -> torch.Tensor:
        """Rows of a layer's [block, key or value, head] for block tables [B, blocks]."""
        kv_heads = np.arange(2 * self._num_kv_heads)[None, :, None]
        rows = blocks[:, None, :] * (2 * self._num_kv_heads) + kv_heads
        return self._to_device(rows.ravel())

    def _mask(self, is_seen: np.ndarray) -> torch.Tensor:
        mask = np.where(is_seen, np.float32(0), np.float32("-inf"))
        return torch.from_numpy(mask).to(device=self._device, dtype=self._dtype)

    def _to_device(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices).to(self._device)


class CPUStepAttention:
    """Satisfies `StepAttention`."""

    def __init__(
        self,
        kv_cache: KVCache,
        *,
        layer_windows: tuple[int | None, ...],
        write_rows: tuple[torch.Tensor, torch.Tensor],
        plans: dict[int | None, _Plan],
    ) -> None:
        self._kv_cache = kv_cache
        self._layer_windows = layer_windows
        self._key_rows, self._value_rows = write_rows
        self._plans = plans

    def attend(
        self, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, *, layer_index: int
    ) -> torch.Tensor:
        cache_B2KSD = self._kv_cache.layer(layer_index)
        head_dim = q_THD.shape[-1]
        num_kv_heads = k_TKD.shape[1]
        num_tokens = len(self._key_rows) // num_kv_heads
        if cache_B2KSD.dtype is FLOAT8:
            # What a step computes and what it finds in the cache are the same numbers.
            k_TKD, v_TKD = (x.clamp(-MAX_FLOAT8, MAX_FLOAT8).to(FLOAT8) for x in (k_TKD, v_TKD))
        slots = _as_bytes(cache_B2KSD).view(-1, head_dim)
        for rows, x_TKD in ((self._key_rows, k_TKD), (self._value_rows, v_TKD)):
            slots.index_copy_(0, rows, _as_bytes(x_TKD[:num_tokens].reshape(-1, head_dim)))
        k_TKD, v_TKD = k_TKD.to(q_THD.dtype), v_TKD.to(q_THD.dtype)

        plan = self._plans[self._layer_windows[layer_index]]
        q_TKGD = q_THD.view(len(q_THD), num_kv_heads, -1, head_dim)
        out_TKGD = torch.empty(q_TKGD.shape, dtype=q_THD.dtype, device=q_THD.device)
        out_TKGD[num_tokens:] = 0
        block_rows = cache_B2KSD.view(-1, cache_B2KSD.shape[3] * head_dim)
        for group in plan.decode_groups:
            _attend_decode(group, q_TKGD, block_rows, out_TKGD)
        for cached in plan.cached_spans:
            _attend_cached(cached, q_TKGD, block_rows, out_TKGD)
        for fresh in plan.fresh_spans:
            _attend_fresh(fresh, q_TKGD, k_TKD, v_TKD, out_TKGD)
        return out_TKGD.flatten(1, 2)


def _attend_decode(
    group: _DecodeGroup, q_TKGD: torch.Tensor, block_rows: torch.Tensor, out_TKGD: torch.Tensor
) -> None:
    num_kv_heads, head_dim = q_TKGD.shape[1], q_TKGD.shape[3]
    gathered = _gather(block_rows, group.cache_rows, q_TKGD.dtype)
    k_BKLD, v_BKLD = gathered.view(group.num_sequences, 2, num_kv_heads, -1, head_dim).unbind(1)
    if group.query_rows_B is None:
        q_BKGD = q_TKGD[: group.num_sequences]
    else:
        q_BKGD = q_TKGD.index_select(0, group.query_rows_B)
    # The G query heads of a key head stand where queries do: its keys are read once for all.
    out_BKGD = F.scaled_dot_product_attention(q_BKGD, k_BKLD, v_BKLD, attn_mask=group.mask_BKGL)
    if group.query_rows_B is None:
        out_TKGD[: group.num_sequences] = out_BKGD
    else:
        out_TKGD.index_copy_(0, group.query_rows_B, out_BKGD)


def _attend_cached(
    span: _CachedSpan, q_TKGD: torch.Tensor, block_rows: torch.Tensor, out_TKGD: torch.Tensor
) -> None:
    num_kv_heads, group_size, head_dim = q_TKGD.shape[1:]
    gathered = _gather(block_rows, span.cache_rows, q_TKGD.dtype)
    kv_2KLD = gathered.view(2, num_kv_heads, -1, head_dim)[:, :, : span.num_keys]
    k_KGLD, v_KGLD = kv_2KLD[:, :, None].expand(-1, -1, group_size, -1, -1).unbind(0)
    rows = slice(span.first_row, span.first_row + span.num_queries)
    q_KGQD = q_TKGD[rows].flip(0).permute(1, 2, 0, 3)
    mask_KGQL = span.mask_QL.expand(num_kv_heads, group_size, -1, -1)
    out_KGQD = F.scaled_dot_product_attention(q_KGQD, k_KGLD, v_KGLD, attn_mask=mask_KGQL)
    out_TKGD[rows] = out_KGQD.permute(2, 0, 1, 3).flip(0)


def _attend_fresh(
    span: _FreshSpan,
    q_TKGD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    out_TKGD: torch.Tensor,
) -> None:
    group_size = q_TKGD.shape[2]
    rows = slice(span.first_row, span.first_row + span.num_queries)
    q_KGQD = q_TKGD[rows].permute(1, 2, 0, 3)
    k_KGQD = k_TKD[rows].transpose(0, 1)[:, None].expand(-1, group_size, -1, -1)
    v_KGQD = v_TKD[rows].transpose(0, 1)[:, None].expand(-1, group_size, -1, -1)
    out_KGQD = F.scaled_dot_product_attention(q_KGQD, k_KGQD, v_KGQD, is_causal=True)
    out_TKGD[rows] = out_KGQD.permute(2, 0, 1, 3)


def _as_bytes(x: torch.Tensor) -> torch.Tensor:
    """float8 numbers as bytes, which every operation knows; others as they are."""
    return x.view(torch.uint8) if x.dtype is FLOAT8 else x


def _gather(block_rows: torch.Tensor, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    gathered = _as_bytes(block_rows).index_select(0, rows)
    return gathered.view(block_rows.dtype).to(dtype)


def _first_key(context_len: int, window: int | None, block_size: int) -> int:
    """The position, at the start of a block, from which the last of `context_len` tokens needs
    keys."""
    if window is None:
        return 0
    return max(0, context_len - window) // block_size * block_size


def _num_blocks(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)
