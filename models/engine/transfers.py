"""Copies between the host and the device that do not make the host wait.

On a GPU both ways go through page-locked memory: torch keeps such memory until the copy is done,
and a download is read once an event says that it has arrived.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def upload(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array on the device, once the work that is queued there has come so far. On a CPU it is
    the same memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """A tensor on its way to the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        """Queue the copy; the tensor may be overwritten by what is queued afterwards."""
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cpu":
            self._host = tensor.clone()
            return
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.current_stream(tensor.device).record_event()

    def read(self) -> torch.Tensor:
        """Wait for this copy, and for nothing that was queued after it."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
