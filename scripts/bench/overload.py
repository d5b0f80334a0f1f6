"""Three times as many requests as the engine can answer, for a minute: what the admitted keep, how
soon the others are refused, and whether memory stays flat.

    python -m scripts.bench.overload                        # demo model, one minute each
    python -m scripts.bench.overload --seconds 20 --factor 3

First as many requests at once as run best (closed loop) give the capacity, in requests/s; then
requests arrive at `factor` times that rate, whatever becomes of them (open loop). Each has a prompt
of its own and wants a fixed number of tokens. The load shares the machine with the cluster: how
late its requests left says whether it could keep up.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp
import psutil

from scripts.bench.report import environment, table
from scripts.bench.running_cluster import API_KEY, running_cluster

PACKAGES = ("ray", "torch", "uvicorn")
NUM_RUNNING = 16
NUM_QUEUED = 32
PROMPT_LEN = 48
VOCAB_SIZE = 2000


@dataclass
class Outcome:
    """Of one run."""

    num_tokens: int = 0
    num_answered: int = 0
    refused_ms: list[float] = field(default_factory=list)
    retry_after_s: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)  # requests that were to leave before
    other: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    memory_mib: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.elapsed_s


class Load:
    """Requests to one server."""

    def __init__(self, session: aiohttp.ClientSession, output_len: int, home: str) -> None:
        self._session = session
        self._output_len = output_len
        self._rng = random.Random(0)
        self._replicas = _replicas(home)

    async def closed(self, seconds: float, num_callers: int) -> Outcome:
        """Each caller has one request under way until the time is over."""
        outcome, started_s = Outcome(), time.perf_counter()

        async def call() -> None:
            while time.perf_counter() < started_s + seconds:
                await self._ask(outcome)

        await asyncio.gather(*(call() for _ in range(num_callers)))
        outcome.elapsed_s = time.perf_counter() - started_s
        return outcome

    async def open(self, seconds: float, rate: float) -> Outcome:
        """Requests arrive at a rate, by a Poisson process."""
        outcome, started_s = Outcome(), time.perf_counter()
        tasks: set[asyncio.Task[None]] = set()
        next_sample_s = started_s
        for arrival_s in self._arrivals(started_s, seconds, rate):
            await asyncio.sleep(max(0.0, arrival_s - time.perf_counter()))
            outcome.late_ms.append(1000 * (time.perf_counter() - arrival_s))
            task = asyncio.create_task(self._ask(outcome))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            if arrival_s >= next_sample_s:
                outcome.memory_mib.append(self._memory_mib())
                next_sample_s += seconds / 10
        await asyncio.gather(*tasks)
        outcome.elapsed_s = time.perf_counter() - started_s
        return outcome

    def _arrivals(self, start_s: float, seconds: float, rate: float) -> Iterator[float]:
        at_s = start_s
        while (at_s := at_s + self._rng.expovariate(rate)) < start_s + seconds:
            yield at_s

    async def _ask(self, outcome: Outcome) -> None:
        prompt = [self._rng.randrange(10, VOCAB_SIZE) for _ in range(PROMPT_LEN)]
        body = {"prompt": prompt, "max_tokens": self._output_len, "ignore_eos": True}
        started_s = time.perf_counter()
        async with self._session.post("/v1/completions", json=body) as answer:
            content = await answer.json()
            status, headers = answer.status, answer.headers
        elapsed_ms = 1000 * (time.perf_counter() - started_s)
        if status == 200:
            outcome.num_answered += 1
            outcome.num_tokens += content["usage"]["completion_tokens"]
        elif status in (429, 503) and "retry-after" in headers:
            outcome.refused_ms.append(elapsed_ms)
            outcome.retry_after_s.append(float(headers["retry-after"]))
        else:
            outcome.other.append(f"{status}: {str(content)[:200]}")

    def _memory_mib(self) -> float:
        """Of the cluster's replicas."""
        return sum(process.memory_info().rss for process in self._replicas) / 2**20


def _replicas(home: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if (process.info["environ"] or {}).get("SHOAL_HOME") == home
        and "ServeReplica" in " ".join(process.info["cmdline"] or ())
    ]


async def run(url: str, home: str, arguments: argparse.Namespace) -> None:
    async with aiohttp.ClientSession(
        url,
        headers={"authorization": f"Bearer {API_KEY}"},
        connector=aiohttp.TCPConnector(limit=0),  # of httpx's pool each request costs more, the
        timeout=aiohttp.ClientTimeout(total=300),  # more there are
    ) as session:
        load = Load(session, arguments.output_len, home)
        await load.closed(5.0, NUM_RUNNING)
        alone = await load.closed(arguments.seconds, NUM_RUNNING)
        rate = arguments.factor * alone.num_answered / alone.elapsed_s
        crowded = await load.open(arguments.seconds, rate)
    for outcome in (alone, crowded):
        if outcome.other:
            raise SystemExit(f"{len(outcome.other)} other answers, like {outcome.other[0]}")
    refused = sorted(crowded.refused_ms) or [0.0]
    memory = crowded.memory_mib
    rows: list[list[object]] = [
        ["capacity, requests/s", f"{alone.num_answered / alone.elapsed_s:.1f}"],
        ["arrivals, requests/s", f"{rate:.1f}"],
        ["tokens/s alone", f"{alone.tokens_per_s:.0f}"],
        ["tokens/s of the admitted", f"{crowded.tokens_per_s:.0f}"],
        ["**ratio**", f"**{crowded.tokens_per_s / alone.tokens_per_s:.2f}**"],
        ["answered / refused", f"{crowded.num_answered} / {len(crowded.refused_ms)}"],
        ["refused within, p50 / p99 ms", f"{statistics.median(refused):.1f} / {_p99(refused):.1f}"],
        ["left late, p99 ms", f"{_p99(sorted(crowded.late_ms)):.1f}"],
        ["Retry-After, p50 s", f"{statistics.median(crowded.retry_after_s or [0.0]):.0f}"],
        ["replicas' memory, first / last MiB", f"{memory[1]:.0f} / {memory[-1]:.0f}"],
    ]
    print(table(["", f"{arguments.factor:g}x capacity"], rows))
    print(json.dumps({"memory_mib": [round(value) for value in memory]}))


def _p99(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run")
    parser.add_argument("--factor", type=float, default=3.0, help="arrivals / capacity")
    parser.add_argument("--output-len", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--port", type=int, default=8320)
    arguments = parser.parse_args()
    print(environment(PACKAGES), "\n", flush=True)
    engine = {"max_num_seqs": NUM_RUNNING, "max_num_queued_requests": NUM_QUEUED}
    model = {"name": "shoal/demo-chat", "source": "demo", "engine": engine}
    with running_cluster({"models": [model]}, port=arguments.port) as cluster:
        asyncio.run(run(cluster.url, str(cluster.home), arguments))


if __name__ == "__main__":
    main()
