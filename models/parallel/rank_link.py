"""Rank 0's end of the connection to another rank: how it is reached, what it says, how it ends.

Where and how a rank runs is its `RankHandle`'s business: `ChildRanks` starts child processes of
this machine. Ranks that somebody else starts (`deployments.rank_actors`, on any machine) have a
handle of their own and a connected socket, whose other end `TPWorker` follows.
"""

import contextlib
import select
import socket
import subprocess
import time
from typing import Protocol, TypeVar

import msgspec

from models.child_process import encode_frame, receive_body, start_child
from models.parallel.group import LOOPBACK
from models.parallel.messages import RankFailed, RankMessage

_WORKER = "models.parallel.worker"
_END_TIMEOUT_S = 5.0

Expected = TypeVar("Expected")


class RankError(RuntimeError):
    """A rank has ended, failed or does not answer: the group is over."""


class RankHandle(Protocol):
    """Whatever a rank runs in."""

    @property
    def pid(self) -> int: ...

    def ending(self) -> str | None:
        """None while it runs; how it ended afterwards, like "was killed by signal 9"."""

    def wait_s(self, timeout_s: float) -> None:
        """Return when it has ended, or after that time."""

    def kill(self) -> None: ...


class RankLink:
    """One rank above 0. Messages are read in the order in which they were sent."""

    def __init__(
        self, rank: int, handle: RankHandle, connection: socket.socket, *, device_index: int
    ) -> None:
        """`device_index`: which of the GPUs that its process sees is the rank's."""
        self.rank = rank
        self.device_index = device_index
        self._handle = handle
        self._connection = connection
        self._failure: RankFailed | None = None

    @property
    def process_id(self) -> int:
        return self._handle.pid

    def send(self, message: msgspec.Struct, *, timeout_s: float) -> None:
        self.send_bytes(encode_frame(message), timeout_s=timeout_s)

    def send_bytes(self, frame: bytes, *, timeout_s: float) -> None:
        """
        Raises:
            TimeoutError: it does not read.
            ConnectionError: its process has ended.
        """
        self._connection.settimeout(timeout_s)
        self._connection.sendall(frame)

    def receive(self, kind: type[Expected], *, timeout_s: float) -> Expected:
        """The next message, which must be of that kind.

        Raises:
            RankError: the rank said instead that it failed.
            TimeoutError: it says nothing.
            ConnectionError: its process has ended.
        """
        message = self._read(time.monotonic() + timeout_s)
        if self._failure is not None:
            raise RankError(self._failure.message)
        assert isinstance(message, kind), f"rank {self.rank} says {message} out of turn"
        return message

    def check(self) -> None:
        """
        Raises:
            RankError: its process has ended, or its connection.
        """
        if self._handle.ending() is not None:
            raise RankError(self.fault() or "")
        if self._is_disconnected():
            raise RankError(f"{self._name} has closed its connection")

    def settle(self, deadline: float) -> None:
        """After something went wrong: hear the rank's last word, or see its process end."""
        try:
            while self._failure is None:
                self._read(deadline)
        except TimeoutError:
            return
        except OSError:
            self._handle.wait_s(max(0.0, deadline - time.monotonic()))

    def fault(self) -> str | None:
        """What it has done wrong by itself, as far as is known."""
        failure, ending = self._failure, self._handle.ending()
        if failure is not None:
            return None if failure.is_victim else f"{self._name} failed: {failure.message}"
        return None if ending is None else f"{self._name} {ending}"

    def silence(self) -> str | None:
        """That it runs and does not say why nothing comes of it."""
        is_silent = self._failure is None and self._handle.ending() is None
        return f"{self._name} does not answer" if is_silent else None

    def end(self) -> None:
        """Kill the process, even one that is stopped, and wait until it is gone."""
        self._connection.close()
        self._handle.kill()
        self._handle.wait_s(_END_TIMEOUT_S)

    @property
    def _name(self) -> str:
        return f"rank {self.rank} (process {self.process_id})"

    def _is_disconnected(self) -> bool:
        poller = select.poll()
        try:
            poller.register(self._connection, select.POLLRDHUP)
        except ValueError:
            return True  # closed on this side
        return bool(poller.poll(0))

    def _read(self, deadline: float) -> RankMessage:
        message: RankMessage = msgspec.msgpack.decode(
            receive_body(self._connection, deadline=deadline), type=RankMessage
        )
        if isinstance(message, RankFailed):
            self._failure = message
        return message


class RankStarter(Protocol):
    """Starts the ranks above 0 of one group, wherever they are to run."""

    @property
    def host(self) -> str:
        """The address of this machine at which they reach rank 0."""

    @property
    def num_local_devices(self) -> int | None:
        """GPUs that rank 0's process must see; None: one for each rank."""

    def start(self, size: int) -> list[RankLink]:
        """Start the ranks 1 … size - 1.

        Raises:
            RankError: one of them cannot be started.
        """


class ChildProcess:
    """Satisfies `RankHandle`: a child process of this one."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def ending(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"

    def wait_s(self, timeout_s: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def kill(self) -> None:
        self._process.kill()


class ChildRanks:
    """Satisfies `RankStarter`: child processes of this one, each with a GPU of this machine."""

    host = LOOPBACK
    num_local_devices = None

    def start(self, size: int) -> list[RankLink]:
        """Does not wait for them."""
        links = []
        for rank in range(1, size):
            process, connection = start_child(_WORKER)
            links.append(RankLink(rank, ChildProcess(process), connection, device_index=rank))
        return links
