"""The least time that a step could take: bytes and FLOPs counted, this machine's rates measured.

    bytes = the weights that a step reads + the keys and values of every block that it attends to,
            each once: a block that sequences share is read once
    FLOPs = 2 · tokens · weights in products + 4 · attended pairs · heads · width, the head's
            products only for rows whose logits are wanted

The floor is the longer of the two. The shapes measured here have no sliding windows.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.checkpoint import DecoderConfig
from models.engine.step_inputs import StepInputs
from models.huge_pages import zeros_on_demand
from models.memory_plan import DTYPE_BYTES, count_weights, weight_bytes
from models.parallel.sharding import Shards


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRates:
    """As measured: the best of some tries."""

    bytes_per_s: float  # reading memory that no cache holds
    flops_per_s: float  # of a large matrix product in the model's dtype

    def describe(self) -> str:
        return (
            f"reads {self.bytes_per_s / 1e9:.1f} GB/s, "
            f"multiplies {self.flops_per_s / 1e12:.2f} TFLOP/s"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What a step cannot do without."""

    weight_bytes: int
    kv_bytes: int
    flops: int

    def floor_s(self, rates: MachineRates) -> float:
        """Nothing that reads and computes this much on this machine is faster."""
        num_bytes = self.weight_bytes + self.kv_bytes
        return max(num_bytes / rates.bytes_per_s, self.flops / rates.flops_per_s)


def step_cost(config: DecoderConfig, inputs: StepInputs, block_size: int) -> StepCost:
    """Of one step on one rank. Call it before the next step: block tables are the sequences' own.

    A quantized matrix counts by its bytes and, as if it were floats, by its products. A chunk that
    passes some layers beside it needs no weights that the step does not read.
    """
    shards = Shards(config)
    counts = count_weights(config, 1)
    head = shards.num_vocabulary_rows * config.hidden_size
    num_tokens, num_rows = len(inputs.token_ids), len(inputs.sampling_rows)
    num_pairs = sum(
        query * context - query * (query - 1) // 2
        for query, context in zip(inputs.query_lens, inputs.context_lens, strict=True)
    )
    products = 2 * (num_tokens * (counts.in_products - head) + num_rows * head)
    attention = 4 * num_pairs * config.num_layers * config.num_heads * config.head_dim
    kv_numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    own = StepCost(
        weight_bytes=weight_bytes(shards).read_by(num_tokens, config.experts),
        kv_bytes=_num_slots(inputs, block_size) * kv_numbers * DTYPE_BYTES[config.dtype],
        flops=products + attention,
    )
    if inputs.layers is None:
        return own
    chunk = step_cost(config, inputs.layers.chunk, block_size)
    num_layers = inputs.layers.stop_layer - inputs.layers.first_layer
    return StepCost(
        weight_bytes=own.weight_bytes,
        kv_bytes=own.kv_bytes + chunk.kv_bytes * num_layers // config.num_layers,
        flops=own.flops + chunk.flops * num_layers // config.num_layers,
    )


def _num_slots(inputs: StepInputs, block_size: int) -> int:
    """Tokens whose keys and values are read, those of a shared block once."""
    used: dict[int, int] = {}
    for context_len, table in zip(inputs.context_lens, inputs.block_tables, strict=True):
        for index in range(-(-context_len // block_size)):
            num_slots = min(block_size, context_len - index * block_size)
            used[table[index]] = max(num_slots, used.get(table[index], 0))
    return sum(used.values())


def measure_rates(dtype: torch.dtype, device: torch.device, *, is_quick: bool) -> MachineRates:
    """With all of torch's threads. Takes about 2 s on a CPU, and less where it is quick."""
    is_gpu = device.type == "cuda"
    num_bytes = 2**32 if is_gpu else 2**26 if is_quick else 2**29
    width = 8192 if is_gpu else 512 if is_quick else 2048
    if is_gpu:
        buffer_N = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    else:  # as the engine's weights lie, and faster than other memory
        buffer_N = zeros_on_demand((num_bytes // 4,), torch.float32).fill_(1.0)
    read_s = _best_s(buffer_N.sum, device)
    left_WW = torch.randn(width, width, device=device).to(dtype)
    right_WW = torch.randn(width, width, device=device).to(dtype)
    product_s = _best_s(lambda: torch.mm(left_WW, right_WW), device)
    return MachineRates(bytes_per_s=num_bytes / read_s, flops_per_s=2 * width**3 / product_s)


def _best_s(call: Callable[[], object], device: torch.device) -> float:
    best_s = float("inf")
    for _ in range(9):  # the first ones warm up
        start_s = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s
