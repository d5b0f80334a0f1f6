"""Pools on a real cluster: ranks that share a model, and streams that outlive their replica."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.integration.cluster_probe import client_of, processes_titled, wait_for
from tests.integration.conftest import Cluster, running_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "Tell me about the sea."}
]
RANK = "ray::RankActor"
RECOVERY_TIMEOUT_S = 600.0


@pytest.fixture(scope="module")
def pools(
    tmp_path_factory: pytest.TempPathFactory, session_environment: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    engine = {"num_threads": 1, "kv_cache_memory_bytes": 2**26}
    demo = {"source": "demo", "dtype": "float32", "num_cpus": 0.5, "engine": engine}
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


Ask = dict[str, Any]
# Long, and different each time that something is drawn anew.
SAMPLED: Ask = {"temperature": 0.9, "seed": 7, "max_tokens": 600}
ASKS: dict[str, Ask] = {
    "greedy": {"temperature": 0, "max_tokens": 600},
    "sampled": SAMPLED,
    "three choices": {**SAMPLED, "n": 3, "max_tokens": 250},
    "logprobs": {**SAMPLED, "logprobs": True, "top_logprobs": 2},
    "guided": {**SAMPLED, "extra_body": {"guided_regex": "[a-z ]{500,800}"}},
}


@dataclass(slots=True)
class Streamed:
    """What a stream has brought so far."""

    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    num_logprobs: int = 0
    usage: openai.types.CompletionUsage | None = None
    num_events: int = 0

    def add(self, chunk: openai.types.chat.ChatCompletionChunk) -> None:
        self.num_events += 1
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            text = self.texts.get(choice.index, "")
            self.texts[choice.index] = text + (choice.delta.content or "")
            if choice.finish_reason is not None:
                self.finish_reasons[choice.index] = choice.finish_reason
            if choice.logprobs is not None:
                self.num_logprobs += len(choice.logprobs.content or ())


def stream(cluster: Cluster, ask: Ask, streamed: Streamed | None = None) -> Streamed:
    """Read a stream of the pool `two` to its end, into what is given."""
    streamed = streamed or Streamed()
    ask = {**ask, "extra_body": {"ignore_eos": True, **ask.get("extra_body", {})}}
    if "guided_regex" in ask["extra_body"]:
        del ask["extra_body"]["ignore_eos"]
    chunks = client_of(cluster).chat.completions.create(
        model="two",
        messages=MESSAGES,
        stream=True,
        stream_options={"include_usage": True},
        **ask,
    )
    for chunk in chunks:
        streamed.add(chunk)
    return streamed


def disturbed_stream(cluster: Cluster, ask: Ask) -> Streamed:
    """A stream whose replica is killed on the way. Which one has it? Both are stopped, and one of
    them goes on: it has the stream if that goes on as well.
    """
    first, second = processes_titled(cluster, "ServeReplica:shoal:ModelReplica-two")
    streamed = Streamed()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(stream, cluster, ask, streamed)
        wait_for(lambda: streamed.num_events >= 8)
        for replica in (first, second):
            replica.suspend()
        num_before = -1
        while num_before != streamed.num_events:  # what was on its way
            num_before = streamed.num_events
            time.sleep(1)
        first.resume()
        try:
            wait_for(lambda: streamed.num_events > num_before, timeout_s=5)
        except AssertionError:
            second.kill()
        else:
            first.kill()
            second.resume()
        reading.result()
    return streamed


@pytest.mark.parametrize("kind", ASKS)
def test_a_stream_outlives_its_replica_unchanged(pools: Cluster, kind: str) -> None:
    wait_for(
        lambda: answers(pools, "two") and num_replicas(pools, "two") == 2,
        timeout_s=RECOVERY_TIMEOUT_S,
    )
    num_moves = moves(pools)
    undisturbed = stream(pools, ASKS[kind])
    disturbed = disturbed_stream(pools, ASKS[kind])
    assert moves(pools) == num_moves + 1
    assert disturbed.texts == undisturbed.texts
    assert disturbed.finish_reasons == undisturbed.finish_reasons
    assert disturbed.num_logprobs == undisturbed.num_logprobs
    assert disturbed.usage is not None
    assert undisturbed.usage is not None
    assert disturbed.usage.completion_tokens == undisturbed.usage.completion_tokens
    assert disturbed.usage.prompt_tokens == undisturbed.usage.prompt_tokens


def moves(cluster: Cluster) -> int:
    """How many streams went on elsewhere so far."""
    logs = (cluster.home / "logs").glob("replica_shoal_Ingress*.log")
    return sum(path.read_text(encoding="utf-8").count("goes on elsewhere") for path in logs)


def num_replicas(cluster: Cluster, model: str) -> int:
    """Those that the ingress is connected to."""
    lines = httpx.get(f"{cluster.url}/metrics", timeout=120).text.splitlines()
    name = "shoal:num_requests_running{"
    return sum(line.startswith(name) and f'"{model}"' in line for line in lines)


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
    gone, _ = psutil.wait_procs([rank], timeout=120)
    assert gone
    wait_for(lambda: answers(pools, "shared"), timeout_s=RECOVERY_TIMEOUT_S)
