"""Memory in huge pages."""

import gc
from pathlib import Path

import psutil
import pytest
import torch

from models.huge_pages import HugePages, zeros_on_demand

MIB = 2**20


def test_copies_are_apart_aligned_and_equal() -> None:
    memory = HugePages()
    tensors = [
        torch.randn(7, 3),
        torch.arange(5, dtype=torch.uint8),
        torch.randn(64, 32).bfloat16().T,
        torch.empty(0, 4),
        torch.randn(30 * MIB // 4),
        torch.randn(40 * MIB // 4),  # not in the mapping of those before
        torch.randn(70 * MIB // 4),  # larger than a mapping
    ]
    copies = [memory.copy(tensor) for tensor in tensors]
    for tensor, copy in zip(tensors, copies, strict=True):
        assert copy.is_contiguous()
        assert copy.dtype is tensor.dtype
        assert torch.equal(copy, tensor)
        assert copy.data_ptr() % 64 == 0


def test_memory_goes_back_when_its_last_tensor_is_gone() -> None:
    gc.collect()
    before = psutil.Process().memory_info().rss
    memory = HugePages()
    first, second = (memory.copy(torch.ones(100 * MIB // 4)) for _ in range(2))
    assert psutil.Process().memory_info().rss - before > 180 * MIB
    del first
    gc.collect()
    assert float(second.sum()) == 100 * MIB // 4
    assert psutil.Process().memory_info().rss - before < 150 * MIB


def test_zeros_take_memory_when_they_are_written_to() -> None:
    before = psutil.Process().memory_info().rss
    zeros = zeros_on_demand((64, MIB), torch.float32)
    assert zeros.shape == (64, MIB)
    assert psutil.Process().memory_info().rss - before < 32 * MIB
    zeros[0] = 1.0
    assert float(zeros.sum()) == MIB


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    or "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="this system gives no huge pages",
)
def test_the_system_is_asked_for_huge_pages() -> None:
    zeros = zeros_on_demand((64, MIB), torch.uint8).fill_(1)
    assert "hg" in _flags(zeros.data_ptr())
    assert "hg" in _flags(HugePages().copy(torch.ones(8 * MIB)).data_ptr())


def _flags(address: int) -> list[str]:
    """Of the mapping with the address, as the kernel lists them."""
    is_ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            is_ours = start <= address < end
        elif is_ours and first == "VmFlags:":
            return rest.split()
    raise AssertionError("the address is mapped")
