"""Places for the quantized matrices of a linear layer, which the loader fills one by one.

A layer's product is made when the last of its matrices is there, so that no more than one layer is
there twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from models.layers import Linear
from models.quantization.matrix import QuantizedMatrix
from models.quantization.products import make_product
from models.quantization.scheme import MatrixScheme


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixSlot:
    """The place of one matrix, or of this rank's part of it."""

    scheme: MatrixScheme
    num_outputs: int
    num_inputs: int
    fill: Callable[[QuantizedMatrix], None]

    @property
    def num_bytes(self) -> int:
        return self.scheme.num_bytes(self.num_outputs, self.num_inputs)


def make_slots(
    linear: Linear,
    sizes: Sequence[int],
    *,
    num_inputs: int,
    scheme: MatrixScheme,
    dtype: torch.dtype,
    device: str,
) -> list[MatrixSlot]:
    """A slot for each of the matrices that stand one below the other in `linear`.

    Args:
        sizes: their outputs.
        dtype: of activations.
    """
    arrived: dict[int, QuantizedMatrix] = {}

    def fill(index: int, matrix: QuantizedMatrix) -> None:
        assert len(matrix.levels_OI) == sizes[index], "the loader gives what the slot asks for"
        arrived[index] = matrix
        if len(arrived) == len(sizes):
            in_order = [arrived[i] for i in range(len(sizes))]
            arrived.clear()
            linear.product = make_product(in_order, dtype=dtype, device=device)

    return [
        MatrixSlot(
            scheme=scheme,
            num_outputs=size,
            num_inputs=num_inputs,
            fill=lambda matrix, index=index: fill(index, matrix),  # type: ignore[misc]
        )
        for index, size in enumerate(sizes)
    ]
