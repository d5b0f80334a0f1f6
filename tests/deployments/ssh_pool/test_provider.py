"""The provider as Ray calls it: hosts are folders, their shell commands are real."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler.node_launch_exception import NodeLaunchException

from deployments.ssh_pool.host_shell import HostError
from deployments.ssh_pool.leases import LeaseBook
from deployments.ssh_pool.pool_config import PoolConfigError
from deployments.ssh_pool.provider import SSHPool, host_of_node
from tests.deployments.ssh_pool.conftest import FakeHosts

HEAD_TAGS = {"ray-node-type": "head", "ray-user-node-type": "head"}
GPU_TAGS = {"ray-node-type": "worker", "ray-user-node-type": "gpu"}
WORKERS = {"ray-node-type": "worker"}


def cluster_file(**provider: Any) -> dict[str, Any]:
    return {
        "cluster_name": "pool",
        "auth": {"ssh_user": "ops", "ssh_private_key": "/keys/id"},
        "provider": {
            "type": "external",
            "module": "deployments.ssh_pool.provider.SSHPool",
            "head_host": "h",
            "hosts": {"gpu": ["a", "b"], "cpu": ["b", "c"]},
            "stop_commands": ['echo stopped >> "$HOME/stops"'],
            **provider,
        },
    }


@pytest.fixture
def home(hosts: FakeHosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "launcher"))
    return tmp_path


def launcher(**provider: Any) -> SSHPool:
    """As `ray up` and `ray down` make it."""
    config = SSHPool.bootstrap_config(cluster_file(**provider))
    return SSHPool(config["provider"], "pool")


def head_config(pool: SSHPool, **provider: Any) -> dict[str, Any]:
    """What `ray up` sends to the head, through JSON as Ray sends it."""
    config = SSHPool.bootstrap_config(cluster_file(**provider))
    config["auth"]["ssh_private_key"] = "~/ray_bootstrap_key.pem"
    prepared = json.loads(json.dumps(pool.prepare_for_head_node(config)))
    section: dict[str, Any] = prepared["provider"]
    return section


@pytest.fixture
def on_head(home: Path, monkeypatch: pytest.MonkeyPatch) -> SSHPool:
    """The autoscaler's, after `ray up`."""
    ray_up = launcher()
    ray_up.create_node({}, HEAD_TAGS, 1)
    section = head_config(ray_up)
    monkeypatch.setenv("SHOAL_HOME", str(home / "head"))
    return SSHPool(section, "pool")


def test_ray_up_leases_the_head_and_finds_it_again(home: Path, hosts: FakeHosts) -> None:
    (node_id,) = launcher().create_node({}, HEAD_TAGS, 1)
    assert host_of_node(node_id) == "h"
    assert hosts.claim_of("h") == f"pool {node_id}"
    later = launcher()
    assert later.non_terminated_nodes({"ray-node-type": "head"}) == [node_id]
    assert later.is_running(node_id)
    assert later.external_ip(node_id) == later.internal_ip(node_id) == "h"


def test_the_head_knows_itself_under_the_name_that_ray_up_gave_it(on_head: SSHPool) -> None:
    (node_id,) = on_head.non_terminated_nodes({})
    assert host_of_node(node_id) == "h"
    assert on_head.node_tags(node_id)["ray-user-node-type"] == "head"


def test_hosts_of_a_type_start_and_leave_and_are_used_again_under_new_names(
    on_head: SSHPool, hosts: FakeHosts
) -> None:
    (first,) = on_head.create_node({}, GPU_TAGS, 1)
    assert host_of_node(first) == "a"
    assert on_head.non_terminated_nodes(WORKERS) == [first]
    on_head.terminate_node(first)
    assert on_head.is_terminated(first)
    assert on_head.node_tags(first) == {}
    assert hosts.num_stops("a") == 1
    assert hosts.claim_of("a") is None
    (second,) = on_head.create_node({}, GPU_TAGS, 1)
    assert host_of_node(second) == "a"
    assert second != first


