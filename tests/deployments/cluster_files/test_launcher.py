"""What `ray up` will miss on this host is noted; host keys are found however they are written."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from deployments.cluster_files import launcher
from deployments.cluster_files.launcher import check_launcher


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, Any]:
    """Three hosts, whose keys are known in each way that ssh writes them."""
    (tmp_path / "id").write_text("a key\n")
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "host_key")],
        check=True,
    )
    key = (tmp_path / "host_key.pub").read_text()
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(f"10.0.0.2 {key}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known_hosts)], check=True)
    plain = f"# of the workers\n\ngpu-1,10.0.0.3 {key}10.0.1.* {key}@revoked 10.0.0.9 {key}"
    known_hosts.write_text(known_hosts.read_text() + plain)
    return {
        "auth": {"ssh_user": "ubuntu", "ssh_private_key": str(tmp_path / "id")},
        "provider": {
            "head_host": "10.0.0.2",
            "hosts": {"gpu": ["10.0.0.3", "10.0.1.4"]},
            "ssh_known_hosts": str(known_hosts),
        },
    }


def test_nothing_is_missing(cluster: dict[str, Any]) -> None:
    assert check_launcher(cluster) == []


def test_hosts_whose_keys_are_not_known_are_named(cluster: dict[str, Any], tmp_path: Path) -> None:
    cluster["provider"]["hosts"]["gpu"] += ["10.0.0.9", "10.0.0.33"]
    (note,) = check_launcher(cluster)
    assert "has no key of 10.0.0.9, 10.0.0.33, which" in note
    assert f"`ssh-keyscan 10.0.0.9 10.0.0.33 >>{tmp_path}/known_hosts`" in note


def test_without_the_file_no_host_is_known(cluster: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "known_hosts").unlink()
    (note,) = check_launcher(cluster)
    assert "has no key of 10.0.0.2, 10.0.0.3, 10.0.1.4" in note


def test_where_any_host_key_is_taken_none_is_missed(cluster: dict[str, Any]) -> None:
    del cluster["provider"]["ssh_known_hosts"]
    assert check_launcher(cluster) == []


def test_a_missing_key_and_missing_programs_are_named(
    cluster: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "id").unlink()
    monkeypatch.setattr(launcher.shutil, "which", lambda name: None)
    notes = check_launcher(cluster)
    assert [note.split()[0] for note in notes] == ["ssh", "rsync", "auth.ssh_private_key:"]


def test_a_section_that_is_wrong_is_named_elsewhere(cluster: dict[str, Any]) -> None:
    cluster["provider"]["hosts"] = "10.0.0.3"
    assert check_launcher(cluster) == []
