"""Measures an engine under each kind of load of the benchmark, with the peers by turns.

Weights are made up, and the KV cache holds just what a load needs: speed depends on neither.
"""

import gc
import math
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from cluster.config import EngineConfig
from cluster.types import Request
from models.checkpoint import DecoderConfig, read_decoder_config
from models.engine.engine import Engine
from models.engine.kv_cache import GIB
from models.engine.model_runner import ModelRunner
from models.engine.step_inputs import StepInputs
from scripts.bench.engine_load import run_admission, run_requests
from scripts.bench.engine_peers import Peer
from scripts.bench.engine_report import (
    Breakdown,
    LongContext,
    LongPrompt,
    StepSize,
    Throughput,
)
from scripts.bench.engine_workloads import Workload, prompt_seed
from scripts.bench.report import Figure, median
from scripts.bench.step_parts import PARTS, step_timers
from scripts.bench.step_roofline import MachineRates, StepCost, step_cost

#: More tokens than a load has, for each sequence of a step that is taken apart.
EXTRA_TOKENS = 64
_PROFILE_SEED = 77_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is the same for every load of a run."""

    folder: Path
    dtype: str
    quantization: str
    device: torch.device
    repeat: int  # counted, after one that warms up
    is_quick: bool


class LoadedEngine:
    """An engine that has room for one load at some concurrency."""

    def __init__(self, setup: Setup, workload: Workload, concurrency: int) -> None:
        """
        Raises:
            ValueError: as `ModelRunner`; the shape cannot be used, or does not fit.
        """
        probe = EngineConfig()
        num_tokens = workload.num_tokens(concurrency)
        num_tokens += (concurrency + 1) * (EXTRA_TOKENS + 2 * probe.block_size)
        max_model_len = workload.max_model_len + EXTRA_TOKENS
        dtype: torch.dtype = getattr(torch, setup.dtype)
        shape = read_decoder_config(setup.folder)
        numbers = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
        budget = max(num_tokens, max_model_len + 2 * probe.block_size)
        config = EngineConfig(
            max_model_len=max_model_len,
            max_num_seqs=max(probe.max_num_seqs, concurrency + 1),
            kv_cache_memory_bytes=budget * numbers * dtype.itemsize,
        )
        self.runner = ModelRunner(
            setup.folder,
            config,
            dtype=setup.dtype,
            device=setup.device.type,
            quantization=setup.quantization,
            random_weights=True,
        )
        self.engine = Engine(self.runner, config)

    @property
    def shape(self) -> DecoderConfig:
        """With its quantization."""
        assert isinstance(self.runner._shape, DecoderConfig)
        return self.runner._shape

    @property
    def kv_gib(self) -> float:
        plan = self.runner.plan
        return plan.num_blocks * plan.bytes_per_block / GIB


def measure_throughput(
    loaded: LoadedEngine,
    workload: Workload,
    concurrency: int,
    peers: Sequence[Peer],
    setup: Setup,
) -> Throughput:
    """Every repetition runs ours and then each peer; ratios are taken pair by pair."""
    vocab_size = loaded.engine.vocab_size
    num_tokens = concurrency * workload.output_len
    runs = []
    theirs: dict[str, list[float]] = {}
    for repetition in range(-1, setup.repeat):  # the first one warms up
        requests = workload.requests(concurrency, vocab_size, prompt_seed(concurrency, repetition))
        run = run_requests(loaded.engine, requests)
        rates = {
            peer.title: num_tokens / peer.run(requests) for peer in peers if peer.can_run(requests)
        }
        said = "".join(f", {title} {rate:.1f}" for title, rate in rates.items())
        print(
            f"  {workload.name}, {concurrency} concurrent, run {repetition + 1}: "
            f"{run.tokens_per_s:.1f} tok/s{said}",
            flush=True,
        )
        if repetition >= 0:
            runs.append(run)
            for title, rate in rates.items():
                theirs.setdefault(title, []).append(rate)
    ours = tuple(run.tokens_per_s for run in runs)
    return Throughput(
        workload=workload.name,
        concurrency=concurrency,
        ours=Figure(ours),
        first_token_ms=Figure(tuple(run.first_token_ms for run in runs)),
        gap_ms=Figure(tuple(run.gap_ms for run in runs)),
        peers={title: Figure(tuple(values)) for title, values in theirs.items()},
        ratios={
            title: Figure(tuple(our / their for our, their in zip(ours, values, strict=True)))
            for title, values in theirs.items()
        },
    )


def measure_long_prompt(
    loaded: LoadedEngine, workload: Workload, concurrency: int, setup: Setup
) -> LongPrompt:
    """The short streams' gaps before and while the long prompt is read."""
    found = []
    for repetition in range(-1, setup.repeat):
        vocab_size = loaded.engine.vocab_size
        late = workload.late_request(vocab_size, prompt_seed(concurrency, repetition))
        assert late is not None, "the load has a long prompt"
        shorts = workload.requests(concurrency, vocab_size, prompt_seed(concurrency, repetition))
        found.append(run_admission(loaded.engine, shorts, late))
        print(
            f"  {workload.name}, {concurrency} short streams, run {repetition + 1}: p99 "
            f"{found[-1].gap_before_ms:.1f} ms, then {found[-1].gap_during_ms:.1f}, and "
            f"{found[-1].gap_after_ms:.1f}",
            flush=True,
        )
    counted = found[1:]
    return LongPrompt(
        workload=workload.name,
        concurrency=concurrency,
        long_len=workload.long_len,
        before_ms=Figure(tuple(one.gap_before_ms for one in counted)),
        during_ms=Figure(tuple(one.gap_during_ms for one in counted)),
        after_ms=Figure(tuple(one.gap_after_ms for one in counted)),
        slowdown=Figure(tuple(one.slowdown for one in counted)),
        admitted_s=Figure(tuple(one.admitted_s for one in counted)),
    )


