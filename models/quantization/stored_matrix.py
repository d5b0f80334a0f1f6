"""Reads a quantized matrix from the tensors that AWQ, GPTQ and compressed-tensors store it as.

What each format stores of a layer with O outputs, I inputs and G groups of inputs, B bits a level
(words are int32, of 32 / B levels, the lowest bits first):

    awq     qweight [I, O·B/32], qzeros [G, O·B/32], scales [G, O]; the eight levels of a word are
            those of outputs 0 2 4 6 1 3 5 7
    gptq    qweight [I·B/32, O], qzeros [G, O·B/32], scales [G, O], g_idx [I]: each input's group.
            Version 1 stores a zero less one, in B bits
    packed  weight_packed [O, I·B/32], weight_scale [O, G], weight_shape [2], and where they have
            them weight_zero_point [O·B/32, G], weight_g_idx [I]; levels and zeros plus half their
            range
    plain   weight [O, I], int8 or fp8, weight_scale [O, 1] or one number, weight_zero_point [O, 1]

Only what a rank needs is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from models.quantization.matrix import QuantizedMatrix, arrange
from models.quantization.products import unpack_pairs
from models.quantization.scheme import MatrixScheme, StoredFormat

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
WORD_BITS = 32
_SCALE_DTYPES = ("F16", "BF16", "F32")


class StoredTensor(Protocol):
    """A tensor in a file, not read yet (safetensors exports no name for it)."""

    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...

    def __getitem__(self, parts: tuple[slice, ...]) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixPart:
    """Which part of a whole matrix [O, I] is read."""

    num_outputs: int  # of the whole
    num_inputs: int
    outputs: slice
    inputs: slice


def tensor_names(scheme: MatrixScheme, stored: StoredFormat) -> tuple[tuple[str, ...], set[str]]:
    """What a module's tensors are called after its name: those that must be there, and others that
    may."""
    match stored.layout:
        case "awq":
            return ("qweight", "qzeros", "scales"), set()
        case "gptq":
            if stored.has_input_groups:
                return ("qweight", "qzeros", "scales", "g_idx"), set()
            return ("qweight", "qzeros", "scales"), {"g_idx"}
        case "packed":
            zeros = ("weight_zero_point",) if stored.has_stored_zeros else ()
            groups = ("weight_g_idx",) if stored.has_input_groups else ()
            return ("weight_packed", "weight_scale", "weight_shape", *zeros, *groups), set()
        case "plain":
            zeros = ("weight_zero_point",) if scheme.has_zeros else ()
            return ("weight", "weight_scale", *zeros), set()


def read_matrix(
    tensors: Mapping[str, StoredTensor],
    part: MatrixPart,
    scheme: MatrixScheme,
    stored: StoredFormat,
) -> QuantizedMatrix:
    """
    Args:
        tensors: by their names in `tensor_names`.

    Raises:
        ValueError: a tensor has another shape or type than the format gives it.
    """
    reader = _Reader(tensors, part, scheme)
    match stored.layout:
        case "awq":
            return reader.awq()
        case "gptq":
            return reader.gptq(has_zeros_less_one=stored.has_zeros_less_one)
        case "packed":
            return reader.packed()
        case "plain":
            return reader.plain()


class _Reader:
    """Of one matrix."""

    def __init__(
        self, tensors: Mapping[str, StoredTensor], part: MatrixPart, scheme: MatrixScheme
    ) -> None:
        self._tensors = tensors
        self._part = part
        self._scheme = scheme
        self._bits = 4 if scheme.weights == "int4" else 8
        self._per_word = WORD_BITS // self._bits
        size = scheme.group_size
        self._num_groups = 1 if size is None else -(-part.num_inputs // size)

    def awq(self) -> QuantizedMatrix:
        part, num_groups = self._part, self._num_groups
        num_words = self._num_words(part.num_outputs)
        words = self._words("qweight", (part.num_inputs, num_words), part.inputs, part.outputs)
        levels_OI = self._awq_levels(words, part.outputs).t().contiguous()
        zeros = self._words("qzeros", (num_groups, num_words), slice(None), part.outputs)
        return self._grouped(
            levels_OI, self._group_scales(), self._awq_levels(zeros, part.outputs).t().contiguous()
        )

    def gptq(self, *, has_zeros_less_one: bool) -> QuantizedMatrix:
        part, num_groups = self._part, self._num_groups
        shape = (self._num_words(part.num_inputs), part.num_outputs)
        words = self._words("qweight", shape, part.inputs, part.outputs, packed_dim=0)
        levels_OI = self._levels(words.t().contiguous(), part.inputs)
        shape = (num_groups, self._num_words(part.num_outputs))
        zeros_words = self._words("qzeros", shape, slice(None), part.outputs)
        zeros_OG = self._levels(zeros_words, part.outputs).t().contiguous()
        if has_zeros_less_one:
            zeros_OG = (zeros_OG + 1) & (2**self._bits - 1)  # a zero of 0 was stored as the largest
        return self._grouped(levels_OI, self._group_scales(), zeros_OG, self._input_groups("g_idx"))

    def packed(self) -> QuantizedMatrix:
        part, num_groups = self._part, self._num_groups
        shape = tuple(self._read("weight_shape", (2,), ("I64", "I32"), (slice(None),)).tolist())
        if shape != (part.num_outputs, part.num_inputs):
            raise ValueError(
                f"weight_shape is {shape}, but config.json asks for "
                f"{(part.num_outputs, part.num_inputs)}"
            )
        stored_shape = (part.num_outputs, self._num_words(part.num_inputs))
        words = self._words("weight_packed", stored_shape, part.outputs, part.inputs)
        levels_OI = self._levels(words, part.inputs)
        zeros_OG = self._packed_zeros(num_groups)
        scales_OG = self._output_scales(num_groups)
        return self._grouped(levels_OI, scales_OG, zeros_OG, self._input_groups("weight_g_idx"))

    def plain(self) -> QuantizedMatrix:
        part = self._part
        dtype = "F8_E4M3" if self._scheme.weights == "fp8" else "I8"
        shape = (part.num_outputs, part.num_inputs)
        levels_OI = self._read("weight", shape, (dtype,), (part.outputs, part.inputs))
        zeros_OG = None
        if self._scheme.has_zeros:
            shape = (part.num_outputs, 1)
            signed_OG = self._read("weight_zero_point", shape, ("I8",), (part.outputs, slice(None)))
            zeros_OG = (signed_OG.short() + 128).to(torch.uint8)
        return QuantizedMatrix(
            scheme=self._scheme,
            levels_OI=levels_OI,
            scales_OG=self._output_scales(1),
            zeros_OG=zeros_OG,
        )

    def _grouped(
        self,
        levels_OI: torch.Tensor,
        scales_OG: torch.Tensor,
        zeros_OG: torch.Tensor | None,
        group_of_input_I: torch.Tensor | None = None,
    ) -> QuantizedMatrix:
        """`levels_OI` and the zeros as they are stored: 0 … 2^bits - 1."""
        scheme = self._scheme
        if scheme.weights == "int8":
            levels_OI = (levels_OI.view(torch.int8) ^ -128).contiguous()  # less 128
        matrix = QuantizedMatrix(
            scheme=scheme, levels_OI=levels_OI, scales_OG=scales_OG, zeros_OG=zeros_OG
        )
        if scheme.group_size is None:
            return matrix
        if group_of_input_I is None:
            inputs = self._part.inputs
            group_of_input_I = torch.arange(inputs.start, inputs.stop) // scheme.group_size
        return arrange(matrix, group_of_input_I)

    def _group_scales(self) -> torch.Tensor:
        part = self._part
        shape = (self._num_groups, part.num_outputs)
        scales_GO = self._read("scales", shape, _SCALE_DTYPES, (slice(None), part.outputs))
        return scales_GO.t().float().contiguous()

    def _output_scales(self, num_groups: int) -> torch.Tensor:
        outputs = self._part.outputs
        count = outputs.stop - outputs.start
        shape = tuple(self._tensors["weight_scale"].get_shape())
        if shape in ((), (1,)) and num_groups == 1:  # one for the whole matrix
            whole = self._tensors["weight_scale"][slice(None),] if shape else self._scalar()
            return whole.float().reshape(1, 1).repeat(count, 1)
        shape = (self._part.num_outputs, num_groups)
        scales_OG = self._read("weight_scale", shape, _SCALE_DTYPES, (outputs, slice(None)))
        return scales_OG.float().contiguous()

    def _scalar(self) -> torch.Tensor:
        return self._tensors["weight_scale"][...]  # type: ignore[index]  # it has no dimension

    def _packed_zeros(self, num_groups: int) -> torch.Tensor | None:
        part = self._part
        count = part.outputs.stop - part.outputs.start
        if "weight_zero_point" not in self._tensors:
            if self._scheme.weights == "int8":
                return None
            return torch.full((count, num_groups), 8, dtype=torch.uint8)
        shape = (self._num_words(part.num_outputs), num_groups)
        words = self._words("weight_zero_point", shape, part.outputs, slice(None), packed_dim=0)
        return self._levels(words.t().contiguous(), part.outputs).t().contiguous()

    def _input_groups(self, name: str) -> torch.Tensor | None:
        if name not in self._tensors or self._scheme.group_size is None:
            return None
        part = self._part
        groups_I = self._read(name, (part.num_inputs,), ("I32", "I64"), (part.inputs,)).long()
        if len(groups_I) and not 0 <= int(groups_I.min()) <= int(groups_I.max()) < self._num_groups:
            raise ValueError(f"{name} names groups beyond the {self._num_groups} that there are")
        return groups_I

    def _num_words(self, num_levels: int) -> int:
        return -(-num_levels // self._per_word)

    def _words(
        self, name: str, shape: tuple[int, int], rows: slice, columns: slice, *, packed_dim: int = 1
    ) -> torch.Tensor:
        """The words that hold a span of levels along one dimension, and a span of the other."""
        spans = [rows, columns]
        levels = spans[packed_dim]
        spans[packed_dim] = slice(levels.start // self._per_word, self._num_words(levels.stop))
        return self._read(name, shape, ("I32",), (spans[0], spans[1]))

    def _levels(self, words: torch.Tensor, span: slice) -> torch.Tensor:
        """The levels of a span, of words along the last dimension: uint8."""
        bytes_ = words.contiguous().view(torch.uint8)
        levels = unpack_pairs(bytes_) if self._bits == 4 else bytes_
        first = span.start % self._per_word
        return levels[:, first : first + span.stop - span.start].contiguous()

    def _awq_levels(self, words: torch.Tensor, span: slice) -> torch.Tensor:
        levels = unpack_pairs(words.contiguous().view(torch.uint8))
        by_word = levels.view(len(levels), -1, self._per_word)
        in_order = by_word[:, :, torch.tensor(AWQ_ORDER).argsort()].flatten(1)
        first = span.start % self._per_word
        return in_order[:, first : first + span.stop - span.start]

    def _read(
        self,
        name: str,
        shape: tuple[int, ...],
        dtypes: tuple[str, ...],
        spans: tuple[slice, ...],
    ) -> torch.Tensor:
        tensor = self._tensors[name]
        given = tuple(tensor.get_shape())
        if given != shape:
            raise ValueError(f"{name} has shape {given}, but config.json asks for {shape}")
        if tensor.get_dtype() not in dtypes:
            raise ValueError(
                f"{name} is stored as {tensor.get_dtype()}; supported: {', '.join(dtypes)}"
            )
        return tensor[spans]
