"""What online requests notice of a batch in the same engine, and what the batch gets of the rest.

    python -m scripts.bench.batch_priority                      # 135M shape, a third of capacity
    python -m scripts.bench.batch_priority --shape tiny --rate 4 --seconds 60

One engine, three runs by turns: online requests alone (Poisson arrivals), the batch alone, both.
The batch always has 256 requests in the engine. Time to first token is from the arrival; a
request's tokens/s count from its first token. The batch's share is of the idle capacity: what it
does alone, times the part of the time in which online requests alone leave the engine idle.
"""

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.types import PRIORITY_BATCH, PRIORITY_ONLINE, Request, SamplingParams
from models.engine.engine import Engine
from scripts.bench.checkpoints import SHAPES, checkpoint
from scripts.bench.engine_load import make_engine, random_prompts
from scripts.bench.report import environment, table

NUM_BATCH = 256


@dataclass
class Seen:
    """Of one run."""

    first_s: list[float] = field(default_factory=list)  # from a request's arrival
    rates: list[float] = field(default_factory=list)  # tokens/s of a request
    num_batch_tokens: int = 0
    busy_s: float = 0.0
    elapsed_s: float = 0.0

    def first_ms(self, share: float) -> float:
        ordered = sorted(self.first_s)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def rate(self) -> float:
        return sum(self.rates) / len(self.rates)

    @property
    def batch_rate(self) -> float:
        return self.num_batch_tokens / self.elapsed_s


class Load:
    """Requests of both kinds into one engine, in real time."""

    def __init__(self, engine: Engine, options: argparse.Namespace) -> None:
        self._engine = engine
        self._options = options
        self._vocab_size = SHAPES[options.shape]["vocab_size"]
        self._num_made = 0
        self._arrived: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._num_tokens: dict[str, int] = {}
        self._num_batch = 0

    def run(self, *, is_online: bool, is_batch: bool, seed: int) -> Seen:
        seen = Seen()
        started_s = time.perf_counter()
        end_s = started_s + self._options.seconds
        arrivals = self._arrivals(started_s, end_s, seed) if is_online else iter(())
        next_s = next(arrivals, None)
        while time.perf_counter() < end_s or self._arrived:
            while next_s is not None and next_s <= time.perf_counter():
                self._arrived[self._add(PRIORITY_ONLINE)] = next_s
                next_s = next(arrivals, None)
            is_over = time.perf_counter() >= end_s
            while is_batch and not is_over and self._num_batch < NUM_BATCH:
                self._add(PRIORITY_BATCH)
                self._num_batch += 1
            if self._engine.has_unfinished:
                self._step(seen, is_counted=not is_over)
            elif next_s is not None:
                time.sleep(max(0.0, next_s - time.perf_counter()))
            elif not is_over:
                time.sleep(end_s - time.perf_counter())
        seen.elapsed_s = self._options.seconds
        while self._engine.has_unfinished:
            self._step(Seen(), is_counted=False)
        return seen

    def _arrivals(self, start_s: float, end_s: float, seed: int) -> Iterator[float]:
        rng = random.Random(seed)
        at_s = start_s
        while (at_s := at_s + rng.expovariate(self._options.rate)) < end_s:
            yield at_s

    def _add(self, priority: int) -> str:
        self._num_made += 1
        name = f"{'online' if priority == PRIORITY_ONLINE else 'batch'}-{self._num_made}"
        (prompt,) = random_prompts(1, self._options.prompt_len, self._vocab_size, self._num_made)
        params = SamplingParams(
            max_tokens=self._options.output_len, temperature=0.0, ignore_eos=True
        )
        self._engine.add_request(
            Request(
                request_id=name, prompt_token_ids=prompt, sampling_params=params, priority=priority
            )
        )
        return name

    def _step(self, seen: Seen, *, is_counted: bool) -> None:
        before_s = time.perf_counter()
        deltas = self._engine.step()
        now_s = time.perf_counter()
        seen.busy_s += now_s - before_s
        for delta in deltas:
            name = delta.request_id
            if name not in self._arrived:
                seen.num_batch_tokens += len(delta.token_ids) if is_counted else 0
                self._num_batch -= delta.finish_reason is not None
                continue
            self._num_tokens[name] = self._num_tokens.get(name, 0) + len(delta.token_ids)
            if name not in self._first:
                self._first[name] = now_s
                seen.first_s.append(now_s - self._arrived[name])
            if delta.finish_reason is not None:
                num_more = self._num_tokens.pop(name) - 1
                seen.rates.append(num_more / (now_s - self._first.pop(name)))
                del self._arrived[name]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="135m")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rate", type=float, default=0.5, help="online requests per second")
    parser.add_argument("--prompt-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run")
    options = parser.parse_args()
    print(environment(("torch",)))
    print(f"{options.shape} shape, {options.dtype}, {options.rate:g} online requests per second\n")
    load = Load(make_engine(checkpoint(options.shape, options.dtype)), options)
    load.run(is_online=True, is_batch=False, seed=0)  # warms up
    alone = load.run(is_online=True, is_batch=False, seed=1)
    batch = load.run(is_online=False, is_batch=True, seed=1)
    both = load.run(is_online=True, is_batch=True, seed=1)
    idle_share = max(0.0, 1.0 - alone.busy_s / alone.elapsed_s)
    rows: list[list[object]] = [
        ["online alone", alone.first_ms(0.5), alone.first_ms(0.99), alone.rate, ""],
        ["batch alone", "", "", "", batch.batch_rate],
        ["both", both.first_ms(0.5), both.first_ms(0.99), both.rate, both.batch_rate],
        [
            "ratio",
            both.first_ms(0.5) / alone.first_ms(0.5),
            both.first_ms(0.99) / alone.first_ms(0.99),
            both.rate / alone.rate,
            f"{both.batch_rate / (batch.batch_rate * idle_share):.2f} of idle {idle_share:.0%}",
        ],
    ]
    written = [[f"{cell:.3g}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    header = ["", "first token p50, ms", "p99, ms", "online tok/s/request", "batch tok/s"]
    print(table(header, written))


if __name__ == "__main__":
    main()
