"""Several ranks give what one rank gives, token for token, whatever an engine does with them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.types import BeamParams, GrammarKind, GrammarSpec, Request, SamplingParams, TokenDelta
from models.attention.native import NativeAttention
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.grammar.compiler import GrammarCompiler
from models.native.library import native_library
from tests.models.conftest import MakeCheckpoint
from tests.models.engine.test_engine import prompts_of_mixed_lengths, run, tokens
from tests.models.grammar.grammar_walk import EOS_TOKEN_IDS, byte_level_tokenizer
from tests.models.parallel.rank_threads import engine_config, engine_on, parallel_runner

VOCAB_SIZE = 545  # no multiple of anything: the last rank's part of it is padded
NUM_BLOCKS = 22  # few enough that sequences are preempted
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama on native kernels": (
        "llama",
        {"head_dim": 32, "intermediate_size": 128, "tie_word_embeddings": True},
    ),
    "mistral": ("mistral", {"sliding_window": 24, "num_key_value_heads": 4}),
    "qwen2": ("qwen2", {"head_dim": 16}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "mixtral": ("mixtral", {}),
    "qwen3 moe": (
        "qwen3 moe",
        {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 48},
    ),
}
REGEX = GrammarSpec(kind=GrammarKind.REGEX, text=r"[a-c]{3,8}-\d{2}")


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(variant: str, make_checkpoint: MakeCheckpoint) -> Path:
    family, overrides = VARIANTS[variant]
    eos_token_ids = sorted(EOS_TOKEN_IDS)
    folder = make_checkpoint(family, vocab_size=VOCAB_SIZE, eos_token_id=eos_token_ids, **overrides)
    byte_level_tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def compiler(folder: Path) -> Iterator[GrammarCompiler]:
    with GrammarCompiler(
        folder / "tokenizer.json", vocab_size=VOCAB_SIZE, eos_token_ids=EOS_TOKEN_IDS
    ) as compiler:
        yield compiler


def mixed_requests() -> list[Request]:
    """Greedy ones, forks, beams and guided ones; half of their prompts begin alike."""
    kinds: list[dict[str, object]] = [
        {"temperature": 0.0, "logprobs": 2, "prompt_logprobs": 1},
        {"temperature": 0.9, "top_p": 0.95, "n": 3, "seed": 11, "frequency_penalty": 0.2},
        {"temperature": 0.0, "n": 2, "beam": BeamParams(width=4)},
        {"temperature": 1.0, "seed": 5, "grammar": REGEX},
    ]
    return [
        Request(
            request_id=str(k),
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(max_tokens=10, **kinds[k % 4]),  # type: ignore[arg-type]
        )
        for k, prompt in enumerate(prompts_of_mixed_lengths())
    ]


Outputs = dict[tuple[str, int], list[TokenDelta]]


def run_twice(engine: Engine) -> tuple[Outputs, Outputs]:
    """The second time finds prefixes in the cache."""
    outputs = run(engine, mixed_requests()), run(engine, mixed_requests())
    stats = engine.stats()
    assert stats.preemptions_total > 0
    assert stats.cached_prompt_tokens_total > 0
    return outputs


def memory_of(num_blocks: int, *, num_kv_heads: int, head_dim: int) -> int:
    return num_blocks * 2 * 2 * num_kv_heads * head_dim * 4 * 16  # K and V, layers, float32, tokens


@pytest.fixture(scope="module")
def expected(folder: Path, variant: str, compiler: GrammarCompiler) -> tuple[Outputs, Outputs]:
    memory = memory_of(NUM_BLOCKS, **heads_of(variant, size=1))
    config = {"kv_cache_memory_bytes": memory, "max_num_batched_tokens": 48}
    runner = ModelRunner(folder, engine_config(**config), dtype="float32", device="cpu")
    return run_twice(engine_on(runner, compiler, **config))


def heads_of(variant: str, *, size: int) -> dict[str, int]:
    overrides = VARIANTS[variant][1]
    num_kv_heads, head_dim = overrides.get("num_key_value_heads", 2), overrides.get("head_dim", 16)
    assert isinstance(num_kv_heads, int)
    assert isinstance(head_dim, int)
    return {"num_kv_heads": max(1, num_kv_heads // size), "head_dim": head_dim}


@pytest.mark.parametrize("size", [2, 4])
def test_a_crowded_engine_gives_the_same_tokens_on_several_ranks(
    folder: Path,
    variant: str,
    compiler: GrammarCompiler,
    expected: tuple[Outputs, Outputs],
    size: int,
) -> None:
    config = {
        "kv_cache_memory_bytes": memory_of(NUM_BLOCKS, **heads_of(variant, size=size)),
        "max_num_batched_tokens": 48,
    }
    with parallel_runner(folder, size, **config) as runner:
        assert runner.num_blocks == NUM_BLOCKS
        is_native = isinstance(runner._runner._attention, NativeAttention)
        assert is_native == ("native" in variant and native_library() is not None)
        outputs = run_twice(engine_on(runner, compiler, **config))
    for got, wanted in zip(outputs, expected, strict=True):
        assert got.keys() == wanted.keys()
        for key, deltas in wanted.items():
            assert tokens(got[key]) == tokens(deltas), key
            assert_close(got[key], deltas)


def assert_close(got: list[TokenDelta], wanted: list[TokenDelta]) -> None:
    """Logprobs of outputs and prompts, up to the order of a sum."""
    for mine, other in zip(got, wanted, strict=True):
        assert (mine.logprobs is None) == (other.logprobs is None)
        for left, right in (
            *zip(mine.logprobs or [], other.logprobs or [], strict=True),
            *zip(mine.prompt_logprobs or [], other.prompt_logprobs or [], strict=True),
        ):
            assert left.top_token_ids == right.top_token_ids
            assert left.logprob == pytest.approx(right.logprob, abs=1e-4)


def test_half_precision_is_near_one_ranks(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("llama", dtype=torch.bfloat16)
    prompt = prompts_of_mixed_lengths()[7]
    request = Request(
        request_id="r",
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0),
    )
    single = ModelRunner(folder, engine_config(), dtype="bfloat16", device="cpu")
    (alone,) = run(engine_on(single), [request])[("r", 0)]
    with parallel_runner(folder, 2, dtype="bfloat16") as runner:
        (shared,) = run(engine_on(runner), [request])[("r", 0)]
    assert alone.prompt_logprobs is not None
    assert shared.prompt_logprobs is not None
    for mine, other in zip(shared.prompt_logprobs, alone.prompt_logprobs, strict=True):
        assert mine.logprob == pytest.approx(other.logprob, abs=0.3)
