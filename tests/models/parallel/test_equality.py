"""Several ranks give what one rank gives, token for token, whatever an engine does with them."""

import pytest
import torch

from cluster.types import Request, SamplingParams
from models.attention.native import NativeAttention
from models.decoder import Decoder
from models.engine.model_runner import ModelRunner
from models.native.matmul import are_float_products_fast
from models.parallel.runner import TPRunner
from tests.models.conftest import FindSample, MakeCheckpoint
from tests.models.engine.guess_oracle import ALWAYS, guess_by, remembering
from tests.models.engine_runs import assert_same, prompts_of_mixed_lengths, run
from tests.models.family_samples import FAMILIES, all_requests
from tests.models.parallel.rank_threads import engine_config, engine_on, parallel_runner

NUM_BLOCKS = 22  # few enough that sequences are preempted


def has_native_layers(runner: TPRunner) -> bool:
    decoder = runner._runner._decoder
    assert isinstance(decoder, Decoder)
    return decoder._native_layers is not None


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_crowded_engine_gives_the_same_tokens_on_several_ranks(
    family_sample: FindSample, monkeypatch: pytest.MonkeyPatch, family: str, size: int
) -> None:
    """Without guesses and with them. Half of the prompts begin alike, and find that in the cache;
    two ranks, which are quicker than four, are asked twice, and find all of it there."""
    sample = family_sample(family)
    guess_by(monkeypatch, remembering(sample.expected_texts), seed=5)
    config = {
        "kv_cache_memory_bytes": sample.memory_of(NUM_BLOCKS, size=size),
        "max_num_batched_tokens": 48,
    }
    with parallel_runner(sample.folder, size, **config) as runner:
        assert runner.num_blocks == NUM_BLOCKS
        is_native = isinstance(runner._runner._attention, NativeAttention)
        assert is_native == sample.has_kernels
        assert has_native_layers(runner) == (
            family == "llama kernels" and are_float_products_fast()
        )
        engine = engine_on(runner, sample.compiler, **config)
        guessing = engine_on(runner, sample.compiler, speculative_config=ALWAYS, **config)
        for each in (engine, engine, guessing) if size == 2 else (engine, guessing):
            assert_same(run(each, all_requests()), sample.expected)
    for each in (engine, guessing):
        stats = each.stats()
        assert stats.preemptions_total > 0
        assert stats.cached_prompt_tokens_total > 0
        assert (stats.spec_decode_accepted_tokens_total > 0) == (each is guessing)


@pytest.mark.parametrize(
    ("family", "size", "extra", "quantization"),
    [
        ("llama", 2, {"attention_bias": True, "mlp_bias": True}, "none"),
        ("llama", 4, {}, "int8"),
        ("qwen2", 2, {}, "none"),
        ("qwen3", 4, {}, "none"),
        ("mistral", 2, {"sliding_window": 24}, "int4_g32"),
    ],
)
def test_ranks_that_compute_all_layers_in_one_call_give_the_bits_of_an_operation_at_a_time(
    make_checkpoint: MakeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    size: int,
    extra: dict[str, object],
    quantization: str,
) -> None:
    """In steps of any size, and where a long prompt's chunks pass a few layers at a time."""
    if quantization == "none" and not are_float_products_fast():
        pytest.skip("products of floats are torch's here, and so is the order of the operations")
    folder = make_checkpoint(family, head_dim=32, intermediate_size=128, **extra)
    config = {"max_num_batched_tokens": 48}
    params = SamplingParams(temperature=0.0, max_tokens=12, logprobs=3, ignore_eos=True)
    requests = [
        Request(request_id=str(k), prompt_token_ids=prompt, sampling_params=params)
        for k, prompt in enumerate(prompts_of_mixed_lengths())
    ]
    found = []
    for is_native in (True, False):
        if not is_native:
            monkeypatch.setattr("models.decoder.native_layers", lambda *_, **__: None)
        with parallel_runner(
            folder, size, dtype="bfloat16", quantization=quantization, **config
        ) as runner:
            assert has_native_layers(runner) == is_native
            found.append(run(engine_on(runner, **config), requests))
    assert found[0] == found[1]


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
