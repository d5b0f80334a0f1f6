"""fp8 products of few rows against the same numbers multiplied in float64."""

import pytest
import torch

pytest.importorskip("triton")

from models.triton.matmul import MAX_ROWS, multiply_fp8

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("num_tokens", [1, 5, 16, 33, MAX_ROWS])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(64, 256), (80, 272), (16, 1040)])
def test_products_of_few_rows(num_tokens: int, num_outputs: int, num_inputs: int) -> None:
    torch.manual_seed(num_tokens)
    levels_TI = (torch.randn(num_tokens, num_inputs) * 40).to(DEVICE, torch.float8_e4m3fn)
    weight_OI = (torch.randn(num_outputs, num_inputs) * 40).to(DEVICE, torch.float8_e4m3fn)
    scales_T1 = torch.rand(num_tokens, 1, device=DEVICE) + 0.1
    weight_scales_1O = torch.rand(1, num_outputs, device=DEVICE) + 0.1
    exact_TO = levels_TI.double() @ weight_OI.double().t() * scales_T1 * weight_scales_1O
    ours_TO = multiply_fp8(
        levels_TI, scales_T1, weight_OI, weight_scales_1O, dtype=torch.float32
    ).double()
    # Tensor cores keep fewer bits of the running sums of fp8 than float32 has.
    error = (ours_TO - exact_TO).norm() / exact_TO.norm()
    assert error < (1e-3 if DEVICE == "cuda" else 1e-6)
    rounded_TO = multiply_fp8(
        levels_TI, scales_T1, weight_OI, weight_scales_1O, dtype=torch.bfloat16
    )
    assert rounded_TO.dtype is torch.bfloat16


def test_a_row_that_is_not_a_number_does_not_reach_the_others() -> None:
    levels_TI = torch.ones(3, 64, device=DEVICE).to(torch.float8_e4m3fn)
    scales_T1 = torch.tensor([[1.0], [torch.nan], [2.0]], device=DEVICE)
    weight_OI = torch.ones(64, 64, device=DEVICE).to(torch.float8_e4m3fn)
    out_TO = multiply_fp8(
        levels_TI, scales_T1, weight_OI, torch.ones(1, 64, device=DEVICE), dtype=torch.float32
    )
    assert out_TO[1].isnan().all()
    assert out_TO[[0, 2]].eq(torch.tensor([[64.0], [128.0]], device=DEVICE)).all()
