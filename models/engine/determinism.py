"""What `deterministic` promises, and where the promise can be kept.

A sequence's logits have the same bits whatever else is in the batch, however its prompt is cut into
steps, and whether its prefix was found in the cache. For that no operation may depend on the number
of rows in a step: the CPU kernels add up each row in an order of its own (`models/native`). Torch's
and a GPU's libraries choose by shape, and so promise nothing.
"""

import torch

from cluster.config import EngineConfig
from models.checkpoint import DecoderConfig
from models.native.operations import native_operations
from models.parallel.group import MAX_RANKS_APART


def check_deterministic(
    config: DecoderConfig,
    engine_config: EngineConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    adds_in_order: bool,
) -> None:
    """
    Args:
        config: of a rank's part of the model.
        adds_in_order: whether sums over the ranks have the same bits each time.

    Raises:
        ValueError: bit-equal logits cannot be promised for this model here.
    """
    problem: str | None = None
    if device.type != "cpu":
        problem = f"device {device.type}; supported: cpu"
    elif not adds_in_order:
        problem = (
            "ranks on several machines (or without CPU kernels); supported: at most "
            f"{MAX_RANKS_APART}, any number where they share memory"
        )
    elif engine_config.kv_cache_dtype != "auto":
        problem = f"kv_cache_dtype {engine_config.kv_cache_dtype}; supported: auto"
    elif config.quantization is not None and config.quantization.layers.weights == "fp8":
        problem = "fp8 weights; supported: floats, int8 and int4"
    elif native_operations(config, dtype=dtype, device=device.type) is None:
        problem = (
            f"{dtype} and heads {config.head_dim} wide, for which there are no CPU kernels here; "
            "supported: float32 and bfloat16, widths that are multiples of 16 and heads' of 32, "
            "where there is a C++ compiler and SHOAL_NATIVE is not 0"
        )
    if problem is not None:
        raise unsupported(problem)


def unsupported(problem: str) -> ValueError:
    return ValueError(f"deterministic is not supported with {problem}")
