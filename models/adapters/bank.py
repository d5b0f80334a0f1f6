"""Slots of LoRA matrices beside a decoder's linear layers: by the CPU kernels, else by torch."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from cluster.config import EngineConfig
from models.adapters.checkpoint import LayerPairs
from models.adapters.targets import LinearName, target_linears
from models.adapters.torch_adapters import TorchAdapters
from models.checkpoint import DecoderConfig
from models.native.adapters import NativeAdapters, native_adapters
from models.parallel.sharding import Shards


class AdapterStep(Protocol):
    """What the adapters add to the linear layers in one step."""

    def add(
        self, out_TO: torch.Tensor, x_TI: torch.Tensor, layer_index: int, name: LinearName
    ) -> None:
        """Add to a linear layer's outputs, in place, what the adapters make of its inputs."""


class AdapterBank:
    """All slots of one tensor-parallel rank's decoder, allocated once."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        num_slots: int,
        rank: int,
        dtype: torch.dtype,
        device: str,
        padded: Callable[[int], int] = int,
        is_invariant: bool = False,
    ) -> None:
        """
        Args:
            config: with the tensor-parallel rank's sizes.
            rank: most of an adapter.
            padded: the number of rows that torch's products of so many are made with.
            is_invariant: a row's results must have the same bits in any company.
        """
        self.num_slots = num_slots
        self.rank = rank
        linears = target_linears(config)
        sizes = {"num_layers": config.num_layers, "num_slots": num_slots, "rank": rank}
        self._slots: NativeAdapters | TorchAdapters = native_adapters(
            linears, **sizes, dtype=dtype, device=device, is_invariant=is_invariant
        ) or TorchAdapters(linears, **sizes, dtype=dtype, device=device, padded=padded)

    def describe(self) -> str:
        """For a person."""
        return (
            f"{self.num_slots} slots for adapters up to rank {self.rank}, "
            f"{self._slots.num_bytes / 2**20:,.1f} MiB"
        )

    def padded(self, num_rows: int) -> int:
        """The number of rows, padding included, that a step of so many needs to have."""
        return self._slots.padded(num_rows)

    def install(self, slot: int, layer_index: int, pairs: LayerPairs) -> None:
        """Put a layer of an adapter, this rank's part of it, into a slot."""
        with torch.inference_mode():
            self._slots.install(slot, layer_index, pairs)

    def step(
        self, slots: Sequence[int | None], query_lens: Sequence[int], *, num_rows: int
    ) -> AdapterStep:
        """The products of one step.

        Args:
            slots: of each sequence; None: it has no adapter.
            query_lens: rows of each sequence, shorter sequences first.
            num_rows: of the step, padding included.
        """
        return self._slots.step(slots, query_lens, num_rows)


def adapter_bank(
    shards: Shards,
    engine_config: EngineConfig,
    dtype: torch.dtype,
    device: str,
    padded: Callable[[int], int],
) -> AdapterBank | None:
    """The slots that the configuration asks for; None: it asks for none.

    Raises:
        ValueError: the model has experts.
    """
    num_slots = engine_config.max_loaded_adapters
    if not num_slots:
        return None
    if shards.config.experts is not None:
        raise ValueError(
            f"max_loaded_adapters is {num_slots}; {shards.config.architecture} has experts, and "
            "adapters of such models are not supported: 0"
        )
    return AdapterBank(
        shards.config,
        num_slots=num_slots,
        rank=engine_config.max_lora_rank,
        dtype=dtype,
        device=device,
        padded=padded,
        is_invariant=engine_config.deterministic,
    )
