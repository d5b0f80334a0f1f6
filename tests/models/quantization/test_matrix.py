"""Quantized matrices: the levels are the nearest, and inputs come together by their groups."""

from dataclasses import replace

import pytest
import torch

from models.quantization.matrix import QuantizedMatrix, arrange, fuse, quantize
from models.quantization.scheme import MADE_HERE, MatrixScheme

SCHEMES = {name: made.layers for name, made in MADE_HERE.items()}


def noise(num_outputs: int = 24, num_inputs: int = 160, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_outputs, num_inputs, generator=generator)


def steps(matrix: QuantizedMatrix) -> torch.Tensor:
    """The distance between two levels, for every input."""
    size = matrix.scheme.group_size or matrix.levels_OI.shape[1]
    return matrix.scales_OG.repeat_interleave(size, dim=1)[:, : matrix.levels_OI.shape[1]]


@pytest.mark.parametrize("name", ["int8", "int4", "int4_g32", "int4_g128"])
def test_integers_are_at_most_half_a_step_away(name: str) -> None:
    weight_OI = noise()
    matrix = quantize(weight_OI, SCHEMES[name])
    distance = (matrix.dequantized() - weight_OI).abs()
    assert (distance <= steps(matrix) * 0.5001).all()


def test_fp8_is_at_most_a_sixteenth_away() -> None:
    """Three bits of mantissa; tiny values are a step of the least exponent apart."""
    weight_OI = noise()
    matrix = quantize(weight_OI, SCHEMES["fp8"])
    distance = (matrix.dequantized() - weight_OI).abs()
    assert (distance <= weight_OI.abs() / 16 + matrix.scales_OG * 2**-10).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_zeros_stay_zeros(name: str) -> None:
    weight_OI = noise()
    weight_OI[3] = 0
    weight_OI[:, 64:96] = 0
    matrix = quantize(weight_OI, SCHEMES[name])
    assert torch.equal(matrix.dequantized() == 0, weight_OI == 0) or name.startswith("int")
    assert (matrix.dequantized()[weight_OI == 0] == 0).all()


def test_a_group_of_one_sign_keeps_its_zero() -> None:
    weight_OI = noise().abs() + 1
    matrix = quantize(weight_OI, SCHEMES["int4_g32"])
    assert matrix.zeros_OG is not None
    assert (matrix.zeros_OG == 0).all()
    assert (quantize(-weight_OI, SCHEMES["int4_g32"]).dequantized() == -matrix.dequantized()).all()


def test_inputs_of_a_group_are_brought_together() -> None:
    scheme = MatrixScheme(weights="int4", group_size=32, has_zeros=True)
    plain = quantize(noise(8, 128), scheme)
    shuffled_I = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    stored = replace(plain, levels_OI=plain.levels_OI[:, shuffled_I])
    matrix = arrange(stored, shuffled_I // 32)
    assert matrix.order_I is not None
    assert torch.equal(plain.dequantized()[:, shuffled_I][:, matrix.order_I], matrix.dequantized())
    assert arrange(plain, torch.arange(128) // 32).order_I is None


def test_groups_that_are_not_whole_become_smaller_ones() -> None:
    """A rank has inputs 80 … 207 of groups of 64."""
    scheme = MatrixScheme(weights="int4", group_size=64, has_zeros=True)
    whole = quantize(noise(8, 256), scheme)
    part = replace(whole, levels_OI=whole.levels_OI[:, 80:208])
    matrix = arrange(part, torch.arange(80, 208) // 64)
    assert matrix.scheme.group_size == 32
    assert matrix.order_I is not None
    x_TI = torch.randn(3, 128, generator=torch.Generator().manual_seed(2))
    padded_TI = torch.nn.functional.pad(x_TI, (0, 1))[:, matrix.order_I]
    expected_TO = x_TI @ whole.dequantized()[:, 80:208].t()
    torch.testing.assert_close(padded_TI @ matrix.dequantized().t(), expected_TO)


def test_matrices_in_different_orders_are_not_fused() -> None:
    scheme = MatrixScheme(weights="int4", group_size=32, has_zeros=True)
    one, other = quantize(noise(8, 128), scheme), quantize(noise(8, 128, seed=1), scheme)
    fused = fuse([one, other])
    assert len(fused) == 1
    assert torch.equal(fused[0].dequantized(), torch.cat([one.dequantized(), other.dequantized()]))
    ordered = replace(one, order_I=torch.arange(127, -1, -1))
    assert len(fuse([ordered, other])) == 2
    assert len(fuse([ordered, ordered])) == 1
