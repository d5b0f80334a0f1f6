"""Where a step's time goes: timers around the engine's parts, there only while they are wanted.

They replace methods of one engine's objects, and are gone afterwards: an engine that nobody
measures runs the code that it always runs. Each part's time is its own, without what runs inside it
under another name, so that the parts add up to the step. Steps do not overlap while they are timed.
On a GPU every timer waits for the device and no graph is replayed: shares are to be read there, not
sums.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar
from unittest.mock import patch

import numpy as np
import torch

from models.adapters.targets import LinearName
from models.attention.backend import StepAttention
from models.decoder import Decoder
from models.engine import engine as engine_module
from models.engine import model_runner as runner_module
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.engine.step_inputs import StepInputs, StepOutputs
from models.layers import Rope
from models.native.adapters import NativeAdapterStep
from models.native.layers import PARTS as LAYER_PARTS
from models.native.layers import NativeLayers, NativePass
from models.operations import DecoderOperations, HeadNorms, Rotation

P = ParamSpec("P")
T = TypeVar("T")

#: In the order of a step.
PARTS = (
    "schedule",
    "inputs",
    "embedding",
    "norms",
    "qkv",
    "rotation",
    "attention",
    "output projection",
    "MLP",
    "head",
    "sample",
    "record",
    "forward, rest",
    "runner, rest",
    "engine, rest",
)
_PART_OF_LINEAR = {
    LinearName.QKV: "qkv",
    LinearName.OUTPUT: "output projection",
    LinearName.GATE_UP: "MLP",
    LinearName.DOWN: "MLP",
}


class Stopwatch:
    """Adds up each part's own time."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.seconds: Counter[str] = Counter()
        self._synchronize = synchronize
        self._inner_s: list[float] = []  # of what runs now: the time of what ran inside it

    def timed(self, part: str, call: Callable[P, T]) -> Callable[P, T]:
        """The same call, whose time goes to the part."""

        def timed_call(*args: P.args, **kwargs: P.kwargs) -> T:
            self._synchronize()
            self._inner_s.append(0.0)
            start_s = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._synchronize()
                elapsed_s = time.perf_counter() - start_s
                self.seconds[part] += elapsed_s - self._inner_s.pop()
                if self._inner_s:
                    self._inner_s[-1] += elapsed_s

        return timed_call

    def add(self, part: str, seconds: float) -> None:
        """What somebody else has timed, inside of what runs now."""
        self.seconds[part] += seconds
        if self._inner_s:
            self._inner_s[-1] += seconds


class StepTimers:
    """What the timed steps of an engine were, and took."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self.watch = Stopwatch(synchronize)
        self.inputs: StepInputs | None = None  # of the last step

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last call."""
        seconds = {part: self.watch.seconds[part] for part in PARTS}
        self.watch.seconds.clear()
        return seconds


@contextmanager
def step_timers(engine: Engine, runner: ModelRunner) -> Iterator[StepTimers]:
    """While it is open, `engine.step` is timed; `runner` is the engine's own.

    Raises:
        ValueError: the decoder is not one whose parts are known here.
    """
    decoder = runner._decoder
    if not isinstance(decoder, Decoder):
        raise ValueError(f"{type(decoder).__name__} has no parts that can be timed")
    is_gpu = runner._device.type == "cuda"
    timers = StepTimers(torch.cuda.synchronize if is_gpu else _nothing_to_wait_for)
    timed = timers.watch.timed
    with ExitStack() as stack:

        def replace(holder: object, name: str, call: Any) -> None:
            stack.enter_context(patch.object(holder, name, call))

        def execute(inputs: StepInputs) -> StepOutputs:
            timers.inputs = inputs
            return timed_execute(inputs)

        timed_execute = timed("runner, rest", runner.execute)
        replace(runner, "execute", execute)
        replace(engine, "step", timed("engine, rest", engine.step))
        scheduler = engine._scheduler
        replace(scheduler, "schedule", timed("schedule", scheduler.schedule))
        replace(scheduler, "update", timed("record", scheduler.update))
        build = engine_module.build_step_inputs
        replace(engine_module, "build_step_inputs", timed("inputs", build))
        sampler = runner._sampler
        replace(sampler, "sample", timed("sample", sampler.sample))
        replace(sampler, "draw", timed("sample", sampler.draw))
        drawn_outputs = runner_module.drawn_outputs
        replace(runner_module, "drawn_outputs", timed("sample", drawn_outputs))
        if engine._overlap is not None:
            engine._overlap._ahead = None  # that step will be computed again, in its turn
        replace(engine, "_overlap", None)
        if runner._gpu_steps is not None:
            replace(runner._gpu_steps, "_graphs", None)
            backend: Any = runner._gpu_steps._attention
            replace(backend, "over", _timed_attention(timers.watch, backend.over))
        else:
            backend = runner._attention
            replace(backend, "prepare", _timed_attention(timers.watch, backend.prepare))
        _replace_decoders_parts(decoder, timers.watch, replace)
        yield timers


