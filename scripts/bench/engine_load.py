"""Loads for the offline engine: requests that come together, and a prompt that comes among others.

All outputs have the length that they were asked for (end-of-sequence is ignored), and every token's
time is kept.
"""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cluster.config import EngineConfig
from cluster.types import Request, SamplingParams
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from scripts.bench.report import median, quantile

#: Tokens of each short stream that are timed before a long prompt comes, and after it is gone.
TOKENS_BEFORE = 32


@dataclass(frozen=True, slots=True)
class Run:
    """What it took until every prompt had its outputs."""

    num_tokens: int
    elapsed_s: float
    cpu_s: float  # of the whole process: tells more than the clock on a machine that others share
    token_times_s: Mapping[str, Sequence[float]]  # by request id, since all requests came

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s

    @property
    def first_token_ms(self) -> float:
        """The median request's."""
        return 1000 * median([times[0] for times in self.token_times_s.values()])

    @property
    def gap_ms(self) -> float:
        """p99 of the times between two tokens of one request; 0 where each has one token."""
        return 1000 * quantile(gaps(self.token_times_s), 0.99)


@dataclass(frozen=True, slots=True)
class Admission:
    """What short streams see of a long prompt that comes among them. p99 in milliseconds."""

    gap_before_ms: float
    gap_during_ms: float  # until the long prompt has its first token
    gap_after_ms: float  # once it is gone; the streams' own contexts have grown meanwhile
    admitted_s: float  # from its coming to its first token

    @property
    def slowdown(self) -> float:
        return self.gap_during_ms / max(self.gap_before_ms, self.gap_after_ms)


def gaps(times_s: Mapping[str, Sequence[float]]) -> list[float]:
    """Seconds between the tokens of each request, all together."""
    return [after - before for times in times_s.values() for before, after in pairwise(times)]


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
    requests = [
        Request(
            request_id=str(number),
            prompt_token_ids=prompt,
            sampling_params=params,
            adapter=adapters[number % len(adapters)],
        )
        for number, prompt in enumerate(prompts)
    ]
    return run_requests(engine, requests)


def run_requests(engine: Engine, requests: Sequence[Request]) -> Run:
    """Complete all of them at once; each has `max_tokens` tokens to come."""
    clock = _TokenClock(engine)
    start_cpu_s = time.process_time()
    for request in requests:
        engine.add_request(request)
    while engine.has_unfinished:
        clock.step()
    elapsed_s, cpu_s = clock.now_s(), time.process_time() - start_cpu_s
    num_tokens = sum(map(len, clock.times_s.values()))
    num_wanted = sum(request.sampling_params.max_tokens or 0 for request in requests)
    assert num_tokens == num_wanted, "an output ended before its length"
    return Run(num_tokens, elapsed_s, cpu_s, clock.times_s)


def run_admission(engine: Engine, shorts: Sequence[Request], late: Request) -> Admission:
    """The late request comes once the short streams have had `TOKENS_BEFORE` tokens beside each
    other, and goes when it has its first token; after as many tokens more all are ended."""
    clock = _TokenClock(engine)
    ids = {request.request_id for request in shorts}
    for request in shorts:
        engine.add_request(request)
    while set(clock.times_s) != ids:
        clock.step()
    start_s = clock.now_s()
    for _ in range(TOKENS_BEFORE):
        clock.step()
    come_s = clock.now_s()
    engine.add_request(late)
    while late.request_id not in clock.times_s:
        clock.step()
    admitted_s = clock.times_s[late.request_id][0]
    engine.abort_request(late.request_id)
    for _ in range(TOKENS_BEFORE):
        clock.step()
    assert engine.stats().num_requests_running == len(ids), "a short stream ended too early"
    for request_id in ids:
        engine.abort_request(request_id)

    def gap_ms(since_s: float, until_s: float) -> float:
        within = {
            request_id: [at for at in clock.times_s[request_id] if since_s <= at <= until_s]
            for request_id in ids
        }
        return 1000 * quantile(gaps(within), 0.99)

    return Admission(
        gap_ms(start_s, come_s),
        gap_ms(come_s, admitted_s),
        gap_ms(admitted_s, clock.now_s()),
        admitted_s - come_s,
    )


class _TokenClock:
    """Steps an engine and notes when each request's tokens came."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._start_s = time.perf_counter()
        self.times_s: dict[str, list[float]] = {}

    def now_s(self) -> float:
        return time.perf_counter() - self._start_s

    def step(self) -> None:
        deltas = self._engine.step()
        now_s = self.now_s()
        for delta in deltas:
            self.times_s.setdefault(delta.request_id, []).extend([now_s] * len(delta.token_ids))
