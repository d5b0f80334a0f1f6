"""What online requests notice of a batch in the same engine, and what the batch gets of the rest.

    python -m scripts.bench.batch_priority                      # 135M shape, a third of capacity
    python -m scripts.bench.batch_priority --shape tiny --rate 4 --seconds 60

One engine, three runs by turns: online requests alone (Poisson arrivals), the batch alone, both.
The batch always has 256 requests under way. Time to first token is from the arrival; a
request's tokens/s count from its first token. The batch's share is of the idle capacity: what it
does alone, times the part of the time in which online requests alone leave the engine idle.
"""

import argparse
import asyncio
import random
import time
from dataclasses import dataclass, field

from cluster.types import PRIORITY_BATCH, PRIORITY_ONLINE, Request, SamplingParams
from models.engine.async_engine import AsyncEngine
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
    busy_s: float = 0.0  # with at least one online request
    elapsed_s: float = 0.0
    num_open: int = 0
    opened_s: float = 0.0

    def begin(self) -> None:
        """An online request has arrived."""
        if self.num_open == 0:
            self.opened_s = time.perf_counter()
        self.num_open += 1

    def end(self) -> None:
        self.num_open -= 1
        if self.num_open == 0:
            self.busy_s += time.perf_counter() - self.opened_s

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

    def __init__(self, engine: AsyncEngine, options: argparse.Namespace) -> None:
        self._engine = engine
        self._options = options
        self._vocab_size = SHAPES[options.shape]["vocab_size"]
        self._num_made = 0

    async def run(self, *, is_online: bool, is_batch: bool, seed: int) -> Seen:
        seen = Seen()
        end_s = time.perf_counter() + self._options.seconds
        lines = [asyncio.create_task(self._lines(seen, end_s)) for _ in range(NUM_BATCH * is_batch)]
        if is_online:
            await self._online(seen, end_s, seed)
        await asyncio.sleep(max(0.0, end_s - time.perf_counter()))
        seen.elapsed_s = self._options.seconds
        for line in lines:
            line.cancel()
        await asyncio.gather(*lines, return_exceptions=True)
        return seen

    async def _online(self, seen: Seen, end_s: float, seed: int) -> None:
        """Poisson arrivals until the end; waits for the answers."""
        rng = random.Random(seed)
        at_s, tasks = time.perf_counter(), []
        while (at_s := at_s + rng.expovariate(self._options.rate)) < end_s:
            await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
            tasks.append(asyncio.create_task(self._ask(seen, at_s)))
        await asyncio.gather(*tasks)

    async def _ask(self, seen: Seen, arrived_s: float) -> None:
        first_s, num_tokens = 0.0, 0
        seen.begin()
        async for delta in self._engine.generate(self._request(PRIORITY_ONLINE)):
            num_tokens += len(delta.token_ids)
            first_s = first_s or time.perf_counter()
        seen.end()
        seen.first_s.append(first_s - arrived_s)
        seen.rates.append((num_tokens - 1) / (time.perf_counter() - first_s))

    async def _lines(self, seen: Seen, end_s: float) -> None:
        """One line of a batch after the other."""
        while True:
            async for delta in self._engine.generate(self._request(PRIORITY_BATCH)):
                if time.perf_counter() < end_s:
                    seen.num_batch_tokens += len(delta.token_ids)

    def _request(self, priority: int) -> Request:
        self._num_made += 1
        (prompt,) = random_prompts(1, self._options.prompt_len, self._vocab_size, self._num_made)
        return Request(
            request_id=str(self._num_made),
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(
                max_tokens=self._options.output_len, temperature=0.0, ignore_eos=True
            ),
            priority=priority,
        )


async def measure(options: argparse.Namespace) -> dict[str, Seen]:
    """The three runs, by name."""
    engine = AsyncEngine(make_engine(checkpoint(options.shape, options.dtype)))
    engine.start()
    load = Load(engine, options)
    try:
        await load.run(is_online=True, is_batch=False, seed=0)  # warms up
        return {
            "online": await load.run(is_online=True, is_batch=False, seed=1),
            "batch": await load.run(is_online=False, is_batch=True, seed=1),
            "both": await load.run(is_online=True, is_batch=True, seed=1),
        }
    finally:
        await engine.stop()


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
    runs = asyncio.run(measure(options))
    alone, batch, both = runs["online"], runs["batch"], runs["both"]
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
