"""Which replica a request with a LoRA adapter goes to: one that has the adapter, while it is not
much busier than another one, that would have to load it."""

from collections.abc import Iterable

from deployments.channel_client import ReplicaConnection

# A replica that has the adapter may have this many streams more, and this many times as many, as
# the one that would be chosen without adapters. Beyond it a second replica loads the adapter.
SPARE_STREAMS = 8
MAX_RATIO = 2


def prefer_loaded(
    adapter: str, chosen: ReplicaConnection, connections: Iterable[ReplicaConnection]
) -> ReplicaConnection:
    """The replica for a request that would go to `chosen` if it had no adapter."""
    loaded = [one for one in connections if one.is_usable and one.has_adapter(adapter)]
    if not loaded:
        return chosen
    best = min(loaded, key=lambda one: one.num_streams)
    limit = MAX_RATIO * chosen.num_streams + SPARE_STREAMS
    return best if best.num_streams <= limit else chosen
