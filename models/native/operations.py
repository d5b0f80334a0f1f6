"""`DecoderOperations` by the CPU kernels: a pass over memory each, where torch takes several.

Shapes: T = tokens in the step, M = model width, F = feed-forward width, H = query heads, K =
key/value heads, N = H + K, D = head width.
"""

import ctypes

import torch

from models.checkpoint import DecoderConfig
from models.layers import Rope
from models.native.library import native_library
from models.operations import HeadNorms, Rotation

DTYPES = (torch.float32, torch.bfloat16)
WIDTH_MULTIPLE = 16
HEAD_MULTIPLE = 32


def native_operations(
    config: DecoderConfig, *, dtype: torch.dtype, device: str
) -> "NativeOperations | None":
    """The kernels, where they serve this model here."""
    fits = (
        device == "cpu"
        and dtype in DTYPES
        and config.hidden_size % WIDTH_MULTIPLE == 0
        and config.intermediate_size % WIDTH_MULTIPLE == 0
        and (config.experts is None or config.experts.expert_size % WIDTH_MULTIPLE == 0)
        and config.head_dim % HEAD_MULTIPLE == 0
    )
    library = native_library() if fits else None
    return None if library is None else NativeOperations(library)


class NativeOperations:
    """See `DecoderOperations`. Tensors are on the CPU, of one of `DTYPES`, their widths multiples
    of 16 and their heads' of 32."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def add_rms_norm(
        self, x_TM: torch.Tensor, added_TM: torch.Tensor | None, weight_M: torch.Tensor, eps: float
    ) -> torch.Tensor:
        out_TM = torch.empty_like(x_TM)
        self._library.shoal_add_rms_norm(
            x_TM.dtype is torch.bfloat16,
            x_TM.data_ptr(),
            None if added_TM is None else added_TM.data_ptr(),
            weight_M.data_ptr(),
            out_TM.data_ptr(),
            x_TM.shape[0],
            x_TM.shape[1],
            eps,
            torch.get_num_threads(),
        )
        return out_TM

    def rotation(self, rope: Rope, positions_T: torch.Tensor, *, num_heads: int) -> Rotation:
        table_P2D = rope.table_P2D
        num_threads = torch.get_num_threads()

        def apply(qk_TND: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
            self._library.shoal_rotate(
                qk_TND.dtype is torch.bfloat16,
                qk_TND.data_ptr(),
                qk_TND.stride(0),
                positions_T.data_ptr(),
                table_P2D.data_ptr(),
                None if norms is None else norms.query_D.data_ptr(),
                None if norms is None else norms.key_D.data_ptr(),
                qk_TND.shape[0],
                num_heads,
                qk_TND.shape[1] - num_heads,
                qk_TND.shape[2],
                0.0 if norms is None else norms.eps,
                num_threads,
            )
            return qk_TND

        return apply

    def silu_mul(self, gate_up_TF2: torch.Tensor) -> torch.Tensor:
        num_tokens, width = gate_up_TF2.shape[0], gate_up_TF2.shape[1] // 2
        out_TF = torch.empty(num_tokens, width, dtype=gate_up_TF2.dtype)
        self._library.shoal_silu_mul(
            gate_up_TF2.dtype is torch.bfloat16,
            gate_up_TF2.data_ptr(),
            out_TF.data_ptr(),
            num_tokens,
            width,
            torch.get_num_threads(),
        )
        return out_TF


def row_maxima(x_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `x_RV.max(dim=1)`: values and int64 indices, the lowest among equals, NaN above all."""
    fits = x_RV.device.type == "cpu" and x_RV.dtype in DTYPES and x_RV.stride(1) == 1
    library = native_library() if fits and x_RV.numel() else None
    if library is None:
        top_R, indices_R = x_RV.max(dim=1)
        return top_R, indices_R
    num_rows, width = x_RV.shape
    top_R = torch.empty(num_rows, dtype=x_RV.dtype)
    indices_R = torch.empty(num_rows, dtype=torch.int64)
    library.shoal_row_maxima(
        x_RV.dtype is torch.bfloat16,
        x_RV.data_ptr(),
        x_RV.stride(0),
        num_rows,
        width,
        top_R.data_ptr(),
        indices_R.data_ptr(),
        torch.get_num_threads(),
    )
    return top_R, indices_R
