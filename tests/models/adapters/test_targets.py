"""The table of targets against the decoder that it is about."""

from pathlib import Path

import pytest
import torch

from models.adapters.bank import AdapterBank
from models.adapters.targets import count_slot_numbers, module_sizes
from models.checkpoint import read_decoder_config
from models.decoder import Decoder
from models.parallel.sharding import Shards
from tests.models.test_memory_plan import LLAMA_70B, CountingGroup, decoder_on_meta


@pytest.mark.parametrize("size", [1, 2, 16])
def test_modules_have_the_sizes_of_the_decoders_weights(size: int) -> None:
    config = read_decoder_config(LLAMA_70B)
    decoder: Decoder = decoder_on_meta(config, CountingGroup(0, size))
    weights = decoder.weights()
    for module, (num_inputs, num_outputs) in module_sizes(decoder.config).items():
        for layer in (0, config.num_layers - 1):
            shape = tuple(weights[f"model.layers.{layer}.{module}.weight"].shape)
            assert shape == (num_outputs, num_inputs)


def test_a_slot_takes_what_is_counted() -> None:
    config = Shards(read_decoder_config(Path(LLAMA_70B)), size=8).config
    bank = AdapterBank(config, num_slots=3, rank=16, dtype=torch.bfloat16, device="meta")
    num_bytes = 3 * count_slot_numbers(config, 16) * 2
    assert bank._slots.num_bytes == num_bytes
    assert f"{num_bytes / 2**20:,.1f} MiB" in bank.describe()
