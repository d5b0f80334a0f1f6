"""Which hosts of a pool are in use, as one process's provider has written it down.

A file with a lock, one for each cluster, since Ray calls a provider from several threads, and
`ray` commands may overlap. It is changed only by `LeaseBook.change`, whole and at once.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec

CLAIM_EXPIRES_S = 120.0  # an unfinished claim or stop of a process that died is void after this
STOP_EXPIRES_S = 300.0
FIRST_PAUSE_S = 30.0  # of a host that failed; doubled with each failure in a row
MAX_PAUSE_S = 600.0


class LeaseBookError(Exception):
    """The file cannot be used; the message is meant for a person."""


class LeaseState(StrEnum):
    """How far a lease is."""

    CLAIMING = "claiming"
    RUNNING = "running"  # Ray may count on it
    STOPPING = "stopping"


class Lease(msgspec.Struct, kw_only=True):
    """One host, as one node of the cluster. Node ids are never used twice."""

    node_id: str
    tags: dict[str, str]
    state: LeaseState
    expires_s: float = 0.0  # wall clock; for claiming and stopping


class Trouble(msgspec.Struct, kw_only=True):
    """Why a host is left alone for a while."""

    reason: str
    until_s: float  # wall clock
    num_failures: int  # in a row


class Leases(msgspec.Struct, kw_only=True):
    """What the file holds; leases and troubles are by host."""

    start_id: str = ""  # of the start of Ray that the leases belong to, on the head
    leases: dict[str, Lease] = {}
    troubles: dict[str, Trouble] = {}

    def running(self) -> dict[str, Lease]:
        """Those that Ray may count on, by host."""
        return {
            host: lease for host, lease in self.leases.items() if lease.state is LeaseState.RUNNING
        }

    def host_of(self, node_id: str) -> str | None:
        for host, lease in self.leases.items():
            if lease.node_id == node_id:
                return host
        return None

    def is_free(self, host: str, now_s: float) -> bool:
        """Nobody has it, and it is not left alone."""
        lease, trouble = self.leases.get(host), self.troubles.get(host)
        is_void = lease is None or (
            lease.state is not LeaseState.RUNNING and lease.expires_s < now_s
        )
        return is_void and (trouble is None or trouble.until_s < now_s)

    def note_trouble(self, host: str, reason: str, now_s: float) -> None:
        """Leave a host alone, longer each time in a row."""
        before = self.troubles.get(host)
        num_failures = 1 if before is None else before.num_failures + 1
        pause_s = min(FIRST_PAUSE_S * 2 ** min(num_failures - 1, 16), MAX_PAUSE_S)
        self.troubles[host] = Trouble(
            reason=reason, until_s=now_s + pause_s, num_failures=num_failures
        )


class LeaseBook:
    """The file of one cluster, in a folder of its own."""

    def __init__(self, folder: Path, cluster_name: str) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9._-]", "-", cluster_name)
        self.path = folder / f"{name}.json"
        self._lock_path = folder / f"{name}.lock"

    def read(self) -> Leases:
        """As it is now; a writer replaces the file at once, so no lock is needed.

        Raises:
            LeaseBookError: it cannot be understood.
        """
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Leases)
        except FileNotFoundError:
            return Leases()
        except (OSError, ValueError) as error:
            raise LeaseBookError(
                f"{self.path}: cannot be read: {error}; stop Ray on the hosts and delete the file"
            ) from error

    @contextmanager
    def change(self) -> Iterator[Leases]:
        """The contents, to be changed; written when the block ends without an exception.

        Raises:
            LeaseBookError: see `read`.
        """
        # Every caller has a descriptor of its own, so threads wait for each other as well.
        descriptor = os.open(self._lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            leases = self.read()
            yield leases
            partial = self.path.with_suffix(".partial")
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(leases)))
            partial.replace(self.path)
        finally:
            os.close(descriptor)


def now_s() -> float:
    """The wall clock: what is written has a meaning for the next process too."""
    return time.time()
