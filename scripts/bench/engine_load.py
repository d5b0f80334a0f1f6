"""A load for the offline engine: requests that come together, all outputs of one length."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config import EngineConfig
from cluster.types import Request, SamplingParams
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner


@dataclass(frozen=True, slots=True)
class Run:
    """What it took until every prompt had its outputs."""

    num_tokens: int
    elapsed_s: float
    cpu_s: float  # of the whole process: tells more than the clock on a machine that others share

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s


def make_engine(folder: Path) -> Engine:
    config = EngineConfig(max_model_len=2048, kv_cache_memory_bytes=2**30)
    return Engine(ModelRunner(folder, config), config)


def random_prompts(count: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    rng = random.Random(1000 + seed)  # a negative seed would equal its absolute value
    return [[rng.randrange(2, vocab_size) for _ in range(length)] for _ in range(count)]


def run_engine(
    engine: Engine,
    prompts: list[list[int]],
    params: SamplingParams,
    adapters: Sequence[str] = ("",),
) -> Run:
    """Complete all prompts at once; each output has `max_tokens` tokens. The adapters are those of
    the prompts in turn."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    for number, prompt in enumerate(prompts):
        engine.add_request(
            Request(
                request_id=str(number),
                prompt_token_ids=prompt,
                sampling_params=params,
                adapter=adapters[number % len(adapters)],
            )
        )
    num_tokens = 0
    while engine.has_unfinished:
        num_tokens += sum(len(delta.token_ids) for delta in engine.step())
    elapsed_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    assert params.max_tokens is not None
    assert num_tokens == len(prompts) * params.max_tokens, "an output ended before its length"
    return Run(num_tokens, elapsed_s, cpu_s)
