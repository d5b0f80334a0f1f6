"""Hosts that are namespaces: each with its network, processes, home, and an ssh server.

All of them are on one bridge, which belongs to the network namespace that this process is in. They
end when this process's own process namespace ends.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

BRIDGE = "shoal0"
ADMIN_ADDRESS = "10.88.0.1"
ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 30.0

_SSHD_CONFIG = """\
Port 22
HostKey {lab}/host_key
AuthorizedKeysFile {lab}/id.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
MaxStartups 100:30:200
MaxSessions 100
PidFile none
Subsystem sftp internal-sftp
"""

# What a freshly installed machine has: a home of its own, and here Shoal's environment, as links
# into the one that is there (`scripts/host_setup` finds it up to date, by the stamp).
_INIT = """\
set -e
hostname {name}
{cover}
mkdir -p /run/sshd
cp {lab}/bashrc ~root/.bashrc
echo '. ~/.bashrc' >~root/.profile
mkdir -p ~root/shoal/scripts ~root/shoal-env
cp {lab}/pyproject.toml ~root/shoal/
cp -r {lab}/lib ~root/shoal/scripts/
ln -s {venv}/* ~root/shoal-env/
(
  cd ~root/shoal
  export SHOAL_VENV=~root/shoal-env
  . scripts/lib/console.sh
  . scripts/lib/environment.sh
  fingerprint >~root/shoal-env/shoal-runtime.stamp
)
exec /usr/sbin/sshd -D -e -f {lab}/sshd_config
"""


class LabError(Exception):
    """The laboratory cannot be built, or what was tried in it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A running host."""

    name: str
    address: str
    pid: int  # of a process in its network namespace

    def run(self, command: Sequence[str], *, timeout_s: float = 60.0) -> str:
        """Run a command in its network and processes, and return its output.

        Raises:
            LabError: it failed.
        """
        done = subprocess.run(
            [*self.enter(), *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise LabError(f"{self.name}: {' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def enter(self) -> list[str]:
        """A command's first words: it then runs in the host's network."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--"]

    def listening_ports(self) -> set[int]:
        """TCP ports that are open on any address but loopback."""
        ports = set()
        for line in self.run(["ss", "-ltnH"]).splitlines():
            address, _, port = line.split()[3].rpartition(":")
            if not address.startswith("127.") and address != "[::1]":
                ports.add(int(port))
        return ports

    def init_pid(self) -> int:
        """The first process in its own process namespace, as it is numbered out here."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])

    def processes(self) -> list[str]:
        """Command lines of what runs in it, but for the ssh server's own."""
        return [line for line, _ in self.cpu_seconds()]

    def cpu_seconds(self) -> list[tuple[str, float]]:
        """The same with the CPU time that each has used."""
        ours = os.readlink(f"/proc/{self.pid}/ns/net")
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                namespace = os.readlink(entry / "ns" / "net")
                words = (entry / "cmdline").read_bytes().split(b"\0")
                # After the name in parentheses; fields 14 and 15 are user and system time.
                times = (entry / "stat").read_text().rpartition(")")[2].split()[11:13]
            except OSError:
                continue  # it has just ended
            line = b" ".join(words).decode(errors="replace").strip()
            if namespace == ours and line and "sshd" not in line and "unshare" not in line:
                cpu_s = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
                found.append((line, cpu_s))
        return found


class Lab:
    """The folder with keys and logs, and the network that hosts are put in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._num_hosts = 0

    def build(self) -> None:
        """Cover what hosts and the launcher must not share with the machine; make the network."""
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n")
        # There is no name server: to be told so at once saves Ray 7 s for each name it asks for.
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions attempts:1\n")
        _run("bash", "-ec", self._cover(ROOT))
        for name in ("id", "host_key"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        sshd_config = _SSHD_CONFIG.format(lab=self.folder)
        (self.folder / "sshd_config").write_text(sshd_config)
        (self.folder / "bashrc").write_text("# a fresh home\n")
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        shutil.copytree(ROOT / "scripts" / "lib", self.folder / "lib")
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{ADMIN_ADDRESS}/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")

    def start_host(self, name: str) -> Host:
        """Start one, and return when its ssh server listens."""
        self._num_hosts += 1
        address = f"10.88.0.{self._num_hosts + 1}"
        with (self.folder / "hosts").open("a") as names:
            names.write(f"{address} {name}\n")
        script = _INIT.format(
            name=name,
            lab=self.folder,
            venv=Path(sys.prefix).resolve(),
            cover=self._cover(),
        )
        log = (self.folder / f"{name}.log").open("wb")
        init = subprocess.Popen(
            [
                *("unshare", "--net", "--pid", "--fork", "--kill-child=KILL"),
                *("--mount", "--mount-proc", "--ipc", "--uts", "bash", "-c", script),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        host = Host(name=name, address=address, pid=init.pid)
        self._connect(host)
        _wait_for(lambda: 22 in host.listening_ports(), f"the ssh server of {name}")
        return host

    def start_stranger(self) -> Host:
        """A machine in the same network that belongs to nobody: no ssh server, no keys."""
        self._num_hosts += 1
        address = f"10.88.0.{self._num_hosts + 1}"
        idle = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        stranger = Host(name="stranger", address=address, pid=idle.pid)
        self._connect(stranger)
        return stranger

    def known_hosts(self, hosts: Sequence[Host]) -> str:
        """As `ssh-keyscan` would write it; all hosts have the same key."""
        key = (self.folder / "host_key.pub").read_text().split()[:2]
        return "".join(f"{host.address} {' '.join(key)}\n" for host in hosts)

    def _connect(self, host: Host) -> None:
        """A cable from its eth0 to the bridge."""
        own = os.readlink("/proc/self/ns/net")
        _wait_for(
            lambda: os.readlink(f"/proc/{host.pid}/ns/net") != own, f"the network of {host.name}"
        )
        outer = f"v{self._num_hosts}"
        pid = str(host.pid)
        _run("ip", "link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", pid)
        _run("ip", "link", "set", outer, "master", BRIDGE, "up")
        for words in (
            ("addr", "add", f"{host.address}/24", "dev", "eth0"),
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", ADMIN_ADDRESS),
        ):
            host.run(["ip", *words])

    def _cover(self, *kept: Path) -> str:
        """Shell lines: a fresh home of root, /tmp, /dev/shm and /run, the lab's names; but
        what a host needs stays where it is: the laboratory, Python, its packages, and `kept`.

        They are run in a mount namespace, so nothing outside changes.
        """
        folders = {self.folder, Path(sys.base_prefix), Path(sys.prefix).resolve(), *kept}
        lines = ["mount --make-rprivate /", "mount -t tmpfs tmpfs /mnt"]
        for number, path in enumerate(sorted(folders)):
            lines.append(f"mkdir /mnt/{number} && mount --bind {path} /mnt/{number}")
        lines += [f"mount -t tmpfs tmpfs {path}" for path in ("~root", "/tmp", "/dev/shm", "/run")]
        lines += ["chmod 700 ~root", "chmod 1777 /tmp /dev/shm"]
        for number, path in enumerate(sorted(folders)):
            lines.append(f"mkdir -p {path} && mount --bind /mnt/{number} {path}")
        for name in ("hosts", "resolv.conf"):
            # It may be a link into /run, which is empty now.
            lines.append(f'there=$(readlink -m /etc/{name}); mkdir -p "$(dirname "$there")"')
            lines.append(f'touch "$there"; mount --bind {self.folder}/{name} "$there"')
        return "\n".join(lines)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")


def _wait_for(is_so: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise LabError(f"{what} is not there after {START_TIMEOUT_S:g} s")
        time.sleep(0.05)
