"""Which computation of attention serves a KV cache, where no Triton runs."""

import torch

from models.attention.backend import AttentionBackend
from models.attention.cpu import CPUAttention
from models.attention.native import native_attention
from models.checkpoint import DecoderShape
from models.engine.determinism import unsupported
from models.engine.kv_cache import KVCache


def choose_attention(
    kv_cache: KVCache, shape: DecoderShape, *, dtype: torch.dtype, is_deterministic: bool
) -> AttentionBackend:
    """The CPU kernels where they serve, else torch's own operations.

    Args:
        dtype: of queries, keys and values; the cache's may be another.

    Raises:
        ValueError: equal bits are asked for, which torch's operations do not promise.
    """
    heads, windows = shape.num_heads, shape.layer_windows
    native = native_attention(
        kv_cache, num_heads=heads, layer_windows=windows, is_invariant=is_deterministic
    )
    if native is None and is_deterministic:
        raise unsupported(
            f"block_size {kv_cache.block_size} and {heads // shape.num_kv_heads} heads to a key "
            "head; supported: multiples of 16 up to 128, and at most 128"
        )
    return native or CPUAttention(kv_cache, num_heads=heads, layer_windows=windows, dtype=dtype)
