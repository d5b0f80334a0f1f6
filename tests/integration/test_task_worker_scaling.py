"""Task workers on a real cluster: batches that wait bring another one."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster_probe import client_of, processes_titled, wait_for
from tests.integration.conftest import Cluster, free_port, running_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_BATCHES = 6  # a worker runs four at once
NUM_LINES = 50
SCALE_TIMEOUT_S = 300.0


@pytest.fixture(scope="module")
def batching(
    tiny_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    session_environment: pytest.MonkeyPatch,
) -> Iterator[Cluster]:
    model = {
        "name": "slow",
        "source": str(tiny_checkpoint),
        "num_cpus": 0.1,
        "engine": {"synthetic_step_ms": 200, "max_num_seqs": 4},
    }
    config: dict[str, object] = {
        "models": [model],
        "embedders": [{"name": "shoal/demo-embed", "source": "demo"}],
        "retrieval": {"max_task_workers": 2},
        "http": {"port": free_port()},
    }
    home = tmp_path_factory.mktemp("batching")
    with running_cluster(home, session_environment, **config) as cluster:
        yield cluster


def num_workers(cluster: Cluster) -> int:
    return len(processes_titled(cluster, "ServeReplica:shoal:TaskWorker"))


def test_batches_that_wait_bring_another_task_worker(batching: Cluster) -> None:
    assert num_workers(batching) == 1
    body = {"model": "slow", "prompt": "a", "max_tokens": 200, "ignore_eos": True}
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}
        for number in range(NUM_LINES)
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    client = client_of(batching)
    file = client.files.create(file=("in.jsonl", io.BytesIO(text.encode())), purpose="batch")
    for _ in range(NUM_BATCHES):
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
    wait_for(lambda: num_workers(batching) == 2, timeout_s=SCALE_TIMEOUT_S)
