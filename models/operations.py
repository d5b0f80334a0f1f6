"""The small operations between a decoder's matrix products, and the two ways to compute them.

Shapes: T = tokens in the step, M = model width, F = feed-forward width, H = query heads, K =
key/value heads, N = H + K, D = head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from models.layers import Rope, rms_norm, rotate

#: Rotates a step's queries and keys: see `DecoderOperations.rotation`.
Rotation = Callable[[torch.Tensor, "HeadNorms | None"], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadNorms:
    """RMS norms of each query and key head, before the rotation (Qwen3)."""

    query_D: torch.Tensor
    key_D: torch.Tensor
    eps: float


class DecoderOperations(Protocol):
    """What a decoder layer computes beside matrix products and attention."""

    def add_rms_norm(
        self, x_TM: torch.Tensor, added_TM: torch.Tensor | None, weight_M: torch.Tensor, eps: float
    ) -> torch.Tensor:
        """Add to the residual stream in place, and return it normalised and scaled."""
        ...

    def rotation(self, rope: Rope, positions_T: torch.Tensor, *, num_heads: int) -> Rotation:
        """For one step: from the N query and key heads [T, N, D] to the rotated ones, which may be
        the same memory."""
        ...

    def silu_mul(self, gate_up_TF2: torch.Tensor) -> torch.Tensor:
        """silu(gate) · up of [T, 2F], gates first: [T, F]."""
        ...


class TorchOperations:
    """In torch's own operations: right on every device."""

    def add_rms_norm(
        self, x_TM: torch.Tensor, added_TM: torch.Tensor | None, weight_M: torch.Tensor, eps: float
    ) -> torch.Tensor:
        if added_TM is not None:
            x_TM += added_TM
        return rms_norm(x_TM, weight_M, eps)

    def rotation(self, rope: Rope, positions_T: torch.Tensor, *, num_heads: int) -> Rotation:
        cosines_T1D, sines_T1D = rope.at(positions_T)

        def apply(qk_TND: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
            if norms is not None:
                qk_TND = F.rms_norm(qk_TND, norms.query_D.shape, None, norms.eps)
                qk_TND[:, :num_heads] *= norms.query_D
                qk_TND[:, num_heads:] *= norms.key_D
            return rotate(qk_TND, cosines_T1D, sines_T1D)

        return apply

    def silu_mul(self, gate_up_TF2: torch.Tensor) -> torch.Tensor:
        gate_TF, up_TF = gate_up_TF2.chunk(2, dim=-1)
        return F.silu(gate_TF).mul_(up_TF)
