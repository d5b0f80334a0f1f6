"""Where the Triton kernels run: compiled on a GPU, or, one operation at a time, by Triton's
interpreter on the CPU (`TRITON_INTERPRET=1`, for tests)."""

import torch
import triton

IS_INTERPRETED: bool = triton.knobs.runtime.interpret
_INTERPRETED_PROCESSORS = 1  # each program takes milliseconds there: no more than needed


def num_processors(device: torch.device) -> int:
    """How many programs run side by side, at one for each of the device's processors."""
    if device.type == "cpu":
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
