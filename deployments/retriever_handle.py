"""All retrieval replicas as one `Retriever`, reached through their Serve handle."""

from collections.abc import Sequence

from ray.serve.handle import DeploymentHandle

from cluster.retrieval import SearchMode
from cluster.types import BucketRef, FoundChunk
from deployments.serve_calls import call_replica


class ServeRetriever:
    """Implements `Retriever`."""

    def __init__(self, handle: DeploymentHandle, *, timeout_s: float) -> None:
        """`timeout_s`: `retrieval.search_timeout_s`."""
        self._handle = handle
        self._timeout_s = timeout_s

    async def search(
        self,
        buckets: Sequence[BucketRef],
        queries: Sequence[str],
        *,
        max_results: int,
        mode: SearchMode = SearchMode.FUSED,
    ) -> list[FoundChunk]:
        """See `Retriever`. When the caller is cancelled, so is the replica's work for it."""
        found: list[FoundChunk] = await call_replica(
            lambda: self._handle.search.remote(list(buckets), list(queries), max_results, mode),
            service="Retrieval",
            timeout_s=self._timeout_s,
        )
        return found
