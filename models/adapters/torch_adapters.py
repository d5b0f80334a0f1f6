"""Slots of LoRA matrices for torch's products, where there are no kernels of our own for them.

A step multiplies the rows of all adapters together: one product with the A matrices of the slots in
use, side by side, a mask that leaves each row its own, and one product with the B matrices per
module. Long prompts, which have many rows of one adapter, are multiplied with that slot alone.

Shapes: T = rows of the step, N = rows of a piece, S = slots, C = slots of a piece, P = modules
fused in a linear layer, R = the slots' rank, I/O = inputs and outputs. Sizes are per rank of the
tensor-parallel group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.adapters.checkpoint import LayerPairs
from models.adapters.targets import LinearName, TargetLinear

# Sequences with at least so many rows in a step are multiplied with their slot alone.
LONG_ROWS = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows start … stop - 1, and the slots that they are multiplied with."""

    start: int
    stop: int
    slots: slice | torch.Tensor  # a tensor where they lie far apart
    #: True where a row is not of a slot; None: all rows are of the only one.
    masked_NC11: torch.Tensor | None


class TorchStack:
    """The matrices of all slots for one linear layer."""

    def __init__(
        self, linear: TargetLinear, *, num_slots: int, rank: int, dtype: torch.dtype, device: str
    ) -> None:
        self._modules = linear.modules
        num_modules = len(linear.modules)
        self._a_SPRI = torch.zeros(
            num_slots, num_modules, rank, linear.num_inputs, dtype=dtype, device=device
        )
        self._b_SRO = [
            torch.zeros(num_slots, rank, num_outputs, dtype=dtype, device=device)
            for num_outputs in linear.num_outputs
        ]
        self._targeting: set[int] = set()  # slots whose adapter acts here

    @property
    def num_bytes(self) -> int:
        return self._a_SPRI.nbytes + sum(b_SRO.nbytes for b_SRO in self._b_SRO)

    def install(self, slot: int, pairs: LayerPairs) -> None:
        """Replace what the slot holds; what the pairs do not fill is zero."""
        self._a_SPRI[slot].zero_()
        self._targeting.discard(slot)
        for index, module in enumerate(self._modules):
            self._b_SRO[index][slot].zero_()
            pair = pairs.get(module)
            if pair is not None:
                rank = len(pair.a_RI)
                self._a_SPRI[slot, index, :rank].copy_(pair.a_RI)
                self._b_SRO[index][slot, :rank].copy_(pair.b_RO)
                self._targeting.add(slot)

    def is_targeted(self, slots: frozenset[int]) -> bool:
        return not self._targeting.isdisjoint(slots)

    def add(self, out_TO: torch.Tensor, x_TI: torch.Tensor, piece: Piece) -> None:
        """Add the products of a piece's rows in place."""
        a_CPRI = self._a_SPRI[piece.slots]
        num_slots, num_modules, rank, _ = a_CPRI.shape
        rows = slice(piece.start, piece.stop)
        x_NI = x_TI[rows]
        h_NCPR = (x_NI @ a_CPRI.flatten(0, 2).T).view(-1, num_slots, num_modules, rank)
        if piece.masked_NC11 is not None:
            h_NCPR.masked_fill_(piece.masked_NC11, 0)
        first = 0
        for index, b_SRO in enumerate(self._b_SRO):
            b_CRO = b_SRO[piece.slots]
            last = first + b_CRO.shape[2]
            out_TO[rows, first:last].addmm_(h_NCPR[:, :, index].flatten(1), b_CRO.flatten(0, 1))
            first = last


