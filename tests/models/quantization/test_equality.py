"""Quantized models in the whole engine give what transformers gives with the same numbers as
floats, however the work is cut, guessed, cached or shared by ranks."""

from pathlib import Path

import pytest

from cluster.config import EngineConfig
from cluster.types import Request, SamplingParams, TokenLogprobs
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from tests.models.conftest import MakeCheckpoint
from tests.models.engine.guess_oracle import ALWAYS, guess_by, remembering
from tests.models.engine_runs import (
    assert_same_bits,
    assert_was_crowded,
    greedy,
    prompts_of_mixed_lengths,
    reference_outputs,
    run,
    texts_of,
    tokens,
)
from tests.models.parallel.rank_threads import engine_config, engine_on, parallel_runner
from tests.models.quantization.packed_checkpoints import dequantized_checkpoint, write_twins
from tests.models.quantization.test_stored_matrix import VARIANTS

FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen3": {},
    "mixtral": {"num_local_experts": 5},
    "qwen3 moe": {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 64},
}
SHAPE = {"head_dim": 32, "intermediate_size": 128}
CROWDED = {
    "kv_cache_memory_bytes": 22 * 2 * 2 * 2 * 32 * 4 * 16,  # 22 blocks of 2 heads in float32
    "max_num_batched_tokens": 48,
}
STORED = [
    ("llama", "awq"),
    ("mistral", "gptq"),
    ("qwen3", "packed with zeros"),
    ("mixtral", "awq"),
    ("qwen3 moe", "gptq desc_act"),
    ("qwen3 moe", "int8"),
]
MADE = [
    ("llama", "int8"),
    ("qwen3", "int4"),
    ("mixtral", "int4_g32"),
    ("qwen3 moe", "int8"),
]


def assert_engines_equal(
    folder: Path, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    """A crowded one, and one that guesses."""
    prompts = prompts_of_mixed_lengths()
    texts = [prompt + output for prompt, output in zip(prompts, expected, strict=True)]
    guess_by(monkeypatch, remembering(texts), seed=3)
    for guesses in (None, ALWAYS):
        config = engine_config(speculative_config=guesses, **CROWDED)
        runner = ModelRunner(
            folder, config, dtype="float32", device="cpu", quantization=quantization
        )
        engine = Engine(runner, config)
        deltas = run(engine, greedy(prompts))
        assert [tokens(deltas[(str(k), 0)]) for k in range(len(prompts))] == expected
        assert_was_crowded(engine, has_guessed=guesses is ALWAYS)


@pytest.mark.parametrize(("family", "stored"), STORED)
def test_a_stored_format_gives_the_tokens_of_its_floats(
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    stored: str,
) -> None:
    base = make_checkpoint(family, **FAMILIES[family], **SHAPE)
    folder, floats = write_twins(base, *VARIANTS[stored], tmp_path)
    prompts = prompts_of_mixed_lengths()
    expected = reference_outputs(floats, prompts)
    assert_engines_equal(folder, expected, monkeypatch, "auto")
    with parallel_runner(folder, 2) as runner:
        deltas = run(engine_on(runner, max_num_batched_tokens=48), greedy(prompts))
        assert [tokens(deltas[(str(k), 0)]) for k in range(len(prompts))] == expected


def test_attention_and_routers_may_be_left_out(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As checkpoints with experts often are: only these are quantized."""
    base = make_checkpoint("qwen3 moe", **FAMILIES["qwen3 moe"], **SHAPE)
    section, pack = VARIANTS["gptq"]
    section = {**section, "dynamic": {r"-:.*\.mlp\.gate$": {}, "-:.*self_attn": {}}}
    folder, floats = write_twins(base, section, pack, tmp_path, left_out=".*self_attn")
    expected = reference_outputs(floats, prompts_of_mixed_lengths())
    assert_engines_equal(folder, expected, monkeypatch, "auto")


@pytest.mark.parametrize(("family", "name"), MADE)
def test_what_is_quantized_here_gives_the_tokens_of_its_floats(
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    name: str,
) -> None:
    """Ranks round their parts by themselves, so that two are another model than one."""
    folder = make_checkpoint(family, **FAMILIES[family], **SHAPE)
    prompts = prompts_of_mixed_lengths()
    alone = dequantized_checkpoint(folder, name, tmp_path / "1")
    assert_engines_equal(folder, reference_outputs(alone, prompts), monkeypatch, name)
    shared = dequantized_checkpoint(folder, name, tmp_path / "2", size=2)
    with parallel_runner(folder, 2, quantization=name) as runner:
        deltas = run(engine_on(runner, max_num_batched_tokens=48), greedy(prompts))
    got = [tokens(deltas[(str(k), 0)]) for k in range(len(prompts))]
    assert got == reference_outputs(shared, prompts)


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(("family", "stored"), [("llama", "awq"), ("qwen3 moe", "gptq desc_act")])
def test_without_a_compiler_the_tokens_are_the_same(
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    stored: str,
) -> None:
    base = make_checkpoint(family, **FAMILIES[family], **SHAPE)
    folder, floats = write_twins(base, *VARIANTS[stored], tmp_path)
    expected = reference_outputs(floats, prompts_of_mixed_lengths())
    assert_engines_equal(folder, expected, monkeypatch, "auto")


@pytest.mark.parametrize(
    ("family", "stored"), [("llama", "awq"), ("mixtral", "int8"), ("qwen3 moe", "gptq desc_act")]
)
def test_deterministic_bits_of_stored_formats_do_not_depend_on_company(
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    stored: str,
) -> None:
    base = make_checkpoint(family, **FAMILIES[family], **SHAPE)
    folder, _ = write_twins(base, *VARIANTS[stored], tmp_path)
    requests = greedy(prompts_of_mixed_lengths()[5:], logprobs=3)
    config = engine_config(deterministic=True, enable_prefix_caching=False)
    alone = Engine(ModelRunner(folder, config, dtype="float32", device="cpu"), config)
    expected = {key: d for request in requests for key, d in run(alone, [request]).items()}
    guess_by(monkeypatch, remembering(texts_of(requests, expected)), seed=5)
    config = engine_config(deterministic=True, speculative_config=ALWAYS, **CROWDED)
    crowded = Engine(ModelRunner(folder, config, dtype="float32", device="cpu"), config)
    assert_same_bits(run(crowded, requests), expected)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("name", ["int8_dynamic", "fp8"])
def test_quantized_activations_score_prompts_alike_in_a_crowded_engine(
    make_checkpoint: MakeCheckpoint, family: str, name: str
) -> None:
    """A last bit may end in another level: near, not equal."""
    folder = make_checkpoint(family, **FAMILIES[family], **SHAPE)
    params = SamplingParams(temperature=0.0, max_tokens=8, prompt_logprobs=0)
    requests = [
        Request(request_id=str(k), prompt_token_ids=prompt, sampling_params=params)
        for k, prompt in enumerate(prompts_of_mixed_lengths()[5:])
    ]

    def scores(config: EngineConfig) -> list[float]:
        runner = ModelRunner(folder, config, dtype="float32", device="cpu", quantization=name)
        outputs = run(Engine(runner, config), requests)
        scored: list[TokenLogprobs] = [
            item for key in sorted(outputs) for item in outputs[key][0].prompt_logprobs or []
        ]
        return [item.logprob for item in scored]

    roomy, crowded = scores(engine_config()), scores(engine_config(**CROWDED))
    differences = [abs(one - other) for one, other in zip(roomy, crowded, strict=True)]
    assert sum(differences) / len(differences) < 0.02
