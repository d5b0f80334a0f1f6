"""Chunks embedded per second against plain sentence-transformers, by turns in one run.

    python -m scripts.bench.embedding                  # the demo model, 256- and 52-token chunks
    python -m scripts.bench.embedding --source intfloat/e5-base --tokens 128 --threads 4
    python -m scripts.bench.embedding --queries        # queries alone, and beside a bulk

The chunks are pieces of the Python library's sources, each of exactly so many tokens. Both sides
tokenize, compute and give unit float32 vectors; the peer runs as its documentation has it
(float32), and a second time in bfloat16. sentence-transformers is not a dependency: without it the
peer's columns are empty.
"""

import argparse
import asyncio
import importlib.util
import statistics
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from cluster.config import EmbedderConfig
from cluster.model_source import resolve_embedder_source
from cluster.retrieval import InputKind
from deployments.local_embedder import LocalEmbedder
from models.embedding.text_embedder import TextEmbedder
from scripts.bench.report import Figure, environment, table

if importlib.util.find_spec("sentence_transformers") is not None:
    from sentence_transformers import SentenceTransformer
else:
    SentenceTransformer = None

PACKAGES = ("torch", "transformers", "sentence-transformers")
NUM_QUERIES = 100

Embed = Callable[[Sequence[str]], NDArray[np.float32]]


def chunks_of(embedder: TextEmbedder, num_tokens: int, count: int) -> list[str]:
    """Texts of so many tokens each, special ones included."""
    tokenizer = embedder.tokenizer
    inner = num_tokens - embedder.tokens.num_around("")
    chunks: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        for start in range(0, len(offsets) - inner, inner):
            chunks.append(text[offsets[start][0] : offsets[start + inner - 1][1]])
            if len(chunks) == count:
                return chunks
    raise ValueError(f"the library has only {len(chunks)} chunks of {num_tokens} tokens")


def peers(folder: Path) -> dict[str, Embed]:
    """sentence-transformers in its default precision and in bfloat16; {} where it is not there."""
    if SentenceTransformer is None:
        return {}
    found: dict[str, Embed] = {}
    for dtype in ("float32", "bfloat16"):
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})

        def embed(texts: Sequence[str], model: SentenceTransformer = model) -> NDArray[np.float32]:
            vectors: NDArray[np.float32] = model.encode(
                list(texts), normalize_embeddings=True, show_progress_bar=False
            )
            return vectors

        found[dtype] = embed
    return found


def measured(embed: Embed, texts: Sequence[str]) -> tuple[float, float]:
    """Chunks per second of wall time, and of CPU time."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    vectors = embed(texts)
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    assert len(vectors) == len(texts)
    return len(texts) / wall_s, len(texts) / cpu_s


def compare_throughput(embedder: TextEmbedder, folder: Path, arguments: argparse.Namespace) -> None:
    sides: dict[str, Embed] = {"Shoal": lambda texts: embedder.embed_tokens(embedder.cut(texts))}
    sides |= peers(folder)
    rows: list[list[object]] = []
    for num_tokens in arguments.tokens:
        texts = chunks_of(embedder, num_tokens, arguments.chunks)
        speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for repetition in range(-1, arguments.repeat):  # the first one warms up
            for name, embed in sides.items():
                speed = measured(embed, texts)
                if repetition >= 0:
                    speeds[name].append(speed)
                print(f"  {num_tokens} tokens, {name}: {speed[0]:.1f} chunks/s", flush=True)
        for name, figures in speeds.items():
            wall, cpu = (Figure(tuple(figure[kind] for figure in figures)) for kind in (0, 1))
            ratios = Figure(
                tuple(
                    ours[1] / theirs[1]
                    for ours, theirs in zip(speeds["Shoal"], figures, strict=True)
                )
            )
            cosine = np.sum(sides["Shoal"](texts) * sides[name](texts), axis=1).min()
            ratio = "" if name == "Shoal" else f"{ratios:.2f}"
            label = name if name == "Shoal" else f"sentence-transformers, {name}"
            rows.append([num_tokens, label, f"{wall}", f"{cpu}", ratio, f"{cosine:.5f}"])
    header = ["tokens", "", "chunks/s", "chunks/CPU-s", "Shoal is × as fast (CPU)", "min cosine"]
    print(table(header, rows))
    if SentenceTransformer is None:
        print("sentence-transformers is not installed: no peer was measured")


async def query_latencies(config: EmbedderConfig, embedder: TextEmbedder) -> None:
    """Queries one after the other: alone, then while a bucket is embedded."""
    local = LocalEmbedder(config, embedder)
    local.start()
    passages = chunks_of(embedder, min(200, embedder.max_input_tokens), 1000)
    rows = []
    bulk: asyncio.Task[object] | None = None
    for name in ("alone", "beside a bulk"):
        if name != "alone":
            bulk = asyncio.create_task(local.embed(passages, kind=InputKind.PASSAGE))
            await asyncio.sleep(0)
        latencies_ms = []
        for number in range(-5, NUM_QUERIES):
            start_s = time.perf_counter()
            await local.embed([f"how do I open file {number} {name}?"], kind=InputKind.QUERY)
            if number >= 0:
                latencies_ms.append((time.perf_counter() - start_s) * 1e3)
        assert bulk is None or not bulk.done(), "the bulk must outlast the queries"
        cuts = statistics.quantiles(latencies_ms, n=100)
        rows.append([name, f"{cuts[49]:.1f}", f"{cuts[98]:.1f}"])
    if bulk is not None:
        bulk.cancel()
    await local.stop()
    print(table(["queries", "p50, ms", "p99, ms"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="demo")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--chunks", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--queries", action="store_true")
    parser.set_defaults(tokens=[256, 52])
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    config = EmbedderConfig(
        name="bench", source=arguments.source, dtype=arguments.dtype, device="cpu"
    )
    folder = resolve_embedder_source(config.source)
    embedder = TextEmbedder(config, folder)
    print(environment(PACKAGES))
    print(embedder.describe())
    if arguments.queries:
        asyncio.run(query_latencies(config, embedder))
    else:
        compare_throughput(embedder, folder, arguments)


if __name__ == "__main__":
    main()
