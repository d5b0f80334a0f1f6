"""The pieces a decoder is made of: linear layers, RMS norm, rotary embedding. Inference only.

Shapes: T = tokens in the step, N = heads, D = head width, M = model width, I/O = a linear layer's
inputs and outputs, P = positions. Sizes are per tensor-parallel rank.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F

from models.checkpoint import LinearRopeScaling, Llama3RopeScaling, RopeConfig

# The batch size that oneDNN chooses its blocked layout for; any other works with it too.
_PACKED_BATCH_SIZE = 32


class MatrixProduct(Protocol):
    """x Wᵀ + b for a weight that it has in a form of its own: packed, or quantized."""

    def __call__(self, x_TI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        """Results [T, O] in the activations' dtype."""
        ...


class Linear:
    """y = x Wᵀ + b. Several matrices of a checkpoint may be fused along O.

    Whoever has the weight in another form than [O, I] floats sets `product`, and `weight_OI` is
    empty ([O, 0]) then: quantized weights never are floats here, and the CPU kernels have a layout
    of their own. What is added to y (an adapter) needs to know neither.
    """

    __slots__ = ("bias_O", "product", "weight_OI")

    def __init__(
        self, num_inputs: int, num_outputs: int, *, bias: bool, dtype: torch.dtype, device: str
    ) -> None:
        self.weight_OI = torch.empty(num_outputs, num_inputs, dtype=dtype, device=device)
        self.bias_O = torch.empty(num_outputs, dtype=dtype, device=device) if bias else None
        self.product: MatrixProduct | None = None

    def __call__(self, x_TI: torch.Tensor) -> torch.Tensor:
        if self.product is not None:
            return self.product(x_TI, self.bias_O)
        if self.weight_OI.is_mkldnn:
            return _packed_linear(x_TI, self.weight_OI, self.bias_O)
        return F.linear(x_TI, self.weight_OI, self.bias_O)

    def pack(self) -> None:
        """Replace the weight by oneDNN's blocked copy, which a CPU reads up to twice as fast.

        The weight must be in place: nothing can be written to it afterwards. A `product` stays.
        """
        if self.product is None:
            self.weight_OI = _pack(self.weight_OI, _PACKED_BATCH_SIZE)

    def replace_weight(self, product: MatrixProduct) -> None:
        """Compute by `product` from now on, and let the floats go."""
        self.product = product
        self.weight_OI = self.weight_OI.new_empty(len(self.weight_OI), 0)


def can_pack(dtype: torch.dtype, device: str) -> bool:
    """Whether `Linear.pack` works here."""
    if device != "cpu" or not torch._C._has_mkldnn:
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype is torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype is torch.float32


def _pack(weight_OI: torch.Tensor, batch_size: int) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI, batch_size)
    return packed


def _packed_linear(
    x_TI: torch.Tensor, packed: torch.Tensor, bias_O: torch.Tensor | None
) -> torch.Tensor:
    out_TO: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, packed, bias_O, "none", [], "")
    return out_TO


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last dimension in float32, cast back, then scale: transformers' order."""
    return F.rms_norm(x, weight.shape, None, eps).mul_(weight)


class Rope:
    """Cosines and signed sines for every position: `table_P2D`, computed in float32 and kept in the
    model's dtype."""

    __slots__ = ("table_P2D",)

    def __init__(
        self,
        config: RopeConfig,
        *,
        head_dim: int,
        num_positions: int,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        half = head_dim // 2
        positions_P = torch.arange(num_positions, dtype=torch.float32)
        angles = torch.outer(positions_P, inverse_frequencies(config, head_dim))
        table_P2D = torch.empty(num_positions, 2, head_dim, dtype=dtype)
        cos, sin = angles.cos(), angles.sin()
        table_P2D[:, 0, :half], table_P2D[:, 0, half:] = cos, cos
        # The first half's sines are negative, so that a rotation is x·cos + roll(x, D/2)·sin.
        table_P2D[:, 1, :half], table_P2D[:, 1, half:] = -sin, sin
        self.table_P2D = table_P2D.to(device)

    def at(self, positions_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The cosines and signed sines of these positions, both [T, 1, D]."""
        table_T2D = self.table_P2D.index_select(0, positions_T)
        return table_T2D[:, :1], table_T2D[:, 1:]


def rotate(x_TND: torch.Tensor, cos_T1D: torch.Tensor, sin_T1D: torch.Tensor) -> torch.Tensor:
    """Rotate each head by its token's position (halves form the pairs, as in Llama)."""
    rolled_TND = x_TND.roll(x_TND.shape[-1] // 2, -1)
    return torch.addcmul(x_TND * cos_T1D, rolled_TND, sin_T1D)


def inverse_frequencies(config: RopeConfig, head_dim: int) -> torch.Tensor:
    """Radians per position of each pair, float32 [D / 2], computed as transformers does."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (config.theta**exponents)
    match config.scaling:
        case None:
            return frequencies
        case LinearRopeScaling(factor=factor):
            return frequencies / factor
        case Llama3RopeScaling() as scaling:
            return _llama3(frequencies, scaling)


def _llama3(frequencies: torch.Tensor, scaling: Llama3RopeScaling) -> torch.Tensor:
    """Wavelengths beyond the original context are stretched; those far inside it are kept."""
    wavelengths = 2 * math.pi / frequencies
    rotations = scaling.original_max_position_embeddings / wavelengths
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((rotations - scaling.low_freq_factor) / span).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies
