"""Attention over the paged KV cache by Triton kernels: decoding in splits, chunks in tiles.

The G query heads of a key head are attended together, so that its keys are read once. Nothing here
waits for the device, and everything but the numbers of programs is read from it: a decode step of a
given number of sequences can be captured and replayed.

Shapes: T = rows of the step, S = sequences, N = most sequences of a step, W = most blocks of one,
H = query heads, K = key/value heads, D = head width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from models.attention.block_tables import BlockTables
from models.attention.step_tensors import StepTensors, send_step
from models.engine.kv_cache import KVCache
from models.engine.step_inputs import StepInputs
from models.triton.attention_kernels import (
    decode_kernel,
    prefill_kernel,
    reduce_kernel,
    write_kernel,
)
from models.triton.interpreter import IS_INTERPRETED, num_processors

# More would leave a split too little to do, and the reduction too much.
MAX_SPLITS = 32
_MIN_DOT_ROWS = 16
# Of a decode step on each processor, and the warps of one: on an H200, of 1, 2 and 4 programs with
# 2, 4 and 8 warps, these are the fastest from 8 sequences on (by 1.15 at 32 and 1.3 at 256).
_PROGRAMS = 4
_DECODE_WARPS = 2
_SCALED_DTYPE = torch.float8_e4m3fn
_DOT_TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How much of the work one program takes at a time. It changes the time, not the result."""

    decode_keys: int
    chunk_rows: int  # queries times their heads
    chunk_keys: int

    @classmethod
    def of(cls, head_dim: int, group_size: int, dtype: torch.dtype) -> "Tiling":
        rows = max(triton.next_power_of_2(group_size), _MIN_DOT_ROWS)
        if dtype is torch.float32:
            return cls(decode_keys=32, chunk_rows=max(32, rows), chunk_keys=32)
        if head_dim > 128:
            return cls(decode_keys=32, chunk_rows=max(64, rows), chunk_keys=32)
        return cls(decode_keys=64, chunk_rows=max(128, rows), chunk_keys=64)


