"""The kernel's products: every row by itself, on every kind of CPU. Values: `test_products.py`."""

from pathlib import Path

import pytest
import torch

from models.layers import MatrixProduct
from models.native import library
from models.native.library import build, load
from models.native.matmul import native_float_product, native_product
from models.native.operations import DTYPES
from models.quantization.matrix import quantize
from models.quantization.products import torch_product
from models.quantization.scheme import MADE_HERE

KINDS = ("floats", "int8", "int8_dynamic", "int4", "int4_g32")


def product_of(kind: str, weight_OI: torch.Tensor, dtype: torch.dtype) -> MatrixProduct:
    if kind == "floats":
        return native_float_product(weight_OI.to(dtype))
    matrix = quantize(weight_OI, MADE_HERE[kind].layers)
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
        for kind in KINDS:
            product = product_of(kind, weight_OI, dtype)
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
    product = product_of(kind, torch.randn(80, 200), dtype)
    x_TI = torch.randn(70, 200).to(dtype)
    bias_O = torch.randn(80).to(dtype)
    together_TO = product(x_TI, bias_O)
    for first, count in ((0, 1), (69, 1), (5, 2), (30, 3), (11, 6), (3, 17), (20, 33), (0, 64)):
        alone_TO = product(x_TI[first : first + count].clone(), bias_O)
        assert torch.equal(alone_TO, together_TO[first : first + count]), (first, count)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x86-64-v2", "haswell", "skylake-avx512", "icelake-server"])
def test_products_are_right_on_older_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Without AMX, without bfloat16 or int8 dot products, without AVX-512."""
    flags = tuple(flag.replace("native", target) for flag in library.FLAGS)
    monkeypatch.setattr(library, "FLAGS", flags)
    kernels = load(build(tmp_path))
    monkeypatch.setattr("models.native.matmul.native_library", lambda: kernels)
    for dtype in DTYPES:
        assert_right(dtype)
