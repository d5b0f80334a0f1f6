"""Adapters in the whole engine: a mixed batch gives what merged checkpoints give."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cluster.config import EngineConfig
from cluster.types import BeamParams, Request, SamplingParams, TokenDelta
from models.adapters import bank
from models.adapters.torch_adapters import TorchAdapters
from models.attention.native import NativeAttention
from models.engine.adapter_slots import AdapterSlots
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.native.library import native_library
from models.native.matmul import are_float_products_fast
from models.native.operations import NativeOperations
from tests.models.adapters.adapter_samples import make_adapter, merged_checkpoint
from tests.models.conftest import MakeCheckpoint
from tests.models.engine.guess_oracle import ALWAYS, guess_by, remembering
from tests.models.engine_runs import prompts_of_mixed_lengths, tokens
from tests.models.parallel.rank_threads import parallel_runner

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama on native kernels": ("llama", {"head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "llama by torch": ("llama", {}),
}
NAMES = ("", "all", "some", "rslora")  # the base model, and three adapters of different shapes
OUTPUT_LEN = 12
BYTES_PER_BLOCK = 2 * 2 * 2 * 32 * 4 * 16  # K and V, layers, heads, width, float32, tokens


@dataclass(frozen=True)
class Sample:
    """A base checkpoint, its adapters, and the checkpoints that have them merged."""

    base: Path
    adapters: dict[str, Path]
    merged: dict[str, Path]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _adapters_by_torch(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, in float16, and without a compiler or AVX-512."""
    if family.endswith("by torch"):
        monkeypatch.setattr(bank, "native_adapters", lambda *_, **__: None)


