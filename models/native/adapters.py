"""What LoRA adapters add to a linear layer, by the CPU kernels: each row by its own adapter.

Made for few rows of each; many of one are better off as a product.

Shapes: N = rows, S = slots, P = modules fused in the linear layer, R = the slots' rank,
I/O = inputs and outputs.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.native.library import native_library
from models.native.operations import DTYPES, WIDTH_MULTIPLE


def native_adapters(a_SPRI: torch.Tensor, b_SRO: Sequence[torch.Tensor]) -> "NativeAdapters | None":
    """The kernel for these slots, where it serves; what they hold may change."""
    fits = (
        a_SPRI.device.type == "cpu"
        and a_SPRI.dtype in DTYPES
        and a_SPRI.shape[3] % WIDTH_MULTIPLE == 0
        and all(each.shape[2] % WIDTH_MULTIPLE == 0 for each in b_SRO)
    )
    library = native_library() if fits else None
    return None if library is None else NativeAdapters(library, a_SPRI, b_SRO)


class NativeAdapters:
    """See `native_adapters`."""

    def __init__(
        self, library: ctypes.CDLL, a_SPRI: torch.Tensor, b_SRO: Sequence[torch.Tensor]
    ) -> None:
        self._add = library.shoal_add_adapters
        self._owners = (a_SPRI, tuple(b_SRO))  # the addresses live as long as these
        self._is_bfloat16 = a_SPRI.dtype is torch.bfloat16
        self._a = a_SPRI.data_ptr()
        self._b = (ctypes.c_void_p * len(b_SRO))(*(each.data_ptr() for each in b_SRO))
        self._num_outputs = (ctypes.c_int64 * len(b_SRO))(*(each.shape[2] for each in b_SRO))
        _, self._num_modules, self._rank, self._num_inputs = a_SPRI.shape

    def add(self, out_NO: torch.Tensor, x_NI: torch.Tensor, slots_N: NDArray[np.int32]) -> None:
        """Add in place to the first rows, as many as there are slots; a negative one is none."""
        assert out_NO.is_contiguous(), "rows follow each other"
        assert x_NI.is_contiguous(), "as above"
        self._add(
            self._is_bfloat16,
            x_NI.data_ptr(),
            out_NO.data_ptr(),
            slots_N.ctypes.data,
            self._a,
            self._b,
            self._num_outputs,
            len(slots_N),
            self._num_inputs,
            self._num_modules,
            self._rank,
            torch.get_num_threads(),
        )
