"""Who is let in by rank 0, and who is not."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from deployments.rank_door import RankDoor, enter
from models.parallel.rank_link import RankError

HOST = "127.0.0.1"
SECRET = b"s" * 32


@pytest.fixture
def door() -> Iterator[RankDoor]:
    door = RankDoor(HOST, secret=SECRET)
    yield door
    door.close()


def nobody_has_ended() -> None:
    return


def admit(door: RankDoor, ranks: set[int], *, wait_s: float = 10.0) -> dict[int, tuple[int, bytes]]:
    """Each rank's process id, and what it sent behind the handshake."""
    admitted = door.admit(ranks, deadline=time.monotonic() + wait_s, check=nobody_has_ended)
    return {rank: (pid, connection.recv(2)) for rank, (connection, pid) in admitted.items()}


def knock(door: RankDoor, rank: int, secret: bytes = SECRET) -> None:
    with enter(HOST, door.port, rank=rank, process_id=100 + rank, secret=secret) as connection:
        connection.sendall(b"hi")


def test_ranks_are_let_in_in_whatever_order_they_come(door: RankDoor) -> None:
    with ThreadPoolExecutor() as threads:
        for rank in (3, 1, 2):
            threads.submit(knock, door, rank)
        assert admit(door, {1, 2, 3}) == {rank: (100 + rank, b"hi") for rank in (1, 2, 3)}


def test_a_rank_with_another_secret_refuses_rank_0_and_is_not_let_in(door: RankDoor) -> None:
    with ThreadPoolExecutor() as threads:
        stranger = threads.submit(knock, door, 1, b"x" * 32)
        waiting = threads.submit(admit, door, {1}, wait_s=1.0)
        with pytest.raises(PermissionError, match="rank 0 does not hold"):
            stranger.result()
        with pytest.raises(RankError, match="rank 1 did not come"):
            waiting.result()


def test_noise_does_not_keep_the_ranks_out(door: RankDoor) -> None:
    with (
        socket.create_connection((HOST, door.port)) as loud,
        socket.create_connection((HOST, door.port)) as endless,
        ThreadPoolExecutor() as threads,
    ):
        loud.sendall(b"GET / HTTP/1.1\r\n\r\n")
        endless.sendall(b"\x00\x00\x00\x02\xff\xff")
        threads.submit(knock, door, 1)
        assert admit(door, {1}) == {1: (101, b"hi")}


def test_waiting_ends_when_a_rank_will_not_come(door: RankDoor) -> None:
    has_ended = threading.Event()

    def check() -> None:
        if has_ended.is_set():
            raise RankError("rank 1 has ended")

    has_ended.set()
    with pytest.raises(RankError, match="rank 1 has ended"):
        door.admit({1}, deadline=time.monotonic() + 60, check=check)
