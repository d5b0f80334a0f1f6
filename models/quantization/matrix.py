"""A quantized matrix before it is laid out for a product: made of floats, or read from files.

Shapes: O = outputs, I = inputs, G = groups of inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from models.quantization.scheme import GROUP_MULTIPLE, MatrixScheme

FP8 = torch.float8_e4m3fn
MAX_FP8 = 448.0
MAX_INT8 = 127
MAX_INT4 = 15
# Of scales: a row of zeros has levels of zero, and no scale that would make them NaN.
TINY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedMatrix:
    """value[o, i] = (levels[o, i] - zeros[o, g]) · scales[o, g], g = i // group size.

    The i-th input is input `order_I[i]` of the layer, where the matrix has an order; an entry equal
    to the number of the layer's inputs stands for a zero.
    """

    scheme: MatrixScheme
    levels_OI: torch.Tensor  # int8: int8; int4: uint8, 0 … 15; fp8: float8_e4m3fn
    scales_OG: torch.Tensor  # float32
    zeros_OG: torch.Tensor | None = (
        None  # uint8, for int4; int8's levels are less 128, its zeros not
    )
    order_I: torch.Tensor | None = None  # int64

    def dequantized(self) -> torch.Tensor:
        """The values [O, I] in float32, in the matrix's own order of inputs."""
        return dequantize(self.levels_OI, self.scales_OG, self.zeros_OG, self.scheme)


def dequantize(
    levels_OI: torch.Tensor,
    scales_OG: torch.Tensor,
    zeros_OG: torch.Tensor | None,
    scheme: MatrixScheme,
) -> torch.Tensor:
    """See `QuantizedMatrix`; float32 [O, I]. The last group may be shorter than the others."""
    values_OI = levels_OI.float()
    if zeros_OG is not None:
        shift = 128 if scheme.weights == "int8" else 0
        values_OI -= _each_input(zeros_OG.float() - shift, scheme, values_OI.shape[1])
    return values_OI * _each_input(scales_OG, scheme, values_OI.shape[1])


def _each_input(per_group_OG: torch.Tensor, scheme: MatrixScheme, num_inputs: int) -> torch.Tensor:
    if scheme.group_size is None:
        return per_group_OG
    return per_group_OG.repeat_interleave(scheme.group_size, dim=1)[:, :num_inputs]


def quantize(weight_OI: torch.Tensor, scheme: MatrixScheme) -> QuantizedMatrix:
    """Nearest levels, with the scale that just holds the largest value of each row or group."""
    weight_OI = weight_OI.float()
    match scheme.weights:
        case "int8":
            assert scheme.group_size is None, "int8 is made per channel"
            scales_OG = weight_OI.abs().amax(1, keepdim=True).clamp_(min=TINY) / MAX_INT8
            levels_OI = (weight_OI / scales_OG).round_().to(torch.int8)
            return QuantizedMatrix(scheme=scheme, levels_OI=levels_OI, scales_OG=scales_OG)
        case "fp8":
            scales_OG = weight_OI.abs().amax(1, keepdim=True).clamp_(min=TINY) / MAX_FP8
            levels_OI = (weight_OI / scales_OG).clamp_(-MAX_FP8, MAX_FP8).to(FP8)
            return QuantizedMatrix(scheme=scheme, levels_OI=levels_OI, scales_OG=scales_OG)
        case "int4":
            return _quantize_groups(weight_OI, scheme)


