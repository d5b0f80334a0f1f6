"""LoRA matrices between ranks: as bytes, because not every rank can read the adapter's files."""

from collections.abc import Sequence

import torch

from models.adapters.checkpoint import LayerPairs, LoraPair
from models.parallel.messages import PairBytes


def packed_pairs(pairs: LayerPairs) -> list[PairBytes]:
    """For `AdapterOrder`."""
    return [
        PairBytes(module, len(pair.a_RI), _packed(pair.a_RI), _packed(pair.b_RO))
        for module, pair in pairs.items()
    ]


def unpacked_pairs(packed: Sequence[PairBytes], dtype: torch.dtype) -> LayerPairs:
    """What `packed_pairs` was given."""
    return {
        item.module: LoraPair(
            a_RI=_unpacked(item.a, item.rank, dtype), b_RO=_unpacked(item.b, item.rank, dtype)
        )
        for item in packed
    }


def _packed(matrix: torch.Tensor) -> bytes:
    return matrix.contiguous().view(torch.uint8).numpy().tobytes()


def _unpacked(content: bytes, num_rows: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype).view(num_rows, -1)
