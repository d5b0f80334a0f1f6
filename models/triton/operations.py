"""`DecoderOperations` by Triton kernels: a pass over memory each, where torch takes several.

Shapes: T = tokens in the step, M = model width, F = feed-forward width, H = query heads, K =
key/value heads, N = H + K, D = head width.
"""

import torch
import triton

from models.layers import Rope
from models.operations import HeadNorms, Rotation
from models.quantization.matrix import FP8, MAX_FP8, TINY
from models.triton.operation_kernels import (
    add_rms_norm_kernel,
    quantize_fp8_kernel,
    rotate_kernel,
    silu_mul_kernel,
)

_SILU_TILE = 1024


class TritonOperations:
    """See `DecoderOperations`. Matrices are contiguous; heads may be a part of wider rows."""

    def add_rms_norm(
        self, x_TM: torch.Tensor, added_TM: torch.Tensor | None, weight_M: torch.Tensor, eps: float
    ) -> torch.Tensor:
        num_tokens, width = x_TM.shape
        out_TM = torch.empty_like(x_TM)
        padded_width = triton.next_power_of_2(width)
        add_rms_norm_kernel[(num_tokens,)](
            x_TM,
            x_TM if added_TM is None else added_TM,
            weight_M,
            out_TM,
            eps,
            WIDTH=width,
            PADDED_WIDTH=padded_width,
            HAS_ADDED=added_TM is not None,
            num_warps=min(16, max(1, padded_width // 512)),
        )
        return out_TM

    def rotation(self, rope: Rope, positions_T: torch.Tensor, *, num_heads: int) -> Rotation:
        table_P2D = rope.table_P2D

        def apply(qk_TND: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
            num_tokens, num_all_heads, head_dim = qk_TND.shape
            rotate_kernel[(num_tokens, num_all_heads)](
                qk_TND,
                positions_T,
                table_P2D,
                qk_TND if norms is None else norms.query_D,
                qk_TND if norms is None else norms.key_D,
                qk_TND.stride(0),
                num_heads,
                0.0 if norms is None else norms.eps,
                HEAD_DIM=head_dim,
                PADDED_HALF=triton.next_power_of_2(head_dim // 2),
                HAS_NORMS=norms is not None,
                num_warps=1,
            )
            return qk_TND

        return apply

    def silu_mul(self, gate_up_TF2: torch.Tensor) -> torch.Tensor:
        num_tokens, width = gate_up_TF2.shape[0], gate_up_TF2.shape[1] // 2
        out_TF = torch.empty(num_tokens, width, dtype=gate_up_TF2.dtype, device=gate_up_TF2.device)
        silu_mul_kernel[(num_tokens, triton.cdiv(width, _SILU_TILE))](
            gate_up_TF2, out_TF, WIDTH=width, TILE=_SILU_TILE
        )
        return out_TF


def quantize_tokens_fp8(x_TI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp8 levels [T, I] of each token's own scale, and the scales [T, 1] in float32: what
    `models.quantization.products` computes in torch, in one pass."""
    x_TI = x_TI.contiguous()
    num_tokens, width = x_TI.shape
    levels_TI = torch.empty(num_tokens, width, dtype=FP8, device=x_TI.device)
    scales_T1 = torch.empty(num_tokens, 1, dtype=torch.float32, device=x_TI.device)
    padded_width = triton.next_power_of_2(width)
    quantize_fp8_kernel[(num_tokens,)](
        x_TI,
        levels_TI,
        scales_T1,
        TINY,
        WIDTH=width,
        PADDED_WIDTH=padded_width,
        LARGEST=MAX_FP8,
        num_warps=min(16, max(1, padded_width // 512)),
    )
    return levels_TI, scales_T1
