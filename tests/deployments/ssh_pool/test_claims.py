"""Who has a host, by the file on it."""

import pytest

from deployments.ssh_pool.claims import claim, claimed_node, release
from deployments.ssh_pool.host_shell import HostError, HostShell
from tests.deployments.ssh_pool.conftest import FakeHosts

STOP = ('echo stopped >> "$HOME/stops"',)


def test_a_free_host_is_claimed_and_tells_who_has_it(hosts: FakeHosts, shell: HostShell) -> None:
    assert claimed_node(shell, "a", cluster_name="one") is None
    claim(shell, "a", cluster_name="one", node_id="a-1")
    assert hosts.claim_of("a") == "one a-1"
    assert claimed_node(shell, "a", cluster_name="one") == "a-1"
    assert claimed_node(shell, "a", cluster_name="two") is None


def test_a_host_of_another_cluster_is_refused_and_one_of_ours_is_taken_again(
    hosts: FakeHosts, shell: HostShell
) -> None:
    claim(shell, "a", cluster_name="one", node_id="a-1")
    with pytest.raises(HostError, match="in use by the cluster 'one'"):
        claim(shell, "a", cluster_name="two", node_id="a-2")
    claim(shell, "a", cluster_name="one", node_id="a-3")
    assert hosts.claim_of("a") == "one a-3"


def test_a_release_stops_what_runs_and_frees_the_host(hosts: FakeHosts, shell: HostShell) -> None:
    claim(shell, "a", cluster_name="one", node_id="a-1")
    release(shell, "a", cluster_name="one", node_id="a-1", stop_commands=STOP)
    assert hosts.num_stops("a") == 1
    assert hosts.claim_of("a") is None


@pytest.mark.parametrize("other", ["one a-2", "two a-1"])
def test_a_late_release_does_not_stop_the_next_node_of_the_host(
    hosts: FakeHosts, shell: HostShell, other: str
) -> None:
    hosts.put_claim("a", other)
    release(shell, "a", cluster_name="one", node_id="a-1", stop_commands=STOP)
    assert hosts.num_stops("a") == 0
    assert hosts.claim_of("a") == other


def test_a_host_that_does_not_stop_stays_claimed(hosts: FakeHosts, shell: HostShell) -> None:
    claim(shell, "a", cluster_name="one", node_id="a-1")
    with pytest.raises(HostError, match="failed with status"):
        release(shell, "a", cluster_name="one", node_id="a-1", stop_commands=(*STOP, "false"))
    assert hosts.claim_of("a") == "one a-1"
