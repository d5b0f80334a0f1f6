"""The laboratory's files are the shipped ones, with other addresses, and pass their own check."""

from pathlib import Path

import pytest
import yaml

from deployments.cluster_files.check import check_cluster_file
from scripts.namespace_lab.cluster_files import SHIPPED, write_cluster_files
from scripts.namespace_lab.hosts import Host, Lab


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "host_key.pub").write_text("ssh-ed25519 AAAA root@lab\n")
    (tmp_path / "id").write_text("a key\n")
    head, *workers = [Host(name=f"host-{n}", address=f"10.88.0.{n}", pid=0) for n in (2, 3, 4)]
    return write_cluster_files(Lab(tmp_path), head, workers)


def test_the_file_passes_the_check(written: Path) -> None:
    checked = check_cluster_file(written)
    assert checked.problems == []
    assert checked.notes == []


def test_all_but_addresses_sizes_and_patience_is_as_it_ships(written: Path) -> None:
    shipped, made = (yaml.safe_load(path.read_text()) for path in (SHIPPED, written))
    assert shipped.keys() == made.keys()
    assert made["file_mounts"].keys() == shipped["file_mounts"].keys()
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        for before, after in zip(shipped[key], made[key], strict=True):
            assert before in after
    assert made["setup_commands"][0] == shipped["setup_commands"][0]
    assert "--cluster 10.88.0.2,10.88.0.3,10.88.0.4 --open 8000" in made["setup_commands"][1]


def test_one_replica_fills_the_head_and_a_second_one_needs_a_worker(written: Path) -> None:
    made = yaml.safe_load(written.read_text())
    assert made["available_node_types"]["head"]["resources"] == {"CPU": 2}
    assert made["available_node_types"]["cpu"]["resources"] == {"CPU": 2}
    assert made["available_node_types"]["cpu"].get("min_workers", 0) == 0
