"""fp8 products of decode steps, which read the matrix at what memory gives.

On an H200 with 64 rows and the matrices of a 70B model, 225 µs a layer where `torch._scaled_mm`
takes 320 and reading alone 207.

Shapes: T = tokens, O = outputs, I = inputs.
"""

import torch
import triton
import triton.language as tl

from models.triton.interpreter import IS_INTERPRETED
from models.triton.matmul_kernels import multiply_fp8_kernel

MAX_ROWS = 64  # more are worth `torch._scaled_mm`, whose tiles are larger
_MIN_ROWS = 16
_TILE_OUTPUTS, _TILE_INPUTS = 64, 256
_MANY_PROGRAMS = 512  # several share a processor: less of its memory for each


def multiply_fp8(
    levels_TI: torch.Tensor,
    scales_T1: torch.Tensor,
    weight_OI: torch.Tensor,
    weight_scales_1O: torch.Tensor,
    *,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(levels · scales) (weight · weight scales)ᵀ, [T, O], of at most `MAX_ROWS` rows.

    Args:
        levels_TI, weight_OI: float8_e4m3fn, contiguous.
        scales_T1, weight_scales_1O: float32.
        dtype: of the result; sums are float32.
    """
    num_tokens, num_inputs = levels_TI.shape
    num_outputs = len(weight_OI)
    out_TO = torch.empty(num_tokens, num_outputs, dtype=dtype, device=levels_TI.device)
    num_programs = triton.cdiv(num_outputs, _TILE_OUTPUTS)
    multiply_fp8_kernel[(num_programs,)](
        levels_TI,
        scales_T1,
        weight_OI,
        weight_scales_1O,
        out_TO,
        num_tokens,
        num_outputs,
        I=num_inputs,
        ROWS=max(_MIN_ROWS, triton.next_power_of_2(num_tokens)),
        TILE_O=_TILE_OUTPUTS,
        TILE_I=_TILE_INPUTS,
        DOT=tl.float32 if IS_INTERPRETED else tl.float8e4nv,
        num_warps=4,
        num_stages=3 if num_programs > _MANY_PROGRAMS else 5,
    )
    return out_TO
