"""Attention over the paged KV cache by the CPU kernels: nothing is gathered, nothing is masked.

Blocks have a layout of the kernels' own (`models/native/attention.cpp`); outside of this backend
they are only copied, cleared and counted, always as a whole.

Shapes: T = tokens in the step, H = query heads, K = key/value heads, D = head width.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.attention.backend import begun_blocks
from models.engine.kv_cache import KVCache
from models.engine.step_inputs import StepInputs
from models.native.library import native_library
from models.native.operations import DTYPES, HEAD_MULTIPLE

SLOT_MULTIPLE = 16
MAX_BLOCK_SIZE = 128
MAX_GROUP_SIZE = 128  # query heads of a key head


def native_attention(
    kv_cache: KVCache,
    *,
    num_heads: int,
    layer_windows: Sequence[int | None],
    is_invariant: bool = False,
) -> "NativeAttention | None":
    """The kernels, where they serve a cache of this shape here.

    Args:
        is_invariant: a token's output has the same bits whatever else is in its step.
    """
    tensor = kv_cache.tensor_YB2KSD
    num_kv_heads, block_size, head_dim = tensor.shape[3:]
    fits = (
        tensor.device.type == "cpu"
        and tensor.dtype in DTYPES
        and head_dim % HEAD_MULTIPLE == 0
        and block_size % SLOT_MULTIPLE == 0
        and block_size <= MAX_BLOCK_SIZE
        and num_heads // num_kv_heads <= MAX_GROUP_SIZE
    )
    library = native_library() if fits else None
    if library is None:
        return None
    return NativeAttention(
        library, kv_cache, layer_windows=layer_windows, is_invariant=is_invariant
    )


class NativeAttention:
    """Satisfies `AttentionBackend`; see `native_attention`."""

    def __init__(
        self,
        library: ctypes.CDLL,
        kv_cache: KVCache,
        *,
        layer_windows: Sequence[int | None],
        is_invariant: bool = False,
    ) -> None:
        self._library = library
        self._kv_cache = kv_cache
        self._layer_windows = tuple(layer_windows)
        self._is_invariant = is_invariant

    def prepare(self, inputs: StepInputs) -> "NativeStepAttention":
        """Lay the step out as arrays; empties blocks that the step begins."""
        self._kv_cache.clear_blocks(begun_blocks(inputs, self._kv_cache.block_size))
        tables = inputs.block_tables
        table_SW = np.zeros((len(tables), max(map(len, tables))), dtype=np.int32)
        for row, table in zip(table_SW, tables, strict=True):
            row[: len(table)] = table
        return NativeStepAttention(
            self._library,
            self._kv_cache,
            self._layer_windows,
            slots_T=np.asarray(inputs.slot_mapping, dtype=np.int64),
            table_SW=table_SW,
            lens_2S=np.array([inputs.query_lens, inputs.context_lens], dtype=np.int32),
            is_invariant=self._is_invariant,
        )


class NativeStepAttention:
    """Satisfies `StepAttention`. S = sequences, W = blocks of the longest."""

    def __init__(
        self,
        library: ctypes.CDLL,
        kv_cache: KVCache,
        layer_windows: tuple[int | None, ...],
        *,
        slots_T: NDArray[np.int64],
        table_SW: NDArray[np.int32],
        lens_2S: NDArray[np.int32],
        is_invariant: bool = False,
    ) -> None:
        """`lens_2S`: tokens of each sequence in the step, and in its context after it."""
        self._attend = library.shoal_attend
        self.kv_cache = kv_cache
        self._layer_windows = layer_windows
        self.num_tokens = len(slots_T)
        self.num_sequences, self.table_width = table_SW.shape
        self._arrays = (slots_T, table_SW, *lens_2S)  # the addresses below live as long as these
        self.slots, self.table, self.query_lens, self.context_lens = (
            array.ctypes.data for array in self._arrays
        )
        self._num_threads = torch.get_num_threads()
        self.is_invariant = is_invariant

    def attend(
        self, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, *, layer_index: int
    ) -> torch.Tensor:
        num_heads, head_dim = q_THD.shape[1:]
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype)
        if len(out_THD) > self.num_tokens:
            out_THD[self.num_tokens :] = 0
        self._attend(
            q_THD.dtype is torch.bfloat16,
            q_THD.data_ptr(),
            k_TKD.data_ptr(),
            v_TKD.data_ptr(),
            q_THD.stride(0),
            k_TKD.stride(0),
            v_TKD.stride(0),
            self.slots,
            self.kv_cache.layer(layer_index).data_ptr(),
            out_THD.data_ptr(),
            self.table,
            self.query_lens,
            self.context_lens,
            self.num_sequences,
            self.table_width,
            self.num_tokens,
            num_heads,
            k_TKD.shape[1],
            head_dim,
            self.kv_cache.block_size,
            self._layer_windows[layer_index] or 0,
            head_dim**-0.5,
            self._num_threads,
            self.is_invariant,
        )
        return out_THD