def _quantize_groups(weight_OI: torch.Tensor, scheme: MatrixScheme) -> QuantizedMatrix:
    """16 levels from the least to the largest value of each group, zero among them."""
    assert scheme.group_size is not None, "int4 is made in groups"
    num_outputs, num_inputs = weight_OI.shape
    num_groups = -(-num_inputs // scheme.group_size)
    padding = num_groups * scheme.group_size - num_inputs
    weight_OGS = F.pad(weight_OI, (0, padding)).view(num_outputs, num_groups, -1)
    least_OG1 = weight_OGS.amin(2, keepdim=True).clamp_(max=0)
    most_OG1 = weight_OGS.amax(2, keepdim=True).clamp_(min=0)
    scales_OG1 = ((most_OG1 - least_OG1) / MAX_INT4).clamp_(min=TINY)
    zeros_OG1 = (-least_OG1 / scales_OG1).round_().clamp_(0, MAX_INT4)
    levels_OGS = (weight_OGS / scales_OG1).round_().add_(zeros_OG1).clamp_(0, MAX_INT4)
    return QuantizedMatrix(
        scheme=scheme,
        levels_OI=levels_OGS.to(torch.uint8).flatten(1)[:, :num_inputs].contiguous(),
        scales_OG=scales_OG1.squeeze(2),
        zeros_OG=zeros_OG1.squeeze(2).to(torch.uint8),
    )


def arrange(matrix: QuantizedMatrix, group_of_input_I: torch.Tensor) -> QuantizedMatrix:
    """Bring the inputs of each group together; `group_of_input_I` says which group each is of.

    Groups that are not all there (of a tensor-parallel rank that has a part of the inputs) become
    several smaller ones, filled up with inputs that are zero.
    """
    size = matrix.scheme.group_size
    assert size is not None, "there are groups"
    order_I = group_of_input_I.argsort(stable=True)
    counts = group_of_input_I.bincount()
    groups = counts.nonzero().squeeze(1)
    if bool((counts[groups] == size).all()):
        return _in_order(matrix, order_I, groups)
    unit = GROUP_MULTIPLE
    num_inputs = len(order_I)
    pieces, piece_groups = [], []
    runs = order_I.tensor_split(counts[groups].cumsum(0)[:-1])
    for group, run in zip(groups.tolist(), runs, strict=True):
        num_units = -(-len(run) // unit)
        pieces.append(F.pad(run, (0, num_units * unit - len(run)), value=num_inputs))
        piece_groups += [group] * num_units
    scheme = replace(matrix.scheme, group_size=unit)
    smaller = replace(matrix, scheme=scheme)
    return _in_order(smaller, torch.cat(pieces), torch.tensor(piece_groups))


def _in_order(
    matrix: QuantizedMatrix, order_I: torch.Tensor, groups: torch.Tensor
) -> QuantizedMatrix:
    num_inputs = matrix.levels_OI.shape[1]
    is_identity = torch.equal(order_I, torch.arange(num_inputs))
    levels_OI = matrix.levels_OI
    if not is_identity:
        # What a zero input is multiplied with does not matter.
        levels_OI = levels_OI[:, order_I.clamp(max=num_inputs - 1)]
    return replace(
        matrix,
        levels_OI=levels_OI,
        scales_OG=matrix.scales_OG[:, groups],
        zeros_OG=None if matrix.zeros_OG is None else matrix.zeros_OG[:, groups],
        order_I=None if is_identity else order_I,
    )


def fuse(matrices: Sequence[QuantizedMatrix]) -> list[QuantizedMatrix]:
    """Matrices of the same inputs as one, their outputs one after the other; several where they
    want their inputs in different orders."""
    first = matrices[0]
    if len(matrices) == 1 or not all(_fits(first, matrix) for matrix in matrices[1:]):
        return list(matrices)
    zeros = [matrix.zeros_OG for matrix in matrices if matrix.zeros_OG is not None]
    fused = replace(
        first,
        levels_OI=torch.cat([matrix.levels_OI for matrix in matrices]),
        scales_OG=torch.cat([matrix.scales_OG for matrix in matrices]),
        zeros_OG=torch.cat(zeros) if zeros else None,
    )
    return [fused]


def _fits(one: QuantizedMatrix, other: QuantizedMatrix) -> bool:
    if one.scheme != other.scheme:
        return False
    if one.order_I is None or other.order_I is None:
        return one.order_I is other.order_I
    return torch.equal(one.order_I, other.order_I)
