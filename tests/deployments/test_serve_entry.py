"""The application as KubeRay's RayService builds it."""

from pathlib import Path

import pytest
from ray.serve import Application

from cluster.config import ConfigError
from deployments.serve_entry import EntryArguments, build


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EntryArguments:
    for name in ("SHOAL_API_KEY", "SHOAL_REDIS_URL", "SHOAL_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHOAL_CLUSTER_SECRET", "s" * 32)
    path = tmp_path / "shoal.yaml"
    path.write_text("models:\n- {name: m, source: demo}\n")
    return EntryArguments(config=path)


def test_keys_and_redis_come_from_the_environment(
    arguments: EntryArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_REDIS_URL", "redis://redis:6379")
    monkeypatch.setenv("SHOAL_API_KEY", "shoal-key")
    assert isinstance(build(arguments), Application)


def test_what_is_missing_in_the_environment_is_named(
    arguments: EntryArguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no Redis: set SHOAL_REDIS_URL"):
        build(arguments)
    monkeypatch.setenv("SHOAL_REDIS_URL", "redis://redis:6379")
    with pytest.raises(ConfigError, match="no API key: set SHOAL_API_KEY"):
        build(arguments)
    monkeypatch.setenv("SHOAL_API_KEY", "shoal-key")
    monkeypatch.setenv("SHOAL_CLUSTER_SECRET", "short")
    with pytest.raises(ConfigError, match="set SHOAL_CLUSTER_SECRET"):
        build(arguments)
