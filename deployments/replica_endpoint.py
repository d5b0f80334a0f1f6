"""Where a replica can be reached and what it serves; chosen through the `ReplicaPicker` interface.

A replica publishes a `ReplicaEndpoint` as its Serve metadata. Picking is hidden behind a protocol
because Serve's own way is private and does not work without a cluster.
"""

from typing import Protocol

import msgspec


class ReplicaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the replica's engine worked out when it started."""

    model_name: str
    max_model_len: int  # tokens of prompt and output together
    vocab_size: int
    num_blocks: int
    summary: str  # one line for a person
    source: str = ""  # of the checkpoint, as configured: equal sources have equal tokens
    version: str = ""  # see `versions`
    start_seconds: dict[str, float] = {}  # how long each part of its start took, in their order


class ReplicaEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One replica's door."""

    replica_id: str
    node_id: str
    unix_path: str  # for clients on the same node
    tcp_host: str
    tcp_port: int
    facts: ReplicaFacts


class ReplicaPicker(Protocol):
    """Chooses a replica of one pool."""

    async def pick(self) -> ReplicaEndpoint:
        """A replica that is believed to be alive; waits while there is none.

        It may take seconds to learn of a death, and offers the dead one until then.

        Raises:
            ServiceUnavailableError: the pool has failed and will have no replica.
        """
        ...

    async def wake(self) -> None:
        """Have a replica started where there is none; returns when there is one.

        Raises:
            ServiceUnavailableError: as `pick`.
        """
        ...