def measure_long_context(loaded: LoadedEngine, workload: Workload, setup: Setup) -> LongContext:
    """One request alone; nothing warms up, for a prompt of this length takes long enough."""
    runs = []
    for repetition in range(setup.repeat):
        requests = workload.requests(1, loaded.engine.vocab_size, repetition)
        runs.append(run_requests(loaded.engine, requests))
        print(
            f"  {workload.name}, run {repetition + 1}: first token after "
            f"{runs[-1].first_token_ms / 1000:.1f} s",
            flush=True,
        )
    return LongContext(
        num_tokens=workload.prompt_len,
        first_token_s=Figure(tuple(run.first_token_ms / 1000 for run in runs)),
        gap_ms=Figure(tuple(run.gap_ms for run in runs)),
        kv_gib=loaded.kv_gib,
        memory_gib=_peak_memory(setup.device) / GIB,
    )


def take_apart(
    loaded: LoadedEngine,
    workload: Workload,
    concurrency: int,
    rates: MachineRates,
    *,
    num_steps: int,
) -> Breakdown:
    """A step of the load when all its prompts are read: each part's median of `num_steps` with
    timers, after as many without. Where a long prompt comes among them, steps that read parts of
    it.

    Raises:
        ValueError: as `step_timers`.
    """
    engine, runner = loaded.engine, loaded.runner
    ids = _bring_to_work(engine, workload, concurrency)
    try:
        plain_s = median([_seconds(engine.step) for _ in range(num_steps)])
        timed: list[dict[str, float]] = []
        steps: list[tuple[StepSize, StepCost]] = []
        with step_timers(engine, runner) as timers:
            for _ in range(num_steps):
                engine.step()
                inputs = timers.inputs
                assert inputs is not None, "the step had something to compute"
                cost = step_cost(loaded.shape, inputs, runner.block_size)
                steps.append((_size_of(inputs, loaded.shape.num_layers), cost))
                timed.append(timers.take())
    finally:
        for request_id in ids:
            engine.abort_request(request_id)
    size, cost = steps[len(steps) // 2]
    return Breakdown(
        workload=workload.name,
        concurrency=concurrency,
        size=size,
        parts_s={part: median([one[part] for one in timed]) for part in PARTS},
        plain_s=plain_s,
        cost=cost,
        floor_s=cost.floor_s(rates),
    )


def free_memory() -> None:
    """After an engine or a peer was dropped, for the next one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _size_of(inputs: StepInputs, num_layers: int) -> StepSize:
    """What passes some of the layers counts as a part of its tokens."""
    size = StepSize(len(inputs.query_lens), len(inputs.token_ids), max(inputs.context_lens))
    layers = inputs.layers
    if layers is None:
        return size
    share = (layers.stop_layer - layers.first_layer) / num_layers
    return StepSize(
        size.num_sequences + 1,
        size.num_tokens + math.ceil(share * len(layers.chunk.token_ids)),
        max(size.longest_context, *layers.chunk.context_lens),
    )


def _bring_to_work(engine: Engine, workload: Workload, concurrency: int) -> list[str]:
    """Requests until each has had a token, and the late one until a part of it is read; their ids.
    They go on for longer than the load's own."""
    requests = [
        _longer(one) for one in workload.requests(concurrency, engine.vocab_size, _PROFILE_SEED)
    ]
    for request in requests:
        engine.add_request(request)
    silent = {request.request_id for request in requests}
    while silent:
        silent -= {delta.request_id for delta in engine.step()}
    late = workload.late_request(engine.vocab_size, _PROFILE_SEED)
    if late is not None:
        requests.append(late)
        engine.add_request(late)
    engine.step()
    return [request.request_id for request in requests]


def _longer(request: Request) -> Request:
    params = request.sampling_params
    max_tokens = (params.max_tokens or 0) + EXTRA_TOKENS
    params = msgspec.structs.replace(params, max_tokens=max_tokens)
    return msgspec.structs.replace(request, sampling_params=params)


def _seconds(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts kibibytes
