"""Scaling by work on a real cluster: a burst brings a second replica, silence ends the last one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.integration.cluster_probe import client_of, processes_titled, wait_for
from tests.integration.conftest import Cluster, running_cluster

# Starts replicas three times, one after the other.
pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

REPLICA = "ServeReplica:shoal:ModelReplica"
SCALE_TIMEOUT_S = 600.0
NUM_TOKENS = 300  # at 20 ms each


@pytest.fixture(scope="module")
def scaled(
    tiny_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    session_environment: pytest.MonkeyPatch,
) -> Iterator[Cluster]:
    model = {
        "name": "sleeper",
        "source": str(tiny_checkpoint),
        "num_cpus": 0.1,
        "min_replicas": 0,
        "max_replicas": 2,
        "autoscaling": {
            "target_num_seqs": 4,
            "downscale_delay_s": 4,
            "idle_before_zero_s": 6,
        },
        "engine": {"synthetic_step_ms": 20},
    }
    home = tmp_path_factory.mktemp("scaled")
    with running_cluster(home, session_environment, models=[model]) as cluster:
        yield cluster


def num_replicas(cluster: Cluster) -> int:
    return len(processes_titled(cluster, REPLICA))


async def num_streamed(client: openai.AsyncOpenAI) -> int:
    """The tokens of one stream; raises where it is refused or cut."""
    num_tokens = 0
    stream = await client.completions.create(
        model="sleeper",
        prompt="a",
        max_tokens=NUM_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for event in stream:
        if event.usage is not None:
            num_tokens = event.usage.completion_tokens
    return num_tokens


async def burst(cluster: Cluster) -> list[int]:
    """Streams that begin one after the other, until there are two replicas and after."""
    async with (
        openai.AsyncOpenAI(
            base_url=f"{cluster.url}/v1", api_key=cluster.api_key, max_retries=0, timeout=600
        ) as client,
        asyncio.timeout(SCALE_TIMEOUT_S + 600),
    ):
        streams: list[asyncio.Task[int]] = []
        num_after = 0
        while num_after < 20:
            streams.append(asyncio.create_task(num_streamed(client)))
            await asyncio.sleep(0.3)
            assert len(streams) * 0.3 < SCALE_TIMEOUT_S, "there is no second replica"
            found = await asyncio.to_thread(num_replicas, cluster)
            assert found <= 2
            num_after += found == 2
        return list(await asyncio.gather(*streams))


def test_a_burst_brings_a_replica_and_silence_takes_all_without_a_failed_request(
    scaled: Cluster,
) -> None:
    assert num_replicas(scaled) <= 1  # it may have fallen asleep on a busy machine
    assert set(asyncio.run(burst(scaled))) == {NUM_TOKENS}
    wait_for(lambda: num_replicas(scaled) == 0, timeout_s=SCALE_TIMEOUT_S)

    client = client_of(scaled)
    held = client.completions.create(
        model="sleeper", prompt="a", max_tokens=5, extra_body={"ignore_eos": True}
    )
    assert held.usage is not None
    assert held.usage.completion_tokens == 5
