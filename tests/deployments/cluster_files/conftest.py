"""The shipped cluster files, with keys where they look for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.cluster_files.keys import make_keys

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "ray_config"

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def in_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user checks: in the repository's folder, with a home of one's own."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SHOAL_PORT", "SHOAL_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)


def load(name: str) -> dict[str, Any]:
    cluster: dict[str, Any] = yaml.safe_load((SHIPPED / name / "cluster.yaml").read_text())
    return cluster


@pytest.fixture
def changed(in_repository: None, tmp_path: Path) -> Callable[[str, Change], Path]:
    """A shipped file with a change, and all its keys."""

    def write(name: str, change: Change) -> Path:
        cluster = load(name)
        make_keys(cluster)
        change(cluster)
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump(cluster, sort_keys=False))
        return path

    return write
