"""Synthetic chunks for retrieval benchmarks: vectors distributed as real ones, texts of Zipf words.

Vectors are drawn from the mean and the covariance of the labelled set's embeddings (all-MiniLM).
Everything of a file follows from its number, so nothing has to be kept to be compared with.

Shapes: N = chunks, Q = queries, D = width.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.chunk_records import BucketSettings, FileRecord, FileStatus
from cluster.chunk_store import ChunkStore
from cluster.config import DEMO_EMBED_MODEL, EmbedderConfig
from cluster.model_source import DEMO_SOURCE, resolve_embedder_source
from cluster.retrieval import EmbedderFacts, Embeddings, InputKind
from cluster.types import BucketRef, Chunk
from deployments.progress_log import ProgressLog
from models.embedding.text_embedder import TextEmbedder
from scripts.bench.labelled_set import build_labelled_set

logger = logging.getLogger(__name__)

FILE_CHUNKS = 1000
_FILES_AT_ONCE = 4
_NUM_WORDS = 30_000
_QUERY_WORDS = 8
_NEARNESS = 0.75  # of a query to a chunk: a cosine of about 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """Texts that share words with a chunk, and vectors near it."""

    texts: tuple[str, ...]
    vectors_QD: NDArray[np.float32]


class SyntheticChunks:
    """Files of `FILE_CHUNKS` chunks each, by number."""

    def __init__(self, *, words_per_chunk: int) -> None:
        embedder = TextEmbedder(
            EmbedderConfig(name=DEMO_EMBED_MODEL, source=DEMO_SOURCE),
            resolve_embedder_source(DEMO_SOURCE),
        )
        passages = build_labelled_set().passages
        real_ND = embedder.embed_tokens(embedder.cut(passages, prefix=embedder.prefixes.passage))
        self._mean_D = real_ND.mean(axis=0)
        values, directions = np.linalg.eigh(np.cov(real_ND, rowvar=False))
        self._spread_DD = (directions * np.sqrt(np.maximum(values, 0))).T.astype(np.float32)
        self._words_per_chunk = words_per_chunk
        rng = np.random.default_rng(0)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        lengths = rng.integers(2, 10, size=_NUM_WORDS)
        self._words = np.array(["".join(rng.choice(letters, size=n)) for n in lengths])
        shares = 1 / np.arange(1, _NUM_WORDS + 1)
        self._shares = np.cumsum(shares / shares.sum())

    @property
    def width(self) -> int:
        return len(self._mean_D)

    def vectors(self, file_number: int) -> NDArray[np.float32]:
        return self._drawn_vectors(np.random.default_rng((1, file_number)), FILE_CHUNKS)

    def texts(self, file_number: int) -> list[str]:
        rng = np.random.default_rng((2, file_number))
        drawn = np.searchsorted(self._shares, rng.random((FILE_CHUNKS, self._words_per_chunk)))
        return [" ".join(row) for row in self._words[np.minimum(drawn, _NUM_WORDS - 1)]]

    def queries(self, count: int, *, num_files: int, seed: int) -> Queries:
        """Questions about chunks of the first files."""
        rng = np.random.default_rng((3, seed))
        texts, rows = [], []
        for file_number in rng.integers(num_files, size=min(8, count)).tolist():
            file_texts, vectors = self.texts(file_number), self.vectors(file_number)
            for row in rng.integers(FILE_CHUNKS, size=-(-count // min(8, count))).tolist():
                words = file_texts[row].split()
                texts.append(" ".join(rng.choice(words, size=min(_QUERY_WORDS, len(words)))))
                rows.append(vectors[row])
        near = _NEARNESS * np.stack(rows) + (1 - _NEARNESS) * self._drawn_vectors(rng, len(rows))
        order = rng.permutation(len(rows))[:count]
        return Queries(texts=tuple(texts[place] for place in order), vectors_QD=_unit(near)[order])

    def _drawn_vectors(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        noise = rng.standard_normal((count, self.width), dtype=np.float32)
        return _unit(noise @ self._spread_DD + self._mean_D)


class KnownQueries:
    """An `Embedder` that knows the vectors of its queries and takes no time."""

    def __init__(self, facts: EmbedderFacts) -> None:
        self._facts = facts
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def learn(self, queries: Queries) -> None:
        self._vectors |= dict(zip(queries.texts, queries.vectors_QD, strict=True))

    async def facts(self) -> EmbedderFacts:
        return self._facts

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], *, kind: InputKind
    ) -> Embeddings:
        rows = [self._vectors[text] for text in inputs if isinstance(text, str)]
        return Embeddings(vectors_ND=np.stack(rows), num_tokens=len(rows))


async def store_chunks(
    store: ChunkStore,
    bucket: BucketRef,
    chunks: SyntheticChunks,
    *,
    files: range,
    facts: EmbedderFacts,
) -> int:
    """Write files, some of them at once, and commit them together; the new version."""
    settings = BucketSettings(embedder=facts, chunk_size=1024, chunk_overlap=0, loader="default")

    async def write(number: int) -> FileRecord:
        name = f"file{number:05}"
        parts = [
            Chunk(text=text, start=start, end=start + len(text))
            for start, text in _placed(chunks.texts(number))
        ]
        segments = await store.write_segments(
            bucket, name, "e", parts, chunks.vectors(number), settings=settings
        )
        return FileRecord(
            filename=name,
            etag="e",
            num_bytes=1,
            status=FileStatus.SUCCESS,
            created_at=0.0,
            updated_at=0.0,
            segments=segments,
        )

    log = ProgressLog(logger, f"storing bucket {bucket.name!r}, files")
    records: list[FileRecord] = []
    for first in range(0, len(files), _FILES_AT_ONCE):
        records += await asyncio.gather(*map(write, files[first : first + _FILES_AT_ONCE]))
        log.update(len(records), len(files))
    return await store.commit(bucket, settings=settings, put=records)


def true_neighbours(
    chunks: SyntheticChunks, queries: Queries, *, num_files: int, count: int
) -> list[set[tuple[str, int]]]:
    """Filename and position of the nearest chunks, by float32 products with all of them."""
    scores = np.empty((len(queries.texts), 0), np.float32)
    places = np.empty((len(queries.texts), 0), np.int64)
    for number in range(num_files):
        new = queries.vectors_QD @ chunks.vectors(number).T
        rows = np.arange(FILE_CHUNKS) + number * FILE_CHUNKS
        scores = np.concatenate([scores, new], axis=1)
        places = np.concatenate([places, np.broadcast_to(rows, new.shape)], axis=1)
        best = np.argpartition(-scores, count, axis=1)[:, :count]
        scores = np.take_along_axis(scores, best, axis=1)
        places = np.take_along_axis(places, best, axis=1)
    return [
        {(f"file{place // FILE_CHUNKS:05}", place % FILE_CHUNKS) for place in row}
        for row in places.tolist()
    ]


def _placed(texts: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Each text, and where it begins among them."""
    start = 0
    for text in texts:
        yield start, text
        start += len(text)


def _unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return unit.astype(np.float32)
