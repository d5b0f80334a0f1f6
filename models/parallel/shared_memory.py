"""Ranks of one machine find the memory that they share: a file without a name, which rank 0 makes
and the others open through its process. It is gone when they are.
"""

import contextlib
import mmap
import os
import secrets
from collections.abc import Callable
from typing import Protocol

from models.native.library import native_library
from models.native.ranks import NativeRanks, num_shared_bytes

_TOKEN_BYTES = 16  # at the end of the memory: it is that of these ranks


class Store(Protocol):
    """What the ranks can write to each other before they have anything else."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes:
        """Waits for it."""


def share_memory(
    store: Store, *, rank: int, size: int, timeout_s: float, agree: Callable[[bool], bool]
) -> NativeRanks | None:
    """Memory with all other ranks; None, for all of them, where one cannot: it runs on another
    machine, sees no other processes, or has no kernels.

    Args:
        timeout_s: of an exchange.
        agree: whether it is true on every rank.
    """
    with contextlib.ExitStack() as stack:
        try:
            ranks = _open(store, stack, rank=rank, size=size, timeout_s=timeout_s)
        except OSError:
            ranks = None
        return ranks if agree(ranks is not None) else None


def _open(
    store: Store, stack: contextlib.ExitStack, *, rank: int, size: int, timeout_s: float
) -> NativeRanks | None:
    """The files that `stack` closes must be open until all ranks have been here."""
    num_bytes = num_shared_bytes(size) + _TOKEN_BYTES
    file: int | None = None
    token = b""
    if rank == 0:
        with contextlib.suppress(OSError):
            file = os.memfd_create("shoal-ranks")
            stack.callback(os.close, file)
            os.ftruncate(file, num_bytes)
            token = secrets.token_bytes(_TOKEN_BYTES)
            os.pwrite(file, token, num_bytes - _TOKEN_BYTES)
    # Every rank says where it is, also one that could not do its part: the others wait for it.
    store.set(f"shoal/process/{rank}", f"{os.getpid()}/{file}/{token.hex()}")
    places = [store.get(f"shoal/process/{other}").decode().split("/") for other in range(size)]
    process, path, token_text = places[0]
    if file is None:
        file = os.open(f"/proc/{process}/fd/{path}", os.O_RDWR)
        stack.callback(os.close, file)
    if native_library() is None or os.pread(
        file, _TOKEN_BYTES, num_bytes - _TOKEN_BYTES
    ) != bytes.fromhex(token_text):
        return None
    with contextlib.ExitStack() as opened:
        process_fds = []
        for place in places:
            process_fds.append(_process_fd(int(place[0])))
            if process_fds[-1] >= 0:
                opened.callback(os.close, process_fds[-1])
        ranks = NativeRanks(mmap.mmap(file, num_bytes), process_fds, rank=rank, timeout_s=timeout_s)
        opened.pop_all()  # they are its own now
    return ranks


def _process_fd(process: int) -> int:
    """-1 for this process: ranks may be threads."""
    return -1 if process == os.getpid() else os.pidfd_open(process)
