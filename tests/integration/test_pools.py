"""Pools on a real cluster: ranks that share a model, and streams that outlive their replica."""

import os
import signal
from collections.abc import Iterator

import openai
import psutil
import pytest

from tests.integration.cluster_probe import client_of, processes_titled, wait_for
from tests.integration.conftest import Cluster, running_cluster

pytestmark = pytest.mark.cluster

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "Tell me about the sea."}
]
RANK = "ray::RankActor"
RECOVERY_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def pools(
    tmp_path_factory: pytest.TempPathFactory, session_environment: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    demo = {"source": "demo", "dtype": "float32", "num_cpus": 0.5, "engine": {"num_threads": 1}}
    models = [
        {**demo, "name": "two", "num_replicas": 2},
        {**demo, "name": "shared", "tensor_parallel_size": 2, "rank_placement": "pack"},
    ]
    home = tmp_path_factory.mktemp("pools")
    with running_cluster(home, session_environment, models=models) as cluster:
        yield cluster


def text_of(cluster: Cluster, model: str, max_tokens: int = 60) -> str:
    completion = client_of(cluster).chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=max_tokens,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    return completion.choices[0].message.content or ""


def answers(cluster: Cluster, model: str) -> bool:
    try:
        return bool(text_of(cluster, model, max_tokens=2))
    except openai.APIStatusError:
        return False


def test_two_ranks_as_actors_give_the_text_of_one(pools: Cluster) -> None:
    assert len(processes_titled(pools, RANK)) == 1
    assert text_of(pools, "shared") == text_of(pools, "two")


def test_a_killed_rank_costs_its_group_and_the_pool_comes_back(pools: Cluster) -> None:
    [rank] = processes_titled(pools, RANK)
    [replica] = processes_titled(pools, "ServeReplica:shoal:ModelReplica-shared")
    os.kill(rank.pid, signal.SIGKILL)
    psutil.wait_procs([replica], timeout=RECOVERY_TIMEOUT_S)
    assert not replica.is_running()
    wait_for(lambda: answers(pools, "shared"), timeout_s=RECOVERY_TIMEOUT_S)
    [new_rank] = processes_titled(pools, RANK)
    assert new_rank.pid != rank.pid


def test_ranks_leave_with_their_replica(pools: Cluster) -> None:
    [rank] = processes_titled(pools, RANK)
    [replica] = processes_titled(pools, "ServeReplica:shoal:ModelReplica-shared")
    os.kill(replica.pid, signal.SIGKILL)
    gone, _ = psutil.wait_procs([rank], timeout=10)
    assert gone
    wait_for(lambda: answers(pools, "shared"), timeout_s=RECOVERY_TIMEOUT_S)
