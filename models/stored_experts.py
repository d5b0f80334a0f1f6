"""Experts that a checkpoint stores as one tensor a layer, seen as one matrix an expert and name.

Transformers 5 writes `….mlp.experts.gate_up_proj` [E, 2F, M] and `….mlp.experts.down_proj`
[E, M, F] where it is asked for its own format; by default, as everybody else, it writes each expert
by itself. Nothing is read here: a slice of the view is a slice of the tensor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from models.checkpoint import ExpertsConfig
from models.quantization.stored_matrix import StoredTensor

_FUSED = ".mlp.experts."
_ROUTER = ".mlp.gate.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPlace:
    """Which rows of which expert: halves of its outputs, or all of them."""

    name: str  # of the matrix, where each expert is stored by itself
    expert: int
    num_experts: int
    half: int
    num_halves: int


def expert_places(name: str, experts: ExpertsConfig) -> Iterator[ExpertPlace]:
    """What a tensor of this name holds; nothing where it is no such tensor."""
    layer, found, projection = name.partition(_FUSED)
    if not found or projection not in ("gate_up_proj", "down_proj"):
        return
    gate, up, down = experts.projections
    parts = (gate, up) if projection == "gate_up_proj" else (down,)
    for expert in range(experts.num_experts):
        for half, part in enumerate(parts):
            yield ExpertPlace(
                name=f"{layer}.{experts.module}.experts.{expert}.{part}.weight",
                expert=expert,
                num_experts=experts.num_experts,
                half=half,
                num_halves=len(parts),
            )


def router_name(name: str, experts: ExpertsConfig) -> str:
    """The name of a router's weights where experts are stored by themselves; others as they are."""
    layer, found, rest = name.partition(_ROUTER)
    return f"{layer}.{experts.module}.gate.weight" if found and not rest else name


class ExpertMatrix:
    """A matrix of one expert in a tensor of all. A `StoredTensor`."""

    def __init__(self, tensor: StoredTensor, place: ExpertPlace) -> None:
        self._tensor = tensor
        self._place = place

    def get_shape(self) -> list[int]:
        """As it would be stored by itself; the tensor's own, no matrix, where it is not of so many
        experts."""
        shape, place = list(self._tensor.get_shape()), self._place
        if len(shape) != 3 or shape[0] != place.num_experts or shape[1] % place.num_halves:
            return shape
        return [shape[1] // self._place.num_halves, shape[2]]

    def get_dtype(self) -> str:
        return self._tensor.get_dtype()

    def __getitem__(self, index: tuple[slice, ...]) -> torch.Tensor:
        num_rows, _ = self.get_shape()
        rows = range(num_rows)[index[0]] if index else range(num_rows)
        first = self._place.half * num_rows
        span = slice(first + rows.start, first + rows.stop)
        expert = slice(self._place.expert, self._place.expert + 1)
        return self._tensor[(expert, span, *index[1:])][0]