@pytest.fixture(scope="module")
def sample(
    family: str, make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Sample:
    kind, overrides = FAMILIES[family]
    base = make_checkpoint(kind, **overrides)
    folder = tmp_path_factory.mktemp("adapters")
    adapters = {
        "all": make_adapter(folder / "all", base, seed=1),
        "some": make_adapter(
            folder / "some", base, seed=2, rank=2, alpha=5, modules=("q_proj", "v_proj")
        ),
        "rslora": make_adapter(folder / "rslora", base, seed=3, rank=8, use_rslora=True),
    }
    merged = {
        name: merged_checkpoint(folder / f"merged-{name}", base, adapter)
        for name, adapter in adapters.items()
    }
    return Sample(base, adapters, {"": base, **merged})


def requests(**params: object) -> list[Request]:
    """Each of sixteen prompts for each name, mixed: prompts meet their like of other adapters."""
    params = {"temperature": 0.0, "max_tokens": OUTPUT_LEN, "logprobs": 0, **params}
    return [
        Request(
            request_id=f"{name}.{k}",
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(**params),  # type: ignore[arg-type]
            adapter=name,
        )
        for k, prompt in enumerate(prompts_of_mixed_lengths())
        for name in NAMES
    ]


def adapter_config(**config: object) -> EngineConfig:
    plain = {
        "max_model_len": 256,
        "max_num_seqs": 48,
        "max_loaded_adapters": 3,
        "max_lora_rank": 8,
    }
    return EngineConfig(**{**plain, **config})  # type: ignore[arg-type]


def adapter_engine(sample: Sample, **config: object) -> Engine:
    engine_config = adapter_config(**config)
    runner = ModelRunner(sample.base, engine_config, dtype="float32", device="cpu")
    return Engine(runner, engine_config, adapters=AdapterSlots(runner, sample.adapters.__getitem__))


Outputs = dict[str, list[TokenDelta]]


def run(engine: Engine, all_requests: list[Request]) -> Outputs:
    for request in all_requests:
        engine.add_request(request)
    deltas: Outputs = {}
    while engine.has_unfinished:
        step = engine.step()
        assert not step.failures
        for delta in step:
            deltas.setdefault(f"{delta.request_id}.{delta.index}", []).append(delta)
        engine.check()
        if engine.is_stalled:
            engine.wait_for_adapters()
    return deltas


def expected_outputs(sample: Sample, **params: object) -> Outputs:
    """Every adapter's requests on its merged checkpoint, by an engine that knows no adapters."""
    expected: Outputs = {}
    for name, folder in sample.merged.items():
        config = EngineConfig(max_model_len=256, max_num_seqs=48)
        engine = Engine(ModelRunner(folder, config, dtype="float32", device="cpu"), config)
        own = [
            Request(
                request_id=request.request_id,
                prompt_token_ids=request.prompt_token_ids,
                sampling_params=request.sampling_params,
            )
            for request in requests(**params)
            if request.adapter == name
        ]
        expected |= run(engine, own)
    return expected


@pytest.fixture(scope="module")
def expected(sample: Sample) -> Outputs:
    outputs = expected_outputs(sample)
    for k in range(4):  # the adapters change what is said, or nothing would be shown
        assert len({tuple(tokens(outputs[f"{name}.{k}.0"])) for name in NAMES}) > 2
    return outputs


def expected_texts(expected: Outputs) -> list[list[int]]:
    """Prompts with what follows them."""
    prompts = {request.request_id: request.prompt_token_ids for request in requests()}
    return [prompts[key.rpartition(".")[0]] + tokens(deltas) for key, deltas in expected.items()]


def assert_equal(got: Outputs, expected: Outputs, situation: str) -> None:
    assert got.keys() == expected.keys()
    for name, deltas in expected.items():
        assert tokens(got[name]) == tokens(deltas), f"{situation}: {name}"
        for one, other in zip(got[name], deltas, strict=True):
            mine, theirs = (d.logprobs or [] for d in (one, other))
            for a, b in zip(mine, theirs, strict=True):
                assert abs(a.logprob - b.logprob) <= 1e-4, f"{situation}: {name}"


SITUATIONS: dict[str, dict[str, object]] = {
    "one big step": {"max_num_batched_tokens": 8192},
    "chunked prefill": {"max_num_batched_tokens": 100},
    "preemption": {"kv_cache_memory_bytes": 40 * BYTES_PER_BLOCK},
    "slots in turn": {"max_loaded_adapters": 1},
    "two slots": {"max_loaded_adapters": 2, "block_size": 7},
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_mixed_batch_equals_merged_checkpoints(
    situation: str, sample: Sample, expected: Outputs
) -> None:
    engine = adapter_engine(sample, **SITUATIONS[situation])
    for round_number in range(2):  # the second one finds its prefixes cached
        assert_equal(run(engine, requests()), expected, f"{situation}, round {round_number}")
    stats = engine.stats()
    assert stats.cached_prompt_tokens_total > 0
    assert situation != "preemption" or stats.preemptions_total > 0
    assert len(stats.loaded_adapters) == SITUATIONS[situation].get("max_loaded_adapters", 3)
    engine.close()


def test_guessed_tokens_are_computed_with_their_adapter(
    sample: Sample, expected: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess_by(monkeypatch, remembering(expected_texts(expected)), seed=3)
    engine = adapter_engine(sample, max_loaded_adapters=2, speculative_config=ALWAYS)
    got = run(engine, requests())
    assert {key: tokens(deltas) for key, deltas in got.items()} == {
        key: tokens(deltas) for key, deltas in expected.items()
    }
    stats = engine.stats()
    assert 0 < stats.spec_decode_accepted_tokens_total < stats.spec_decode_draft_tokens_total
    engine.close()


def test_the_kernels_are_in_use_where_they_should_be(family: str, sample: Sample) -> None:
    runner = adapter_engine(sample)._runner
    assert isinstance(runner, ModelRunner)
    uses_kernels = family.endswith("kernels") and native_library() is not None
    assert isinstance(runner._attention, NativeAttention) == uses_kernels
    assert isinstance(runner._decoder._operations, NativeOperations) == uses_kernels
    assert runner._bank is not None
    is_torch = family.endswith("by torch") or not are_float_products_fast()
    assert isinstance(runner._bank._slots, TorchAdapters) == is_torch


def test_forks_and_beams_run_with_their_adapter(sample: Sample) -> None:
    params: list[dict[str, object]] = [
        {"temperature": 1.0, "n": 3, "seed": 7},
        {"beam": BeamParams(width=3), "n": 2},
    ]
    engine = adapter_engine(sample, kv_cache_memory_bytes=40 * BYTES_PER_BLOCK)
    for each in params:
        expected = expected_outputs(sample, **each)
        got = run(engine, requests(**each))
        assert {k: tokens(d) for k, d in got.items()} == {k: tokens(d) for k, d in expected.items()}
    engine.close()


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_hold_their_parts_of_the_adapters(
    size: int, sample: Sample, expected: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them guess, too."""
    guess_by(monkeypatch, remembering(expected_texts(expected)), seed=3)
    limits = {"max_loaded_adapters": 2, "max_lora_rank": 8}
    guesses = ALWAYS if size == 2 else None
    with parallel_runner(sample.base, size, **limits) as runner:
        slots = AdapterSlots(runner, sample.adapters.__getitem__)
        config = adapter_config(max_loaded_adapters=2, speculative_config=guesses)
        engine = Engine(runner, config, adapters=slots)
        got = run(engine, requests())
    if guesses is None:
        assert_equal(got, expected, f"{size} ranks")
    assert {k: tokens(d) for k, d in got.items()} == {k: tokens(d) for k, d in expected.items()}
    assert (engine.stats().spec_decode_accepted_tokens_total > 0) == (guesses is ALWAYS)


def test_bfloat16_stays_close_to_the_merged_checkpoint(sample: Sample) -> None:
    config = adapter_config()
    runner = ModelRunner(sample.base, config, dtype="bfloat16", device="cpu")
    engine = Engine(runner, config, adapters=AdapterSlots(runner, sample.adapters.__getitem__))
    prompt = prompts_of_mixed_lengths()[6]
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    request = Request(
        request_id="a", prompt_token_ids=prompt, sampling_params=params, adapter="all"
    )
    (delta,) = run(engine, [request])["a.0"]
    merged_runner = ModelRunner(sample.merged["all"], config, dtype="bfloat16", device="cpu")
    plain = Request(request_id="a", prompt_token_ids=prompt, sampling_params=params)
    (other,) = run(Engine(merged_runner, config), [plain])["a.0"]
    got, wanted = (
        torch.tensor([item.logprob for item in d.prompt_logprobs or []]) for d in (delta, other)
    )
    assert (got - wanted).abs().mean() < 0.1
