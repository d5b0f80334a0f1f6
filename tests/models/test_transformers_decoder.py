"""Families that only transformers defines, on our engine: token for token as `generate` does it."""

from pathlib import Path

import pytest
import torch
import transformers

from cluster.config import EngineConfig
from models.checkpoint import CheckpointError
from models.engine.build import build_runner
from models.engine.model_runner import ModelRunner
from models.transformers_decoder import TransformersDecoder
from tests.models.conftest import FindSample
from tests.models.engine.guess_oracle import ALWAYS, guess_by, remembering
from tests.models.engine_runs import (
    assert_same,
    assert_was_crowded,
    greedy,
    make_engine,
    prompts_of_mixed_lengths,
    reference_outputs,
    run,
    tokens,
)
from tests.models.family_samples import VOCAB_SIZE, FamilySample, all_requests
from tests.models.grammar.grammar_walk import EOS_TOKEN_IDS
from tests.models.step_driver import StepDriver, random_tokens, reference_logprobs

SHAPE = {
    "vocab_size": 257,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 96}
WINDOWS = ["sliding_attention", "full_attention"]
FAMILIES = {
    "gpt2": transformers.GPT2Config(
        vocab_size=257,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=512,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": transformers.OPTConfig(**SHAPE, ffn_dim=96, word_embed_proj_dim=64, dropout=0.0),
    "phi3": transformers.Phi3Config(**SHAPE, **GROUPED),
    "gemma3": transformers.Gemma3TextConfig(
        **SHAPE, **GROUPED, head_dim=32, sliding_window=8, layer_types=WINDOWS
    ),
    "olmoe": transformers.OlmoeConfig(**SHAPE, **GROUPED, num_experts=4, num_experts_per_tok=2),
    "gpt neox": transformers.GPTNeoXConfig(**SHAPE, intermediate_size=96),
    "qwen2 moe": transformers.Qwen2MoeConfig(
        **SHAPE,
        **GROUPED,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=48,
    ),
}


def save(config: transformers.PretrainedConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES.keys())
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("block_size", [4, 16])
def test_logprobs_equal_transformers_however_the_work_is_cut(
    checkpoint: Path, block_size: int
) -> None:
    driver = StepDriver(checkpoint, block_size=block_size)
    long, short = (driver.add(random_tokens(length, seed=length)) for length in (41, 13))
    driver.step((long, 20), (short, 5))
    driver.step((long, 7), (short, 7))
    driver.step((long, 13), (short, 1))
    driver.step((long, 1))
    for sequence in (long, short):
        expected = reference_logprobs(checkpoint, sequence.token_ids)
        ours = torch.stack(sequence.logprobs)
        torch.testing.assert_close(ours, expected[: len(ours)], atol=1e-4, rtol=1e-4)


def test_greedy_tokens_equal_generate_in_a_crowded_engine(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunked prompts, prefixes from the cache, preemption; with guesses the second time."""
    prompts = prompts_of_mixed_lengths()
    expected = reference_outputs(checkpoint, prompts)
    texts = [prompt + output for prompt, output in zip(prompts, expected, strict=True)]
    guess_by(monkeypatch, remembering(texts), seed=1)
    block_bytes = ModelRunner(
        checkpoint, EngineConfig(kv_cache_memory_bytes=2**22)
    ).plan.bytes_per_block
    for guesses in (None, ALWAYS):
        engine = make_engine(
            checkpoint,
            kv_cache_memory_bytes=22 * block_bytes,
            max_num_batched_tokens=64,
            speculative_config=guesses,
        )
        deltas = run(engine, greedy(prompts))
        assert [tokens(deltas[(str(k), 0)]) for k in range(len(prompts))] == expected
        assert_was_crowded(engine, has_guessed=guesses is ALWAYS)


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1 + pair / 10 for pair in range(8)],
    "long_factor": [2.0 + pair for pair in range(8)],
}


@pytest.mark.parametrize("max_model_len", [None, 64])
def test_frequencies_of_long_texts_do_not_depend_on_the_batch(
    tmp_path: Path, max_model_len: int | None
) -> None:
    """Phi-3's: those for long texts are everybody's where a text may become long."""
    config = transformers.Phi3Config(
        **SHAPE, **GROUPED, original_max_position_embeddings=64, rope_parameters=LONG_ROPE
    )
    folder = save(config, tmp_path)
    engine_config = EngineConfig(max_model_len=max_model_len, kv_cache_memory_bytes=2**22)
    driver = StepDriver(folder, engine_config=engine_config)
    lengths = (100, 41) if max_model_len is None else (60, 41)
    long, short = (driver.add(random_tokens(length, seed=length)) for length in lengths)
    driver.step((long, 30), (short, 20))
    driver.step((long, lengths[0] - 31), (short, 20))
    driver.step((long, 1), (short, 1))
    for sequence in (long, short):
        continued = sequence.token_ids + [3] * 60 * (max_model_len is None)
        expected = reference_logprobs(folder, continued)[: len(sequence.token_ids)]
        ours = torch.stack(sequence.logprobs)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_what_attention_alone_cannot_give_is_refused_with_its_reason(tmp_path: Path) -> None:
    cases = {
        "softcap": transformers.Gemma2Config(**SHAPE, **GROUPED, head_dim=16),
        "its logits differ": transformers.GraniteConfig(**SHAPE, **GROUPED, logits_scaling=4.0),
        "0 attend": transformers.BloomConfig(vocab_size=257, hidden_size=64, n_layer=2, n_head=4),
    }
    for number, (reason, config) in enumerate(cases.items()):
        folder = save(config, tmp_path / str(number))
        with pytest.raises(CheckpointError, match=reason):
            TransformersDecoder(folder, dtype=torch.float32, device="cpu")


def test_an_architecture_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"architectures": ["NoSuchLM"], "model_type": "no_such"}'
    )
    with pytest.raises(CheckpointError, match="no_such"):
        ModelRunner(tmp_path, EngineConfig())


def test_it_is_not_shared_by_ranks_and_neither_quantized_nor_made_up(tmp_path: Path) -> None:
    folder, config = save(FAMILIES["phi3"], tmp_path), EngineConfig()
    message = r"transformers' modules.*tensor_parallel_size is 2; supported: 1"
    with pytest.raises(ValueError, match=message):
        build_runner(folder, config, dtype="auto", device="cpu", tensor_parallel_size=2)
    with pytest.raises(ValueError, match="transformers' modules"):
        ModelRunner(folder, config, random_weights=True)
    with pytest.raises(ValueError, match=r"transformers' modules.*nor quantized"):
        ModelRunner(folder, config, quantization="int8")


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = save(FAMILIES["phi3"], tmp_path)
    wider = transformers.Phi3Config(**{**SHAPE, "num_hidden_layers": 3}, **GROUPED)
    wider.architectures = ["Phi3ForCausalLM"]
    wider.save_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"missing keys.*layers\.2"):
        TransformersDecoder(folder, dtype=torch.float32, device="cpu")


def test_requests_of_every_kind_give_the_same_in_a_crowded_engine(
    family_sample: FindSample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forks, penalties, beams and grammars, with guesses, on windows that some layers have."""
    compiler = family_sample("llama").compiler
    vocabulary = {"vocab_size": VOCAB_SIZE, "eos_token_id": sorted(EOS_TOKEN_IDS)}
    config = transformers.Gemma3TextConfig(
        **{**SHAPE, **GROUPED, **vocabulary}, head_dim=32, sliding_window=8, layer_types=WINDOWS
    )
    sample = FamilySample(save(config, tmp_path), compiler, num_kv_heads=2, head_dim=32)
    guess_by(monkeypatch, remembering(sample.expected_texts), seed=5)
    engine = make_engine(
        sample.folder,
        compiler,
        kv_cache_memory_bytes=sample.memory_of(26),
        max_num_batched_tokens=64,
        speculative_config=ALWAYS,
    )
    assert_same(run(engine, all_requests()), sample.expected)
    stats = engine.stats()
    assert stats.preemptions_total > 0
    assert stats.cached_prompt_tokens_total > 0
    assert stats.spec_decode_accepted_tokens_total > 0


def test_it_says_what_it_is(tmp_path: Path) -> None:
    folder = save(FAMILIES["phi3"], tmp_path)
    runner = ModelRunner(folder, EngineConfig(kv_cache_memory_bytes=2**22))
    assert runner.describe().startswith("Phi3ForCausalLM in float32")
    assert runner.eos_token_ids == {2}
