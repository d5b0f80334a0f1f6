"""Rank 0's end of the connection to another rank: how it is reached, what it says, how it ends.

Where and how a rank runs is its `RankHandle`'s business: `start_rank_processes` starts child
processes of this machine. Ranks that somebody else starts (actors on other machines, say) need a
handle of their own and a connected socket, whose other end `TPWorker` follows.
"""

import contextlib
import socket
import subprocess
import time
from typing import Protocol, TypeVar

import msgspec

from models.child_process import encode_frame, receive_body, start_child
from models.parallel.messages import RankFailed, RankMessage

_WORKER = "models.parallel.worker"
_END_TIMEOUT_S = 5.0

Expected = TypeVar("Expected")


class RankError(RuntimeError):
    """A rank has ended, failed or does not answer: the group is over."""


class RankHandle(Protocol):
    """Whatever a rank runs in; the child process of `subprocess` is one."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """None while it runs; the exit status, or minus the signal, afterwards."""

    def wait(self, timeout: float) -> int:
        """
        Raises:
            subprocess.TimeoutExpired: it still runs.
        """

    def kill(self) -> None: ...


class RankLink:
    """One rank above 0. Messages are read in the order in which they were sent."""

    def __init__(self, rank: int, handle: RankHandle, connection: socket.socket) -> None:
        self.rank = rank
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
            RankError: its process has ended.
        """
        if self._handle.poll() is not None:
            raise RankError(self.fault() or "")

    def settle(self, deadline: float) -> None:
        """After something went wrong: hear the rank's last word, or see its process end."""
        try:
            while self._failure is None:
                self._read(deadline)
        except TimeoutError:
            return
        except OSError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._handle.wait(max(0.0, deadline - time.monotonic()))

    def fault(self) -> str | None:
        """What it has done wrong by itself, as far as is known."""
        failure, code = self._failure, self._handle.poll()
        if failure is not None:
            return None if failure.is_victim else f"{self._name} failed: {failure.message}"
        if code is None:
            return None
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        return f"{self._name} {how}"

    def silence(self) -> str | None:
        """That it runs and does not say why nothing comes of it."""
        is_silent = self._failure is None and self._handle.poll() is None
        return f"{self._name} does not answer" if is_silent else None

    def end(self) -> None:
        """Kill the process, even one that is stopped, and wait until it is gone."""
        self._connection.close()
        self._handle.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._handle.wait(_END_TIMEOUT_S)

    @property
    def _name(self) -> str:
        return f"rank {self.rank} (process {self.process_id})"

    def _read(self, deadline: float) -> RankMessage:
        message: RankMessage = msgspec.msgpack.decode(
            receive_body(self._connection, deadline=deadline), type=RankMessage
        )
        if isinstance(message, RankFailed):
            self._failure = message
        return message


def start_rank_processes(size: int) -> list[RankLink]:
    """Start the ranks 1 … size - 1 on this machine, and do not wait for them."""
    return [RankLink(rank, *start_child(_WORKER)) for rank in range(1, size)]
