"""y = x Wᵀ + b of a quantized matrix: which computation serves it here, and torch's own ones.

The CPU kernels' is in `models.native.matmul`. Torch's are right on every device: on a GPU, fp8 with
fp8 activations and int8 with int8 activations are products of the matrix units; the other kinds,
and fp8 where no unit has it, become floats for as long as their product takes.

Shapes: T = tokens in the step, O = outputs, I = inputs, G = groups of inputs.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from models.layers import MatrixProduct
from models.native.matmul import native_product
from models.quantization.matrix import (
    FP8,
    MAX_FP8,
    MAX_INT8,
    TINY,
    QuantizedMatrix,
    dequantize,
    fuse,
)

FP8_CAPABILITY = (8, 9)  # of GPUs whose matrix units multiply fp8
FEW_ROWS_CAPABILITY = (9, 0)  # whose shared memory holds the tiles of `models.triton.matmul`
INT8_MIN_ROWS = 32  # `torch._int_mm` wants more than 16 on a GPU
SIZE_MULTIPLE = 16  # of matrices that those units take

QuantizeTokens = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def make_product(
    matrices: Sequence[QuantizedMatrix], *, dtype: torch.dtype, device: str
) -> MatrixProduct:
    """The product of matrices that stand one below the other and have the same inputs.

    Args:
        matrices: on the CPU or the device.
        dtype: of activations and results.
    """
    products = [_product(matrix, dtype=dtype, device=device) for matrix in fuse(matrices)]
    return products[0] if len(products) == 1 else SideBySide(products)


def _product(matrix: QuantizedMatrix, *, dtype: torch.dtype, device: str) -> MatrixProduct:
    product: MatrixProduct | None = native_product(matrix, dtype=dtype, device=device)
    if product is None:
        product = torch_product(matrix, device)
    if matrix.order_I is None:
        return product
    return Reordered(product, matrix.order_I.to(device))


def torch_product(matrix: QuantizedMatrix, device: str) -> MatrixProduct:
    """By torch's own operations, inputs in the matrix's own order."""
    if not matrix.scheme.is_dynamic:
        return Dequantizing(matrix, device)
    if matrix.scheme.weights == "int8":
        return Int8Activations(matrix, device)
    return Fp8Activations(matrix, device)


class Dequantizing:
    """The matrix becomes floats of the activations' dtype at each use. A `MatrixProduct`."""

    def __init__(self, matrix: QuantizedMatrix, device: str) -> None:
        self._scheme = matrix.scheme
        self._num_inputs = matrix.levels_OI.shape[1]
        is_int4 = matrix.scheme.weights == "int4"
        levels = pack_pairs(matrix.levels_OI) if is_int4 else matrix.levels_OI
        self._levels = levels.to(device)
        self._scales_OG = matrix.scales_OG.to(device)
        self._zeros_OG = None if matrix.zeros_OG is None else matrix.zeros_OG.to(device)

    def __call__(self, x_TI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        levels_OI = self._levels
        if self._scheme.weights == "int4":
            levels_OI = unpack_pairs(levels_OI)[:, : self._num_inputs]
        weight_OI = dequantize(levels_OI, self._scales_OG, self._zeros_OG, self._scheme)
        return F.linear(x_TI, weight_OI.to(x_TI.dtype), bias_O)


class Int8Activations:
    """Sums of int8 times int8 are integers: only the two scales round. A `MatrixProduct`."""

    def __init__(self, matrix: QuantizedMatrix, device: str) -> None:
        num_outputs, num_inputs = matrix.levels_OI.shape
        self._num_outputs = num_outputs
        # Matrix units want sizes of a multiple; zeros add nothing.
        padding = (0, -num_inputs % SIZE_MULTIPLE, 0, -num_outputs % SIZE_MULTIPLE)
        self._levels_OI = F.pad(matrix.levels_OI, padding).to(device)
        self._scales_O = matrix.scales_OG.squeeze(1).to(device)

    def __call__(self, x_TI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        levels_TI, scales_T1 = quantize_tokens(x_TI)
        num_tokens, num_inputs = levels_TI.shape
        num_rows = max(num_tokens, INT8_MIN_ROWS if x_TI.is_cuda else 1)
        padding = (0, self._levels_OI.shape[1] - num_inputs, 0, num_rows - num_tokens)
        sums_TO = torch._int_mm(F.pad(levels_TI, padding), self._levels_OI.t())
        out_TO = sums_TO[:num_tokens, : self._num_outputs] * self._scales_O * scales_T1
        return (out_TO if bias_O is None else out_TO + bias_O.float()).to(x_TI.dtype)


class Fp8Activations:
    """On GPUs that multiply fp8, by them; elsewhere the same numbers as floats, which gives the
    same sums but for their rounding. A `MatrixProduct`."""

    def __init__(self, matrix: QuantizedMatrix, device: str) -> None:
        num_outputs, num_inputs = matrix.levels_OI.shape
        self._num_outputs = num_outputs
        is_multiple = num_outputs % SIZE_MULTIPLE == 0 and num_inputs % SIZE_MULTIPLE == 0
        self._has_unit = is_multiple and _multiplies_fp8(device)
        self._levels_OI = matrix.levels_OI.to(device)
        self._scales_1O = matrix.scales_OG.t().contiguous().to(device)
        # Kernels of ours want what the unit wants, and the one for few rows a Hopper's memory.
        self._quantize_tokens: QuantizeTokens = quantize_tokens_fp8
        self._few_rows: Any = None
        if self._has_unit and importlib.util.find_spec("triton") is not None:
            operations = importlib.import_module("models.triton.operations")
            self._quantize_tokens = operations.quantize_tokens_fp8
            if torch.cuda.get_device_capability(device) >= FEW_ROWS_CAPABILITY:
                self._few_rows = importlib.import_module("models.triton.matmul")

    def __call__(self, x_TI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        levels_TI, scales_T1 = self._quantize_tokens(x_TI)
        if self._few_rows is not None and len(x_TI) <= self._few_rows.MAX_ROWS:
            product_TO: torch.Tensor = self._few_rows.multiply_fp8(
                levels_TI, scales_T1, self._levels_OI, self._scales_1O, dtype=x_TI.dtype
            )
            return product_TO if bias_O is None else product_TO + bias_O
        if self._has_unit:
            out_TO = torch._scaled_mm(
                levels_TI,
                self._levels_OI.t(),
                scale_a=scales_T1,
                scale_b=self._scales_1O,
                out_dtype=torch.bfloat16,
            )
            out_TO = out_TO.to(x_TI.dtype)
            return out_TO if bias_O is None else out_TO + bias_O
        sums_TO = levels_TI.float() @ self._levels_OI.float().t()
        out_TO = sums_TO * self._scales_1O * scales_T1
        return (out_TO if bias_O is None else out_TO + bias_O.float()).to(x_TI.dtype)


class Reordered:
    """A product whose matrix wants its inputs in another order. A `MatrixProduct`."""

    def __init__(self, product: MatrixProduct, order_I: torch.Tensor) -> None:
        self._product = product
        self._order_I = order_I

    def __call__(self, x_TI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        with_zero_TI = F.pad(x_TI, (0, 1))  # which the order may point to
        return self._product(with_zero_TI.index_select(1, self._order_I), bias_O)


class SideBySide:
    """Products of the same inputs, their outputs one after the other. A `MatrixProduct`."""

    def __init__(self, products: Sequence[MatrixProduct]) -> None:
        self._products = products

    def __call__(self, x_TI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        out_TO = torch.cat([product(x_TI, None) for product in self._products], dim=1)
        return out_TO if bias_O is None else out_TO + bias_O


def quantize_tokens(x_TI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 levels [T, I] of each token's own scale, and the scales [T, 1] in float32."""
    values_TI = x_TI.float()
    largest_T1 = values_TI.abs().amax(1, keepdim=True).clamp_(min=TINY)
    levels_TI = (values_TI * (MAX_INT8 / largest_T1)).round_().to(torch.int8)
    return levels_TI, largest_T1 / MAX_INT8


def quantize_tokens_fp8(x_TI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """fp8 levels [T, I] of each token's own scale, and the scales [T, 1] in float32."""
    values_TI = x_TI.float()
    scales_T1 = values_TI.abs().amax(1, keepdim=True).clamp_(min=TINY) / MAX_FP8
    return (values_TI / scales_T1).clamp_(-MAX_FP8, MAX_FP8).to(FP8), scales_T1


def pack_pairs(levels_OI: torch.Tensor) -> torch.Tensor:
    """Two levels of 4 bits in each byte, the first one low; an odd number is filled up by zero."""
    even_OI = F.pad(levels_OI, (0, levels_OI.shape[1] % 2))
    return even_OI[:, ::2] | (even_OI[:, 1::2] << 4)


def unpack_pairs(packed: torch.Tensor) -> torch.Tensor:
    """The opposite of `pack_pairs`."""
    return torch.stack((packed & 15, packed >> 4), dim=2).flatten(1)


def _multiplies_fp8(device: str) -> bool:
    if not device.startswith("cuda"):
        return False
    return torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
