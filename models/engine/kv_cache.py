"""The KV cache's tensors, and the plan of how many blocks there are.

Knows blocks as numbers 0 … num_blocks - 1; which sequence owns one is `BlockManager`'s business.

Shapes: Y = layers, B = blocks, K = key/value heads, S = slots of a block, D = head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import psutil
import torch

from cluster.config import EngineConfig
from models.checkpoint import DecoderShape
from models.engine.transfers import upload
from models.huge_pages import zeros_on_demand

GIB = 2**30
MAX_DEFAULT_CPU_BYTES = 4 * GIB
DEFAULT_CPU_FRACTION = 0.25  # of the memory that is available once the weights are loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCachePlan:
    """How long a sequence may be, and how many blocks hold all of them."""

    num_blocks: int
    block_size: int  # tokens
    bytes_per_block: int  # over all layers, keys and values
    max_model_len: int  # tokens: prompt and output of one sequence
    checkpoint_max_model_len: int

    def describe(self) -> str:
        """One line for a person, printed when the engine starts."""
        limit = f"context limit {self.max_model_len:,} tokens"
        if self.max_model_len < self.checkpoint_max_model_len:
            limit += f" (of the checkpoint's {self.checkpoint_max_model_len:,})"
        memory = self.num_blocks * self.bytes_per_block
        return (
            f"{limit}; KV cache {self.num_blocks:,} blocks of {self.block_size} tokens = "
            f"{self.num_blocks * self.block_size:,} tokens, {memory / GIB:.2f} GiB"
        )


def context_limit(config: DecoderShape, engine_config: EngineConfig) -> int:
    """Most tokens of one sequence, as far as memory has no say.

    Raises:
        ValueError: the configured limit exceeds the checkpoint's.
    """
    limit = engine_config.max_model_len
    if limit is None:
        return config.max_position_embeddings
    if limit > config.max_position_embeddings:
        raise ValueError(
            f"max_model_len ({limit}) exceeds the checkpoint's "
            f"max_position_embeddings ({config.max_position_embeddings})"
        )
    return limit


def kv_cache_dtype(engine_config: EngineConfig, dtype: torch.dtype) -> torch.dtype:
    """Of a cache for keys and values that are computed in `dtype`."""
    return torch.float8_e4m3fn if engine_config.kv_cache_dtype == "fp8" else dtype


def plan_kv_cache(
    config: DecoderShape, engine_config: EngineConfig, *, dtype: torch.dtype, memory_bytes: int
) -> KVCachePlan:
    """Fit the cache into `memory_bytes`, with no more blocks than all sequences could fill.

    A context limit that the configuration names is kept or refused; without one it is the
    checkpoint's own, or what the memory holds where that is less.

    Raises:
        ValueError: see `context_limit`; or the memory does not hold one sequence.
    """
    block_size = engine_config.block_size
    bytes_per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize
    bytes_per_block = bytes_per_token * block_size
    num_affordable = memory_bytes // bytes_per_block
    max_model_len = context_limit(config, engine_config)
    if num_affordable == 0:
        raise ValueError(
            f"{memory_bytes:,} bytes of KV cache memory do not hold one block of {block_size} "
            f"tokens ({bytes_per_block:,} bytes)"
        )
    if engine_config.max_model_len is None:
        max_model_len = min(max_model_len, num_affordable * block_size)
    blocks_per_sequence = -(-max_model_len // block_size)
    if num_affordable < blocks_per_sequence:
        raise ValueError(
            f"{num_affordable} blocks of {block_size} tokens cannot hold one sequence of "
            f"max_model_len ({max_model_len}): {memory_bytes:,} bytes of KV cache memory, "
            f"{bytes_per_block:,} per block"
        )
    return KVCachePlan(
        num_blocks=min(num_affordable, engine_config.max_num_seqs * blocks_per_sequence),
        block_size=block_size,
        bytes_per_block=bytes_per_block,
        max_model_len=max_model_len,
        checkpoint_max_model_len=config.max_position_embeddings,
    )


def kv_cache_memory_bytes(
    engine_config: EngineConfig, device: torch.device, *, num_ranks: int = 1
) -> int:
    """How much memory one rank's cache may take, asked after the weights are in place. On a CPU all
    ranks live in the same memory.

    Raises:
        ValueError: `gpu_memory_utilization` leaves nothing.
    """
    if engine_config.kv_cache_memory_bytes is not None:
        return engine_config.kv_cache_memory_bytes
    if device.type == "cpu":
        available = psutil.virtual_memory().available
        return min(MAX_DEFAULT_CPU_BYTES, int(available * DEFAULT_CPU_FRACTION)) // num_ranks
    free, total = torch.cuda.mem_get_info(device)
    used = total - free
    budget = int(total * engine_config.gpu_memory_utilization) - used
    if budget <= 0:
        raise ValueError(
            f"gpu_memory_utilization ({engine_config.gpu_memory_utilization}) of "
            f"{total / GIB:.1f} GiB leaves no KV cache: {used / GIB:.1f} GiB are in use"
        )
    return budget


class KVCache:
    """Keys and values of every layer: one tensor [Y, B, 2, K, S, D], allocated once.

    Head-major inside a block, so that one gather of (block, head) rows gives each head's context
    as one contiguous run; the layout is also flashinfer's "HND".
    """

    __slots__ = ("tensor_YB2KSD",)

    def __init__(self, tensor_YB2KSD: torch.Tensor) -> None:
        self.tensor_YB2KSD = tensor_YB2KSD

    @classmethod
    def allocate(
        cls, plan: KVCachePlan, config: DecoderShape, *, dtype: torch.dtype, device: torch.device
    ) -> Self:
        # Zeros, not empty: a masked slot is multiplied by zero, which would keep a NaN.
        shape = (
            config.num_layers,
            plan.num_blocks,
            2,
            config.num_kv_heads,
            plan.block_size,
            config.head_dim,
        )
        if device.type == "cpu":
            cache = cls(zeros_on_demand(shape, dtype))
            cache.clear_blocks([0])  # takes each layer's first huge page: no token waits for them
            return cache
        return cls(torch.zeros(shape, dtype=dtype, device=device))

    @property
    def num_blocks(self) -> int:
        return self.tensor_YB2KSD.shape[1]

    @property
    def block_size(self) -> int:
        return self.tensor_YB2KSD.shape[4]

    def layer(self, layer_index: int) -> torch.Tensor:
        """One layer's keys and values [B, 2, K, S, D]: a view."""
        return self.tensor_YB2KSD[layer_index]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks (source, destination) in all layers; every source is read first."""
        if not copies:
            return
        device = self.tensor_YB2KSD.device
        sources, destinations = upload(np.array(copies), device).unbind(1)
        bytes_ = self._bytes()
        bytes_[:, destinations] = bytes_[:, sources]

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Set whole blocks to zero in all layers."""
        if blocks:
            self._bytes()[:, torch.tensor(blocks, device=self.tensor_YB2KSD.device)] = 0

    def _bytes(self) -> torch.Tensor:
        """The same memory; not every operation knows float8."""
        return self.tensor_YB2KSD.view(torch.uint8)
