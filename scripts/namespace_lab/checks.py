"""What must hold of a cluster of several hosts, seen from outside of it."""

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import httpx

from scripts.namespace_lab.cluster_files import CHAT_MODEL
from scripts.namespace_lab.hosts import Host, LabError

JOIN_TIMEOUT_S = 600.0
LEAVE_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 90.0
NUM_CLIENTS = 8
SSH_PORT = 22
REPLICA = "ray::ServeReplica:shoal:ModelReplica"
PROBE_TIMEOUT_S = 0.5

Say = Callable[[str], None]

# Prints the ports of the list that accept a connection.
_PROBE = """\
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def is_open(port):
    with socket.socket() as probe:
        probe.settimeout({timeout_s})
        return probe.connect_ex((sys.argv[1], port)) == 0
ports = [int(port) for port in sys.argv[2:]]
with ThreadPoolExecutor(64) as threads:
    print(*[port for port, is_it in zip(ports, threads.map(is_open, ports)) if is_it])
"""


class Api:
    """A client of the cluster's API, on the launching host."""

    def __init__(self, url: str, key: str) -> None:
        self._client = httpx.Client(
            base_url=f"{url}/v1",
            headers={"Authorization": f"Bearer {key}"},
            timeout=120,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def chat(self, text: str) -> str:
        """The answer's text."""
        body = {"model": CHAT_MODEL, "messages": [{"role": "user", "content": text}]}
        answer = self._post("/chat/completions", body)
        content: str = answer["choices"][0]["message"]["content"]
        if not content:
            raise LabError(f"an empty answer: {answer}")
        return content

    def _post(self, path: str, body: object) -> dict:
        answer = self._client.post(path, json=body)
        if answer.status_code != httpx.codes.OK:
            raise LabError(f"{path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()


def check_only_the_api_is_open(
    hosts: Sequence[Host], member: Host, stranger: Host, api_port: int
) -> str:
    """A stranger in the same network reaches ssh and the API; a member of the cluster everything.

    Raises:
        LabError: a port is open that should not be, or the other way round.
    """
    num_closed = 0
    for host in hosts:
        listening = sorted(host.listening_ports())
        seen_by_member = _open_ports(member, host.address, listening)
        if not {SSH_PORT, api_port} < seen_by_member:
            raise LabError(f"{host.name}: the cluster's own hosts reach only {seen_by_member}")
        seen = _open_ports(stranger, host.address, listening)
        if seen != {SSH_PORT, api_port}:
            raise LabError(f"{host.name}: a stranger reaches the ports {sorted(seen)}")
        num_closed += len(seen_by_member) - len(seen)
    return f"it reaches ssh and the API; {num_closed} more ports are open to the cluster's hosts"


def check_token_is_needed(head: Host) -> None:
    """A process on the head that has no token is refused by Ray; the same one with it gets in.

    Raises:
        LabError: it is not so.
    """
    code = f"import ray; ray.init(address='{head.address}:6379', logging_level='ERROR')"
    connect = f'timeout {CONNECT_TIMEOUT_S:.0f} python -c "{code}"'
    _shell(head, connect)
    try:
        _shell(head, f"RAY_AUTH_MODE=disabled {connect}")
    except LabError:
        return
    raise LabError("a process without the token was let in by Ray")


def check_status(head: Host) -> None:
    """`shoal status` on the head says that the pools run.

    Raises:
        LabError: it does not.
    """
    status = json.loads(_shell(head, "shoal status --json"))
    if status["status"] != "RUNNING" or status["pools"][0]["model_name"] != CHAT_MODEL:
        raise LabError(f"shoal status on the head: {status}")


def check_worker_joins_and_leaves(api: Api, workers: Sequence[Host], say: Say) -> None:
    """From no worker host to one that serves under load, and back to none.

    Raises:
        LabError: a host does not join, does not serve, does not leave, or a request fails.
    """
    joined = [host.name for host in workers if _runs_ray(host)]
    if joined:
        raise LabError(f"before any load there are workers: {joined}")
    say(f"{NUM_CLIENTS} conversations at once, with no worker host …")
    with Burst(api) as burst:
        started_s = time.monotonic()
        worker = _wait_for_one(
            workers, _serves, JOIN_TIMEOUT_S, "no worker host joined", burst.check
        )
        say(f"{worker.name} joined and serves after {time.monotonic() - started_s:.1f} s")
        used_s = _replica_cpu_s(worker)
        _wait_for_one(
            [worker],
            lambda host: _replica_cpu_s(host) > used_s + 1,
            JOIN_TIMEOUT_S,
            "the new host gets no work",
            burst.check,
        )
    used_s = _replica_cpu_s(worker)
    say(f"{burst.num_done} requests, all good; {worker.name} has computed {used_s:.1f} s")
    started_s = time.monotonic()
    _wait_for_one(
        [worker], lambda host: not _runs_ray(host), LEAVE_TIMEOUT_S, "the host does not leave"
    )
    say(f"{worker.name} left {time.monotonic() - started_s:.1f} s after the burst")
    api.chat("Still there?")


class Burst:
    """Clients that chat, one request after the other, until the block ends."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._is_over = threading.Event()
        self._failure: Exception | None = None
        self._threads = [threading.Thread(target=self._work) for _ in range(NUM_CLIENTS)]
        self.num_done = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self.check()

    def check(self) -> None:
        """
        Raises:
            LabError: a request has failed.
        """
        if self._failure is not None:
            raise LabError(f"a request of the burst failed: {self._failure}")

    def _work(self) -> None:
        while not self._is_over.is_set() and self._failure is None:
            try:
                self._api.chat("Hello! What can you do?")
            except (LabError, httpx.HTTPError) as error:
                self._failure = error
                return
            self.num_done += 1


def _wait_for_one(
    hosts: Sequence[Host],
    is_it: Callable[[Host], bool],
    timeout_s: float,
    otherwise: str,
    check: Callable[[], None] = lambda: None,
) -> Host:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        check()
        for host in hosts:
            if is_it(host):
                return host
        time.sleep(0.5)  # processes of other hosts, which tell nothing
    raise LabError(f"{otherwise} within {timeout_s:g} s")


def _shell(host: Host, command: str) -> str:
    """Run a command on the host as its user's shell would, in all of its namespaces."""
    inside = ["nsenter", f"--target={host.init_pid()}", "--all", "--", "bash", "-c"]
    return host.run([*inside, f". ~root/.bashrc; {command}"], timeout_s=2 * CONNECT_TIMEOUT_S)


def _open_ports(host: Host, address: str, ports: Sequence[int]) -> set[int]:
    code = _PROBE.format(timeout_s=PROBE_TIMEOUT_S)
    command = [sys.executable, "-c", code, address, *map(str, ports)]
    return {int(port) for port in host.run(command, timeout_s=120).split()}


def _runs_ray(host: Host) -> bool:
    return any("raylet" in line for line in host.processes())


def _serves(host: Host) -> bool:
    """Ray writes into a process's title what it runs: here, anything but its constructor."""
    return any(REPLICA in line and ".initialize" not in line for line in host.processes())


def _replica_cpu_s(host: Host) -> float:
    return sum(cpu_s for line, cpu_s in host.cpu_seconds() if REPLICA in line)