class TorchAdapters:
    """All slots of one tensor-parallel rank's decoder."""

    def __init__(
        self,
        linears: Sequence[TargetLinear],
        *,
        num_layers: int,
        num_slots: int,
        rank: int,
        dtype: torch.dtype,
        device: str,
        padded: Callable[[int], int],
    ) -> None:
        """`padded`: the number of rows that a product of so many is made with."""
        self.padded = padded
        self._device = device
        self._layers: list[dict[LinearName, TorchStack]] = [
            {
                linear.name: TorchStack(
                    linear, num_slots=num_slots, rank=rank, dtype=dtype, device=device
                )
                for linear in linears
            }
            for _ in range(num_layers)
        ]

    @property
    def num_bytes(self) -> int:
        return sum(stack.num_bytes for layer in self._layers for stack in layer.values())

    def install(self, slot: int, layer_index: int, pairs: LayerPairs) -> None:
        for stack in self._layers[layer_index].values():
            stack.install(slot, pairs)

    def step(
        self, slots: Sequence[int | None], query_lens: Sequence[int], num_rows: int
    ) -> "TorchAdapterStep":
        pieces = _pieces(slots, query_lens, num_rows, self.padded, self._device)
        used = frozenset(slot for slot in slots if slot is not None)
        return TorchAdapterStep(self._layers, pieces, used)


class TorchAdapterStep:
    """What the adapters add to the linear layers in one step."""

    def __init__(
        self,
        layers: Sequence[dict[LinearName, TorchStack]],
        pieces: Sequence[Piece],
        slots: frozenset[int],
    ) -> None:
        self._layers = layers
        self._pieces = pieces
        self._slots = slots

    def add(
        self, out_TO: torch.Tensor, x_TI: torch.Tensor, layer_index: int, name: LinearName
    ) -> None:
        """Add to a linear layer's outputs, in place, what the adapters make of its inputs."""
        stack = self._layers[layer_index][name]
        if stack.is_targeted(self._slots):
            for piece in self._pieces:
                stack.add(out_TO, x_TI, piece)


def _pieces(
    slots: Sequence[int | None],
    query_lens: Sequence[int],
    num_rows: int,
    padded: Callable[[int], int],
    device: str,
) -> list[Piece]:
    pieces: list[Piece] = []
    first_long = next((i for i, n in enumerate(query_lens) if n >= LONG_ROWS), len(query_lens))
    short_slots = [-1 if slot is None else slot for slot in slots[:first_long]]
    row = sum(query_lens[:first_long])
    if any(slot >= 0 for slot in short_slots):
        slots_N = np.full(padded(row), -1)
        slots_N[:row] = np.repeat(short_slots, query_lens[:first_long])
        pieces.append(_mixed_piece(slots_N, device))
    for slot, num_own in zip(slots[first_long:], query_lens[first_long:], strict=True):
        if slot is not None:
            pieces.append(_long_piece(row, num_own, slot, padded(num_own), num_rows, device))
        row += num_own
    return pieces


def _mixed_piece(slots_N: np.ndarray[tuple[int], np.dtype[np.int64]], device: str) -> Piece:
    used = np.unique(slots_N[slots_N >= 0])
    low, high = int(used[0]), int(used[-1]) + 1
    chosen: slice | torch.Tensor = slice(low, high)
    candidates = np.arange(low, high)
    if high - low > 2 * len(used):  # to gather a few costs less than to multiply with all between
        candidates, chosen = used, torch.from_numpy(used).to(device)
    masked_NC = torch.from_numpy(slots_N[:, None] != candidates)
    masked_NC11 = masked_NC[:, :, None, None].to(device)
    return Piece(0, len(slots_N), chosen, masked_NC11)


def _long_piece(
    start: int, num_own: int, slot: int, num_padded: int, num_rows: int, device: str
) -> Piece:
    """The rows around one sequence's that make a padded number; the others are masked."""
    first = min(start, num_rows - num_padded)
    masked_NC11 = None
    if num_padded > num_own:
        masked_N = torch.ones(num_padded, dtype=torch.bool)
        masked_N[start - first : start - first + num_own] = False
        masked_NC11 = masked_N[:, None, None, None].to(device)
    return Piece(first, first + num_padded, slice(slot, slot + 1), masked_NC11)
