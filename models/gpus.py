"""GPUs as a plan needs them: memory, and the speeds that its rooflines are made of.

Memory is what `nvidia-smi` calls the total; speeds are the vendor's, for dense bfloat16 with sums
in float32 (no structured sparsity). Links: what one GPU sends to the others of its machine, one
direction, half of what the vendor adds up. Sources: the product pages named in each line, read as
of November 2025.
"""

from dataclasses import dataclass

MIB = 2**20
NVLINK_LATENCY_S = 10e-6  # of an exchange of a few kilobytes among 8 GPUs, by NCCL
PCIE_LATENCY_S = 30e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class GPU:
    """One GPU of a machine whose GPUs are all alike."""

    title: str
    memory_bytes: int
    bytes_per_s: float  # of its memory
    flops_per_s: float
    link_bytes_per_s: float
    link_latency_s: float
    source: str


def _nvlink(
    title: str, memory_mib: int, tb_per_s: float, tflops: float, link_gb_per_s: float, source: str
) -> GPU:
    return GPU(
        title=title,
        memory_bytes=memory_mib * MIB,
        bytes_per_s=tb_per_s * 1e12,
        flops_per_s=tflops * 1e12,
        link_bytes_per_s=link_gb_per_s * 1e9,
        link_latency_s=NVLINK_LATENCY_S,
        source=source,
    )


def _pcie(title: str, memory_mib: int, tb_per_s: float, tflops: float, source: str) -> GPU:
    """With PCIe 4.0 x16 as the only link."""
    return GPU(
        title=title,
        memory_bytes=memory_mib * MIB,
        bytes_per_s=tb_per_s * 1e12,
        flops_per_s=tflops * 1e12,
        link_bytes_per_s=32e9,
        link_latency_s=PCIE_LATENCY_S,
        source=source,
    )


_SITE = "nvidia.com/en-us"
GPUS: dict[str, GPU] = {
    "a100-40gb": _nvlink("A100 SXM 40 GB", 40960, 1.555, 312, 300, f"{_SITE}/data-center/a100"),
    "a100": _nvlink("A100 SXM 80 GB", 81920, 2.039, 312, 300, f"{_SITE}/data-center/a100"),
    "h100": _nvlink("H100 SXM", 81559, 3.35, 989, 450, f"{_SITE}/data-center/h100"),
    "h200": _nvlink("H200 SXM", 143771, 4.8, 989, 450, f"{_SITE}/data-center/h200"),
    "b200": _nvlink("B200 SXM", 183359, 8.0, 2250, 900, f"{_SITE}/data-center/hgx"),
    "l4": _pcie("L4", 23034, 0.3, 60.5, f"{_SITE}/data-center/l4"),
    "l40s": _pcie("L40S", 46068, 0.864, 362, f"{_SITE}/data-center/l40s"),
    "rtx4090": _pcie("GeForce RTX 4090", 24564, 1.008, 165, f"{_SITE}/geforce"),
}


def read_gpus(text: str) -> tuple[GPU, int]:
    """ "h100:8" → the GPU and their number; without a number, one.

    Raises:
        ValueError: unknown, or not a number of GPUs.
    """
    name, _, number = text.partition(":")
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise ValueError(f"GPU {name!r} is not known; known: {', '.join(GPUS)}")
    if number and not (number.isdigit() and int(number) > 0):
        raise ValueError(f"{text!r}: the number of GPUs must be 1 or more, like h100:8")
    return gpu, int(number or 1)
