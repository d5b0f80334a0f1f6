"""The operation about the cluster itself, as `operations` has those of everything else."""

from cluster.admin_schema.cluster import ClusterObject
from cluster.tenant_config import KeyScope
from deployments.ingress.operation import Operation

CLUSTER = Operation(
    name="cluster",
    summary="Nodes, pools, replicas, and what the autoscaler decided",
    method="GET",
    paths=("/v1/cluster",),
    scopes=(KeyScope.ADMIN,),
    answer=ClusterObject,
    errors=(404, 500, 503),
)
