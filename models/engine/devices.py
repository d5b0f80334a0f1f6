"""Which device a rank computes on, with how many threads, and by which kernels."""

import importlib.util
import os

import torch

from models.engine.cuda_graphs import CUDARecorder, Recorder


def runs_triton(device: torch.device) -> bool:
    """Whether steps are computed by Triton kernels; torch brings it along for GPUs on Linux."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def make_recorder() -> Recorder:
    """Captures decode steps on a GPU."""
    return CUDARecorder()


def find_device(name: str, index: int = 0) -> torch.device:
    """The device of a rank: the machine's CPU, or the GPU with that number.

    Raises:
        ValueError: the name is unknown, or there is no such GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {name!r} is not one of auto, cpu, cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch finds no GPU")
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"each rank needs a GPU of its own: {index + 1} are needed, but torch finds "
            f"{torch.cuda.device_count()}"
        )
    return torch.device("cuda", index)


def set_threads(num_threads: int | None, num_ranks: int) -> None:
    """Share the configured threads out among the ranks, or the machine's cores."""
    if num_ranks > 1:
        total = num_threads or len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, total // num_ranks))
    elif num_threads is not None:
        torch.set_num_threads(num_threads)
