"""The `shoal` command against a real cluster: the demo model on a free port, in a fresh home."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import share_kernels

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
UP_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Shoal:
    """Runs the command in one SHOAL_HOME."""

    home: Path
    port: int

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from cluster.cli import main; main()", *arguments],
            env={
                **{name: value for name, value in os.environ.items() if name != "SHOAL_API_KEY"},
                "SHOAL_HOME": str(self.home),
                "SHOAL_PORT": str(self.port),
                "PYTHONPATH": str(ROOT),
            },
            cwd=self.home,  # no shoal.yaml here: the packaged configuration counts
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UP_TIMEOUT_S,
            check=False,
        )

    def processes(self) -> list[int]:
        """Those that carry this home in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SHOAL_HOME") == str(self.home):
                    found.append(process.pid)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture(scope="module")
def shoal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shoal]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = Shoal(home=tmp_path_factory.mktemp("home"), port=port)
    share_kernels(command.home)
    yield command
    command.run("down")


def test_a_cluster_goes_up_answers_is_looked_at_and_goes_down(shoal: Shoal) -> None:
    up = shoal.run("up", "--ask", "Hello!")
    assert up.returncode == 0, up.stderr
    assert up.stdout.strip(), "the answer is on standard output"
    key = (shoal.home / "api_key").read_text().strip()
    assert up.stderr.count(key) == 1

    again = shoal.run("up")
    assert again.returncode == 0, again.stderr
    assert "already running" in again.stderr

    status = json.loads(shoal.run("status", "--json").stdout)
    (pool,) = status["pools"]
    assert status["status"] == "RUNNING"
    assert pool["model_name"] == "shoal/demo-chat"
    assert pool["replica_states"] == {"RUNNING": 1}

    answer = shoal.run("chat", "--once", "Hello!", "--temperature", "0")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()

    logs = shoal.run("logs", "ingress", "-n", "1")
    assert logs.returncode == 0, logs.stderr
    assert "Ingress" in logs.stdout

    down = shoal.run("down")
    assert down.returncode == 0, down.stderr
    assert shoal.processes() == []
    assert shoal.run("status").returncode == 1
    assert "nothing answers" in shoal.run("chat", "--once", "Hello!").stderr


def test_a_port_that_is_taken_is_one_message_and_leaves_nothing_behind(shoal: Shoal) -> None:
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", shoal.port))
        occupant.listen()
        up = shoal.run("up")
    assert up.returncode == 1
    assert str(shoal.port) in up.stderr.splitlines()[-1]
    assert "Traceback" not in up.stderr
    assert shoal.processes() == []
