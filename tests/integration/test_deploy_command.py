"""`shoal deploy` on a Ray cluster that somebody else started."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from cluster.config import ShoalConfig, parse_config
from deployments.cluster_secret import new_secret
from deployments.local_ray import LocalRay
from tests.integration.conftest import free_port, share_kernels

pytestmark = pytest.mark.cluster


def demo_config(port: int) -> ShoalConfig:
    return parse_config(
        {
            "models": [{"name": "shoal/demo-chat", "source": "demo", "num_cpus": 0.5}],
            "embedders": [],  # the Redis of ours would have a fixed port
            "http": {"port": port},
        }
    )


@pytest.fixture
def running_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a Ray cluster with nothing deployed on it."""
    for name in ("SHOAL_REDIS_URL", "SHOAL_API_KEY", "SHOAL_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    share_kernels(tmp_path)
    # Who deploys from another home than that of Ray's processes has to share it.
    monkeypatch.setenv("SHOAL_CLUSTER_SECRET", new_secret())
    ray = LocalRay(tmp_path)
    state = ray.start(demo_config(8000))
    try:
        yield ray.driver_environment(state)
    finally:
        ray.stop()


def test_the_api_answers_when_deploy_returns_and_again_after_a_change(
    running_ray: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    home = tmp_path / "deployer"  # not the one of the cluster of this machine
    environment = {**running_ray, "SHOAL_HOME": str(home)}
    shoal = [sys.executable, "-c", "from cluster.cli import main; main()"]

    def deploy(config: ShoalConfig) -> None:
        path = tmp_path / "shoal.yaml"
        path.write_text(json.dumps(config.model_dump(mode="json")))  # JSON is YAML
        done = subprocess.run(
            [*shoal, "deploy", str(path), "--timeout", "120"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    deploy(demo_config(port))
    client = OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1",
        api_key=(home / "api_key").read_text().strip(),
    )
    assert [model.id for model in client.models.list()] == ["shoal/demo-chat"]
    changed = demo_config(port)
    renamed = changed.models[0].model_copy(update={"name": "other"})
    deploy(changed.model_copy(update={"models": (*changed.models, renamed)}))
    assert {model.id for model in client.models.list()} == {"shoal/demo-chat", "other"}
    status = subprocess.run(
        [*shoal, "status", "--json"], env=environment, capture_output=True, text=True, check=False
    )
    assert status.returncode == 0, status.stderr
    found = json.loads(status.stdout)
    assert found["url"] == f"http://127.0.0.1:{port}"
    assert {pool["model_name"] for pool in found["pools"]} == {"shoal/demo-chat", "other"}
