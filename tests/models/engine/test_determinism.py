"""Bit-equal logits whatever else is in the batch, and a refusal where they cannot be promised."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from cluster.config import EngineConfig
from cluster.types import BeamParams, Request, SamplingParams
from models.engine.adapter_slots import AdapterSlots
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.parallel import group
from models.parallel.runner import TPRunner
from tests.models.adapters.adapter_samples import make_adapter
from tests.models.conftest import MakeCheckpoint
from tests.models.engine.guess_oracle import ALWAYS, guess_by, remembering
from tests.models.engine_runs import (
    assert_same_bits,
    prompts_of_mixed_lengths,
    run,
    texts_of,
)
from tests.models.parallel.rank_threads import engine_config, engine_on, parallel_runner
from tests.models.step_driver import DrivenSequence, StepDriver, random_tokens

WIDE = {"head_dim": 32, "max_position_embeddings": 4096}
EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 64}
CASES = {
    "float32": ("llama", {}, "float32", "none"),
    "bfloat16": ("llama", {"tie_word_embeddings": True}, "bfloat16", "none"),
    "int8": ("qwen2", {}, "bfloat16", "int8"),
    "int8_dynamic": ("llama", {}, "float32", "int8_dynamic"),
    "int4": ("llama", {}, "bfloat16", "int4_g32"),
    "experts": ("mixtral", {"num_local_experts": 5}, "float32", "none"),
    "experts bfloat16": ("mixtral", {"num_local_experts": 5}, "bfloat16", "none"),
    "experts int8": ("mixtral", {"num_local_experts": 5}, "bfloat16", "int8"),
    "experts int8_dynamic": ("mixtral", {"num_local_experts": 5}, "float32", "int8_dynamic"),
    "normed experts": ("qwen3 moe", EXPERTS, "float32", "none"),
    "normed experts int4": ("qwen3 moe", EXPERTS, "bfloat16", "int4_g32"),
    "window": ("mistral", {"sliding_window": 40}, "float32", "none"),
    "window bfloat16": ("mistral", {"sliding_window": 40}, "bfloat16", "none"),
}
TOKENS = random_tokens(150, seed=7)


BYTES_PER_BLOCK = {"float32": 2 * 2 * 2 * 32 * 4 * 16, "bfloat16": 2 * 2 * 2 * 32 * 2 * 16}


def driver_for(folder: Path, dtype: str, quantization: str, seed: int = 0) -> StepDriver:
    return StepDriver(
        folder,
        block_size=16,
        dtype=dtype,
        quantization=quantization,
        deterministic=True,
        seed=seed,
    )


def logits_of(sequence: DrivenSequence) -> torch.Tensor:
    return torch.stack(sequence.logprobs)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_logits_have_the_same_bits_in_any_company(
    make_checkpoint: MakeCheckpoint, case: tuple[str, dict[str, object], str, str]
) -> None:
    """Alone in one step; in odd chunks; and in chunks beside others, decoding and prompts."""
    family, extra, dtype, quantization = case
    driver = driver_for(make_checkpoint(family, **WIDE, **extra), dtype, quantization)
    alone = driver.add(TOKENS)
    driver.finish(alone, len(TOKENS))
    expected = logits_of(alone)
    chunked = driver.add(TOKENS)
    driver.finish(chunked, 1, 37, 2, 64, 1, 3, 40, 1)
    assert torch.equal(logits_of(chunked), expected)
    dice = random.Random(3)
    for _ in range(3):
        watched = driver.add(TOKENS)
        others = [driver.add(random_tokens(200, seed=dice.randrange(99))) for _ in range(5)]
        while watched.num_computed < len(TOKENS):
            left = len(TOKENS) - watched.num_computed
            company = dice.sample(others, dice.randrange(len(others)))
            chunks = [
                (other, min(dice.choice((1, 1, 5, 30)), 200 - other.num_computed))
                for other in company
                if other.num_computed < 200
            ]
            driver.step((watched, min(left, dice.choice((1, 2, 17, 50)))), *chunks)
        assert torch.equal(logits_of(watched), expected)
        for sequence in (watched, *others):
            driver.free_blocks += sequence.block_table


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_engine_gives_the_same_bits_to_one_request_and_to_many(
    make_checkpoint: MakeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, dict[str, object], str, str],
) -> None:
    """One after the other with nothing cached; and all at once with chunks, prefixes, preemption
    and guesses."""
    family, extra, dtype, quantization = case
    folder = make_checkpoint(family, **WIDE, **extra)

    def engine(**config: object) -> Engine:
        limits = engine_config(deterministic=True, **config)
        runner = ModelRunner(folder, limits, dtype=dtype, device="cpu", quantization=quantization)
        return Engine(runner, limits)

    requests = requests_with_logprobs()
    alone = engine(enable_prefix_caching=False)
    expected = {key: d for request in requests for key, d in run(alone, [request]).items()}
    guess_by(monkeypatch, remembering(texts_of(requests, expected)), seed=5)
    crowded = engine(
        kv_cache_memory_bytes=18 * BYTES_PER_BLOCK[dtype],
        max_num_batched_tokens=48,
        speculative_config=ALWAYS,
    )
    assert_same_bits(run(crowded, requests), expected)
    stats = crowded.stats()
    assert stats.preemptions_total > 0
    assert stats.cached_prompt_tokens_total > 0
    assert stats.spec_decode_accepted_tokens_total > 0


@pytest.mark.parametrize(
    ("family", "size", "dtype"),
    [
        ("mixtral", 2, "float32"),
        ("mixtral", 2, "bfloat16"),
        ("llama", 2, "bfloat16"),
        ("llama", 4, "float32"),
    ],
)
def test_ranks_give_the_same_bits_to_one_request_and_to_many(
    make_checkpoint: MakeCheckpoint, family: str, size: int, dtype: str
) -> None:
    experts = {"num_local_experts": 5} if family == "mixtral" else {}
    folder = make_checkpoint(family, **WIDE, intermediate_size=128, **experts)
    requests = requests_with_logprobs()
    with parallel_runner(folder, size, dtype=dtype, deterministic=True) as runner:
        alone = engine_on(runner, deterministic=True, enable_prefix_caching=False)
        expected = {key: d for request in requests for key, d in run(alone, [request]).items()}
        crowded = engine_on(runner, deterministic=True, max_num_batched_tokens=48)
        assert_same_bits(run(crowded, requests), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_change_nothing_of_that(
    make_checkpoint: MakeCheckpoint, dtype: str, tmp_path: Path
) -> None:
    """Requests with one of two adapters, or none; alone, and beside each other in chunks. On one
    rank and on two."""
    folder = make_checkpoint(**WIDE)
    for seed, rank in enumerate((4, 20)):
        make_adapter(tmp_path / str(seed), folder, seed=seed, rank=rank)
    names = itertools.cycle(("0", "", "1", "0"))
    requests = [replace(each, adapter=next(names)) for each in requests_with_logprobs()]
    slots = {"max_loaded_adapters": 2, "max_lora_rank": 20}

    def assert_same_in_company(runner: ModelRunner | TPRunner) -> None:
        def engine(**config: object) -> Engine:
            limits = engine_config(deterministic=True, **slots, **config)
            adapters = AdapterSlots(runner, lambda name: tmp_path / name)
            return Engine(runner, limits, adapters=adapters)

        alone = engine(enable_prefix_caching=False)
        expected = {key: d for request in requests for key, d in run(alone, [request]).items()}
        assert_same_bits(run(engine(max_num_batched_tokens=48), requests), expected)

    config = engine_config(deterministic=True, **slots)
    assert_same_in_company(ModelRunner(folder, config, dtype=dtype, device="cpu"))
    with parallel_runner(folder, 2, dtype=dtype, deterministic=True, **slots) as shared:
        assert_same_in_company(shared)


def test_more_than_two_ranks_that_share_no_memory_are_refused(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "share_memory", lambda *_, **__: None)
    folder = make_checkpoint(**WIDE)
    with (
        pytest.raises(ValueError, match=r"ranks on several machines .*; supported: at most 2, any"),
        parallel_runner(folder, 4, deterministic=True),
    ):
        pass


def requests_with_logprobs() -> list[Request]:
    kinds = [
        SamplingParams(max_tokens=16, temperature=0.0, logprobs=3, ignore_eos=True),
        SamplingParams(max_tokens=16, temperature=0.8, seed=3, n=2, logprobs=3),
        SamplingParams(max_tokens=16, temperature=0.0, logprobs=3, beam=BeamParams(width=3)),
    ]
    return [
        Request(request_id=str(k), prompt_token_ids=prompt, sampling_params=kinds[k % 3])
        for k, prompt in enumerate(prompts_of_mixed_lengths()[5:])
    ]


def test_a_prefix_from_the_cache_gives_the_same_bits(make_checkpoint: MakeCheckpoint) -> None:
    driver = driver_for(make_checkpoint(**WIDE), "bfloat16", "none")
    first = driver.add(TOKENS)
    driver.finish(first, len(TOKENS))
    hit = driver.add(TOKENS)
    hit.block_table, hit.num_computed = first.block_table[:4], 64
    driver.finish(hit, 20, 1)
    assert torch.equal(logits_of(hit), logits_of(first)[64:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_contexts_are_shared_out_among_threads_in_the_same_parts(
    make_checkpoint: MakeCheckpoint, dtype: str
) -> None:
    driver = driver_for(make_checkpoint(num_hidden_layers=1, **WIDE), dtype, "none")
    tokens = random_tokens(2300)
    one, other = driver.add(tokens), driver.add(tokens)
    driver.finish(one, 2300)
    driver.finish(other, 1000, 1, 1030, 5, 263, 1)
    assert torch.equal(logits_of(one)[-3:], logits_of(other)[-3:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"quantization": "fp8"}, "fp8 weights; supported: floats, int8 and int4"),
        ({"head_dim": 16}, "heads 16 wide"),
    ],
)
def test_what_cannot_be_promised_is_refused(
    make_checkpoint: MakeCheckpoint, options: dict[str, object], message: str
) -> None:
    folder = make_checkpoint(head_dim=options.pop("head_dim", 32))
    config = EngineConfig(deterministic=True)
    with pytest.raises(ValueError, match=rf"deterministic is not supported with .*{message}"):
        ModelRunner(folder, config, device="cpu", **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_without_a_compiler_it_is_refused(
    make_checkpoint: MakeCheckpoint, quantization: str
) -> None:
    config = EngineConfig(deterministic=True)
    with pytest.raises(ValueError, match=r"deterministic is not supported .*no CPU kernels here"):
        ModelRunner(make_checkpoint(**WIDE), config, device="cpu", quantization=quantization)


def test_a_model_that_only_transformers_defines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Phi3ForCausalLM"]}')
    with pytest.raises(ValueError, match="neither deterministic"):
        ModelRunner(tmp_path, EngineConfig(deterministic=True), device="cpu")
