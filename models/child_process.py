"""Processes of our own for what might go wrong: how they start, what they may use, how they talk.

The child is `python -m <module> FD` and speaks over the socket with that number. Frames in both
directions: 4 bytes of length (big endian), then msgpack.
"""

import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

LENGTH = struct.Struct(">I")
# To find programs and libraries, to speak the user's language, and to be found by `shoal down`.
_INHERITED = frozenset(
    ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "SHOAL_CLUSTER_ID")
)
_ROOT = Path(__file__).resolve().parent.parent

Message = TypeVar("Message")


def start_child(
    module: str, *, environment: Mapping[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the child and do not wait for it; the socket is the parent's end.

    `environment`: what it has beside the little that is inherited. A child may read what strangers
    wrote, and the parent's environment may hold passwords.
    """
    inherited = {name: value for name, value in os.environ.items() if name in _INHERITED}
    mine, theirs = socket.socketpair()
    python_path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    # One thread is enough for such a child, and each reserves address space.
    whole_environment = {
        **inherited,
        "PYTHONPATH": python_path,
        "RAYON_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **(environment or {}),
    }
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=whole_environment,
        )
    return process, mine


def limit_memory(num_bytes: int) -> None:
    """Let this process map no more than `num_bytes` beyond what it has mapped, and dump no core."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def encode_frame(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body


def send_frame(connection: socket.socket, message: msgspec.Struct) -> None:
    connection.sendall(encode_frame(message))


def receive_frame(
    connection: socket.socket, kind: type[Message], *, deadline: float | None
) -> Message:
    """The next message; `deadline` is a time of the monotonic clock.

    Raises:
        TimeoutError: the deadline has passed.
        ConnectionResetError: the other end is gone.
    """
    return msgspec.msgpack.decode(receive_body(connection, deadline=deadline), type=kind)


def receive_body(
    connection: socket.socket, *, deadline: float | None, max_bytes: int | None = None
) -> bytes:
    """The next message before it is decoded; raises as `receive_frame` does, and
    ConnectionAbortedError where it is longer than `max_bytes`.
    """
    (length,) = LENGTH.unpack(_receive_exactly(connection, LENGTH.size, deadline))
    if max_bytes is not None and length > max_bytes:
        raise ConnectionAbortedError(f"a message of {length} bytes; {max_bytes} are accepted")
    return _receive_exactly(connection, length, deadline)


def _receive_exactly(connection: socket.socket, count: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        if deadline is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the deadline has passed")
            connection.settimeout(left_s)
        part = connection.recv(count - len(parts))
        if not part:
            raise ConnectionResetError("the other end is gone")
        parts += part
    return bytes(parts)
