"""Searching embedded buckets in this process: everything of a retrieval replica but Serve.

A search reads its texts and its buckets' versions from Redis at once. Where a version is newer than
what was searched, the index catches up and the search is made again: no answer is older than its
question, and without Redis there is none.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from cluster.chunk_store import ChunkStore
from cluster.config import RetrievalConfig
from cluster.errors import BadRequestError, ServiceUnavailableError
from cluster.redis_client import RedisClient
from cluster.retrieval import Embedder, InputKind, SearchMode
from cluster.types import BucketRef, Chunk, FoundChunk
from deployments.loaded_buckets import BucketStats, LoadedBucket, LoadedBuckets
from deployments.search_thread import SearchThread
from deployments.work_group import collect
from models.retrieval.near_duplicates import FoundText, without_repetition
from models.retrieval.reranker import Reranker
from models.retrieval.search import Candidate, Search, SearchedBucket

logger = logging.getLogger(__name__)

_SPARE_CANDIDATES = 10  # for those that repeat others, besides once more what is asked for
_MIN_RERANKED = 30


class RetrievalStats(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica is doing."""

    num_searches_running: int
    num_searches: int  # since the start
    num_bytes: int  # of all indexes
    buckets: list[BucketStats]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What one call asks for."""

    buckets: Sequence[BucketRef]
    queries: Sequence[str]
    max_results: int
    mode: SearchMode


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What one search has found, and in which versions of the question's buckets."""

    texts: list[FoundText[Candidate]]
    loaded: Sequence[LoadedBucket]
    searched: list[int]  # versions
    current: list[int]  # versions in Redis after the search


