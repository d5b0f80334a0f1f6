"""Looking at a running cluster from outside: its processes, its gauges, its clients."""

import time
from collections.abc import Callable

import httpx
import openai
import psutil

from deployments.local_ray import processes_of
from tests.integration.conftest import Cluster


def client_of(cluster: Cluster) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=cluster.api_key, max_retries=0)


def processes_titled(cluster: Cluster, part: str) -> list[psutil.Process]:
    return [p for p in processes_of(cluster.state()) if part in " ".join(p.cmdline())]


def gauge(cluster: Cluster, name: str, model: str) -> float:
    """The sum over replicas of one of the gauges that the replicas report every second."""
    lines = httpx.get(f"{cluster.url}/metrics", timeout=120).text.splitlines()
    found = [line for line in lines if line.startswith(f"shoal:{name}{{") and f'"{model}"' in line]
    assert found, f"no gauge {name} of {model}"
    return sum(float(line.rpartition(" ")[2]) for line in found)


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)
