"""The cluster's secret is read from one place, and only when nobody else can read it."""

from pathlib import Path

import pytest

from deployments.cluster_secret import create_private_text, load_cluster_secret, new_secret


@pytest.fixture(autouse=True)
def _no_secret_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_CLUSTER_SECRET", raising=False)


def test_a_created_secret_is_private_and_read_back(tmp_path: Path) -> None:
    secret = new_secret()
    create_private_text(tmp_path / "cluster_secret", secret)
    assert (tmp_path / "cluster_secret").stat().st_mode & 0o777 == 0o600
    assert load_cluster_secret(tmp_path) == secret.encode()


def test_an_existing_secret_is_kept(tmp_path: Path) -> None:
    first = new_secret()
    create_private_text(tmp_path / "cluster_secret", first)
    create_private_text(tmp_path / "cluster_secret", new_secret())
    assert load_cluster_secret(tmp_path) == first.encode()


def test_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_private_text(tmp_path / "cluster_secret", new_secret())
    monkeypatch.setenv("SHOAL_CLUSTER_SECRET", "e" * 32)
    assert load_cluster_secret(tmp_path) == b"e" * 32


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cluster_secret"
    create_private_text(path, new_secret())
    path.chmod(0o644)
    with pytest.raises(ValueError, match="others may read it"):
        load_cluster_secret(tmp_path)


@pytest.mark.parametrize("secret", ["", "short"])
def test_a_short_secret_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv("SHOAL_CLUSTER_SECRET", secret)
    with pytest.raises(ValueError, match=f"has {len(secret)} characters; at least 32"):
        load_cluster_secret(tmp_path)


def test_a_missing_secret_is_named_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cluster_secret: the cluster secret cannot be read"):
        load_cluster_secret(tmp_path)