class RetrievalService:
    """Implements `Retriever`. Belongs to one event loop; `start` it there."""

    def __init__(
        self,
        config: RetrievalConfig,
        redis: RedisClient,
        embedders: Mapping[str, Embedder],
        *,
        num_threads: int,
        reranker: Reranker | None = None,
    ) -> None:
        self._store = ChunkStore(redis)
        self._embedders = embedders
        self._reranker = reranker
        self._buckets = LoadedBuckets(self._store, config, num_threads=num_threads)
        self._searching = SearchThread()
        self._reranking = ThreadPoolExecutor(1, thread_name_prefix="reranking")
        self._num_running = 0
        self._num_searches = 0

    def start(self) -> None:
        self._buckets.start()

    async def stop(self) -> None:
        """Answer the searches that are computed, then stop."""
        await self._searching.stop()
        await self._buckets.stop()
        await asyncio.to_thread(self._reranking.shutdown)

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: commits are not followed any more.
        """
        self._buckets.check_health()

    def stats(self) -> RetrievalStats:
        return RetrievalStats(
            num_searches_running=self._num_running,
            num_searches=self._num_searches,
            num_bytes=self._buckets.num_bytes,
            buckets=self._buckets.stats(),
        )

    async def search(
        self,
        buckets: Sequence[BucketRef],
        queries: Sequence[str],
        *,
        max_results: int,
        mode: SearchMode = SearchMode.FUSED,
    ) -> list[FoundChunk]:
        """See `Retriever`.

        Raises:
            BadRequestError: a bucket's embedding model is not served any more; says what to do.
        """
        assert buckets, "a search has a bucket"
        assert queries, "a search has a query"
        question = _Question(
            buckets=tuple(dict.fromkeys(buckets)),
            queries=queries,
            max_results=max_results,
            mode=mode,
        )
        self._num_running += 1
        self._num_searches += 1
        try:
            return await self._answer(question)
        finally:
            self._num_running -= 1

    async def _answer(self, question: _Question) -> list[FoundChunk]:
        loaded = await collect(self._buckets.get(ref) for ref in question.buckets)
        found = await self._search(question, loaded)
        if found.searched != found.current:
            # Commits came since the indexes were last changed. What they have afterwards is newer
            # than the question, whatever is committed meanwhile.
            versions = zip(found.loaded, found.searched, found.current, strict=True)
            loaded = await collect(self._renewed(*one) for one in versions)
            found = await self._search(question, loaded)
        best = await self._best(question, found)
        return [_found_chunk(one, score, found.loaded[one.tag.bucket]) for one, score in best]

    async def _renewed(self, loaded: LoadedBucket, searched: int, current: int) -> LoadedBucket:
        if current < searched:
            logger.warning("bucket %r is older in Redis than it was", loaded.ref.name)
            self._buckets.drop(loaded.ref)
        return await self._buckets.caught_up(loaded.ref, current)

    async def _search(self, question: _Question, loaded: Sequence[LoadedBucket]) -> _Found:
        vectors = await self._embedded(question.queries, loaded)
        search = Search(
            buckets=[
                SearchedBucket(
                    name=one.ref.name,
                    view=one.index.view,
                    model_name=one.embedder.model_name,
                    queries_QD=vectors[one.embedder.model_name],
                )
                for one in loaded
            ],
            queries=question.queries,
            count=self._num_candidates(question.max_results),
            use_dense=question.mode is not SearchMode.LEXICAL,
            use_lexical=question.mode is not SearchMode.DENSE,
        )
        candidates = await self._searching.run(search)
        texts, versions = await asyncio.gather(
            self._texts(question.buckets, candidates), self._store.versions(question.buckets)
        )
        return _Found(
            texts=texts,
            loaded=loaded,
            searched=[bucket.view.version for bucket in search.buckets],
            current=versions,
        )

    def _num_candidates(self, max_results: int) -> int:
        return max(_MIN_RERANKED if self._reranker else 0, 2 * max_results) + _SPARE_CANDIDATES

    async def _embedded(
        self, queries: Sequence[str], loaded: Sequence[LoadedBucket]
    ) -> dict[str, NDArray[np.float32]]:
        """The queries' vectors, by the names of the buckets' embedding models."""
        await collect(self._check_embedder(one) for one in loaded)
        names = sorted({one.embedder.model_name for one in loaded})
        embedded = await collect(
            self._embedders[name].embed(queries, kind=InputKind.QUERY) for name in names
        )
        for one in loaded:
            made_by = embedded[names.index(one.embedder.model_name)].revision
            if made_by not in ("", one.embedder.revision):
                raise ServiceUnavailableError(
                    f"The embedding model {one.embedder.model_name} is being replaced.",
                    retry_after_s=1.0,
                )
        return {
            name: embeddings.vectors_ND for name, embeddings in zip(names, embedded, strict=True)
        }

    async def _check_embedder(self, loaded: LoadedBucket) -> None:
        made_with = loaded.embedder
        name = made_with.model_name
        embedder = self._embedders.get(name)
        if embedder is None:
            raise BadRequestError(
                f"The bucket {loaded.ref.name!r} was embedded by {name!r}, which is not served any "
                f"more (served are: {', '.join(sorted(self._embedders))}): embed the bucket again, "
                "or add the model to `embedders`."
            )
        served = await embedder.facts()
        if (served.revision, served.width) != (made_with.revision, made_with.width):
            raise BadRequestError(
                f"The bucket {loaded.ref.name!r} was embedded by revision {made_with.revision} of "
                f"{name!r}, and revision {served.revision} is served now, whose vectors are "
                "others: embed the bucket again, or serve the former revision."
            )

    async def _texts(
        self, buckets: Sequence[BucketRef], candidates: Sequence[Candidate]
    ) -> list[FoundText[Candidate]]:
        """The candidates' chunks, in their order; without those that are gone since."""
        by_bucket: dict[int, list[Candidate]] = {}
        for candidate in candidates:
            by_bucket.setdefault(candidate.bucket, []).append(candidate)
        read = await collect(
            self._store.chunks(
                buckets[bucket], [(one.segment.segment_id, one.offset) for one in found]
            )
            for bucket, found in by_bucket.items()
        )
        chunks: dict[tuple[int, str, int], Chunk | None] = {}
        for (bucket, found), part in zip(by_bucket.items(), read, strict=True):
            for one, chunk in zip(found, part, strict=True):
                chunks[bucket, one.segment.segment_id, one.offset] = chunk
        return [
            FoundText(one, (one.bucket, one.segment.filename), chunk)
            for one in candidates
            if (chunk := chunks[one.bucket, one.segment.segment_id, one.offset]) is not None
        ]

    async def _best(
        self, question: _Question, found: _Found
    ) -> list[tuple[FoundText[Candidate], float]]:
        """What is answered, and its scores."""
        if self._reranker is None or question.mode is not SearchMode.FUSED:
            texts = without_repetition(found.texts, question.max_results)
            return [(one, one.tag.score) for one in texts]
        texts = without_repetition(found.texts, max(_MIN_RERANKED, question.max_results))
        scores = await asyncio.get_running_loop().run_in_executor(
            self._reranking,
            self._reranker.score,
            question.queries[0],
            [one.chunk.text for one in texts],
        )
        order = sorted(range(len(texts)), key=lambda place: -scores[place])  # stable
        return [(texts[place], scores[place]) for place in order[: question.max_results]]


def _found_chunk(found: FoundText[Candidate], score: float, loaded: LoadedBucket) -> FoundChunk:
    candidate = found.tag
    return FoundChunk(
        bucket=loaded.ref.name,
        filename=candidate.segment.filename,
        etag=candidate.segment.etag,
        embedding_model=loaded.embedder.model_name,
        chunk=found.chunk,
        position=candidate.position,
        distance=min(2.0, max(0.0, 1.0 - candidate.cosine)),
        score=score,
    )