def test_more_than_there_are_gives_those_that_there_are_and_then_says_who_has_them(
    on_head: SSHPool,
) -> None:
    assert {host_of_node(node) for node in on_head.create_node({}, GPU_TAGS, 5)} == {"a", "b"}
    with pytest.raises(NodeLaunchException) as refused:
        on_head.create_node({}, GPU_TAGS, 1)
    assert "no host for 'gpu': a is in use (running); b is in use" in str(refused.value)


def test_a_host_of_two_types_is_leased_once(on_head: SSHPool) -> None:
    on_head.create_node({}, GPU_TAGS, 2)
    (node,) = on_head.create_node({}, {**GPU_TAGS, "ray-user-node-type": "cpu"}, 2)
    assert host_of_node(node) == "c"


def test_a_host_that_does_not_answer_is_passed_over_and_tried_again_later(
    on_head: SSHPool, hosts: FakeHosts, home: Path
) -> None:
    hosts.break_ssh("a", "ssh: connect to host a port 22: Connection timed out")
    hosts.break_ssh("b", "ops@b: Permission denied (publickey).")
    with pytest.raises(NodeLaunchException) as refused:
        on_head.create_node({}, GPU_TAGS, 1)
    assert "a does not answer within 10 s; b refuses the key of user ops" in str(refused.value)
    hosts.mend_ssh("a")
    with pytest.raises(NodeLaunchException, match="a does not answer"):
        on_head.create_node({}, GPU_TAGS, 1)  # its pause is not over
    with LeaseBook(home / "head" / "pools", "pool").change() as leases:
        leases.troubles["a"].until_s = 0
    (node,) = on_head.create_node({}, GPU_TAGS, 1)
    assert host_of_node(node) == "a"


def test_a_host_of_another_cluster_is_passed_over(on_head: SSHPool, hosts: FakeHosts) -> None:
    hosts.put_claim("a", "other a-1")
    (node,) = on_head.create_node({}, GPU_TAGS, 1)
    assert host_of_node(node) == "b"
    with pytest.raises(NodeLaunchException, match="a is in use by the cluster 'other'"):
        on_head.create_node({}, GPU_TAGS, 1)


def test_a_host_whose_setup_fails_is_not_the_next_one_tried(on_head: SSHPool) -> None:
    (node,) = on_head.create_node({}, GPU_TAGS, 1)
    on_head.set_node_tags(node, {"ray-node-status": "update-failed"})
    on_head.terminate_node(node)
    (next_node,) = on_head.create_node({}, GPU_TAGS, 1)
    assert host_of_node(next_node) == "b"
    with pytest.raises(NodeLaunchException, match="a could not be set up"):
        on_head.create_node({}, GPU_TAGS, 1)


def test_a_host_that_works_has_a_clean_record(on_head: SSHPool) -> None:
    (node,) = on_head.create_node({}, GPU_TAGS, 1)
    on_head.set_node_tags(node, {"ray-node-status": "update-failed"})
    on_head.set_node_tags(node, {"ray-node-status": "up-to-date"})
    on_head.terminate_node(node)
    (again,) = on_head.create_node({}, GPU_TAGS, 1)
    assert host_of_node(again) == "a"


def test_a_host_that_cannot_be_stopped_is_given_up_and_not_leased_at_once(
    on_head: SSHPool, hosts: FakeHosts
) -> None:
    (node,) = on_head.create_node({}, GPU_TAGS, 1)
    hosts.break_ssh("a", "ssh: connect to host a port 22: No route to host")
    on_head.terminate_node(node)
    assert on_head.is_terminated(node)
    hosts.mend_ssh("a")
    (other,) = on_head.create_node({}, GPU_TAGS, 1)
    assert host_of_node(other) == "b"


