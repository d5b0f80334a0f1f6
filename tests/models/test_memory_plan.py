"""The plan against the decoder itself, which is built on no device at the real size of a 70B."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.checkpoint import DecoderConfig, read_decoder_config
from models.decoder import Decoder
from models.engine.kv_cache import plan_kv_cache
from models.gpus import GPUS, read_gpus
from models.memory_plan import GIB, RankPlan, count_weights, make_plan, weight_bytes
from models.parallel.group import TPGroup
from models.parallel.sharding import Shards
from models.quantization.scheme import MADE_HERE
from tests.models.conftest import MakeCheckpoint
from tests.models.parallel.rank_threads import engine_config

LLAMA_70B = Path(__file__).parent.parent / "data" / "llama_3_1_70b"
NUM_PARAMETERS = 70_553_706_496  # as the model's own page counts them


class CountingGroup(TPGroup):
    """A rank whose peers are not there: exchanges are counted, not made."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        self.num_exchanges = 0
        self.num_bytes = 0  # that reach rank 0

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.num_exchanges += 1
        self.num_bytes += x.numel() * x.itemsize * 2 * (self.size - 1) // self.size
        return x

    def gather_columns(self, x_RV: torch.Tensor) -> torch.Tensor | None:
        self.num_exchanges += 1
        self.num_bytes += x_RV.numel() * x_RV.itemsize * (self.size - 1)
        return torch.cat([x_RV] * self.size, dim=1)


class ShapeAttention:
    """Satisfies `StepAttention` for tensors without contents."""

    def attend(
        self, q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, *, layer_index: int
    ) -> torch.Tensor:
        assert k_TKD.shape == v_TKD.shape
        return torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)


def decoder_on_meta(config: DecoderConfig, group: TPGroup) -> Decoder:
    return Decoder(config, num_positions=64, dtype=torch.bfloat16, device="meta", group=group)


EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


