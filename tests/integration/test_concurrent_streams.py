"""Two hundred streams at once, a third of them closed midway, over and over."""

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from tests.integration.cluster_probe import gauge, processes_titled, wait_for
from tests.integration.conftest import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NUM_STREAMS = 200
NUM_ROUNDS = 4  # the first one warms up: kernels for the step sizes that it meets stay
MAX_TOKENS = 120
ALLOWED_GROWTH_BYTES = 12 * 2**20  # allocators keep some of what a round took


async def one_stream(client: httpx.AsyncClient, model: str, number: int) -> str:
    """Read a stream to its end, or leave it after a few events; return how it ended."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"stream {number} " + "words " * (number % 40)}],
        "max_tokens": MAX_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "temperature": 1.0,
    }
    leaves_after = 3 + number % 20 if number % 3 == 0 else None
    num_events = 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            num_events += line.startswith("data: {")
            assert '"error"' not in line, line
            if leaves_after is not None and num_events > leaves_after:
                return "left"
            if line == "data: [DONE]":
                return "done"
    return "cut"


async def one_round(cluster: Cluster, model: str) -> list[str]:
    async with httpx.AsyncClient(
        base_url=cluster.url,
        headers={"Authorization": f"Bearer {cluster.api_key}"},
        limits=httpx.Limits(max_connections=NUM_STREAMS),
        timeout=120,
    ) as client:
        streams = (one_stream(client, model, number) for number in range(NUM_STREAMS))
        return await asyncio.gather(*streams)


def resident_bytes(cluster: Cluster) -> dict[str, int]:
    """Of the processes that a request passes through."""
    return {
        title: sum(p.memory_info().rss for p in processes_titled(cluster, title))
        for title in ("Ingress", "ModelReplica-tiny", "ModelReplica-synthetic")
    }


def complaints(home: Path) -> list[str]:
    lines = []
    for path in (home / "logs").rglob("*.log"):
        text = path.read_text(encoding="utf-8", errors="replace")
        lines += re.findall(r".*(?:ERROR|Traceback|Exception).*", text)
    return lines


@pytest.mark.parametrize("model", ["tiny", "synthetic"])
def test_all_blocks_are_free_no_error_is_logged_and_memory_stays_flat(
    cluster: Cluster, model: str
) -> None:
    complaints_before = complaints(cluster.home)
    sizes: list[dict[str, int]] = []
    for _ in range(NUM_ROUNDS):
        ends = asyncio.run(one_round(cluster, model))
        assert ends.count("left") == (NUM_STREAMS + 2) // 3
        assert ends.count("done") == NUM_STREAMS - ends.count("left")
        wait_for(lambda: gauge(cluster, "num_requests_running", model) == 0)
        assert gauge(cluster, "num_requests_waiting", model) == 0
        assert gauge(cluster, "kv_cache_usage_perc", model) == 0
        sizes.append(resident_bytes(cluster))
    for title, first in sizes[1].items():
        assert sizes[-1][title] - first < ALLOWED_GROWTH_BYTES, (title, sizes)
    assert complaints(cluster.home) == complaints_before
