"""`GET /v1/cluster`: the cluster as Serve sees it, with the loads that this ingress hears of."""

import asyncio
from collections.abc import Callable, Mapping

from starlette.types import Receive, Scope, Send

from cluster.admin_schema.cluster import ClusterObject, PoolObject, ReplicaLoadObject
from cluster.errors import NotFoundError
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY
from deployments.ingress.model_pool import ModelPool
from deployments.ingress.served_model import ModelDirectory

ReadCluster = Callable[[], ClusterObject]  # blocks


class Cluster:
    """Pools, replicas, nodes, and what the autoscaler decided."""

    def __init__(self, models: ModelDirectory, read: ReadCluster | None) -> None:
        """`read`: None where there is no cluster, as in tests of one process."""
        self._pools: Mapping[str, ModelPool] = {model.name: model.pool for model in models.all()}
        self._read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].route = "/v1/cluster"
        if self._read is None:
            raise NotFoundError("There is no cluster here.")
        found = await asyncio.to_thread(self._read)
        pools = [self._with_load(pool) for pool in found.pools]
        body = found.model_copy(update={"pools": pools}).model_dump_json().encode()
        await send_json(send, body)

    def _with_load(self, pool: PoolObject) -> PoolObject:
        channel_pool = self._pools.get(pool.name)
        if pool.kind != "model" or channel_pool is None:
            return pool
        loads = channel_pool.stats()
        replicas = []
        for replica in pool.replicas:
            load = loads.get(replica.id)
            seen = None if load is None else ReplicaLoadObject.model_validate(load)
            replicas.append(replica.model_copy(update={"load": seen}))
        update = {"replicas": replicas, "num_held": channel_pool.num_held}
        return pool.model_copy(update=update)
