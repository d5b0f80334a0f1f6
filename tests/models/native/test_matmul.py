"""The kernel's products: every row by itself, on every kind of CPU. Values: `test_products.py`."""

import itertools
from dataclasses import replace

import pytest
import torch

from cluster.config import shoal_home
from models.layers import MatrixProduct
from models.native.library import build, load
from models.native.matmul import native_float_product, native_product
from models.native.operations import DTYPES
from models.quantization.matrix import quantize
from models.quantization.products import torch_product
from models.quantization.scheme import MADE_HERE

KINDS = ("floats", "int8", "int8_dynamic", "int4", "int4_g32")


def product_of(
    kind: str, weight_OI: torch.Tensor, dtype: torch.dtype, *, is_invariant: bool
) -> MatrixProduct:
    if kind == "floats":
        return native_float_product(weight_OI.to(dtype))
    matrix = quantize(weight_OI, replace(MADE_HERE[kind].layers, is_invariant=is_invariant))
    product = native_product(matrix, dtype=dtype, device="cpu")
    assert product is not None, "the tests need a C++ compiler"
    return product


def assert_right(dtype: torch.dtype) -> None:
    """Against torch's own operations, for widths that fill no tile and none of its rows."""
    torch.manual_seed(0)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    for num_tokens, num_outputs, num_inputs in ((1, 32, 64), (7, 37, 90), (40, 16, 160)):
        weight_OI = torch.randn(num_outputs, num_inputs)
        x_TI, bias_O = torch.randn(num_tokens, num_inputs).to(dtype), torch.randn(num_outputs)
        for kind, is_invariant in itertools.product(KINDS, (False, True)):
            product = product_of(kind, weight_OI, dtype, is_invariant=is_invariant)
            out_TO = product(x_TI, bias_O.to(dtype)).float()
            if kind == "floats":
                expected_TO = x_TI.float() @ weight_OI.to(dtype).float().t() + bias_O.to(dtype)
            else:
                reference = torch_product(quantize(weight_OI, MADE_HERE[kind].layers), "cpu")
                expected_TO = reference(x_TI.float(), bias_O.to(dtype).float())
            difference = (out_TO - expected_TO).abs().max()
            assert difference <= tolerance * expected_TO.abs().max(), (kind, num_tokens)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_are_right(dtype: torch.dtype) -> None:
    assert_right(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_in_any_company(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    product = product_of(kind, torch.randn(80, 200), dtype, is_invariant=True)
    x_TI = torch.randn(70, 200).to(dtype)
    bias_O = torch.randn(80).to(dtype)
    together_TO = product(x_TI, bias_O)
    for first, count in ((0, 1), (69, 1), (5, 2), (30, 3), (11, 6), (3, 17), (20, 33), (0, 64)):
        alone_TO = product(x_TI[first : first + count].clone(), bias_O)
        assert torch.equal(alone_TO, together_TO[first : first + count]), (first, count)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_not_hidden(kind: str) -> None:
    product = product_of(kind, torch.randn(40, 90), torch.bfloat16, is_invariant=False)
    for num_tokens, value in ((1, torch.nan), (3, torch.inf), (60, torch.nan)):
        x_TI = torch.randn(num_tokens, 90).bfloat16()
        x_TI[-1, 77] = value
        out_TO = product(x_TI, None)
        assert not out_TO[-1].isfinite().any()
        assert out_TO[:-1].isfinite().all()


@pytest.mark.parametrize("kind", ["int8", "int4_g128"])
def test_levels_times_activations_of_very_different_sizes_are_as_good_as_floats(kind: str) -> None:
    """Models have single activations a thousand times as large as the rest. The error is compared
    with that of a product of bfloat16 numbers, and is far below what the levels' own is."""
    torch.manual_seed(2)
    weight_OI, x_TI = torch.randn(64, 1024), torch.randn(5, 1024)
    x_TI[:, 7] *= 1000
    matrix = quantize(weight_OI, MADE_HERE[kind].layers)

    def error_of(out_TO: torch.Tensor, x_TI: torch.Tensor) -> float:
        exact_TO = x_TI.double() @ matrix.dequantized().double().t()
        return float((out_TO.double() - exact_TO).abs().max() / exact_TO.abs().max())

    by_floats_TO = x_TI.bfloat16() @ matrix.dequantized().bfloat16().t()
    for dtype, most in (
        (torch.bfloat16, 2 * error_of(by_floats_TO, x_TI.bfloat16())),
        (torch.float32, 2e-5),
    ):
        product = product_of(kind, weight_OI, dtype, is_invariant=True)
        assert error_of(product(x_TI.to(dtype), None), x_TI.to(dtype)) <= most


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "skylake-avx512", "icelake-server"])
def test_products_are_right_on_older_cpus(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Without AMX, without bfloat16 or int8 dot products, without AVX-512."""
    kernels = load(build(shoal_home() / "native", target))
    monkeypatch.setattr("models.native.matmul.native_library", lambda: kernels)
    for dtype in DTYPES:
        assert_right(dtype)
