import psutil
import pytest
import torch

from cluster.config import EngineConfig
from models.checkpoint import DecoderConfig, RopeConfig
from models.engine.kv_cache import KVCache, KVCachePlan, kv_cache_memory_bytes, plan_kv_cache

# 2 (keys and values) * 3 layers * 2 heads * 8 wide * 2 bytes = 192 bytes per token
CONFIG = DecoderConfig(
    architecture="LlamaForCausalLM",
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-6,
    rope=RopeConfig(theta=10000.0),
    max_position_embeddings=4096,
    has_qkv_bias=False,
    has_output_bias=False,
    has_mlp_bias=False,
    has_qk_norm=False,
    tie_word_embeddings=False,
    layer_windows=(None, None, None),
    dtype="bfloat16",
    eos_token_ids=(2,),
    bos_token_id=1,
)
BYTES_PER_BLOCK = 192 * 16


def plan(num_affordable_blocks: int, **engine: object) -> KVCachePlan:
    return plan_kv_cache(
        CONFIG,
        EngineConfig.model_validate(engine),
        dtype=torch.bfloat16,
        memory_bytes=num_affordable_blocks * BYTES_PER_BLOCK + 5,
    )


def test_blocks_fill_the_memory() -> None:
    result = plan(1000)
    assert result.num_blocks == 1000
    assert result.bytes_per_block == BYTES_PER_BLOCK
    assert result.max_model_len == 4096
    assert result.describe() == (
        "context limit 4,096 tokens; KV cache 1,000 blocks of 16 tokens = 16,000 tokens, 0.00 GiB"
    )


def test_no_more_blocks_than_all_sequences_can_fill() -> None:
    assert plan(1000, max_model_len=100, max_num_seqs=4).num_blocks == 4 * 7


def test_without_a_limit_the_context_shrinks_to_the_memory_and_says_so() -> None:
    result = plan(8)
    assert result.max_model_len == 128
    assert result.describe().startswith("context limit 128 tokens (of the checkpoint's 4,096);")


def test_a_limit_that_does_not_fit_is_refused_with_both_numbers() -> None:
    message = r"8 blocks of 16 tokens cannot hold one sequence of max_model_len \(4096\)"
    with pytest.raises(ValueError, match=message):
        plan(8, max_model_len=4096)


def test_a_limit_beyond_the_checkpoints_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"max_model_len \(5000\) exceeds .* \(4096\)"):
        plan(1000, max_model_len=5000)


def test_memory_for_less_than_a_block_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"5 bytes .* do not hold one block .*\(3,072 bytes\)"):
        plan(0)


def test_memory_is_what_is_configured_or_a_part_of_what_is_free() -> None:
    cpu = torch.device("cpu")
    assert kv_cache_memory_bytes(EngineConfig(kv_cache_memory_bytes=12345), cpu) == 12345
    by_default = kv_cache_memory_bytes(EngineConfig(), cpu)
    assert 0 < by_default <= min(4 * 2**30, psutil.virtual_memory().total // 4)


def cache_of(num_blocks: int) -> KVCache:
    return KVCache.allocate(
        KVCachePlan(
            num_blocks=num_blocks,
            block_size=4,
            bytes_per_block=0,
            max_model_len=16,
            checkpoint_max_model_len=16,
        ),
        CONFIG,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_copies_read_every_source_before_anything_is_written() -> None:
    cache = cache_of(4)
    cache.tensor_YB2KSD.copy_(torch.randn(cache.tensor_YB2KSD.shape))
    before = cache.tensor_YB2KSD.clone()
    cache.copy_blocks([(0, 1), (1, 2), (2, 0)])
    for source, destination in ((0, 1), (1, 2), (2, 0), (3, 3)):
        assert torch.equal(cache.tensor_YB2KSD[:, destination], before[:, source])


def test_nothing_to_copy_or_clear_changes_nothing() -> None:
    cache = cache_of(2)
    cache.tensor_YB2KSD.fill_(1)
    cache.copy_blocks([])
    cache.clear_blocks([])
    assert bool((cache.tensor_YB2KSD == 1).all())


def test_cleared_blocks_are_zero_in_every_layer_and_others_untouched() -> None:
    cache = cache_of(3)
    cache.tensor_YB2KSD.fill_(float("nan"))
    cache.clear_blocks([1])
    assert bool((cache.tensor_YB2KSD[:, 1] == 0).all())
    assert bool(cache.tensor_YB2KSD[:, [0, 2]].isnan().all())


def test_memory_for_a_large_cache_is_zero_and_taken_only_when_it_is_written() -> None:
    before_bytes = psutil.Process().memory_info().rss
    cache = cache_of(2**18)
    size_bytes = cache.tensor_YB2KSD.numel() * 4
    assert not cache.tensor_YB2KSD[:, -1].any()
    cache.tensor_YB2KSD[0, 0] = 1
    assert psutil.Process().memory_info().rss - before_bytes < size_bytes / 4
