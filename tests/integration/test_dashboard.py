"""What Ray's dashboard shows of a cluster: nothing that is a secret, and nothing that people write.

Clusters of ours run without one; where Ray was started by somebody else, there may be one.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.api_keys import hash_key, new_key
from cluster.config import ShoalConfig, parse_config
from deployments import local_ray
from deployments.cluster_secret import new_secret
from tests.integration.conftest import free_port
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

MODEL = "shoal/demo-chat"
KEY = new_key()
CLUSTER_SECRET = new_secret()
REDIS_PASSWORD = "zebra-planted-redis-password"
PROVIDER_SECRET = "zebra-planted-provider-secret"
PROMPT = "zebra-planted-prompt"
MARKERS = (KEY.removeprefix("shoal-"), CLUSTER_SECRET, REDIS_PASSWORD, PROVIDER_SECRET, PROMPT)
# Lists, and where something is told of one of them. Those with an effect are left out.
PAGES = (
    "/",
    "/nodes?view=summary",
    "/logical/actors",
    "/events",
    "/test/dump",
    "/api/component_activities",
    "/api/cluster_status",
    "/api/jobs/",
    "/api/serve/applications/",
    "/api/prometheus/sd",
    "/api/v0/cluster_metadata",
    "/api/v0/tasks/timeline",
    *(
        f"/api/v0/{what}?detail=1&limit=10000"
        for what in ("actors", "jobs", "nodes", "objects", "placement_groups", "tasks", "workers")
    ),
    "/api/v0/cluster_events?detail=1",
    "/api/v0/runtime_envs?detail=1",
)


class _WithDashboard:
    """`subprocess`, but for what Ray's start is told."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    def Popen(self, command: list[str], **options: Any) -> subprocess.Popen[str]:  # noqa: N802
        told = list(command)
        for name in ("--include-dashboard", "--include-log-monitor"):
            told[told.index(name) + 1] = "true"
        return subprocess.Popen([*told, "--dashboard-port", str(self._port)], **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    url: str
    environment: dict[str, str]  # of a driver
    home: Path

    def client(self) -> httpx.Client:
        token = (self.home / "ray_token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, trust_env=False)


@pytest.fixture
def dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """Ray as ours is started, with a dashboard and a log monitor."""
    port = free_port()
    monkeypatch.setattr(local_ray, "subprocess", _WithDashboard(port))
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    monkeypatch.setenv("SHOAL_CLUSTER_SECRET", CLUSTER_SECRET)
    for name in ("SHOAL_REDIS_URL", "SHOAL_API_KEY", "SHOAL_PORT"):
        monkeypatch.delenv(name, raising=False)
    ray = local_ray.LocalRay(tmp_path)
    state = ray.start(_config(8000, "redis://unused"))
    try:
        yield Dashboard(
            url=f"http://127.0.0.1:{port}",
            environment=ray.driver_environment(state),
            home=tmp_path,
        )
    finally:
        ray.stop()


def _config(port: int, redis_url: str) -> ShoalConfig:
    return parse_config(
        {
            "models": [{"name": MODEL, "source": "demo", "num_cpus": 0.5}],
            "embedders": [],
            "redis": {"url": redis_url},
            "http": {"port": port},
            "auth": {"api_keys": [{"name": "planted", "sha256": hash_key(KEY)}]},
        }
    )


def _deploy(dashboard: Dashboard, config: ShoalConfig) -> None:
    path = dashboard.home / "shoal.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    shoal = [sys.executable, "-c", "from cluster.cli import main; main()"]
    done = subprocess.run(
        [*shoal, "deploy", str(path), "--timeout", "200"],
        env=dashboard.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _plant(url: str) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    messages = [{"role": "user", "content": PROMPT}]
    with httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
        secret = {"identifier": "mine", "type": "bearer", "token": PROVIDER_SECRET}
        assert client.post("/v2/integration_secrets", json=secret).status_code == 201
        for stream in (False, True):
            body = {"messages": messages, "max_tokens": 4, "stream": stream}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        refused = {"messages": [{"role": PROMPT, "content": 1}]}
        assert client.post("/v1/chat/completions", json=refused).status_code == 422
        external = {"model": "openai/none", "messages": messages, "api_key_ref": PROVIDER_SECRET}
        assert client.post("/v1/chat/completions", json=external).status_code == 400


def _pages(client: httpx.Client) -> dict[str, str]:
    """What the dashboard answers, by path, log files with it."""
    found = {path: client.get(path) for path in PAGES}
    nodes = json.loads(found["/api/v0/nodes?detail=1&limit=10000"].text)
    for node in nodes["data"]["result"]["result"]:
        path = f"/nodes/{node['node_id']}"
        found[path] = client.get(path)
        logs = client.get("/api/v0/logs", params={"node_id": node["node_id"], "glob": "**/*"})
        for names in logs.json()["data"]["result"].values():
            for name in names:
                query = {"node_id": node["node_id"], "filename": name, "lines": "-1"}
                path = f"/api/v0/logs/file?filename={name}"
                found[path] = client.get("/api/v0/logs/file", params=query)
    return {path: answer.text for path, answer in found.items() if answer.status_code == 200}


@pytest.mark.timeout(600)
def test_the_dashboard_shows_no_secret_and_no_prompt(
    dashboard: Dashboard, breakable_redis_server: RedisServer
) -> None:
    port = free_port()
    with breakable_redis_server.connect() as redis:
        redis.execute_command(
            "ACL", "SETUSER", "app", "on", f">{REDIS_PASSWORD}", "~*", "&*", "+@all"
        )
    path = breakable_redis_server.url.removeprefix("unix://")
    _deploy(dashboard, _config(port, f"unix://app:{REDIS_PASSWORD}@{path}"))
    _plant(f"http://127.0.0.1:{port}")
    with dashboard.client() as client:
        pages = _pages(client)
    assert [path for path in PAGES if path not in pages] == [], "all of them are there"
    assert "Ingress" in pages["/api/serve/applications/"], "it knows of the application"
    assert "ModelReplica-shoal-demo-chat" in pages["/api/serve/applications/"]
    assert any("file?" in path and "erve" in path for path in pages), "it has replicas' logs"
    for path, text in pages.items():
        for marker in MARKERS:
            assert marker not in text, f"{marker} in {path}"
