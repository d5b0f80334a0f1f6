"""The CPU kernels against torch's own operations."""

import pytest
import torch
import torch.nn.functional as F

from models.checkpoint import RopeConfig
from models.layers import Rope
from models.native.library import native_library
from models.native.operations import DTYPES, NativeOperations, row_maxima
from models.operations import HeadNorms, TorchOperations

EPS = 1e-5
TORCH = TorchOperations()
dtypes = pytest.mark.parametrize("dtype", DTYPES)
rows = pytest.mark.parametrize("num_tokens", [1, 2, 7, 300])


@pytest.fixture(scope="module")
def native() -> NativeOperations:
    library = native_library()
    assert library is not None, "the tests need a C++ compiler"
    return NativeOperations(library)


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """One rounding of the element type, where the order of operations differs."""
    return {"atol": 1e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 1e-2, "rtol": 1e-2}


@dtypes
@rows
@pytest.mark.parametrize("width", [16, 64, 576])
def test_add_rms_norm_adds_in_place_and_normalises(
    native: NativeOperations, num_tokens: int, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(width)
    x_TM, added_TM = torch.randn(2, num_tokens, width).to(dtype)
    weight_M = torch.randn(width).to(dtype)
    for added in (None, added_TM):
        ours, theirs = x_TM.clone(), x_TM.clone()
        normed = native.add_rms_norm(ours, added, weight_M, EPS)
        expected = TORCH.add_rms_norm(theirs, added, weight_M, EPS)
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(normed, expected, **tolerance(dtype))


@dtypes
@rows
def test_silu_mul_is_silu_of_the_gates_times_the_rest(
    native: NativeOperations, num_tokens: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(num_tokens)
    gate_up_TF2 = (torch.randn(num_tokens, 192) * 8).to(dtype)
    gate_up_TF2[0, :4] = torch.tensor([0.0, 100.0, -100.0, -87.5])
    gate_TF, up_TF = gate_up_TF2.float().chunk(2, dim=-1)
    torch.testing.assert_close(
        native.silu_mul(gate_up_TF2).float(), F.silu(gate_TF) * up_TF, atol=1e-4, rtol=1e-2
    )
    if dtype is torch.float32:
        torch.testing.assert_close(
            native.silu_mul(gate_up_TF2), TORCH.silu_mul(gate_up_TF2), atol=1e-6, rtol=1e-5
        )


@dtypes
@rows
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_heads_are_rotated_where_they_lie_and_values_stay(
    native: NativeOperations,
    num_tokens: int,
    dtype: torch.dtype,
    has_norms: bool,
    head_dim: int,
) -> None:
    torch.manual_seed(head_dim)
    num_heads, num_kv_heads = 4, 2
    config = RopeConfig(theta=10000.0, scaling=None)
    rope = Rope(config, head_dim=head_dim, num_positions=512, dtype=dtype, device="cpu")
    positions_T = torch.randperm(512)[:num_tokens]
    heads_TND = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim).to(dtype)
    norms = None
    if has_norms:
        norms = HeadNorms(
            query_D=torch.randn(head_dim).to(dtype), key_D=torch.randn(head_dim).to(dtype), eps=EPS
        )
    qk_TND = heads_TND[:, : num_heads + num_kv_heads]
    expected = TORCH.rotation(rope, positions_T, num_heads=num_heads)(qk_TND.clone(), norms)
    values_TKD = heads_TND[:, num_heads + num_kv_heads :].clone()
    rotated = native.rotation(rope, positions_T, num_heads=num_heads)(qk_TND, norms)
    torch.testing.assert_close(rotated, expected, **tolerance(dtype))
    assert torch.equal(heads_TND[:, num_heads + num_kv_heads :], values_TKD)


def test_numbers_that_are_none_stay_in_their_rows(native: NativeOperations) -> None:
    for dtype in DTYPES:
        x_TM = torch.ones(3, 32, dtype=dtype)
        x_TM[1, 5] = float("nan")
        normed = native.add_rms_norm(x_TM, None, torch.ones(32, dtype=dtype), EPS)
        assert normed.isnan().all(dim=1).tolist() == [False, True, False]
        gates = torch.ones(3, 64, dtype=dtype)
        gates[1, 40] = float("nan")
        assert native.silu_mul(gates).isnan().any(dim=1).tolist() == [False, True, False]


@dtypes
@pytest.mark.parametrize("width", [1, 15, 16, 1030, 5000])
def test_the_largest_of_each_row_is_the_first_of_its_equals(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(width)
    x_RV = torch.randn(40, width).to(dtype)  # bfloat16 has many equals
    x_RV[1] = float("-inf")
    x_RV[2, -1] = float("inf")
    x_RV[3, width // 2 :] = float("nan")
    x_RV[4] = 0.0
    x_RV[5, width // 3] = float("nan")
    padded_RV = torch.nn.functional.pad(x_RV, (0, 7), value=1e9)[:, :width]
    for rows_RV in (x_RV, padded_RV, x_RV[:1], x_RV[6:7]):
        top_R, indices_R = row_maxima(rows_RV)
        expected_R, expected_indices_R = rows_RV.max(dim=1)
        assert torch.equal(indices_R, expected_indices_R)
        torch.testing.assert_close(top_R, expected_R, rtol=0, atol=0, equal_nan=True)


def test_other_tensors_have_a_largest_too() -> None:
    x_RV = torch.randn(3, 20)
    for other_RV in (x_RV.half(), x_RV.T.contiguous().T, x_RV.double()):
        assert torch.equal(row_maxima(other_RV)[1], x_RV.max(dim=1).indices)
