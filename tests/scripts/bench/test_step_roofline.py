"""Bytes and FLOPs of a step, against sums made by hand."""

from pathlib import Path

import pytest
import torch

from cluster.types import SamplingParams
from models.checkpoint import DecoderConfig, read_decoder_config
from models.engine.step_inputs import SamplingRow, StepInputs
from scripts.bench.checkpoints import SHAPES, shape_folder
from scripts.bench.step_roofline import MachineRates, StepCost, measure_rates, step_cost

TINY = SHAPES["tiny"]
WIDTH, LAYERS, FF = TINY["hidden_size"], TINY["num_hidden_layers"], TINY["intermediate_size"]
HEADS, KV_HEADS, HEAD_DIM = 8, 4, 32
BLOCK = 16
LAYER = WIDTH * ((HEADS + 2 * KV_HEADS) * HEAD_DIM + HEADS * HEAD_DIM + 3 * FF)
HEAD = TINY["vocab_size"] * WIDTH


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DecoderConfig:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    return read_decoder_config(shape_folder("tiny", "bfloat16"))


def inputs(query_lens: list[int], context_lens: list[int], tables: list[list[int]]) -> StepInputs:
    row = SamplingRow(params=SamplingParams(), seed=0, prompt_token_ids=[], output_token_ids=[])
    num_tokens = sum(query_lens)
    return StepInputs(
        token_ids=[0] * num_tokens,
        positions=[0] * num_tokens,
        slot_mapping=[0] * num_tokens,
        query_lens=query_lens,
        context_lens=context_lens,
        block_tables=tables,
        sampling_rows=[row] * len(query_lens),
    )


def test_a_decode_step_reads_weights_once_and_each_context(config: DecoderConfig) -> None:
    cost = step_cost(config, inputs([1, 1], [20, 5], [[0, 1], [2]]), BLOCK)
    norms = (2 * LAYERS + 1) * WIDTH
    assert cost.weight_bytes == 2 * (LAYERS * LAYER + HEAD + norms)
    assert cost.kv_bytes == 25 * 2 * LAYERS * KV_HEADS * HEAD_DIM * 2
    attention = 4 * 25 * LAYERS * HEADS * HEAD_DIM
    assert cost.flops == 2 * 2 * (LAYERS * LAYER + HEAD) + attention


def test_shared_blocks_are_read_once(config: DecoderConfig) -> None:
    apart = step_cost(config, inputs([1, 1], [20, 20], [[0, 1], [2, 3]]), BLOCK)
    shared = step_cost(config, inputs([1, 1], [20, 20], [[0, 1], [0, 3]]), BLOCK)
    assert shared.kv_bytes * 40 == apart.kv_bytes * 24
    assert shared.flops == apart.flops


def test_a_part_of_a_prompt_attends_to_what_is_before_each_token(config: DecoderConfig) -> None:
    cost = step_cost(config, inputs([3], [10], [[0]]), BLOCK)
    pairs = 8 + 9 + 10
    attention = 4 * pairs * LAYERS * HEADS * HEAD_DIM
    assert cost.flops == 2 * (3 * LAYERS * LAYER + HEAD) + attention


def test_the_floor_is_the_longer_of_reading_and_computing() -> None:
    rates = MachineRates(bytes_per_s=100.0, flops_per_s=1000.0)
    assert StepCost(weight_bytes=200, kv_bytes=100, flops=1000).floor_s(rates) == 3
    assert StepCost(weight_bytes=200, kv_bytes=100, flops=4000).floor_s(rates) == 4


def test_rates_are_measured() -> None:
    rates = measure_rates(torch.float32, torch.device("cpu"), is_quick=True)
    assert rates.bytes_per_s > 0
    assert rates.flops_per_s > 0
    assert "GB/s" in rates.describe()
