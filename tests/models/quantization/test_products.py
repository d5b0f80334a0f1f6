"""Products of quantized matrices against the same numbers as float64."""

import pytest
import torch
import torch.nn.functional as F

from models.layers import MatrixProduct
from models.quantization.matrix import FP8, MAX_FP8, quantize
from models.quantization.products import (
    make_product,
    pack_pairs,
    quantize_tokens,
    torch_product,
    unpack_pairs,
)
from models.quantization.scheme import MADE_HERE

SCHEMES = {name: made.layers for name, made in MADE_HERE.items()}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
schemes = pytest.mark.parametrize("name", SCHEMES)


def rounded_activations(x_TI: torch.Tensor, name: str) -> torch.Tensor:
    """As the scheme rounds them, in float64."""
    x_TI = x_TI.float()
    if name == "int8_dynamic":
        levels_TI, scales_T1 = quantize_tokens(x_TI)
        return levels_TI.double() * scales_T1
    if name == "fp8":
        scales_T1 = x_TI.abs().amax(1, keepdim=True).clamp(min=1e-30) / MAX_FP8
        return (x_TI / scales_T1).to(FP8).double() * scales_T1
    return x_TI.double()


def check(
    product: MatrixProduct,
    x_TI: torch.Tensor,
    weight_OI: torch.Tensor,
    bias_O: torch.Tensor | None,
    name: str,
) -> None:
    out_TO = product(x_TI, bias_O)
    assert out_TO.dtype is x_TI.dtype
    assert out_TO.is_contiguous()
    expected_TO = rounded_activations(x_TI, name) @ weight_OI.double().t()
    if bias_O is not None:
        expected_TO += bias_O.double()
    scale = expected_TO.abs().max()
    assert (out_TO.double() - expected_TO).abs().max() <= TOLERANCE[x_TI.dtype] * scale


@schemes
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_tokens", [1, 3, 40])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(48, 128), (37, 90)])
def test_products_equal_the_sums_of_the_quantized_numbers(
    name: str, dtype: torch.dtype, num_tokens: int, num_outputs: int, num_inputs: int
) -> None:
    torch.manual_seed(num_tokens)
    matrix = quantize(torch.randn(num_outputs, num_inputs), SCHEMES[name])
    x_TI = torch.randn(num_tokens, num_inputs).to(dtype)
    for product in (
        make_product([matrix], dtype=dtype, device="cpu"),
        torch_product(matrix, "cpu"),  # without the CPU kernels
    ):
        for bias_O in (None, torch.randn(num_outputs).to(dtype)):
            check(product, x_TI, matrix.dequantized(), bias_O, name)


@schemes
def test_a_token_of_zeros_gives_the_bias(name: str) -> None:
    torch.manual_seed(0)
    matrix = quantize(torch.randn(32, 64), SCHEMES[name])
    bias_O = torch.randn(32)
    out_TO = make_product([matrix], dtype=torch.float32, device="cpu")(torch.zeros(2, 64), bias_O)
    assert torch.equal(out_TO, bias_O.expand(2, -1))


@schemes
def test_matrices_are_fused_one_below_the_other(name: str) -> None:
    torch.manual_seed(0)
    matrices = [quantize(torch.randn(size, 64), SCHEMES[name]) for size in (32, 16, 16)]
    weight_OI = torch.cat([matrix.dequantized() for matrix in matrices])
    product = make_product(matrices, dtype=torch.float32, device="cpu")
    check(product, torch.randn(5, 64), weight_OI, torch.randn(64), name)


def test_levels_in_pairs_come_back() -> None:
    levels_OI = torch.randint(0, 16, (5, 7), dtype=torch.uint8)
    assert torch.equal(unpack_pairs(pack_pairs(levels_OI))[:, :7], levels_OI)
    assert torch.equal(F.pad(levels_OI, (0, 1)), unpack_pairs(pack_pairs(levels_OI)))
