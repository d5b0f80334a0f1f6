"""Decode steps captured once and replayed: the host launches one graph instead of hundreds of
kernels.

A graph reads and writes fixed memory, so a step is copied into a static buffer first, padded to the
next size that was captured. Padding computes nothing that anybody reads and stores nothing. All
graphs share one pool of memory: they never run at the same time, and what one gives is copied out.

Shapes: T = rows of the step, M = model width, V = vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from models.attention.step_tensors import NUM_DECODE_FIELDS, StepTensors

_NUM_WARM_UPS = 2  # before a capture: kernels are compiled, and libraries allocate what they need


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputedStep:
    """What the model made of a step, before any token is chosen."""

    hidden_TM: torch.Tensor
    logits_TV: torch.Tensor | None  # of every row, where they were made at once


Compute = Callable[[StepTensors], ComputedStep]


class Recorder(Protocol):
    """Turns work on the device into something that repeats it, in the same memory."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]: ...


class CUDARecorder:
    """By CUDA graphs."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        for _ in range(_NUM_WARM_UPS):
            work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        replay: Callable[[], None] = graph.replay
        return replay


class DecodeGraphs:
    """Decode steps of up to the largest of the captured sizes."""

    def __init__(
        self, compute: Compute, recorder: Recorder, *, sizes: Sequence[int], device: torch.device
    ) -> None:
        """Capture `compute` for every size, in sequences. It must make logits, and depend on the
        step's tensors and its size alone."""
        self._sizes = sorted(sizes)
        self._compute = compute
        self._fields = torch.zeros(
            NUM_DECODE_FIELDS * self._sizes[-1], dtype=torch.int32, device=device
        )
        # What every graph gives: not the graphs' own, of which each would keep its tensors.
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None
        # The largest first: the others find the pool large enough.
        self._replays = {size: self._record(recorder, size) for size in reversed(self._sizes)}

    def size_for(self, num_sequences: int) -> int | None:
        """What to pad a step of decoding sequences to; None: there is no graph for so many."""
        return next((size for size in self._sizes if size >= num_sequences), None)

    def run(self, step: StepTensors) -> ComputedStep:
        """A step of a captured size. What it gives is overwritten by the next one."""
        size = step.num_decodes
        self._fields[: NUM_DECODE_FIELDS * size].copy_(step.decode_fields)
        self._replays[size]()
        assert self._given is not None, "a graph was captured"
        hidden_TM, logits_TV = self._given
        return ComputedStep(hidden_TM=hidden_TM[:size], logits_TV=logits_TV[:size])

    def _record(self, recorder: Recorder, size: int) -> Callable[[], None]:
        fields = self._fields[: NUM_DECODE_FIELDS * size]
        fields.copy_(StepTensors.padding(size, device=fields.device))
        step = StepTensors.of_decodes(fields, num_sequences=size)
        return recorder.record(lambda: self._compute_into(step))

    def _compute_into(self, step: StepTensors) -> None:
        computed = self._compute(step)
        logits_TV = computed.logits_TV
        assert logits_TV is not None, "a captured step makes logits"
        if self._given is None:
            self._given = torch.empty_like(computed.hidden_TM), torch.empty_like(logits_TV)
        size = step.num_decodes
        self._given[0][:size].copy_(computed.hidden_TM)
        self._given[1][:size].copy_(logits_TV)


def graph_sizes(max_num_seqs: int, limit: int) -> list[int]:
    """1, 2, 4, 8 and then every eighth or so, up to the most sequences of a step: at most a ninth
    of a step of more than 64 is padding."""
    largest = min(max_num_seqs, limit)
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 257, 16), *range(288, limit + 1, 32)]
    return [size for size in sizes if size < largest] + [largest]
