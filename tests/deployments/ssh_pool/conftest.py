"""Hosts that are folders: `ssh` is a script that runs the command here, with the host's HOME."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from deployments.ssh_pool.host_shell import HostShell

# The last two arguments are user@host and the command.
FAKE_SSH = """\
#!/bin/sh
echo "$@" >> "$POOL_DIR/ssh.log"
while [ $# -gt 2 ]; do shift; done
home="$POOL_DIR/${1#*@}"
if [ -f "$home/ssh_error" ]; then cat "$home/ssh_error" >&2; exit 255; fi
mkdir -p "$home"
HOME="$home" exec sh -c "$2"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeHosts:
    """Looks into the hosts."""

    folder: Path

    def claim_of(self, host: str) -> str | None:
        path = self.folder / host / ".shoal" / "pool_claim"
        return path.read_text().strip() if path.exists() else None

    def put_claim(self, host: str, text: str) -> None:
        path = self.folder / host / ".shoal" / "pool_claim"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def num_stops(self, host: str) -> int:
        """The tests' stop command leaves a line each time."""
        path = self.folder / host / "stops"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def break_ssh(self, host: str, said: str) -> None:
        (self.folder / host).mkdir(exist_ok=True)
        (self.folder / host / "ssh_error").write_text(said + "\n")

    def mend_ssh(self, host: str) -> None:
        (self.folder / host / "ssh_error").unlink()

    def ssh_log(self) -> str:
        return (self.folder / "ssh.log").read_text()


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHosts:
    folder = tmp_path / "hosts"
    programs = tmp_path / "bin"
    for made in (folder, programs):
        made.mkdir()
    (programs / "ssh").write_text(FAKE_SSH)
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("POOL_DIR", str(folder))
    return FakeHosts(folder=folder)


@pytest.fixture
def shell() -> HostShell:
    return HostShell(user="ops", private_key="/keys/id", known_hosts=None)
