"""Linear layers as a decoder has them: matrices of the checkpoint fused, in floats or quantized."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from models.checkpoint import DecoderConfig
from models.layers import Linear
from models.quantization.scheme import MatrixScheme
from models.quantization.slot import MatrixSlot, make_slots


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLinear:
    """A linear layer and the matrices of the checkpoint that it is made of, one below the other."""

    linear: Linear
    names: tuple[str, ...]  # of the modules
    sizes: tuple[int, ...]  # their outputs
    slots: tuple[MatrixSlot, ...] = ()  # where they are quantized
    has_any_rows: bool = False  # not the step's, which are of few numbers

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Floats by their names, each with the slice that it fills."""
        linear = self.linear
        if not self.slots:
            slices = linear.weight_OI.split_with_sizes(self.sizes)
            yield from zip((f"{name}.weight" for name in self.names), slices, strict=True)
        if linear.bias_O is not None:
            slices = linear.bias_O.split_with_sizes(self.sizes)
            yield from zip((f"{name}.bias" for name in self.names), slices, strict=True)


class LinearMaker:
    """Makes the linear layers of a decoder in the kinds that its configuration asks for."""

    def __init__(self, config: DecoderConfig, *, dtype: torch.dtype, device: str) -> None:
        self._quantization = config.quantization
        self._dtype = dtype
        self._device = device

    def make(
        self, names: tuple[str, ...], sizes: tuple[int, ...], *, num_inputs: int, has_bias: bool
    ) -> FusedLinear:
        """
        Raises:
            ValueError: some of the fused matrices are quantized and others are not.
        """
        scheme = self._scheme(names)
        linear = Linear(
            num_inputs if scheme is None else 0,
            sum(sizes),
            bias=has_bias,
            dtype=self._dtype,
            device=self._device,
        )
        slots: list[MatrixSlot] = []
        if scheme is not None:
            slots = make_slots(
                linear,
                sizes,
                num_inputs=num_inputs,
                scheme=scheme,
                dtype=self._dtype,
                device=self._device,
            )
        return FusedLinear(linear=linear, names=names, sizes=sizes, slots=tuple(slots))

    def _scheme(self, names: tuple[str, ...]) -> MatrixScheme | None:
        if self._quantization is None:
            return None
        schemes = {self._quantization.of(name) for name in names}
        if len(schemes) > 1:
            raise ValueError(
                f"some of {', '.join(names)} are quantized and others are not; "
                "supported: all or none of them"
            )
        return schemes.pop()
