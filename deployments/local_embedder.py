"""An embedding model of this process, as everybody asks for it: texts in, vectors out, batched.

Tokenizes beside the event loop, remembers the vectors of recent queries, and lets an
`EmbeddingQueue` compute. Implements `Embedder`.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
from numpy.typing import NDArray

from cluster.config import EmbedderConfig
from cluster.errors import ValidationError
from cluster.openai_schema.embeddings import MAX_REQUEST_TOKENS, too_many_tokens
from cluster.retrieval import EmbedderFacts, Embeddings, InputKind
from deployments.embedding_queue import EmbeddingQueue
from models.embedding.text_embedder import TextEmbedder

_MAX_INLINE_CHARS = 1024  # tokenized in less time than it takes to wake a thread
_SLICE_CHARS = 65_536  # about 50 ms: then it is another call's turn
_CHARS_PER_TOKEN = 4  # until they are counted
_MAX_REMEMBERED_QUERIES = 1024
_MAX_REMEMBERED_CHARS = 2048  # of one query

Rows = list[list[int]]


class LocalEmbedder:
    """`start` it on the loop that calls it."""

    def __init__(self, config: EmbedderConfig, embedder: TextEmbedder) -> None:
        self._name = config.name
        self._embedder = embedder
        self._queue = EmbeddingQueue(embedder, max_queued_tokens=config.max_queued_tokens)
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizing")
        self._remembered = _RecentQueries()

    def start(self) -> None:
        self._queue.start()

    async def stop(self) -> None:
        """Answer the calls that are here, then stop."""
        await self._queue.drain()
        await self._queue.stop()
        await asyncio.to_thread(self._tokenizing.shutdown)

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: nothing is computed any more.
        """
        self._queue.check_health()

    @property
    def queue(self) -> EmbeddingQueue:
        return self._queue

    async def facts(self) -> EmbedderFacts:
        """See `Embedder`."""
        return EmbedderFacts(
            model_name=self._name,
            revision=self._embedder.revision,
            width=self._embedder.width,
            max_input_tokens=self._embedder.max_input_tokens,
        )

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], *, kind: InputKind
    ) -> Embeddings:
        """See `Embedder`. Token ids are read as they are: no prefix and no special tokens."""
        if not inputs:
            raise ValidationError.of("input", "must not be empty")
        if kind is InputKind.QUERY and all(isinstance(item, str) for item in inputs):
            return await self._embed_queries(cast(Sequence[str], inputs))
        rows, vectors_ND = await self._embed(inputs, kind)
        return self._embeddings(vectors_ND, sum(len(row) for row in rows))

    async def _embed_queries(self, texts: Sequence[str]) -> Embeddings:
        found = {text: self._remembered.find(text) for text in dict.fromkeys(texts)}
        missing = [text for text, embedded in found.items() if embedded is None]
        if missing:
            rows, vectors_ND = await self._embed(missing, InputKind.QUERY)
            for text, row, vector_D in zip(missing, rows, vectors_ND, strict=True):
                found[text] = (vector_D, len(row))
                self._remembered.keep(text, vector_D, len(row))
        embedded = [cast(tuple[NDArray[np.float32], int], found[text]) for text in texts]
        return self._embeddings(
            np.stack([vector_D for vector_D, _ in embedded]),
            sum(num_tokens for _, num_tokens in embedded),
        )

    def _embeddings(self, vectors_ND: NDArray[np.float32], num_tokens: int) -> Embeddings:
        return Embeddings(
            vectors_ND=vectors_ND, num_tokens=num_tokens, revision=self._embedder.revision
        )

    async def _embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], kind: InputKind
    ) -> tuple[Rows, NDArray[np.float32]]:
        with self._queue.admit(kind, num_tokens=_expected_tokens(inputs)) as call:
            rows = await self._rows(inputs, kind)
            return rows, await call.compute(rows)

    async def _rows(self, inputs: Sequence[str] | Sequence[Sequence[int]], kind: InputKind) -> Rows:
        if not isinstance(inputs[0], str):
            token_ids = cast(Sequence[Sequence[int]], inputs)
            return self._embedder.checked(token_ids, is_cut=kind.is_cut)
        texts = cast(Sequence[str], inputs)
        if sum(map(len, texts)) <= _MAX_INLINE_CHARS:
            return self._tokenize(texts, kind, 0)
        loop = asyncio.get_running_loop()
        rows: Rows = []
        num_tokens = 0
        for part in _slices(texts):
            found = await loop.run_in_executor(
                self._tokenizing, self._tokenize, part, kind, len(rows)
            )
            rows += found
            num_tokens += sum(len(row) for row in found)
            if not kind.is_cut and num_tokens > MAX_REQUEST_TOKENS:
                raise too_many_tokens(f"{num_tokens} in the first {len(rows)} inputs")
        return rows

    def _tokenize(self, texts: Sequence[str], kind: InputKind, first: int) -> Rows:
        if not kind.is_cut:
            return self._embedder.whole(texts, first=first)
        prefixes = self._embedder.prefixes
        prefix = prefixes.query if kind is InputKind.QUERY else prefixes.passage
        return self._embedder.cut(texts, prefix=prefix, first=first)


class _RecentQueries:
    """The vectors of the last queries, and how many tokens each had."""

    def __init__(self) -> None:
        self._vectors: OrderedDict[str, tuple[NDArray[np.float32], int]] = OrderedDict()

    def find(self, text: str) -> tuple[NDArray[np.float32], int] | None:
        found = self._vectors.get(text)
        if found is not None:
            self._vectors.move_to_end(text)
        return found

    def keep(self, text: str, vector_D: NDArray[np.float32], num_tokens: int) -> None:
        if len(text) > _MAX_REMEMBERED_CHARS:
            return
        self._vectors[text] = (vector_D.copy(), num_tokens)
        if len(self._vectors) > _MAX_REMEMBERED_QUERIES:
            self._vectors.popitem(last=False)


def _expected_tokens(inputs: Sequence[str] | Sequence[Sequence[int]]) -> int:
    num_items = sum(map(len, inputs))
    return max(1, num_items // _CHARS_PER_TOKEN) if isinstance(inputs[0], str) else num_items


def _slices(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of texts of about `_SLICE_CHARS` together."""
    start = num_chars = 0
    for index, text in enumerate(texts):
        num_chars += len(text)
        if num_chars >= _SLICE_CHARS:
            yield texts[start : index + 1]
            start, num_chars = index + 1, 0
    if start < len(texts):
        yield texts[start:]
