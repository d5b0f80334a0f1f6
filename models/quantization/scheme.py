"""How a decoder's matrices are kept in fewer bits: data, for the plan, the loader and the decoder.

A matrix is levels and scales: value[o, i] = (level[o, i] - zero[o, g]) · scale[o, g], where g is
the group of inputs that i belongs to. One group for all inputs is "per channel". Without torch, so
that a plan can be made of it.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

WeightKind = Literal["int8", "int4", "fp8"]
StoredLayout = Literal["awq", "gptq", "packed", "plain"]

SCALE_BYTES = 4  # float32
ZERO_BYTES = 1
GROUP_SIZES = (32, 64, 128)
GROUP_MULTIPLE = 32  # inputs: what the kernels turn into floats at once


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixScheme:
    """How one matrix is kept, and what its product is made of."""

    weights: WeightKind
    group_size: int | None = None  # inputs that share a scale; None: all of them
    has_zeros: bool = False  # else levels are signed, and 0 is 0
    # Activations are brought to the weights' kind too, each token by a scale of its own.
    is_dynamic: bool = False
    # A token's results have the same bits whatever other tokens are multiplied at once.
    is_invariant: bool = False

    def num_bytes(self, num_outputs: int, num_inputs: int) -> int:
        """Of a matrix in memory, scales included."""
        levels = num_outputs * num_inputs // (2 if self.weights == "int4" else 1)
        groups = 1 if self.group_size is None else -(-num_inputs // self.group_size)
        return levels + num_outputs * groups * (SCALE_BYTES + ZERO_BYTES * self.has_zeros)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFormat:
    """How a checkpoint's files hold what is quantized already."""

    layout: StoredLayout
    method: str  # as the checkpoint calls it
    has_stored_zeros: bool = True  # else the zero of every group is half the range
    has_zeros_less_one: bool = False  # as GPTQ's first version stores them
    has_input_groups: bool = False  # a group's inputs stand anywhere: each one's group is stored
    left_out: tuple[str, ...] = ()  # patterns of modules that are stored as floats

    def covers(self, module: str) -> bool:
        return not any(re.search(pattern, module) for pattern in self.left_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Of a whole decoder. Norms, biases and the embedding stay in the model's dtype."""

    name: str  # for a person
    layers: MatrixScheme
    head: MatrixScheme | None = None
    stored: StoredFormat | None = None  # None: made of float weights while they are read

    def of(self, module: str) -> MatrixScheme | None:
        """The scheme of a module's matrix (like "model.layers.0.mlp.up_proj"); None: floats."""
        if self.stored is not None and not self.stored.covers(module):
            return None
        return self.head if module == "lm_head" else self.layers


def _int4(group_size: int) -> Quantization:
    return Quantization(
        name=f"int4 (groups of {group_size})",
        layers=MatrixScheme(weights="int4", group_size=group_size, has_zeros=True),
        head=MatrixScheme(weights="int8"),
    )


#: What can be made of float weights, by the name that a configuration gives it. The head decides
#: between tokens and is read once a step: it never gets fewer than 8 bits, nor fp8.
MADE_HERE = {
    "int8": Quantization(
        name="int8", layers=MatrixScheme(weights="int8"), head=MatrixScheme(weights="int8")
    ),
    "int8_dynamic": Quantization(
        name="int8 with int8 activations",
        layers=MatrixScheme(weights="int8", is_dynamic=True),
        head=MatrixScheme(weights="int8"),
    ),
    "int4": _int4(64),
    "int4_g32": _int4(32),
    "int4_g128": _int4(128),
    "fp8": Quantization(name="fp8", layers=MatrixScheme(weights="fp8", is_dynamic=True)),
}
QUANTIZATION_NAMES = ("auto", "none", *MADE_HERE)


def choose_quantization(
    name: str, stored: Quantization | None, *, is_invariant: bool = False
) -> Quantization | None:
    """What a configuration's name comes to for a checkpoint.

    Args:
        name: one of `QUANTIZATION_NAMES`; "auto" is as the checkpoint is stored.
        stored: what the checkpoint says of itself.
        is_invariant: see `MatrixScheme`.

    Raises:
        ValueError: the name is unknown, or asks for another one than the checkpoint has.
    """
    if name not in QUANTIZATION_NAMES:
        raise ValueError(f"quantization {name!r} is not one of {', '.join(QUANTIZATION_NAMES)}")
    if name != "auto" and stored is not None:
        raise ValueError(
            f"quantization {name!r} was asked for, but the checkpoint is stored as {stored.name}; "
            "allowed: auto"
        )
    chosen = stored if name == "auto" else MADE_HERE.get(name)
    if chosen is None or not is_invariant:
        return chosen
    head = None if chosen.head is None else replace(chosen.head, is_invariant=True)
    return replace(chosen, layers=replace(chosen.layers, is_invariant=True), head=head)
