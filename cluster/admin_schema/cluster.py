"""`GET /v1/cluster`: what runs, where, how busy it is, and what the autoscaler makes of it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class NodeObject(BaseModel):
    """A host of the cluster."""

    id: str
    address: str
    is_alive: bool
    cpus: float  # places on Ray
    gpus: float


class ReplicaLoadObject(BaseModel):
    """What a model's replica reported last."""

    model_config = ConfigDict(from_attributes=True)

    num_requests_running: int
    num_requests_waiting: int
    num_waiting_prefill_tokens: int
    kv_cache_usage: float  # 0 … 1


class ReplicaObject(BaseModel):
    id: str
    state: str  # Serve's word: STARTING, RUNNING, STOPPING, …
    node_id: str | None  # None: it has no place yet
    started_at: float | None  # Unix time
    load: ReplicaLoadObject | None = None  # None: not a model's, or nothing was heard of it here


class DecisionObject(BaseModel):
    """What the autoscaler decided last."""

    num_replicas: int
    reason: str
    at: float  # Unix time


class PoolObject(BaseModel):
    """The replicas of one deployment."""

    name: str
    kind: Literal["model", "embedder", "retrieval", "task_worker", "ingress"]
    status: str  # Serve's word: HEALTHY, UPDATING, UPSCALING, DOWNSCALING, UNHEALTHY, …
    message: str
    num_wanted: int  # replicas that are to be there
    replicas: list[ReplicaObject]
    decision: DecisionObject | None  # None: the number is fixed, or nothing was decided yet
    num_held: int = 0  # requests that wait for a first replica, in the ingress that answers


class ClusterObject(BaseModel):
    object: Literal["cluster"] = "cluster"
    status: str  # Serve's word: RUNNING, DEPLOYING, UNHEALTHY, …
    nodes: list[NodeObject]
    pools: list[PoolObject]
