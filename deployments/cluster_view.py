"""The cluster as Ray and Serve see it: nodes, deployments, replicas, decisions. Read by the ingress
for `GET /v1/cluster`, and by the driver for `shoal status`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ray

from cluster.admin_schema.cluster import (
    ClusterObject,
    DecisionObject,
    NodeObject,
    PoolObject,
    ReplicaObject,
)
from cluster.config import ShoalConfig
from cluster.errors import ServiceUnavailableError
from deployments.decision_board import read_decision
from deployments.deployment_names import (
    APPLICATION_NAME,
    INGRESS_NAME,
    RETRIEVAL_NAME,
    TASK_WORKER_NAME,
    deployment_name,
    embedder_deployment_name,
)
from deployments.serve_private import serve_details

PoolKind = Literal["model", "embedder", "retrieval", "task_worker", "ingress"]


class ClusterView:
    """Looks at one application. Every method blocks for some milliseconds."""

    def __init__(self, application: str, deployments: Sequence[tuple[str, PoolKind, str]]) -> None:
        """`deployments`: what people call them, what they are, what Serve calls them."""
        self._application = application
        self._deployments = tuple(deployments)

    def read(self) -> ClusterObject:
        """
        Raises:
            ServiceUnavailableError: the controller does not know the application.
        """
        application = serve_details()["applications"].get(self._application)
        if application is None:
            raise ServiceUnavailableError("The controller does not know the application.")
        deployments = application["deployments"]
        pools = [
            _pool(name, kind, deployments[deployed_as], deployed_as)
            for name, kind, deployed_as in self._deployments
            if deployed_as in deployments
        ]
        nodes = [_node(node) for node in ray.nodes()]
        return ClusterObject(status=_word(application["status"]), nodes=nodes, pools=pools)


def cluster_view(config: ShoalConfig, application: str = APPLICATION_NAME) -> ClusterView:
    """A look at everything of this configuration."""
    deployments: list[tuple[str, PoolKind, str]] = [
        *((model.name, "model", deployment_name(model.name)) for model in config.models),
        *((one.name, "embedder", embedder_deployment_name(one.name)) for one in config.embedders),
        ("retrieval", "retrieval", RETRIEVAL_NAME),
        ("task workers", "task_worker", TASK_WORKER_NAME),
        ("ingress", "ingress", INGRESS_NAME),
    ]
    return ClusterView(application, deployments)


def _node(node: Mapping[str, Any]) -> NodeObject:
    resources = node["Resources"]
    return NodeObject(
        id=node["NodeID"],
        address=node["NodeManagerAddress"],
        is_alive=node["Alive"],
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
    )


def _pool(name: str, kind: PoolKind, details: Mapping[str, Any], deployed_as: str) -> PoolObject:
    posted = read_decision(deployed_as)
    return PoolObject(
        name=name,
        kind=kind,
        status=_word(details["status"]),
        message=details["message"],
        num_wanted=details["target_num_replicas"],
        replicas=[_replica(replica) for replica in details["replicas"]],
        decision=None
        if posted is None
        else DecisionObject(num_replicas=posted.num_replicas, reason=posted.reason, at=posted.at_s),
    )


def _replica(details: Mapping[str, Any]) -> ReplicaObject:
    return ReplicaObject(
        id=details["replica_id"],
        state=_word(details["state"]),
        node_id=details.get("node_id"),
        started_at=details.get("start_time_s"),
    )


def _word(status: object) -> str:
    """An enum in some of Serve's answers, a string in others."""
    return str(getattr(status, "value", status))
