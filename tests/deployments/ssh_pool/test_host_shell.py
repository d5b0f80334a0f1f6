"""What a host's failure is called, and how ssh is asked."""

import os
from pathlib import Path

import pytest

from deployments.ssh_pool.host_shell import HostError, HostShell
from tests.deployments.ssh_pool.conftest import FakeHosts


def test_a_command_runs_on_the_host_and_its_output_comes_back(
    hosts: FakeHosts, shell: HostShell
) -> None:
    assert shell.run("10.0.0.3", 'echo "$HOME"').strip() == str(hosts.folder / "10.0.0.3")
    asked = hosts.ssh_log()
    assert "-i /keys/id" in asked
    assert "BatchMode=yes" in asked
    assert "StrictHostKeyChecking=no" in asked


def test_known_host_keys_are_insisted_on(hosts: FakeHosts) -> None:
    HostShell(user="ops", private_key=None, known_hosts=Path("/k")).run("a", "true")
    asked = hosts.ssh_log()
    assert "StrictHostKeyChecking=yes" in asked
    assert "UserKnownHostsFile=/k" in asked
    assert "-i " not in asked


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("ops@a: Permission denied (publickey).", "refuses the key of user ops"),
        ("ssh: connect to host a port 22: Connection timed out", "does not answer within 10 s"),
        ("ssh: connect to host a port 22: Connection refused", "runs no ssh server"),
        ("ssh: connect to host a port 22: No route to host", "cannot be reached"),
        ("Host key verification failed.", "another host key"),
        ("ssh: Could not resolve hostname a: Name or service not known", "not known here"),
        ("kex_exchange_identification: reset", "cannot be reached: kex_exchange"),
    ],
)
def test_why_ssh_does_not_get_in_is_said_in_words(
    hosts: FakeHosts, shell: HostShell, said: str, reason: str
) -> None:
    hosts.break_ssh("a", said)
    with pytest.raises(HostError, match=reason):
        shell.run("a", "true")


def test_a_command_that_fails_is_not_an_ssh_failure(hosts: FakeHosts, shell: HostShell) -> None:
    with pytest.raises(HostError, match="failed with status 3: no disk"):
        shell.run("a", "echo no disk >&2; exit 3")


def test_a_command_that_hangs_is_given_up(hosts: FakeHosts, shell: HostShell) -> None:
    with pytest.raises(HostError, match=r"did not finish 'sleep 60' within 0\.2 s"):
        shell.run("a", "sleep 60", timeout_s=0.2)


def test_a_machine_without_ssh_says_so(
    shell: HostShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(HostError, match="ssh cannot be run here"):
        shell.run("a", "true")
