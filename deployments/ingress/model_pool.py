"""The seam between HTTP and tokens: what the ingress needs of a model's replicas."""

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol

from cluster.telemetry import ReplicaLoad
from cluster.types import Request, TokenDelta


class ModelPool(Protocol):
    """One model's replicas, as the ingress sees them."""

    def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        """Deltas until every sequence of the request has finished; closing it aborts the request.

        Deltas of one sequence that had to wait for the reader may come merged into one.

        Raises:
            ServingError: before the first delta, or midway.
        """
        ...

    def end_sequence(self, request_id: str, index: int) -> None:
        """The reader wants no more of one of a request's sequences: it stops, the others go on."""
        ...

    def is_ready(self) -> bool:
        """At least one replica takes requests now."""
        ...

    @property
    def num_held(self) -> int:
        """Requests that wait, because there is no replica."""
        ...

    def stats(self) -> Mapping[str, ReplicaLoad]:
        """The newest load report of each replica, by replica id."""
        ...
