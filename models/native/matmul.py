"""Products of a step's activations by the CPU kernels: matrices of floats, int8 and 4-bit levels.

A token's results have the same bits whatever other tokens are in the step, but where levels have
groups and nobody wants that. Layouts are those of `models/native/{matmul,levels}.cpp`.

Shapes: T = tokens in the step, O = outputs, I = inputs, G = groups of inputs.
"""

import ctypes
from enum import IntEnum

import torch
import torch.nn.functional as F

from models.huge_pages import HugePages
from models.native.library import native_library
from models.native.operations import DTYPES
from models.quantization.matrix import QuantizedMatrix

BLOCK = 16  # outputs
OUTPUT_MULTIPLE = 32
INPUT_MULTIPLE = 64
#: Of levels: sums of so many products of bytes are integers of 32 bits.
MAX_LEVEL_INPUTS = 2**16
_MEMORY = HugePages()  # of all matrices: steps read them from end to end


class Kind(IntEnum):
    """Of a matrix, as the kernel numbers them."""

    FLOATS = 0
    INT8 = 1
    INT4 = 2
    INT8_DYNAMIC = 3


def native_product(
    matrix: QuantizedMatrix, *, dtype: torch.dtype, device: str
) -> "NativeProduct | None":
    """The kernel's product of a quantized matrix, where it serves here; inputs in its own order."""
    fits = device == "cpu" and dtype in DTYPES and matrix.scheme.weights in ("int8", "int4")
    library = native_library() if fits else None
    if library is None:
        return None
    num_outputs, num_inputs = matrix.levels_OI.shape
    if num_inputs > MAX_LEVEL_INPUTS:
        return None
    levels_OI, kind = matrix.levels_OI, Kind.INT4
    if matrix.scheme.weights == "int8":
        levels_OI = levels_OI.view(torch.uint8) ^ 128  # 128 more
        kind = Kind.INT8_DYNAMIC if matrix.scheme.is_dynamic else Kind.INT8
    packed = in_blocks(_filled(levels_OI), 4)
    width = _multiple(num_inputs, INPUT_MULTIPLE)
    group_size = matrix.scheme.group_size or width
    num_groups, zeros = -(-width // group_size), matrix.zeros_OG
    return NativeProduct(
        library,
        kind,
        _in_halves(packed) if kind is Kind.INT4 else packed,
        sizes=(num_outputs, num_inputs, group_size),
        scales=_groups_in_blocks(matrix.scales_OG, num_groups),
        zeros=None if zeros is None else _groups_in_blocks(zeros, num_groups),
        is_invariant=matrix.scheme.is_invariant,
    )


def can_multiply_floats(dtype: torch.dtype, device: str) -> bool:
    """Whether there is `native_float_product` here."""
    return device == "cpu" and dtype in DTYPES and native_library() is not None


def are_float_products_fast() -> bool:
    """Whether they are as fast as torch's: their sums fit the registers of AVX-512, and what
    compilers make of them for other CPUs is several times as slow."""
    library = native_library()
    return library is not None and bool(library.shoal_has_wide_vectors())


def native_float_product(weight_OI: torch.Tensor) -> "NativeProduct":
    """The kernel's product of a matrix of floats; there must be kernels, for its dtype."""
    library = native_library()
    assert library is not None, "whoever asks has looked"
    assert weight_OI.dtype in DTYPES, "as above"
    num_outputs, num_inputs = weight_OI.shape
    return NativeProduct(
        library, Kind.FLOATS, in_blocks(_filled(weight_OI), 2), sizes=(num_outputs, num_inputs, 0)
    )


class MatrixFields(ctypes.Structure):
    """`Matrix` of `models/native/team.h`."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("elements", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("num_inputs", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("num_outputs", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("is_invariant", ctypes.c_int64),
    )


class NativeProduct:
    """A matrix in the kernel's layout. A `MatrixProduct`."""

    def __init__(
        self,
        library: ctypes.CDLL,
        kind: Kind,
        packed: torch.Tensor,
        *,
        sizes: tuple[int, int, int],
        scales: torch.Tensor | None = None,
        zeros: torch.Tensor | None = None,
        is_invariant: bool = True,
    ) -> None:
        """
        Args:
            sizes: outputs, inputs, and the inputs of a group.
            is_invariant: a token's results must have the same bits in any company; those of floats,
                and of levels without groups, have them in any case.
        """
        self._multiply = library.shoal_multiply
        packed = _MEMORY.copy(packed)
        self._tensors = (packed, scales, zeros)  # the addresses below live as long as these
        self._num_outputs, self._num_inputs, group_size = sizes
        self._matrix = MatrixFields(
            kind=int(kind),
            elements=packed.data_ptr(),
            scales=None if scales is None else scales.data_ptr(),
            zeros=None if zeros is None else zeros.data_ptr(),
            num_inputs=self._num_inputs,
            width=_multiple(self._num_inputs, INPUT_MULTIPLE),
            num_outputs=self._num_outputs,
            group_size=group_size,
            is_invariant=is_invariant,
        )
        self._address = ctypes.addressof(self._matrix)

    def fields(self, bias_O: torch.Tensor | None) -> MatrixFields:
        """The matrix for other kernels, as long as this and the bias live."""
        matrix = MatrixFields.from_buffer_copy(self._matrix)
        matrix.bias = None if bias_O is None else bias_O.data_ptr()
        return matrix

    def __call__(self, x_TI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        x_TI = x_TI.contiguous()
        assert x_TI.shape[1] == self._num_inputs, "the matrix has as many columns"
        num_tokens = x_TI.shape[0]
        out_TO = torch.empty(num_tokens, self._num_outputs, dtype=x_TI.dtype)
        self._multiply(
            x_TI.dtype is torch.bfloat16,
            self._address,
            None if bias_O is None else bias_O.data_ptr(),
            x_TI.data_ptr(),
            out_TO.data_ptr(),
            num_tokens,
            torch.get_num_threads(),
        )
        return out_TO


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def in_blocks(matrix_OI: torch.Tensor, per_lane: int) -> torch.Tensor:
    """[O / 16, I / P, 16, P]; not in that order in memory."""
    blocks = matrix_OI.reshape(-1, BLOCK, matrix_OI.shape[1] // per_lane, per_lane)
    return blocks.transpose(1, 2)


def _filled(matrix_OI: torch.Tensor) -> torch.Tensor:
    """With zeros, up to as many outputs and inputs as the products take at once."""
    num_outputs, num_inputs = matrix_OI.shape
    padding = (0, -num_inputs % INPUT_MULTIPLE, 0, -num_outputs % OUTPUT_MULTIPLE)
    return F.pad(matrix_OI, padding)


def _in_halves(packed: torch.Tensor) -> torch.Tensor:
    """4-bit levels [O / 16, I / 4, 16, 4] in half as many bytes: four inputs in the low halves, the
    next four in the high ones."""
    return packed[:, ::2] | (packed[:, 1::2] << 4)


def _groups_in_blocks(per_group_OG: torch.Tensor, num_groups: int) -> torch.Tensor:
    """[O / 16, G, 16], filled up with zeros."""
    num_outputs, given = per_group_OG.shape
    filled = F.pad(per_group_OG, (0, num_groups - given, 0, -num_outputs % OUTPUT_MULTIPLE))
    return filled.view(-1, BLOCK, num_groups).transpose(1, 2).contiguous()
