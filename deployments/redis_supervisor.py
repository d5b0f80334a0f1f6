"""Keeps one Redis server running: starts it, starts it again when it dies, ends it when told to.

    python -m deployments.redis_supervisor BINARY FOLDER SOCKET

FOLDER holds `redis.conf`, the data, and a lock that the supervisor and its server share: as long as
one of them lives, no other server touches the data. The command returns at once, with one of the
exit codes below, and goes on in the background until SIGTERM. It writes to stdout, which is the
server's log. Only the standard library is used: this process lives as long as the cluster.
"""

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType

CONFIG_FILE = "redis.conf"
STATE_FILE = "supervisor.json"
LOCK_FILE = "lock"

EXIT_SUPERVISING = 0
EXIT_ALREADY_SERVED = 3  # by another supervisor, on the same socket
EXIT_LOCKED = 4  # another server has the data, elsewhere or silent

QUICK_DEATHS_ARE_A_LOOP = 3
_LOCK_WAIT_S = 15.0  # the previous server may be about to end
_QUICK_S = 10.0
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.1, 10.0
_PING_TIMEOUT_S = 1.0


class Answer(StrEnum):
    """What a server says to PING."""

    NONE = "none"
    LOADING = "loading"
    PONG = "pong"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the supervisor has written down about itself."""

    supervisor_pid: int
    server_pid: int  # 0: it is between two servers
    socket: str
    num_quick_deaths: int  # in a row; each soon after its start


class Supervisor:
    """One server after the other, on the data of `folder`."""

    def __init__(self, binary: Path, folder: Path, socket_path: str, lock: int) -> None:
        self._binary, self._folder, self._socket_path = binary, folder, socket_path
        self._lock = lock
        self._server: subprocess.Popen[bytes] | None = None
        self._is_ending = False
        self._num_quick_deaths = 0
        self._wakeup_reader, self._wakeup_writer = os.pipe()
        os.set_blocking(self._wakeup_writer, False)

    def run(self) -> None:
        """Returns when it was told to end and the server has ended."""
        signal.set_wakeup_fd(self._wakeup_writer)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        self._write_state(0)
        while not self._is_ending:
            started_s = time.monotonic()
            self._server = self._start()
            if self._is_ending:  # told while it was being started
                self._server.terminate()
            code = self._server.wait()
            if not self._is_ending:
                self._count_death(code, time.monotonic() - started_s)
                self._pause()
        (self._folder / STATE_FILE).unlink(missing_ok=True)
        say("ended as told")

    def _start(self) -> subprocess.Popen[bytes]:
        server = subprocess.Popen(
            [str(self._binary), CONFIG_FILE, "--unixsocket", self._socket_path],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            pass_fds=(self._lock,),
        )
        self._write_state(server.pid)
        return server

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._is_ending = True
        if self._server is not None:
            self._server.terminate()

    def _count_death(self, code: int, lived_s: float) -> None:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._num_quick_deaths = self._num_quick_deaths + 1 if lived_s < _QUICK_S else 0
        say(f"the server has ended by itself ({how}) after {lived_s:.1f} s; starting it again")
        if self._num_quick_deaths >= QUICK_DEATHS_ARE_A_LOOP:
            say(
                f"CRASH LOOP: {self._num_quick_deaths} servers in a row ended within {_QUICK_S:g} s"
                f" of their start; the lines above say why. The data are in {self._folder} and are"
                " left as they are. If they are damaged, move that folder away and start again:"
                " buckets are then to be embedded anew."
            )
        self._write_state(0)

    def _pause(self) -> None:
        """Longer after each quick death; a signal cuts it short."""
        doublings = max(self._num_quick_deaths - 1, 0)
        pause_s = min(_MIN_PAUSE_S * 2 ** min(doublings, 16), _MAX_PAUSE_S)
        select.select([self._wakeup_reader], [], [], pause_s)

    def _write_state(self, server_pid: int) -> None:
        state = State(
            supervisor_pid=os.getpid(),
            server_pid=server_pid,
            socket=self._socket_path,
            num_quick_deaths=self._num_quick_deaths,
        )
        partial = self._folder / f"{STATE_FILE}.partial"
        partial.write_text(json.dumps(asdict(state)), encoding="utf-8")
        partial.replace(self._folder / STATE_FILE)


def read_state(folder: Path) -> State | None:
    """What is written down; None where nothing is."""
    try:
        return State(**json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def ping(socket_path: str) -> Answer:
    """Whether a server answers there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PING_TIMEOUT_S)
        try:
            connection.connect(socket_path)
            connection.sendall(b"PING\r\n")
            answer = connection.recv(64)
        except OSError:
            return Answer.NONE
    if answer.startswith((b"+PONG", b"-NOAUTH")):  # it serves, whoever asks
        return Answer.PONG
    return Answer.LOADING if answer.startswith(b"-LOADING") else Answer.NONE


def say(text: str) -> None:
    """A line in the server's log."""
    moment = time.strftime("%d %b %Y %H:%M:%S")
    sys.stdout.write(f"{os.getpid()}:supervisor {moment} # {text}\n")
    sys.stdout.flush()


def supervise_in_background(binary: Path, folder: Path, socket_path: str) -> int:
    """Returns an exit code; in the background process, when its work is over."""
    os.umask(0o077)
    lock = os.open(folder / LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    code = _take(lock, folder, socket_path)
    if code != EXIT_SUPERVISING:
        return code
    (folder / STATE_FILE).unlink(missing_ok=True)  # of one that was killed
    if os.fork() > 0:
        return EXIT_SUPERVISING
    os.setsid()
    Supervisor(binary, folder, socket_path, lock).run()
    return EXIT_SUPERVISING


def _take(lock: int, folder: Path, socket_path: str) -> int:
    deadline_s = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return EXIT_SUPERVISING
        except BlockingIOError:
            state = read_state(folder)
            is_ours = state is not None and state.socket == socket_path
            if is_ours and ping(socket_path) is not Answer.NONE:
                return EXIT_ALREADY_SERVED
            if time.monotonic() > deadline_s:
                return EXIT_LOCKED
            time.sleep(0.05)  # a lock that is waited for cannot be given up after a time


if __name__ == "__main__":
    sys.exit(supervise_in_background(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
