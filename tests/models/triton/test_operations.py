"""The Triton operations against torch's own, computed in float64 or rounded where torch rounds."""

import pytest
import torch
import torch.nn.functional as F

from models.checkpoint import RopeConfig
from models.layers import Rope
from models.operations import HeadNorms, TorchOperations

pytest.importorskip("triton")

from models.quantization.products import quantize_tokens_fp8 as torch_fp8
from models.triton.operations import TritonOperations
from models.triton.operations import quantize_tokens_fp8 as triton_fp8

EPS = 1e-5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TORCH, OURS = TorchOperations(), TritonOperations()
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Roundings of the element type, where the order of operations differs; the interpreter, other
    than a GPU, cuts numbers off where it makes them bfloat16."""
    return {"atol": 1e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 2e-2, "rtol": 2e-2}


@dtypes
@pytest.mark.parametrize("width", [64, 576, 5120])
def test_add_rms_norm_adds_in_place_and_normalises(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    x_TM, added_TM = torch.randn(2, 5, width, device=DEVICE).to(dtype)
    weight_M = torch.randn(width, device=DEVICE).to(dtype)
    for added in (None, added_TM):
        ours, theirs = x_TM.clone(), x_TM.clone()
        normed = OURS.add_rms_norm(ours, added, weight_M, EPS)
        expected = TORCH.add_rms_norm(theirs, added, weight_M, EPS)
        torch.testing.assert_close(ours, theirs, **tolerance(dtype))
        torch.testing.assert_close(normed, expected, **tolerance(dtype))
        exact = F.rms_norm(theirs.double(), (width,), weight_M.double(), EPS)
        torch.testing.assert_close(normed.double(), exact, **tolerance(dtype))


@dtypes
@pytest.mark.parametrize("width", [96, 1536])
def test_silu_mul_is_silu_of_the_gates_times_the_rest(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    gate_up_TF2 = (torch.randn(4, 2 * width, device=DEVICE) * 8).to(dtype)
    gate_up_TF2[0, :4] = torch.tensor([0.0, 100.0, -100.0, -87.5])
    gate_TF, up_TF = gate_up_TF2.double().chunk(2, dim=-1)
    ours = OURS.silu_mul(gate_up_TF2).double()
    torch.testing.assert_close(ours, F.silu(gate_TF) * up_TF, **tolerance(dtype))


@dtypes
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("head_dim", [32, 80, 128, 256])
def test_heads_are_rotated_where_they_lie_and_values_stay(
    head_dim: int, has_norms: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(head_dim)
    num_heads, num_kv_heads = 3, 2
    config = RopeConfig(theta=10000.0, scaling=None)
    rope = Rope(config, head_dim=head_dim, num_positions=512, dtype=dtype, device=DEVICE)
    positions_T = torch.randperm(512, device=DEVICE)[:3].int()
    heads_TND = torch.randn(3, num_heads + 2 * num_kv_heads, head_dim, device=DEVICE).to(dtype)
    norms = None
    if has_norms:
        query_D, key_D = torch.randn(2, head_dim, device=DEVICE).to(dtype)
        norms = HeadNorms(query_D=query_D, key_D=key_D, eps=EPS)
    qk_TND = heads_TND[:, : num_heads + num_kv_heads]
    expected = TORCH.rotation(rope, positions_T, num_heads=num_heads)(qk_TND.clone(), norms)
    values_TKD = heads_TND[:, num_heads + num_kv_heads :].clone()
    rotated = OURS.rotation(rope, positions_T, num_heads=num_heads)(qk_TND, norms)
    torch.testing.assert_close(rotated.float(), expected.float(), **tolerance(dtype))
    assert torch.equal(heads_TND[:, num_heads + num_kv_heads :], values_TKD)


def test_numbers_that_are_none_stay_in_their_rows() -> None:
    x_TM = torch.ones(3, 32, device=DEVICE)
    x_TM[1, 5] = float("nan")
    normed = OURS.add_rms_norm(x_TM, None, torch.ones(32, device=DEVICE), EPS)
    assert normed.isnan().all(dim=1).tolist() == [False, True, False]
    gates = torch.ones(3, 64, device=DEVICE)
    gates[1, 40] = float("nan")
    assert OURS.silu_mul(gates).isnan().any(dim=1).tolist() == [False, True, False]


@dtypes
@pytest.mark.parametrize("width", [48, 4096])
def test_tokens_become_fp8_as_torch_makes_them(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    # Levels that fp8 has: the interpreter rounds others wrongly where that reaches a power of two.
    levels_TI = (torch.randn(5, width, device=DEVICE) * 50).to(torch.float8_e4m3fn).float()
    levels_TI[:, 0] = 448
    levels_TI[1] = 0
    x_TI = (levels_TI * 2.0**-5).to(dtype)
    for quantize in (triton_fp8, torch_fp8):
        found_TI, scales_T1 = quantize(x_TI)
        assert torch.equal(found_TI.float(), levels_TI)
        assert scales_T1[[0, 2, 3, 4], 0].tolist() == [2.0**-5] * 4
    x_TI[2, 7] = torch.nan
    for quantize in (triton_fp8, torch_fp8):
        _, scales_T1 = quantize(x_TI)
        assert scales_T1[:, 0].isnan().tolist() == [False, False, True, False, False]


@pytest.mark.skipif(DEVICE == "cpu", reason="the interpreter rounds to fp8 in its own way")
def test_random_tokens_become_fp8_as_torch_makes_them() -> None:
    x_TI = torch.randn(64, 5120, device=DEVICE).to(torch.bfloat16) * 3
    ours, expected = triton_fp8(x_TI), torch_fp8(x_TI)
    for found, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(found.float(), wanted.float(), rtol=0.07, atol=1e-6)
