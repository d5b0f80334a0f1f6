from pathlib import Path

from cluster.admin_schema.cluster import (
    ClusterObject,
    DecisionObject,
    NodeObject,
    PoolObject,
    ReplicaObject,
)
from tests.deployments.ingress.scripted_server import MODEL, configuration, serving


def replica(replica_id: str, state: str) -> ReplicaObject:
    return ReplicaObject(id=replica_id, state=state, node_id="n", started_at=1.0)


def cluster() -> ClusterObject:
    model = PoolObject(
        name=MODEL,
        kind="model",
        status="UPSCALING",
        message="",
        num_wanted=2,
        replicas=[replica("replica-a", "RUNNING"), replica("replica-b", "STARTING")],
        decision=DecisionObject(num_replicas=2, reason="7 waiting", at=12.5),
    )
    ingress = PoolObject(
        name="ingress",
        kind="ingress",
        status="HEALTHY",
        message="",
        num_wanted=1,
        replicas=[replica("replica-a", "RUNNING")],
        decision=None,
    )
    node = NodeObject(id="n", address="10.0.0.1", is_alive=True, cpus=4, gpus=0)
    return ClusterObject(status="RUNNING", nodes=[node], pools=[model, ingress])


async def test_what_serve_says_comes_with_the_loads_that_the_ingress_hears(
    checkpoint: Path,
) -> None:
    async with (
        serving(checkpoint, configuration(), read_cluster=cluster) as server,
        server.http() as client,
    ):
        answer = (await client.get("/v1/cluster")).json()
    model, ingress = answer["pools"]
    assert answer["object"] == "cluster"
    assert answer["nodes"][0]["address"] == "10.0.0.1"
    assert model["decision"] == {"num_replicas": 2, "reason": "7 waiting", "at": 12.5}
    assert model["num_held"] == 4
    assert [one["load"] for one in model["replicas"]] == [
        {
            "num_requests_running": 2,
            "num_requests_waiting": 3,
            "num_waiting_prefill_tokens": 40,
            "kv_cache_usage": 0.25,
        },
        None,
    ]
    assert ingress["replicas"][0]["load"] is None, "a replica of something else"


async def test_a_process_without_a_cluster_has_none_to_show(checkpoint: Path) -> None:
    async with serving(checkpoint, configuration()) as server, server.http() as client:
        assert (await client.get("/v1/cluster")).status_code == 404
