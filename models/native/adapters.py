"""Slots of LoRA matrices as the CPU kernels have them, and what they add to linear layers.

Shapes: T = rows of the step, S = slots, P = modules fused in a linear layer, R = the slots' rank,
I/O = inputs and outputs. Sizes are per rank of the tensor-parallel group.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from models.adapters.checkpoint import LayerPairs
from models.adapters.targets import LinearName, TargetLinear
from models.native.library import native_library
from models.native.matmul import BLOCK, are_float_products_fast, in_blocks
from models.native.operations import DTYPES, WIDTH_MULTIPLE


class _Matrices(ctypes.Structure):
    """`AdapterMatrices` of `models/native/team.h`."""

    _fields_ = (
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("num_outputs", ctypes.c_void_p),
        ("ranks", ctypes.c_void_p),
        ("num_inputs", ctypes.c_int64),
        ("num_modules", ctypes.c_int64),
        ("rank", ctypes.c_int64),
    )


def native_adapters(
    linears: Sequence[TargetLinear],
    *,
    num_layers: int,
    num_slots: int,
    rank: int,
    dtype: torch.dtype,
    device: str,
    is_invariant: bool,
) -> "NativeAdapters | None":
    """Slots that the kernels add from, where they serve such linear layers here.

    Args:
        is_invariant: a row's results must have the same bits in any company; else torch's products
            serve where they are faster: on CPUs without AVX-512.
    """
    widths = [width for linear in linears for width in (linear.num_inputs, *linear.num_outputs)]
    fits = (
        device == "cpu"
        and dtype in DTYPES
        and all(width % WIDTH_MULTIPLE == 0 for width in widths)
        and (is_invariant or are_float_products_fast())
    )
    library = native_library() if fits else None
    if library is None:
        return None
    layers = [
        [NativeStack(linear, num_slots=num_slots, rank=rank, dtype=dtype) for linear in linears]
        for _ in range(num_layers)
    ]
    assert [linear.name for linear in linears] == list(LinearName), "as decoder.cpp counts them"
    return NativeAdapters(library, layers, dtype)


class NativeStack:
    """The matrices of all slots for one linear layer."""

    def __init__(
        self, linear: TargetLinear, *, num_slots: int, rank: int, dtype: torch.dtype
    ) -> None:
        self._modules = linear.modules
        num_modules, num_inputs = len(linear.modules), linear.num_inputs
        num_blocks = -(-rank // BLOCK)
        # An element (output o, input i) of a block stands at [i / 2, o, i % 2].
        self._a = torch.zeros(
            (num_slots, num_modules, num_blocks, num_inputs // 2, BLOCK, 2), dtype=dtype
        )
        self._b = [
            torch.zeros(
                (num_slots, num_outputs // BLOCK, num_blocks * BLOCK // 2, BLOCK, 2), dtype=dtype
            )
            for num_outputs in linear.num_outputs
        ]
        self._ranks_S = torch.zeros(num_slots, dtype=torch.int64)
        self._b_addresses = (ctypes.c_void_p * num_modules)(*(b.data_ptr() for b in self._b))
        self._num_outputs = (ctypes.c_int64 * num_modules)(*linear.num_outputs)
        self.matrices = _Matrices(
            a=self._a.data_ptr(),
            b=ctypes.addressof(self._b_addresses),
            num_outputs=ctypes.addressof(self._num_outputs),
            ranks=self._ranks_S.data_ptr(),
            num_inputs=num_inputs,
            num_modules=num_modules,
            rank=num_blocks * BLOCK,
        )

    @property
    def num_bytes(self) -> int:
        return self._a.nbytes + sum(b.nbytes for b in self._b)

    def install(self, slot: int, pairs: LayerPairs) -> None:
        """Replace what the slot holds; what the pairs do not fill is zero."""
        self._a[slot].zero_()
        used_rank = 0
        for index, module in enumerate(self._modules):
            self._b[index][slot].zero_()
            pair = pairs.get(module)
            if pair is None:
                continue
            padding = (0, 0, 0, -len(pair.a_RI) % BLOCK)
            a_RI, b_OR = F.pad(pair.a_RI, padding), F.pad(pair.b_RO, padding).T
            rank = len(a_RI)
            self._a[slot, index, : rank // BLOCK] = in_blocks(a_RI, 2)
            self._b[index][slot, :, : rank // 2] = in_blocks(b_OR, 2)
            used_rank = max(used_rank, rank)
        self._ranks_S[slot] = used_rank


class NativeAdapters:
    """See `native_adapters`. The same interface as `TorchAdapters`."""

    def __init__(
        self,
        library: ctypes.CDLL,
        layers: Sequence[Sequence[NativeStack]],
        dtype: torch.dtype,
    ) -> None:
        self._library = library
        self._places = {name: place for place, name in enumerate(LinearName)}
        self._layers = layers
        self._is_bfloat16 = dtype is torch.bfloat16
        all_matrices = [stack.matrices for layer in layers for stack in layer]
        self._matrices = (_Matrices * len(all_matrices))(*all_matrices)

    @property
    def num_bytes(self) -> int:
        return sum(stack.num_bytes for layer in self._layers for stack in layer)

    def padded(self, num_rows: int) -> int:
        return num_rows

    def install(self, slot: int, layer_index: int, pairs: LayerPairs) -> None:
        for stack in self._layers[layer_index]:
            stack.install(slot, pairs)

    def step(
        self, slots: Sequence[int | None], query_lens: Sequence[int], num_rows: int
    ) -> "NativeAdapterStep":
        slots_T = np.full(num_rows, -1, dtype=np.int32)
        of_sequences = [-1 if slot is None else slot for slot in slots]
        slots_T[: sum(query_lens)] = np.repeat(of_sequences, query_lens)
        return NativeAdapterStep(self, slots_T)

    @property
    def address(self) -> int:
        """Of the matrices [layers, linear layers]."""
        return ctypes.addressof(self._matrices)

    def add(
        self,
        out_TO: torch.Tensor,
        x_TI: torch.Tensor,
        slots_T: NDArray[np.int32],
        layer_index: int,
        name: LinearName,
    ) -> None:
        """Add in place to each row what its slot makes of it."""
        assert out_TO.is_contiguous(), "rows follow each other"
        assert x_TI.is_contiguous(), "as above"
        place = layer_index * len(self._places) + self._places[name]
        self._library.shoal_add_adapters(
            self._is_bfloat16,
            self.address + place * ctypes.sizeof(_Matrices),
            slots_T.ctypes.data,
            x_TI.data_ptr(),
            out_TO.data_ptr(),
            len(slots_T),
            torch.get_num_threads(),
        )


class NativeAdapterStep:
    """What the adapters add to the linear layers in one step: one by one, or in the kernels' call
    of all layers."""

    def __init__(self, adapters: NativeAdapters, slots_T: NDArray[np.int32]) -> None:
        self._adapters = adapters
        self.slots_T = slots_T  # of each row; -1: none

    @property
    def matrices_address(self) -> int:
        return self._adapters.address

    def add(
        self, out_TO: torch.Tensor, x_TI: torch.Tensor, layer_index: int, name: LinearName
    ) -> None:
        self._adapters.add(out_TO, x_TI, self.slots_T, layer_index, name)
