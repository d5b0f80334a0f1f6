"""The ranks that compute one model together, and what they exchange: sums and gathered columns.

Shapes: R = rows, V = columns of one rank.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed

from models.native.operations import DTYPES
from models.native.ranks import GroupError, NativeRanks
from models.parallel.shared_memory import Store, share_memory

LOOPBACK = "127.0.0.1"
#: The sum of two is the same in either order; gloo adds more in one that varies.
MAX_RANKS_APART = 2
# To agree, which a rank comes to when it has compiled its kernels.
_AGREEING_TIMEOUT_S = 600.0

#: `torch.distributed`, whose stubs leave out most of what is used here.
distributed: Any = torch.distributed


class _Work(Protocol):
    def wait(self) -> bool: ...


class _Backend(Protocol):
    """One of torch's backends."""

    def allreduce(self, tensors: list[torch.Tensor], options: object = ...) -> _Work: ...

    def gather(
        self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], options: object
    ) -> _Work: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """Where the ranks find each other's addresses: rank 0's store, reached over TCP."""

    store: Store
    host: str
    port: int

    @classmethod
    def open(cls, host: str, *, size: int, timeout_s: float) -> "Rendezvous":
        """On rank 0: listens on that address of the machine only, on a free port."""
        listening = socket.create_server((host, 0))
        port = listening.getsockname()[1]
        store = distributed.TCPStore(
            host,
            port,
            size,
            is_master=True,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=listening.detach(),
        )
        return cls(store=store, host=host, port=port)

    @classmethod
    def reach(cls, host: str, port: int, *, size: int, timeout_s: float) -> "Rendezvous":
        """On the other ranks.

        Raises:
            RuntimeError: rank 0 is not there.
        """
        store = distributed.TCPStore(
            host, port, size, is_master=False, timeout=timedelta(seconds=timeout_s)
        )
        return cls(store=store, host=host, port=port)


class TPGroup:
    """One rank's view of its tensor-parallel group. A group of one does nothing and costs nothing.

    Every rank must ask for the same exchanges in the same order. None lasts longer than the limit
    that `join` was given: on a CPU it then raises, and it raises at once when a rank's process
    has ended, and through memory when it has left; with NCCL, whose exchanges run on the device,
    torch's watchdog ends the process.

    On a CPU the ranks of one machine sum through memory; through gloo where they have no kernels,
    and between machines.
    """

    def __init__(self) -> None:
        """A group of one rank."""
        self.rank = 0
        self.size = 1
        self.device_index = 0  # this rank's GPU, among those that its process sees
        self._device = torch.device("cpu")
        self._backend: _Backend | None = None
        #: Of the same ranks, where they share memory.
        self.native_ranks: NativeRanks | None = None

    @classmethod
    def join(
        cls,
        meeting: Rendezvous,
        *,
        rank: int,
        size: int,
        device: torch.device,
        timeout_s: float,
        host: str = LOOPBACK,
    ) -> "TPGroup":
        """Meet the other ranks; returns when all are there.

        No process group of torch's own is registered: a process may have several.

        Args:
            timeout_s: of each exchange.
            host: this rank's own address, which the others reach it at.

        Raises:
            GroupError: a rank did not come.
        """
        group = cls()
        group.rank, group.size, group._device = rank, size, device
        group.device_index = device.index or 0
        timeout = timedelta(seconds=timeout_s)
        try:
            if device.type == "cuda":
                group._backend = _nccl(meeting.store, rank, size, timeout)
            else:
                group._backend = _gloo(meeting, rank, size, timeout, host)
        except RuntimeError as error:
            _fail(error)
        group.all_reduce(torch.zeros(1, device=device))  # the first one connects the ranks
        if device.type == "cpu":
            group.native_ranks = share_memory(
                meeting.store,
                rank=rank,
                size=size,
                timeout_s=timeout_s,
                agree=lambda can: bool(group.minimum(can, timeout_s=_AGREEING_TIMEOUT_S)),
            )
        return group

    def leave(self) -> None:
        """Take part in no further exchange. Ranks that wait for this one in an exchange through
        memory notice at once; in one of gloo's, when its connections have ended."""
        if self.native_ranks is not None:
            self.native_ranks.leave()

    @property
    def adds_in_order(self) -> bool:
        """Whether a sum has the same bits each time."""
        return self.native_ranks is not None or self.size <= MAX_RANKS_APART

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place; the same bits on every rank.

        Raises:
            GroupError: a rank is gone or did not answer in time.
        """
        backend = self._backend
        if self.native_ranks is not None and x.dtype in DTYPES:
            self.native_ranks.all_reduce(x)
        elif backend is not None:
            _exchange(lambda: backend.allreduce([x]))
        return x

    def gather_columns(self, x_RV: torch.Tensor) -> torch.Tensor | None:
        """All ranks' columns side by side, in the order of ranks, on rank 0; None on the others.

        Raises:
            GroupError: as `all_reduce`.
        """
        backend = self._backend
        if backend is None:
            return x_RV
        if self.native_ranks is not None:
            gathered_NRV = self.native_ranks.gather(x_RV)
            return None if gathered_NRV is None else torch.cat(gathered_NRV.unbind(), dim=1)
        parts = [torch.empty_like(x_RV) for _ in range(self.size)] if self.rank == 0 else []
        options = distributed.GatherOptions()
        options.rootRank = 0
        _exchange(lambda: backend.gather([parts] if parts else [], [x_RV.contiguous()], options))
        return torch.cat(parts, dim=1) if parts else None

    def minimum(self, value: int, *, timeout_s: float) -> int:
        """The least of the ranks' values; with a limit of its own, because ranks may come late.

        Raises:
            GroupError: as `all_reduce`.
        """
        backend = self._backend
        if backend is None:
            return value
        least = torch.tensor([value], device=self._device)
        options = distributed.AllreduceOptions()
        options.reduceOp = distributed.ReduceOp.MIN
        options.timeout = timedelta(seconds=timeout_s)
        _exchange(lambda: backend.allreduce([least], options))
        return int(least.item())


def _exchange(start: Callable[[], _Work]) -> None:
    try:
        start().wait()
    except RuntimeError as error:
        _fail(error)


def _fail(error: RuntimeError) -> NoReturn:
    raise GroupError(f"an exchange between the ranks failed: {error}") from error


def _gloo(meeting: Rendezvous, rank: int, size: int, timeout: timedelta, host: str) -> _Backend:
    options = distributed.ProcessGroupGloo._Options()
    options._timeout = timeout
    options._devices = [distributed.ProcessGroupGloo.create_device(hostname=host)]
    backend: _Backend = distributed.ProcessGroupGloo(meeting.store, rank, size, options)
    return backend


def _nccl(store: Store, rank: int, size: int, timeout: timedelta) -> _Backend:
    options = distributed.ProcessGroupNCCL.Options()
    options._timeout = timeout
    backend: _Backend = distributed.ProcessGroupNCCL(store, rank, size, options)
    return backend
