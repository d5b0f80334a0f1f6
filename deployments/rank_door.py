"""The door at which ranks of other processes and hosts reach their rank 0.

Both ends prove that they hold the cluster secret, and the connection notices within seconds that a
host is gone.

    rank    Knock(rank, process id, nonce)
    rank 0  Challenge(nonce, proof over both nonces)
    rank    Answer(proof over both nonces)

Frames are those of `models.child_process`. Nothing is encrypted: ranks belong on a private network.
"""

import contextlib
import hmac
import socket
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from deployments.cluster_secret import new_nonce, proof
from models.child_process import receive_body, send_frame
from models.parallel.rank_link import RankError

HANDSHAKE_TIMEOUT_S = 5.0
MAX_HANDSHAKE_BYTES = 512
LOOK_S = 0.1  # how often it is looked whether somebody who is awaited has ended
# An unplugged host: after so long without an answer the connection is broken.
SILENCE_LIMIT_S = 4.0
_PROBE_EVERY_S = 1

Message = TypeVar("Message")

_RANK, _RANK_0 = b"rank above 0", b"rank 0"


class Knock(msgspec.Struct, frozen=True):
    """A rank says who it is."""

    rank: int
    process_id: int
    nonce: bytes


class Challenge(msgspec.Struct, frozen=True):
    """Rank 0 shows that it holds the secret."""

    nonce: bytes
    proof: bytes


class Answer(msgspec.Struct, frozen=True):
    """The rank shows the same."""

    proof: bytes


class RankDoor:
    """Rank 0's end. Whoever does not prove to be a rank of this cluster is shown out."""

    def __init__(self, host: str, *, secret: bytes) -> None:
        """Listen on that address of this machine, on a free port."""
        self._secret = secret
        self._listening = socket.create_server((host, 0))

    @property
    def port(self) -> int:
        port: int = self._listening.getsockname()[1]
        return port

    def admit(
        self, ranks: set[int], *, deadline: float, check: Callable[[], None]
    ) -> dict[int, tuple[socket.socket, int]]:
        """Wait for all of these ranks; the connection and the process id of each.

        Args:
            deadline: of the monotonic clock.
            check: raises when one of them will not come.

        Raises:
            RankError: some did not come in time.
        """
        admitted: dict[int, tuple[socket.socket, int]] = {}
        while missing := ranks - admitted.keys():
            check()
            if time.monotonic() > deadline:
                raise RankError(f"rank {min(missing)} did not come")
            self._listening.settimeout(LOOK_S)
            try:
                connection, _ = self._listening.accept()
            except TimeoutError:
                continue
            try:
                knock = self._verify(connection)
            except (OSError, ValueError):
                connection.close()  # a stranger
                continue
            if knock.rank in missing:
                admitted[knock.rank] = (connection, knock.process_id)
            else:
                connection.close()
        return admitted

    def close(self) -> None:
        self._listening.close()

    def _verify(self, connection: socket.socket) -> Knock:
        deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        knock = _receive(connection, Knock, deadline)
        nonce = new_nonce()
        mine = proof(self._secret, _RANK_0, knock.nonce, nonce)
        send_frame(connection, Challenge(nonce, mine))
        answer = _receive(connection, Answer, deadline)
        expected = proof(self._secret, _RANK, knock.nonce, nonce)
        if not hmac.compare_digest(answer.proof, expected):
            raise PermissionError("the rank does not hold the cluster secret")
        _notice_silence(connection)
        return knock


def enter(host: str, port: int, *, rank: int, process_id: int, secret: bytes) -> socket.socket:
    """A rank's end: the connection to rank 0.

    Raises:
        OSError: rank 0 is not there, or does not hold the cluster secret.
    """
    deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
    connection = socket.create_connection((host, port), timeout=HANDSHAKE_TIMEOUT_S)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(connection.close)
        nonce = new_nonce()
        send_frame(connection, Knock(rank, process_id, nonce))
        challenge = _receive(connection, Challenge, deadline)
        expected = proof(secret, _RANK_0, nonce, challenge.nonce)
        if not hmac.compare_digest(challenge.proof, expected):
            raise PermissionError("rank 0 does not hold the cluster secret")
        send_frame(connection, Answer(proof(secret, _RANK, nonce, challenge.nonce)))
        _notice_silence(connection)
        connection.settimeout(None)
        on_failure.pop_all()
    return connection


def _receive(connection: socket.socket, kind: type[Message], deadline: float) -> Message:
    body = receive_body(connection, deadline=deadline, max_bytes=MAX_HANDSHAKE_BYTES)
    return msgspec.msgpack.decode(body, type=kind)


def _notice_silence(connection: socket.socket) -> None:
    """Also where nothing is sent: the host's kernel asks once a second."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_EVERY_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S)
    limit_ms = int(SILENCE_LIMIT_S * 1000)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
