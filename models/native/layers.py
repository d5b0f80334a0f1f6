"""A decoder's layers, or some of them, in one call of the CPU kernels.

Where a step has few tokens, each call of an operation costs as much as the operation.

Shapes: T = tokens in the step, M = model width, D = head width.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.attention.backend import StepAttention
from models.attention.native import NativeStepAttention
from models.checkpoint import DecoderConfig
from models.engine.step_interrupt import InterruptibleAttention, StepInterrupt, StepInterrupted
from models.layers import Linear, Rope
from models.native.adapters import NativeAdapterStep
from models.native.library import native_library
from models.native.matmul import MatrixFields, NativeProduct
from models.native.ranks import GroupError, NativeRanks
from models.operations import HeadNorms

#: Of a step's time, as the kernel counts it.
PARTS = ("norms", "qkv", "rotation", "attention", "output projection", "MLP", "other ranks")

_INTERRUPTED, _LEFT_ALONE = 0, 2  # how the kernel ended; else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParts:
    """What a layer without experts is made of."""

    input_norm_M: torch.Tensor
    post_attention_norm_M: torch.Tensor
    head_norms: HeadNorms | None
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear


class _Layer(ctypes.Structure):
    """`Layer` of `models/native/decoder.cpp`."""

    _fields_ = (
        ("input_norm", ctypes.c_void_p),
        ("post_attention_norm", ctypes.c_void_p),
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("qkv", MatrixFields),
        ("o", MatrixFields),
        ("gate_up", MatrixFields),
        ("down", MatrixFields),
        ("window", ctypes.c_int64),
    )


class _Stack(ctypes.Structure):
    """`Stack`, likewise."""

    _fields_ = (
        ("layers", ctypes.c_void_p),
        ("num_layers", ctypes.c_int64),
        ("rope", ctypes.c_void_p),
        ("is_bfloat16", ctypes.c_int64),
        ("model_width", ctypes.c_int64),
        ("ff_width", ctypes.c_int64),
        ("num_heads", ctypes.c_int64),
        ("num_kv_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("scale", ctypes.c_double),
        ("ranks", ctypes.c_void_p),
    )


class _Step(ctypes.Structure):
    """`Step`, likewise."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("added", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("cache", ctypes.c_void_p),
        ("layer_bytes", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("tables", ctypes.c_void_p),
        ("query_lens", ctypes.c_void_p),
        ("context_lens", ctypes.c_void_p),
        ("num_sequences", ctypes.c_int64),
        ("table_width", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
        ("is_invariant", ctypes.c_int64),
        ("num_threads", ctypes.c_int64),
        ("first_layer", ctypes.c_int64),
        ("stop_layer", ctypes.c_int64),
        ("adapters", ctypes.c_void_p),
        ("adapter_slots", ctypes.c_void_p),
        ("is_interrupted", ctypes.c_void_p),
        ("seconds", ctypes.c_void_p),
    )


def native_layers(
    config: DecoderConfig,
    layers: Sequence[LayerParts],
    rope: Rope,
    *,
    ranks: NativeRanks | None = None,
) -> "NativeLayers | None":
    """The call, where all of the layers' matrices are the kernels' own.

    Args:
        config: of a rank's part of the model.
        ranks: those that have the rest of it; None: there is none.
    """
    library = native_library()
    if library is None:
        return None
    made = []
    for parts, window in zip(layers, config.layer_windows, strict=True):
        layer = _layer(parts, window)
        if layer is None:
            return None
        made.append(layer)
    return NativeLayers(library, config, made, layers, rope, ranks)


def _layer(parts: LayerParts, window: int | None) -> _Layer | None:
    matrices = []
    for linear in (parts.qkv, parts.o, parts.gate_up, parts.down):
        if not isinstance(linear.product, NativeProduct):
            return None
        matrices.append(linear.product.fields(linear.bias_O))
    norms = parts.head_norms
    return _Layer(
        parts.input_norm_M.data_ptr(),
        parts.post_attention_norm_M.data_ptr(),
        None if norms is None else norms.query_D.data_ptr(),
        None if norms is None else norms.key_D.data_ptr(),
        *matrices,
        window or 0,
    )


@dataclass(slots=True, kw_only=True)
class NativePass:
    """A step's tokens on their way through the layers; see `NativeLayers.begin`."""

    added_TM: torch.Tensor  # what the last layer that they passed adds to the residual stream
    step: _Step
    tensors: tuple[object, ...]  # the others whose addresses the step has
    interrupt: StepInterrupt | None


class NativeLayers:
    """See `native_layers`."""

    def __init__(
        self,
        library: ctypes.CDLL,
        config: DecoderConfig,
        layers: Sequence[_Layer],
        parts: Sequence[LayerParts],
        rope: Rope,
        ranks: NativeRanks | None,
    ) -> None:
        self._decode = library.shoal_decode
        self._array = (_Layer * len(layers))(*layers)
        self._owners = (parts, rope, ranks)  # the addresses live as long as these
        self._most_bytes = None if ranks is None else ranks.slot_bytes
        self._dtype = rope.table_P2D.dtype
        self._stack = _Stack(
            layers=ctypes.addressof(self._array),
            num_layers=len(layers),
            rope=rope.table_P2D.data_ptr(),
            is_bfloat16=self._dtype is torch.bfloat16,
            model_width=config.hidden_size,
            ff_width=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            eps=config.rms_norm_eps,
            scale=config.head_dim**-0.5,
            ranks=None if ranks is None else ranks.address,
        )

    def begin(
        self,
        x_TM: torch.Tensor,
        positions_T: torch.Tensor,
        attention: StepAttention,
        adapters: NativeAdapterStep | None = None,
    ) -> NativePass | None:
        """Embedded tokens, about to pass the layers; None where the step's attention is not the
        kernels', or where it has more tokens than ranks exchange at once."""
        interrupt: StepInterrupt | None = None
        if isinstance(attention, InterruptibleAttention):
            interrupt, attention = attention.interrupt, attention.inner
        if not isinstance(attention, NativeStepAttention) or attention.num_tokens != len(x_TM):
            return None
        if self._most_bytes is not None and x_TM.nbytes > self._most_bytes:
            return None
        assert x_TM.dtype is self._dtype, "the embedding has the layers' dtype"
        cache_YB2KSD = attention.kv_cache.tensor_YB2KSD
        added_TM = torch.empty_like(x_TM)
        step = _Step(
            x=x_TM.data_ptr(),
            added=added_TM.data_ptr(),
            positions=positions_T.data_ptr(),
            slots=attention.slots,
            cache=cache_YB2KSD.data_ptr(),
            layer_bytes=cache_YB2KSD.stride(0) * cache_YB2KSD.itemsize,
            block_size=attention.kv_cache.block_size,
            tables=attention.table,
            query_lens=attention.query_lens,
            context_lens=attention.context_lens,
            num_sequences=attention.num_sequences,
            table_width=attention.table_width,
            num_tokens=len(x_TM),
            is_invariant=attention.is_invariant,
            num_threads=torch.get_num_threads(),
            adapters=None if adapters is None else adapters.matrices_address,
            adapter_slots=None if adapters is None else adapters.slots_T.ctypes.data,
            is_interrupted=None if interrupt is None else interrupt.address,
        )
        return NativePass(
            added_TM=added_TM,
            step=step,
            tensors=(x_TM, positions_T, attention, adapters),
            interrupt=interrupt,
        )

    def advance(
        self, tokens: NativePass, layers: range, seconds: NDArray[np.float64] | None = None
    ) -> None:
        """Compute these layers, the next ones that the tokens pass.

        Args:
            seconds: those of each of `PARTS` are added here.

        Raises:
            StepInterrupted: the attention is one that may be interrupted, and it was.
            GroupError: another rank has gone.
        """
        step, interrupt = tokens.step, tokens.interrupt
        step.first_layer, step.stop_layer = layers.start, layers.stop
        step.seconds = None if seconds is None else seconds.ctypes.data
        ending = self._decode(ctypes.addressof(self._stack), ctypes.addressof(step))
        if ending == _LEFT_ALONE:
            raise GroupError("an exchange between the ranks failed: one did not come")
        if ending == _INTERRUPTED:
            assert interrupt is not None, "nothing else interrupts a step"
            interrupt.clear()
            raise StepInterrupted