def test_many_threads_never_get_the_same_host(on_head: SSHPool) -> None:
    def create(_: int) -> list[str]:
        try:
            return list(on_head.create_node({}, GPU_TAGS, 1))
        except NodeLaunchException:
            return []

    with ThreadPoolExecutor(8) as threads:
        created = [node for nodes in threads.map(create, range(8)) for node in nodes]
    assert sorted(host_of_node(node) for node in created) == ["a", "b"]


def test_ray_down_stops_what_the_head_has_started(
    on_head: SSHPool, hosts: FakeHosts, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker,) = on_head.create_node({}, GPU_TAGS, 1)
    hosts.put_claim("c", "other c-1")
    monkeypatch.setenv("SHOAL_HOME", str(home / "launcher"))
    ray_down = launcher()
    workers = ray_down.nodes_for_teardown({"ray-node-type": "worker"})
    heads = ray_down.nodes_for_teardown({"ray-node-type": "head"})
    assert workers == [worker]
    assert [host_of_node(node) for node in heads] == ["h"]
    ray_down.terminate_nodes([*heads, *workers])
    assert [hosts.num_stops(host) for host in "hac"] == [1, 1, 0]
    assert ray_down.nodes_for_teardown({}) == []
    assert ray_down.non_terminated_nodes({}) == []


def test_ray_down_says_which_host_it_could_not_stop(home: Path, hosts: FakeHosts) -> None:
    pool = launcher(stop_commands=["false"])
    (node,) = pool.create_node({}, HEAD_TAGS, 1)
    with pytest.raises(HostError, match=r"host h failed with status .*\(when it was to be stopped"):
        pool.terminate_nodes([node])


def test_workers_of_an_earlier_start_of_ray_are_stopped_by_the_next(
    on_head: SSHPool, hosts: FakeHosts, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (worker,) = on_head.create_node({}, GPU_TAGS, 1)
    same_start = SSHPool(on_head.provider_config, "pool")  # the autoscaler has crashed
    assert same_start.non_terminated_nodes(WORKERS) == [worker]
    monkeypatch.setenv("SHOAL_HOME", str(home / "launcher"))
    next_start = head_config(launcher())
    monkeypatch.setenv("SHOAL_HOME", str(home / "head"))
    restarted = SSHPool(next_start, "pool")
    assert restarted.non_terminated_nodes(WORKERS) == []
    assert restarted.clean_up is not None
    restarted.clean_up.join()
    assert hosts.num_stops("a") == 1
    assert hosts.claim_of("a") is None
    assert restarted.is_terminated(worker)


def test_known_host_keys_travel_to_the_head(
    home: Path, hosts: FakeHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_hosts = home / "known_hosts"
    known_hosts.write_text("h ssh-ed25519 AAAA\na ssh-ed25519 BBBB\n")
    pool = launcher(ssh_known_hosts=str(known_hosts))
    pool.create_node({}, HEAD_TAGS, 1)
    section = head_config(pool, ssh_known_hosts=str(known_hosts))
    monkeypatch.setenv("SHOAL_HOME", str(home / "head"))
    on_head = SSHPool(section, "pool")
    on_head.create_node({}, GPU_TAGS, 1)
    copied = home / "head" / "pools" / "pool.known_hosts"
    assert copied.read_text() == known_hosts.read_text()
    calls = [line for line in hosts.ssh_log().splitlines() if "ops@a" in line]
    assert all(f"UserKnownHostsFile={copied}" in call for call in calls)
    assert calls


def test_mistakes_of_the_file_are_found_before_anything_is_started(home: Path) -> None:
    with pytest.raises(PoolConfigError, match=r"provider\.hosts"):
        SSHPool.bootstrap_config(cluster_file(hosts=[]))
    with pytest.raises(PoolConfigError, match="cluster_name: must be one word"):
        SSHPool.bootstrap_config({**cluster_file(), "cluster_name": "my pool"})
