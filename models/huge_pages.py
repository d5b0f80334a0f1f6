"""Memory that is read from end to end in every step, in pages of 2 MiB where the system gives them.

With pages of 4 KiB a core looks up an address for every 64 lines, which in a virtual machine takes
two walks through page tables; the prefetchers stop at each page's end as well.
"""

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock

import torch

_MAPPING_BYTES = 64 * 2**20  # taken at once; what is not written to costs nothing
_ALIGNMENT = 64


def zeros_on_demand(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A mapping of its own. The system gives its memory, page by page, when it is written to:
    writing 4 GiB of zeros took longer than everything else in a replica's start."""
    num_bytes = math.prod(shape) * dtype.itemsize
    return _view(_mapping(num_bytes), 0, shape, dtype)


class HugePages:
    """Gives memory piece by piece from large mappings, so that small tensors share huge pages.

    A mapping is returned to the system when the last of its tensors is gone.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._mapping = _mapping(_ALIGNMENT)
        self._num_used = len(self._mapping)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Contiguous, in such memory."""
        num_bytes = tensor.numel() * tensor.itemsize
        if num_bytes == 0:
            return tensor.contiguous()
        with self._lock:
            if self._num_used + num_bytes > len(self._mapping):
                self._mapping = _mapping(max(num_bytes, _MAPPING_BYTES))
                self._num_used = 0
            placed = _view(self._mapping, self._num_used, tensor.shape, tensor.dtype)
            self._num_used += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
        return placed.copy_(tensor)


def _mapping(num_bytes: int) -> mmap.mmap:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, num_bytes)
    # Private: the setting for shared memory is another one, which is seldom on.
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _view(memory: mmap.mmap, offset: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The tensor keeps the mapping."""
    count = math.prod(shape)
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(*shape)
