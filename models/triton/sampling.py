"""The sampler's choice by Triton kernels: no sort, and no second attempt whatever the logits.

Shapes: G = rows, V = vocabulary.
"""

import torch
import triton

from models.triton.interpreter import IS_INTERPRETED
from models.triton.sampling_kernels import choose_ranked_kernel, choose_whole_kernel

_TILE = 8192


def choose_tokens(
    logits_GV: torch.Tensor, knobs_5G: torch.Tensor, *, is_ranked: bool
) -> torch.Tensor:
    """Token ids and outcomes, int64 [2, G]; what they mean says `models.engine.sampler`.

    Args:
        logits_GV: of any float dtype; a row's numbers lie together.
        knobs_5G: float64: temperature, min_p, top_k (V where it is off), top_p, uniform number.
        is_ranked: whether any row has top_k or top_p; else tokens go by id.
    """
    num_rows, vocab_size = logits_GV.shape
    out_2G = torch.empty(2, num_rows, dtype=torch.int64, device=logits_GV.device)
    kernel = choose_ranked_kernel if is_ranked else choose_whole_kernel
    kernel[(num_rows,)](
        logits_GV,
        knobs_5G,
        out_2G,
        logits_GV.stride(0),
        num_rows,
        V=vocab_size,
        TILE=min(_TILE, triton.next_power_of_2(vocab_size)),
        num_warps=4 if IS_INTERPRETED else 16,
    )
    return out_2G
