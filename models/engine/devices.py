"""Which device a rank computes on, with how many threads, in which dtype, and by which kernels."""

import importlib
import importlib.util
import os

import torch

from cluster.config import EngineConfig
from models.checkpoint import SUPPORTED_DTYPES, DTypeName
from models.engine.cuda_graphs import CUDARecorder, Recorder
from models.engine.sampler import Sampler


def runs_triton(device: torch.device) -> bool:
    """Whether steps are computed by Triton kernels; torch brings it along for GPUs on Linux."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def make_recorder() -> Recorder:
    """Captures decode steps on a GPU."""
    return CUDARecorder()


def make_sampler(device: torch.device) -> Sampler:
    """With kernels of its own on a GPU."""
    if not runs_triton(device):
        return Sampler()
    return Sampler(choose_tokens=importlib.import_module("models.triton.sampling").choose_tokens)


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


def choose_dtype(name: str, checkpoints: DTypeName) -> torch.dtype:
    """The dtype of that name; "auto": the checkpoint's.

    Raises:
        ValueError: it is unknown.
    """
    if name == "auto":
        name = checkpoints
    if name not in SUPPORTED_DTYPES:
        raise ValueError(f"dtype {name!r} is not one of auto, {', '.join(SUPPORTED_DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def overlaps_steps(engine_config: EngineConfig, device: torch.device, num_ranks: int) -> bool:
    """Whether a step is launched before the tokens of the one before are read."""
    wanted = engine_config.overlap_steps
    return num_ranks == 1 and (device.type == "cuda" if wanted is None else wanted)
