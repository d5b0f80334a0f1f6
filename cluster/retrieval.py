"""The interfaces between the processes that retrieve: who embeds, who searches.

Replicas implement them, `deployments` reaches them through Serve's handles, tests through fakes.

Shapes: N = texts, D = the embedding's width.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from cluster.types import BucketRef, FoundChunk


class InputKind(StrEnum):
    """What a text is, for models that want to be told by a prefix; and how urgent it is."""

    PLAIN = "plain"  # as it is: the embeddings endpoint
    QUERY = "query"
    PASSAGE = "passage"
    BULK = "bulk"  # as PLAIN, in a batch: nobody waits for it

    @property
    def is_cut(self) -> bool:
        """Whether a text that is longer than the model reads is cut, and not refused."""
        return self in (InputKind.QUERY, InputKind.PASSAGE)


class SearchMode(StrEnum):
    """How chunks are ranked."""

    FUSED = "fused"  # dense and lexical ranks, fused by reciprocal rank
    DENSE = "dense"  # cosine distance
    LEXICAL = "lexical"  # BM25


class EmbedderFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an embedding model is. Vectors of models that differ in any of these do not mix."""

    model_name: str
    revision: str  # a digest of its weights and settings
    width: int
    max_input_tokens: int


class Embeddings(msgspec.Struct, frozen=True, kw_only=True):
    """Unit vectors, one per input, and what they cost."""

    vectors_ND: NDArray[np.float32]
    num_tokens: int
    # Of the model that made them: while it is replaced another one may answer than told its facts.
    revision: str = ""  # "" where it is not told


class Embedder(Protocol):
    """One embedding model's replicas."""

    async def facts(self) -> EmbedderFacts:
        """
        Raises:
            ServiceUnavailableError: no replica answers.
        """
        ...

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], *, kind: InputKind
    ) -> Embeddings:
        """Embed texts or token ids; texts longer than the model reads are cut or refused, see
        `InputKind.is_cut`.

        Raises:
            ValidationError: an input is empty, too long or has unknown tokens; names `input.i`.
            TooManyRequestsError: more tokens wait than are kept.
            ServiceUnavailableError: no replica answers.
        """
        ...


class Retriever(Protocol):
    """All retrieval replicas."""

    async def search(
        self,
        buckets: Sequence[BucketRef],
        queries: Sequence[str],
        *,
        max_results: int,
        mode: SearchMode = SearchMode.FUSED,
    ) -> list[FoundChunk]:
        """The best chunks of all the buckets together, best first.

        Several queries are several ways to ask for the same; the first counts most.

        Raises:
            NotFoundError: a bucket does not exist or was never embedded; the message names it.
            ServiceUnavailableError: Redis or every replica is away; has `retry_after_s`.
        """
        ...