def plan_of(size: int, gpus: str = "h100:8") -> RankPlan:
    (found,) = [ranks for ranks in make_plan(LLAMA_70B, gpus).ranks if ranks.size == size]
    return found


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_70b_has_the_planned_shapes_on_every_rank(size: int) -> None:
    config = read_decoder_config(LLAMA_70B)
    for rank in range(size):
        decoder = decoder_on_meta(config, CountingGroup(rank, size))
        layer, shards = decoder.layers[-1], decoder.shards
        assert tuple(layer.qkv.weight_OI.shape) == ((64 + 2 * 8) * 128 // size, 8192)
        assert tuple(layer.o.weight_OI.shape) == (8192, 64 * 128 // size)
        assert tuple(layer.gate_up.weight_OI.shape) == (2 * 28672 // size, 8192)
        assert tuple(layer.down.weight_OI.shape) == (8192, 28672 // size)
        assert tuple(decoder.lm_head.weight_OI.shape) == (128256 // size, 8192)
        assert tuple(decoder.embedding_VM.shape) == (128256 // size, 8192)
        assert shards.config.num_kv_heads == 8 // size
        weights = decoder.weights().values()
        assert sum(w.numel() for w in weights) == count_weights(config, size).total
    assert count_weights(config, 1).total == NUM_PARAMETERS


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_70bs_step_exchanges_what_is_planned(size: int) -> None:
    group = CountingGroup(0, size)
    decoder = decoder_on_meta(read_decoder_config(LLAMA_70B), group)
    planned = plan_of(size, "h200:8")
    num_tokens = planned.num_sequences
    indices_T = torch.zeros(num_tokens, dtype=torch.int64, device="meta")
    with torch.inference_mode():
        hidden_TM = decoder.forward(indices_T, indices_T, ShapeAttention())
        logits_TV = decoder.logits(hidden_TM)
    assert logits_TV is not None
    assert tuple(logits_TV.shape) == (num_tokens, 128256)
    assert group.num_exchanges == planned.exchanges_per_step == 2 * 80 + 2
    assert group.num_bytes == planned.exchanged_bytes_per_step


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_70bs_cache_is_planned_as_the_engine_plans_it(size: int) -> None:
    planned = plan_of(size)
    rank = Shards(read_decoder_config(LLAMA_70B), size=size).config
    made = plan_kv_cache(
        rank,
        engine_config(max_model_len=8192, max_num_seqs=100_000),
        dtype=torch.bfloat16,
        memory_bytes=planned.kv_bytes,
    )
    assert planned.capacity_tokens == made.num_blocks * made.block_size
    assert planned.num_sequences == made.num_blocks // (8192 // made.block_size)
    assert planned.weight_bytes + planned.kv_bytes < GPUS["h100"].memory_bytes * 0.9


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3 moe"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_familys_weights_are_counted(
    make_checkpoint: MakeCheckpoint, family: str, size: int
) -> None:
    extra = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    tied = {"tie_word_embeddings": True} if family == "qwen3" else {}
    if family == "qwen3 moe":
        extra = {**EXPERTS, "mlp_only_layers": [0]}
    config = read_decoder_config(make_checkpoint(family, **extra, **tied))
    decoder = decoder_on_meta(config, CountingGroup(0, size))
    expected = sum(weight.numel() for weight in decoder.weights().values())
    assert count_weights(config, size).total == expected


def test_a_model_that_one_gpu_cannot_hold_says_so_and_more_gpus_do() -> None:
    made = make_plan(LLAMA_70B, "h100:8")
    assert [ranks.size for ranks in made.ranks] == [1, 2, 4, 8]
    assert [ranks.num_replicas for ranks in made.ranks] == [8, 4, 2, 1]
    assert made.ranks[0].problem == (
        "the weights take 131.4 GiB of each GPU, of whose memory 70.9 GiB may be used"
    )
    assert [ranks.problem for ranks in made.ranks[1:]] == [None] * 3
    capacities = [ranks.capacity_tokens for ranks in made.ranks[1:]]
    assert capacities == sorted(capacities)


def test_nothing_that_fits_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"131\.4 GiB of each GPU, of whose memory 125\.6 GiB"):
        make_plan(LLAMA_70B, "h200")
    with pytest.raises(ValueError, match=r"keys and values of 34,224 tokens, .* of 131,072"):
        make_plan(LLAMA_70B, "h100:2", context_tokens=131072)
    with pytest.raises(ValueError, match=r"131,073 tokens is beyond .*\(131,072\)"):
        make_plan(LLAMA_70B, "h100:8", context_tokens=131073)


def test_sizes_that_cannot_share_the_model_are_named() -> None:
    made = make_plan(LLAMA_70B, "h200:6")
    problems = {ranks.size: ranks.problem for ranks in made.ranks}
    assert problems[2] is None
    assert problems[3] == "tensor_parallel_size (3) does not divide num_attention_heads (64)"


def test_of_experts_a_step_reads_those_that_are_chosen(make_checkpoint: MakeCheckpoint) -> None:
    config = read_decoder_config(make_checkpoint("qwen3 moe", **EXPERTS))
    counts, expert = count_weights(config, 1), 3 * 64 * 48
    assert counts.in_experts == 2 * 8 * expert
    read = weight_bytes(Shards(config))
    alone = read.read_by(1, config.experts)
    assert read.read_per_step - alone == 4 * 2 * 6 * expert
    assert alone < read.read_by(4, config.experts) < read.read_by(1000, config.experts)
    assert read.read_by(1000, config.experts) == read.read_per_step
    dense = counts.in_products - 2 * 2 * expert
    assert dense == 2 * 64 * (2 * 4 * 16 + 2 * 2 * 16) + 2 * 64 * 8 + 257 * 64


def test_a_plan_tells_a_tokens_parameters_from_all_of_them(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("qwen3 moe", **EXPERTS)
    plan = make_plan(folder, "h100")
    assert plan.num_parameters - plan.num_active_parameters == 2 * 6 * 3 * 64 * 48
    with pytest.raises(ValueError, match="max_loaded_adapters is 2"):
        make_plan(folder, "h100", max_loaded_adapters=2)


def test_speeds_are_the_rooflines_that_can_be_computed_in_the_head() -> None:
    """Weights and every sequence's keys and values are read, then come 162 exchanges."""
    ranks = plan_of(8)
    read_bytes = 2 * (NUM_PARAMETERS - 128256 * 8192) / 8
    exchanged_s = 162 * 10e-6  # and next to nothing for one token's bytes
    assert ranks.decode_tokens_per_s == pytest.approx(
        1 / ((read_bytes + 8192 * 40960) / 3.35e12 + exchanged_s), rel=0.01
    )
    kv_bytes = ranks.num_sequences * 8192 * ranks.kv_bytes_per_token
    moved_s = ranks.exchanged_bytes_per_step / 450e9
    step_s = (read_bytes + kv_bytes) / 3.35e12 + exchanged_s + moved_s
    assert ranks.batch_tokens_per_s == pytest.approx(ranks.num_sequences / step_s, rel=0.01)
    assert ranks.prompt_tokens_per_s < 8 * 989e12 / (2 * NUM_PARAMETERS)


def test_a_window_bounds_what_a_long_context_reads(
    make_checkpoint: MakeCheckpoint,
) -> None:
    whole, window = (
        make_plan(make_checkpoint("mistral", sliding_window=size), "l4", context_tokens=512)
        for size in (None, 64)
    )
    assert window.ranks[0].batch_tokens_per_s > 2 * whole.ranks[0].batch_tokens_per_s


def test_float32_takes_twice_the_memory() -> None:
    made = make_plan(LLAMA_70B, "h200:4", dtype="float32")
    assert made.ranks[-1].weight_bytes == 2 * plan_of(4, "h200:4").weight_bytes
    with pytest.raises(ValueError, match="dtype 'fp4' is not one of auto"):
        make_plan(LLAMA_70B, "h200", dtype="fp4")


def test_gpus_are_read_with_and_without_a_number() -> None:
    assert read_gpus("H100:8") == (GPUS["h100"], 8)
    assert read_gpus("l4") == (GPUS["l4"], 1)
    assert GPUS["h100"].memory_bytes / GIB == pytest.approx(79.6, abs=0.1)
    with pytest.raises(ValueError, match="GPU 'h900' is not known; known: a100-40gb, a100, h100"):
        read_gpus("h900:8")
    for text in ("h100:0", "h100:x", "h100:-1"):
        with pytest.raises(ValueError, match="must be 1 or more"):
            read_gpus(text)


def test_replicated_key_heads_cost_every_rank_their_cache() -> None:
    config = read_decoder_config(LLAMA_70B)
    few = replace(config, num_kv_heads=2)
    assert Shards(few, size=8).config.num_kv_heads == 1
    assert count_weights(few, 8).total > count_weights(few, 1).total / 8


@pytest.mark.parametrize("name", MADE_HERE)
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_quantized_weights_take_what_the_slots_take(
    make_checkpoint: MakeCheckpoint, name: str, is_tied: bool, size: int
) -> None:
    for made in (make_checkpoint(tie_word_embeddings=is_tied), make_checkpoint("mixtral")):
        check_quantized_bytes(made, name, size)


def check_quantized_bytes(folder: Path, name: str, size: int) -> None:
    config = read_decoder_config(folder)
    config = replace(config, quantization=MADE_HERE[name], dtype="bfloat16")
    decoder = decoder_on_meta(config, CountingGroup(0, size))
    num_bytes = sum(slot.num_bytes for slot in decoder.slots().values())
    num_bytes += sum(w.numel() * w.element_size() for w in decoder.weights().values())
    assert weight_bytes(decoder.shards).total == num_bytes


def test_a_70b_model_in_fp8_fits_one_h200_and_decodes_faster() -> None:
    floats = {ranks.size: ranks for ranks in make_plan(LLAMA_70B, "h200:8").ranks}
    quantized = {
        ranks.size: ranks for ranks in make_plan(LLAMA_70B, "h200:8", quantization="fp8").ranks
    }
    assert quantized[1].problem is None
    assert quantized[1].weight_bytes < 0.52 * NUM_PARAMETERS * 2
    assert quantized[2].decode_tokens_per_s > 1.7 * floats[2].decode_tokens_per_s
    assert quantized[2].prompt_tokens_per_s > 1.7 * floats[2].prompt_tokens_per_s


def test_slots_for_adapters_leave_less_room_for_keys_and_values() -> None:
    (plain,) = [ranks for ranks in make_plan(LLAMA_70B, "h100:4").ranks if ranks.size == 4]
    made = make_plan(LLAMA_70B, "h100:4", max_loaded_adapters=8, max_lora_rank=64)
    (ranks,) = [ranks for ranks in made.ranks if ranks.size == 4]
    width, ff_width, queries, keys = 8192, 28672 // 4, 8192 // 4, 1024 // 4
    sums = (width + queries) + 2 * (width + keys) + (queries + width) + 3 * (width + ff_width)
    assert ranks.adapter_bytes == 8 * 64 * 80 * sums * 2
    assert ranks.kv_bytes == plain.kv_bytes - ranks.adapter_bytes
    assert ranks.capacity_tokens < plain.capacity_tokens
