"""Sums over the ranks of a model that run on one machine, through memory that they share.

Who opens that memory says `models.parallel.shared_memory`; the kernels that compute all layers in
one call exchange through it, too.

Shapes: R = rows, V = columns of one rank, N = ranks.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence

import torch

from models.native.library import native_library
from models.native.operations import DTYPES

PAGE_BYTES = 4096
#: Longer exchanges are made in pieces. Memory is taken for what is written only.
SLOT_BYTES = 32 * 2**20


class GroupError(RuntimeError):
    """An exchange failed: a rank is gone, or did not take part in time."""


class RankFields(ctypes.Structure):
    """`Ranks` of `models/native/team.h`."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("process_fds", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("slot_bytes", ctypes.c_int64),
        ("timeout_s", ctypes.c_double),
        ("num_exchanges", ctypes.c_int64),
    )


def num_shared_bytes(size: int) -> int:
    """Of the memory that so many ranks share."""
    return PAGE_BYTES * size + 2 * size * SLOT_BYTES


class NativeRanks:
    """One rank's view of a group on this machine. All ranks ask for the same, in the same order."""

    def __init__(
        self, memory: mmap.mmap, process_fds: Sequence[int], *, rank: int, timeout_s: float
    ) -> None:
        """
        Args:
            memory: `num_shared_bytes`, zero at first.
            process_fds: by rank, what is readable once that rank's process has ended; -1: it is
                this one. They belong to this object now.
            timeout_s: of each exchange.
        """
        library = native_library()
        assert library is not None, "nobody shares memory without the kernels"
        self._library = library
        self._close = weakref.finalize(self, _close, [fd for fd in process_fds if fd >= 0])
        self._memory = (ctypes.c_char * len(memory)).from_buffer(memory)
        self._process_fds = (ctypes.c_int32 * len(process_fds))(*process_fds)
        self._rank, self._size = rank, len(process_fds)
        self._fields = RankFields(
            memory=ctypes.addressof(self._memory),
            process_fds=ctypes.addressof(self._process_fds),
            rank=rank,
            size=self._size,
            slot_bytes=SLOT_BYTES,
            timeout_s=timeout_s,
        )

    @property
    def address(self) -> int:
        """Of the kernels' `Ranks`; it is valid as long as this object."""
        return ctypes.addressof(self._fields)

    @property
    def slot_bytes(self) -> int:
        """Of this rank's part of one exchange."""
        return int(self._fields.slot_bytes)

    def leave(self) -> None:
        """Come to no further exchange, though this process goes on: the others notice at once."""
        self._library.shoal_leave_ranks(self.address)

    def all_reduce(self, x: torch.Tensor) -> None:
        """Make a contiguous x, of one of `DTYPES`, the sum over all ranks: added in float32, in
        their order, and rounded once.

        Raises:
            GroupError: a rank did not come.
        """
        assert x.is_contiguous(), "it is summed in place"
        assert x.dtype in DTYPES, "the kernels have no others"
        is_bfloat16, num_threads = x.dtype is torch.bfloat16, torch.get_num_threads()
        if not self._library.shoal_sum_ranks(
            is_bfloat16, self.address, x.data_ptr(), x.numel(), num_threads
        ):
            raise GroupError("an exchange between the ranks failed: one did not come to a sum")

    def gather(self, x_RV: torch.Tensor) -> torch.Tensor | None:
        """All ranks' [N, R, V] on rank 0; None on the others.

        Raises:
            GroupError: a rank did not come.
        """
        x_RV = x_RV.contiguous()
        gathered_NRV = x_RV.new_empty(self._size, *x_RV.shape) if self._rank == 0 else None
        place = None if gathered_NRV is None else gathered_NRV.data_ptr()
        if not self._library.shoal_gather_ranks(self.address, x_RV.data_ptr(), x_RV.nbytes, place):
            raise GroupError("an exchange between the ranks failed: one did not send its columns")
        return gathered_NRV


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
