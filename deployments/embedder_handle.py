"""An embedding model's replicas as one `Embedder`, reached through their Serve handle."""

from collections.abc import Sequence
from typing import Final

import msgspec
import tokenizers
from ray.serve.handle import DeploymentHandle

from cluster.retrieval import EmbedderFacts, Embeddings, InputKind
from deployments.serve_calls import call_replica

# A bulk call may have a long queue before it, and only its caller knows how long is too long.
BULK_TIMEOUT_S: Final = 900.0


class PassageLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunker needs to make passages that the model reads whole."""

    tokenizer_json: str  # for `tokenizers.Tokenizer.from_str`
    max_tokens: int  # of a passage's own text


class ServeEmbedder:
    """Implements `Embedder`. Facts and limits are asked for once, and again when another revision
    of the model has answered.
    """

    def __init__(self, handle: DeploymentHandle, *, model_name: str, timeout_s: float) -> None:
        """`timeout_s`: of a query, `retrieval.search_timeout_s`."""
        self._handle = handle
        self._service = f"The embedding model {model_name}"
        self._timeout_s = timeout_s
        self._facts: EmbedderFacts | None = None
        self._passage_limits: PassageLimits | None = None

    async def facts(self) -> EmbedderFacts:
        """See `Embedder`."""
        if self._facts is None:
            facts: EmbedderFacts = await call_replica(
                self._handle.facts.remote, service=self._service, timeout_s=self._timeout_s
            )
            self._facts = facts
        return self._facts

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], *, kind: InputKind
    ) -> Embeddings:
        """See `Embedder`. When the caller is cancelled, so is the replica's work for it."""
        timeout_s = self._timeout_s if kind is InputKind.QUERY else BULK_TIMEOUT_S
        embeddings: Embeddings = await call_replica(
            lambda: self._handle.embed.remote(inputs, kind),
            service=self._service,
            timeout_s=timeout_s,
        )
        if self._facts is not None and embeddings.revision not in ("", self._facts.revision):
            self._facts = self._passage_limits = None
        return embeddings

    async def tokenizer(self) -> tokenizers.Tokenizer:
        """For a chunker: the model's own, without limits, padding and prefix.

        Raises:
            ServiceUnavailableError: no replica answers.
        """
        return tokenizers.Tokenizer.from_str((await self._limits()).tokenizer_json)

    async def max_passage_tokens(self) -> int:
        """How many tokens a passage's own text may have, so that nothing of it is cut.

        Raises:
            ServiceUnavailableError: no replica answers.
        """
        return (await self._limits()).max_tokens

    async def _limits(self) -> PassageLimits:
        if self._passage_limits is None:
            limits: PassageLimits = await call_replica(
                self._handle.passage_limits.remote,
                service=self._service,
                timeout_s=self._timeout_s,
            )
            self._passage_limits = limits
        return self._passage_limits
