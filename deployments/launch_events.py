"""What the driver tells the launcher, one JSON object per line."""

import msgspec

from deployments.replica_endpoint import ReplicaFacts


class Phase(msgspec.Struct, frozen=True, kw_only=True, tag="phase"):
    """What it does now, for a person."""

    text: str


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The application runs."""

    facts: list[ReplicaFacts]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """It cannot be done; the message is meant for a person."""

    message: str


class PoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model's replicas, together."""

    model_name: str
    status: str  # Serve's word: HEALTHY, UPDATING, UNHEALTHY, …
    message: str
    replica_states: dict[str, int]  # Serve's words: RUNNING, STARTING, …
    num_requests_running: int
    num_requests_waiting: int
    kv_cache_usage: float  # of the fullest replica, 0 … 1
    tokens_per_s: float  # generated, all replicas
    decision: str = ""  # of the autoscaler, for a person; "" where the number is fixed


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One of the other deployments: an embedding model, retrieval, the task workers."""

    name: str
    status: str  # Serve's word
    message: str
    replica_states: dict[str, int]
    decision: str = ""


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A host."""

    address: str
    is_alive: bool
    cpus: float  # places on Ray
    gpus: float


class Report(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """The application as it is."""

    status: str  # Serve's word: RUNNING, DEPLOYING, UNHEALTHY, …
    pools: list[PoolStatus]
    services: list[ServiceStatus] = []
    nodes: list[NodeStatus] = []


Event = Phase | Ready | Failed | Report

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> str:
    return msgspec.json.encode(event).decode()


def decode_event(line: bytes) -> Event | None:
    """None for a line that is not an event: a library wrote to standard output."""
    try:
        return _decoder.decode(line)
    except msgspec.DecodeError:
        return None