class TritonAttention:
    """Satisfies `AttentionBackend`."""

    def __init__(
        self,
        kv_cache: KVCache,
        *,
        num_heads: int,
        layer_windows: Sequence[int | None],
        max_num_seqs: int,
        max_model_len: int,
        scales_Y2K: torch.Tensor | None = None,
        tiling: Tiling | None = None,
    ) -> None:
        """The cache's type is that of keys and values, or float8_e4m3fn.

        Args:
            max_num_seqs: in one step.
            max_model_len: tokens of one sequence.
            scales_Y2K: float32, per layer, keys or values, and head: what a float8 cache holds
                times its scale is the number. None: 1.
            tiling: None: what suits the heads.
        """
        tensor = kv_cache.tensor_YB2KSD
        num_layers, self.num_kv_heads, self.head_dim = tensor.shape[0], *tensor.shape[3::2]
        self.kv_cache = kv_cache
        self.layer_windows = tuple(layer_windows)
        self.group_size = num_heads // self.num_kv_heads
        self.tiling = tiling or Tiling.of(self.head_dim, self.group_size, tensor.dtype)
        self.is_scaled = tensor.dtype is _SCALED_DTYPE
        if scales_Y2K is None:
            scales_Y2K = torch.ones(num_layers, 2, self.num_kv_heads)
        self.scales_Y2K = scales_Y2K.to(device=tensor.device, dtype=torch.float32)
        self.tables = BlockTables(
            max_num_seqs, -(-max_model_len // kv_cache.block_size), device=tensor.device
        )
        self._num_processors = num_processors(tensor.device)

    def prepare(self, inputs: StepInputs) -> "TritonStepAttention":
        """Send the step to the device, without padding."""
        device = self.scales_Y2K.device
        num_rows = len(inputs.token_ids)
        return self.over(send_step(inputs, self.tables, num_rows=num_rows, device=device))

    def over(self, step: StepTensors) -> "TritonStepAttention":
        """Attention of a step that is on the device already. How it is shared out among programs
        depends on the numbers of sequences and tokens alone."""
        return TritonStepAttention(self, step, self.num_splits(step.num_decodes))

    def num_splits(self, num_sequences: int) -> int:
        """A power of two: of each context, so that the device is busy whatever their lengths."""
        wanted = _PROGRAMS * self._num_processors // max(1, num_sequences * self.num_kv_heads)
        wanted = max(1, min(MAX_SPLITS, wanted))
        return 1 << (wanted.bit_length() - 1)


class TritonStepAttention:
    """Satisfies `StepAttention`."""

    def __init__(self, backend: TritonAttention, step: StepTensors, num_splits: int) -> None:
        self._backend = backend
        self._step = step
        self._num_splits = num_splits
        self._partial: tuple[torch.Tensor, torch.Tensor] | None = None

    def attend(
        self, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, *, layer_index: int
    ) -> torch.Tensor:
        backend, step = self._backend, self._step
        cache_B2KSD = backend.kv_cache.layer(layer_index)
        scales_2K = backend.scales_Y2K[layer_index]
        self._write(k_TKD, v_TKD, cache_B2KSD, scales_2K)
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        out_THD[step.num_tokens :] = 0
        layout = self._layout(q_THD.dtype, backend.layer_windows[layer_index])
        if step.num_decodes:
            self._decode(q_THD, cache_B2KSD, scales_2K, out_THD, layout)
        if step.num_chunks:
            self._prefill(q_THD, cache_B2KSD, scales_2K, out_THD, layout)
        return out_THD

    def _layout(self, dtype: torch.dtype, window: int | None) -> dict[str, Any]:
        """The compile-time constants that both kinds of attention have."""
        backend = self._backend
        return {
            "WINDOW": window or 0,
            "NUM_KV_HEADS": backend.num_kv_heads,
            "GROUP_SIZE": backend.group_size,
            "BLOCK_SIZE": backend.kv_cache.block_size,
            "HEAD_DIM": backend.head_dim,
            "PADDED_DIM": max(triton.next_power_of_2(backend.head_dim), _MIN_DOT_ROWS),
            "IS_SCALED": backend.is_scaled,
            "DOT": tl.float32 if IS_INTERPRETED else _DOT_TYPES[dtype],
        }

    def _write(
        self,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        cache_B2KSD: torch.Tensor,
        scales_2K: torch.Tensor,
    ) -> None:
        _, num_kv_heads, head_dim = k_TKD.shape
        num_tokens = min(len(k_TKD), self._step.num_tokens)
        write_kernel[(num_tokens, num_kv_heads)](
            k_TKD,
            v_TKD,
            self._step.slots_T,
            cache_B2KSD,
            scales_2K,
            k_TKD.stride(0),
            v_TKD.stride(0),
            NUM_KV_HEADS=num_kv_heads,
            BLOCK_SIZE=self._backend.kv_cache.block_size,
            HEAD_DIM=head_dim,
            PADDED_DIM=triton.next_power_of_2(head_dim),
            IS_SCALED=self._backend.is_scaled,
            LARGEST=torch.finfo(cache_B2KSD.dtype).max,
            num_warps=1,
        )

    def _decode(
        self,
        q_THD: torch.Tensor,
        cache_B2KSD: torch.Tensor,
        scales_2K: torch.Tensor,
        out_THD: torch.Tensor,
        layout: dict[str, Any],
    ) -> None:
        backend, step, num_splits = self._backend, self._step, self._num_splits
        num_sequences, (num_heads, head_dim) = step.num_decodes, q_THD.shape[1:]
        partial, logsum = out_THD, out_THD
        if num_splits > 1:
            partial, logsum = self._scratch(num_heads, head_dim, q_THD.device)
        decode_kernel[(num_sequences, backend.num_kv_heads, num_splits)](
            q_THD,
            cache_B2KSD,
            backend.tables.table_NW,
            step.context_lens_S,
            scales_2K,
            out_THD,
            partial,
            logsum,
            _score_scale(head_dim),
            q_THD.stride(0),
            backend.tables.table_NW.stride(0),
            NUM_SPLITS=num_splits,
            GROUP_ROWS=max(triton.next_power_of_2(backend.group_size), _MIN_DOT_ROWS),
            TILE=backend.tiling.decode_keys,
            num_warps=_DECODE_WARPS,
            **layout,
        )
        if num_splits > 1:
            reduce_kernel[(num_sequences, num_heads)](
                partial,
                logsum,
                out_THD,
                NUM_SPLITS=num_splits,
                PADDED_SPLITS=triton.next_power_of_2(num_splits),
                HEAD_DIM=head_dim,
                PADDED_DIM=layout["PADDED_DIM"],
            )

    def _scratch(
        self, num_heads: int, head_dim: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For what the splits found: the same memory in every layer."""
        if self._partial is None:
            cells = (self._step.num_decodes, num_heads, self._num_splits)
            self._partial = (
                torch.empty(*cells, head_dim, dtype=torch.float32, device=device),
                torch.empty(cells, dtype=torch.float32, device=device),
            )
        return self._partial

    def _prefill(
        self,
        q_THD: torch.Tensor,
        cache_B2KSD: torch.Tensor,
        scales_2K: torch.Tensor,
        out_THD: torch.Tensor,
        layout: dict[str, Any],
    ) -> None:
        backend, step, tiling = self._backend, self._step, self._backend.tiling
        num_queries = tiling.chunk_rows // backend.group_size  # of one program
        num_chunk_tokens = step.num_tokens - step.num_decodes
        num_programs = num_chunk_tokens // num_queries + step.num_chunks
        prefill_kernel[(num_programs, backend.num_kv_heads)](
            q_THD,
            cache_B2KSD,
            backend.tables.table_NW[step.num_decodes :],
            step.query_starts_P,
            step.context_lens_S[step.num_decodes :],
            scales_2K,
            out_THD,
            _score_scale(q_THD.shape[2]),
            step.num_chunks,
            q_THD.stride(0),
            backend.tables.table_NW.stride(0),
            ROWS=tiling.chunk_rows,
            TILE=tiling.chunk_keys,
            num_warps=8 if tiling.chunk_rows >= 128 else 4,
            **layout,
        )


def _score_scale(head_dim: int) -> float:
    return math.log2(math.e) / math.sqrt(head_dim)
