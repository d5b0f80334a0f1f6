import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from models.child_process import limit_memory, receive_frame, send_frame

ROOT = Path(__file__).resolve().parents[2]


class Greeting(msgspec.Struct):
    text: str


@pytest.fixture
def ends() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def test_a_message_arrives_whole_in_pieces(ends: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = ends
    sent = Greeting("x" * 3_000_000)  # more than the socket holds
    sender = threading.Thread(target=send_frame, args=(theirs, sent))
    sender.start()
    assert receive_frame(mine, Greeting, deadline=time.monotonic() + 30) == sent
    sender.join()


def test_a_deadline_holds_for_the_whole_message(ends: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = ends
    theirs.sendall(b"\0\0\0\x10half")
    with pytest.raises(TimeoutError):
        receive_frame(mine, Greeting, deadline=time.monotonic() + 0.05)


def test_a_closed_end_is_noticed(ends: tuple[socket.socket, socket.socket]) -> None:
    mine, theirs = ends
    theirs.sendall(b"\0\0\0\x10half")
    theirs.close()
    with pytest.raises(ConnectionResetError):
        receive_frame(mine, Greeting, deadline=None)


def test_memory_beyond_the_limit_is_refused_to_the_process_alone() -> None:
    program = (
        f"from models.child_process import {limit_memory.__name__} as limit\n"
        "limit(64 * 2**20)\n"
        "kept = bytearray(32 * 2**20)\n"
        "try:\n    bytearray(64 * 2**20)\n"
        "except MemoryError:\n    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "refused"
