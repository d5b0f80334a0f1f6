"""The decoder against transformers, position by position, however the work is cut into steps."""

from pathlib import Path

import pytest
import torch

from tests.models.conftest import MakeCheckpoint
from tests.models.step_driver import (
    DrivenSequence,
    StepDriver,
    random_tokens,
    reference_logprobs,
)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN_WINDOW = {
    "use_sliding_window": True,
    "sliding_window": 8,
    "layer_types": ["full_attention", "sliding_attention"],
}
EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama 3 rope": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama linear rope": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama wide heads": ("llama", {"head_dim": 32}),
    "llama one key head": ("llama", {"num_key_value_heads": 1}),
    "llama as many key heads": ("llama", {"num_key_value_heads": 4}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window": ("mistral", {"sliding_window": 8}),
    "qwen2": ("qwen2", {"head_dim": 16}),
    "qwen2 window": ("qwen2", QWEN_WINDOW),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3 wide heads": ("qwen3", {"head_dim": 32}),
    "qwen3 window tied": ("qwen3", {**QWEN_WINDOW, "tie_word_embeddings": True}),
    "qwen3 bias": ("qwen3", {"attention_bias": True}),
    "mixtral": ("mixtral", {}),
    "mixtral window": ("mixtral", {"sliding_window": 8, "num_local_experts": 5}),
    "qwen3 moe": ("qwen3 moe", EXPERTS),
    "qwen3 moe normalized": ("qwen3 moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen3 moe window": (
        "qwen3 moe",
        {**EXPERTS, "use_sliding_window": True, "sliding_window": 8, "mlp_only_layers": [1]},
    ),
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def checkpoint(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint) -> Path:
    family, overrides = request.param
    return make_checkpoint(family, **overrides)


def assert_equal(sequence: DrivenSequence, expected: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(
        torch.stack(sequence.logprobs), expected, atol=atol, rtol=0, check_stride=False
    )


def test_a_whole_prompt_in_one_step_equals_transformers(checkpoint: Path) -> None:
    tokens = random_tokens(37)
    driver = StepDriver(checkpoint)
    sequence = driver.add(tokens)
    driver.finish(sequence, 37)
    assert_equal(sequence, reference_logprobs(checkpoint, tokens))


def test_odd_chunks_and_single_tokens_equal_transformers(checkpoint: Path) -> None:
    tokens = random_tokens(37)
    driver = StepDriver(checkpoint)
    sequence = driver.add(tokens)
    driver.finish(sequence, 5, 2, 11, 1, 7, 1)
    assert_equal(sequence, reference_logprobs(checkpoint, tokens))


def test_decoding_and_prompts_of_all_lengths_share_steps(checkpoint: Path) -> None:
    driver = StepDriver(checkpoint, seed=3)
    sequences = [driver.add(random_tokens(n, seed=n)) for n in (70, 9, 41, 23, 3)]
    for sequence, num_tokens in zip(sequences, (60, 1, 17, 4, 2), strict=True):
        driver.step((sequence, num_tokens))
    long, tiny, middle, other, last = sequences
    driver.step((long, 1), (tiny, 3), (middle, 11), (other, 1), (last, 1))
    driver.step((long, 5), (tiny, 1), (middle, 1), (other, 1))
    driver.step((long, 1), (tiny, 4), (middle, 12), (other, 17))
    driver.step((long, 3))
    for sequence in sequences:
        assert sequence.num_computed == len(sequence.token_ids)
        assert_equal(sequence, reference_logprobs(checkpoint, sequence.token_ids))


def test_long_positions_under_llama_3_scaling_equal_transformers(
    make_checkpoint: MakeCheckpoint,
) -> None:
    checkpoint = make_checkpoint(
        rope_parameters=LLAMA3_ROPE, max_position_embeddings=4096, initializer_range=0.1
    )
    tokens = random_tokens(1500)
    driver = StepDriver(checkpoint, block_size=16)
    sequence = driver.add(tokens)
    driver.finish(sequence, 700, 600, 198, 1)
    assert_equal(sequence, reference_logprobs(checkpoint, tokens))


def test_a_window_longer_than_the_span_of_a_prefill_equals_transformers(
    make_checkpoint: MakeCheckpoint,
) -> None:
    checkpoint = make_checkpoint("mistral", sliding_window=600, max_position_embeddings=4096)
    tokens = random_tokens(1500)
    driver = StepDriver(checkpoint, block_size=16)
    sequence = driver.add(tokens)
    driver.finish(sequence, 1300, 198, 1)
    assert_equal(sequence, reference_logprobs(checkpoint, tokens))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.3), (torch.float16, 0.04)])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_half_precision_is_near_float32(
    make_checkpoint: MakeCheckpoint, family: str, dtype: torch.dtype, atol: float
) -> None:
    checkpoint = make_checkpoint(family, dtype=dtype)
    tokens = random_tokens(40)
    driver = StepDriver(checkpoint)
    sequence = driver.add(tokens)
    driver.finish(sequence, 30, 5, 1)
    assert_equal(sequence, reference_logprobs(checkpoint, tokens), atol=atol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["mixtral", "qwen3 moe"])
@pytest.mark.parametrize("head_dim", [16, 32])
def test_experts_in_half_precision_are_near_transformers(
    make_checkpoint: MakeCheckpoint, family: str, dtype: torch.dtype, head_dim: int
) -> None:
    """With and without the CPU kernels. A token whose experts are nearly tied may get others."""
    experts = EXPERTS if family == "qwen3 moe" else {}
    checkpoint = make_checkpoint(family, dtype=dtype, head_dim=head_dim, **experts)
    tokens = random_tokens(60)
    driver = StepDriver(checkpoint)
    sequence = driver.add(tokens)
    driver.finish(sequence, 30, 5, 1)
    expected = reference_logprobs(checkpoint, tokens)
    divergence_T = (expected.exp() * (expected - torch.stack(sequence.logprobs))).sum(-1)
    assert divergence_T.median() < (5e-3 if dtype is torch.bfloat16 else 2e-4)
