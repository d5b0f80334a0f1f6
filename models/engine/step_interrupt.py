"""A step of batch sequences alone may be given up midway, so that an online request need not wait.

What such a step had computed is computed again by a later one: its keys and values are the same.
"""

import ctypes

import torch

from models.attention.backend import StepAttention


class StepInterrupted(Exception):
    """The step was given up; nothing of it is to be recorded."""


class StepInterrupt:
    """Set in any thread, seen by the thread that computes."""

    def __init__(self) -> None:
        self._is_set = ctypes.c_int32(0)
        #: Where kernels look for it: 32 bits, not 0 when it is set.
        self.address = ctypes.addressof(self._is_set)

    def set(self) -> None:
        self._is_set.value = 1

    def clear(self) -> None:
        self._is_set.value = 0

    def check(self) -> None:
        """
        Raises:
            StepInterrupted: it was set; it no longer is.
        """
        if self._is_set.value:
            self.clear()
            raise StepInterrupted


class InterruptibleAttention:
    """A step's attention that looks at each layer whether the step is to go on."""

    def __init__(self, attention: StepAttention, interrupt: StepInterrupt) -> None:
        self.inner = attention
        self.interrupt = interrupt

    def attend(
        self, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, *, layer_index: int
    ) -> torch.Tensor:
        """As `StepAttention`.

        Raises:
            StepInterrupted: before anything of this layer is written.
        """
        self.interrupt.check()
        return self.inner.attend(q_THD, k_TKD, v_TKD, layer_index=layer_index)