def _replace_decoders_parts(
    decoder: Decoder, watch: Stopwatch, replace: Callable[[object, str, Any], None]
) -> None:
    replace(decoder, "forward", watch.timed("forward, rest", decoder.forward))
    replace(decoder, "logits", watch.timed("head", decoder.logits))
    replace(decoder, "_embed", watch.timed("embedding", decoder._embed))
    replace(decoder, "_operations", _TimedOperations(decoder._operations, watch))
    if decoder._native_layers is not None:
        replace(decoder, "_native_layers", _TimedLayers(decoder._native_layers, watch))
    for layer in decoder.layers:
        by_name = {
            name: watch.timed(part, layer._project) for name, part in _PART_OF_LINEAR.items()
        }

        def project(
            linear: Any, name: LinearName, *args: Any, calls: dict[LinearName, Any] = by_name
        ) -> torch.Tensor:
            made: torch.Tensor = calls[name](linear, name, *args)
            return made

        replace(layer, "_project", project)


def _nothing_to_wait_for() -> None:
    """A CPU's operations have ended when they return."""


def _timed_attention(
    watch: Stopwatch, prepare: Callable[[Any], StepAttention]
) -> Callable[[Any], StepAttention]:
    timed_prepare = watch.timed("inputs", prepare)

    def prepare_timed(step: Any) -> StepAttention:
        return _TimedAttention(timed_prepare(step), watch)

    return prepare_timed


class _TimedLayers:
    """All layers in one call, which counts its parts' time itself."""

    def __init__(self, layers: NativeLayers, watch: Stopwatch) -> None:
        self._layers = layers
        self._watch = watch

    def begin(
        self,
        x_TM: torch.Tensor,
        positions_T: torch.Tensor,
        attention: StepAttention,
        adapters: NativeAdapterStep | None,
    ) -> NativePass | None:
        if isinstance(attention, _TimedAttention):
            attention = attention.inner
        return self._layers.begin(x_TM, positions_T, attention, adapters)

    def advance(self, tokens: NativePass, layers: range) -> None:
        seconds = np.zeros(len(LAYER_PARTS))
        self._layers.advance(tokens, layers, seconds)
        for part, part_s in zip(LAYER_PARTS, seconds.tolist(), strict=True):
            self._watch.add(part, part_s)


class _TimedAttention:
    def __init__(self, attention: StepAttention, watch: Stopwatch) -> None:
        self.inner = attention
        self._attend = watch.timed("attention", attention.attend)

    def attend(
        self, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, *, layer_index: int
    ) -> torch.Tensor:
        return self._attend(q_THD, k_TKD, v_TKD, layer_index=layer_index)


class _TimedOperations:
    def __init__(self, operations: DecoderOperations, watch: Stopwatch) -> None:
        self._watch = watch
        self._rotation = watch.timed("rotation", operations.rotation)
        self._add_rms_norm = watch.timed("norms", operations.add_rms_norm)
        self._silu_mul = watch.timed("MLP", operations.silu_mul)

    def add_rms_norm(
        self, x_TM: torch.Tensor, added_TM: torch.Tensor | None, weight_M: torch.Tensor, eps: float
    ) -> torch.Tensor:
        return self._add_rms_norm(x_TM, added_TM, weight_M, eps)

    def rotation(self, rope: Rope, positions_T: torch.Tensor, *, num_heads: int) -> Rotation:
        made = self._rotation(rope, positions_T, num_heads=num_heads)
        timed = self._watch.timed("rotation", made)

        def rotate(qk_TND: torch.Tensor, norms: HeadNorms | None) -> torch.Tensor:
            return timed(qk_TND, norms)

        return rotate

    def silu_mul(self, gate_up_TF2: torch.Tensor) -> torch.Tensor:
        return self._silu_mul(gate_up_TF2)
