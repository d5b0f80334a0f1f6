"""The firewall of a host, in a network namespace of its own."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "host_firewall"
HAS_NFT = shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not HAS_NFT, reason="rules need root and the package nftables"
)


def run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--cluster is missing"),
        ("--cluster 'a; rm'", "--cluster: IPv4 addresses or networks, not 'a; rm'"),
        ("--cluster 10.0.0.1 --open ssh", "--open: port numbers, not 'ssh'"),
        ("--all", "unknown argument: --all"),
    ],
)
@pytest.mark.skipif(not HAS_NFT, reason="the package nftables is not here")
def test_a_wrong_argument_is_named_and_changes_nothing(arguments: str, message: str) -> None:
    done = run(f"{SCRIPT} {arguments}")
    assert done.returncode == 1
    assert message in done.stderr


@needs_root
def test_the_rules_are_replaced_whole_and_removed() -> None:
    script = (
        f"{SCRIPT} --cluster 10.0.0.1 && {SCRIPT} --cluster 10.0.0.2,10.1.0.0/24 --open 8000,443 "
        f"&& nft list ruleset && {SCRIPT} --remove && {SCRIPT} --remove && echo -- && "
        "nft list ruleset"
    )
    done = run(f"PATH=$PATH:/usr/sbin:/sbin unshare --net bash -ec '{script}'")
    assert done.returncode == 0, done.stderr
    rules, _, after = done.stdout.partition("--\n")
    assert "ip saddr { 10.0.0.2, 10.1.0.0/24 } accept" in rules
    assert "10.0.0.1" not in rules
    assert "tcp dport { 443, 8000 } accept" in rules
    assert "tcp dport 1024-65535 drop" in rules
    assert after.strip() == ""


# Two machines on a cable: the second one tries ports of the first, as itself and as a member.
_CABLE = """\
set -e
ip link set lo up
unshare --net sleep 60 &
other=$!
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do :; done
ip link add here type veth peer name there netns $other
ip addr add 10.9.0.1/24 dev here && ip link set here up
nsenter -t $other -n ip addr add 10.9.0.2/24 dev there
nsenter -t $other -n ip addr add 10.9.0.3/24 dev there
nsenter -t $other -n ip link set there up
python3 - $other {script} <<'PYTHON'
import ctypes, os, socket, subprocess, sys
listening = [socket.create_server(("0.0.0.0", port)) for port in (23, 6379, 8000)]
subprocess.run([sys.argv[2], "--cluster", "10.9.0.2", "--open", "8000"], check=True)
ctypes.CDLL(None).setns(os.open(f"/proc/{{sys.argv[1]}}/ns/net", os.O_RDONLY), 0)
for source in ("10.9.0.2", "10.9.0.3"):
    seen = []
    for port in (23, 6379, 8000):
        with socket.socket() as probe:
            probe.bind((source, 0))
            probe.settimeout(0.5)
            if probe.connect_ex(("10.9.0.1", port)) == 0:
                seen.append(port)
    print(source, *seen)
PYTHON
kill $other
"""


@needs_root
def test_a_member_reaches_everything_and_a_stranger_the_open_ports() -> None:
    script = _CABLE.format(script=SCRIPT)
    done = subprocess.run(
        ["unshare", "--net", "bash", "-c", script],
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["10.9.0.2 23 6379 8000", "10.9.0.3 23 8000"]
