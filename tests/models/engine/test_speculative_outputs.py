"""Guessed tokens change the time and nothing else: on tiny checkpoints of every family."""

import random

import pytest

from cluster.types import GrammarKind, GrammarSpec, Request, SamplingParams
from models.engine import model_runner
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.engine.prompt_lookup import PromptLookup
from models.grammar.compiler import GrammarCompiler, GrammarMatcher
from tests.models.conftest import FindSample, MakeCheckpoint
from tests.models.engine.guess_oracle import ALWAYS, guess_by, remembering, speculating
from tests.models.engine_runs import (
    assert_same,
    prompts_of_mixed_lengths,
    run,
    texts_of,
)
from tests.models.family_samples import FAMILIES, JSON_SPEC, REGEX_SPEC, all_requests
from tests.models.parallel.rank_threads import engine_config, engine_on


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_request_gives_the_same_on_and_off(
    family_sample: FindSample, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice each, so that the second time finds prefixes cached."""
    sample = family_sample(family)
    guess_by(monkeypatch, remembering(sample.expected_texts), seed=5)
    situations: dict[str, dict[str, object]] = {
        "one big step": {"max_num_batched_tokens": 4096},
        "chunked prefill": {"max_num_batched_tokens": 64},
        "preemption": {
            "kv_cache_memory_bytes": sample.memory_of(26),
            "max_num_batched_tokens": 64,
        },
    }
    for situation, options in situations.items():
        options["speculative_config"] = ALWAYS
        runner = ModelRunner(sample.folder, engine_config(**options), dtype="float32", device="cpu")
        engine = engine_on(runner, sample.compiler, **options)
        for _ in range(2):
            assert_same(run(engine, all_requests()), sample.expected)
        stats = engine.stats()
        assert (stats.preemptions_total > 0) == (situation == "preemption"), situation
        assert stats.cached_prompt_tokens_total > 0
        assert 0 < stats.spec_decode_accepted_tokens_total < stats.spec_decode_draft_tokens_total


@pytest.fixture
def guided(family_sample: FindSample) -> tuple[ModelRunner, GrammarCompiler]:
    sample = family_sample("qwen3")
    runner = ModelRunner(sample.folder, engine_config(), dtype="float32", device="cpu")
    return runner, sample.compiler


def guided_requests(*specs: GrammarSpec) -> list[Request]:
    return [
        Request(
            request_id=str(k),
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(
                max_tokens=60, n=2, seed=k, grammar=specs[k % len(specs)], logprobs=1
            ),
        )
        for k, prompt in enumerate(prompts_of_mixed_lengths()[:12])
    ]


def test_guesses_follow_a_grammar_as_far_as_it_allows_them(
    guided: tuple[ModelRunner, GrammarCompiler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON, a pattern that ends by itself, and one that goes on as long as it may."""
    runner, compiler = guided
    requests = guided_requests(
        JSON_SPEC, REGEX_SPEC, GrammarSpec(kind=GrammarKind.REGEX, text="(ab?c)*")
    )
    expected = run(engine_on(runner, compiler), requests)
    guess_by(monkeypatch, remembering(texts_of(requests, expected)), seed=5)
    monkeypatch.setattr(GrammarMatcher, "forced_tokens", lambda matcher: [])
    engine = engine_on(runner, compiler, speculative_config=ALWAYS)
    assert_same(run(engine, requests), expected)
    stats = engine.stats()
    assert stats.spec_decode_accepted_tokens_total > stats.generation_tokens_total / 3
    assert stats.preemptions_total == 0


def test_what_a_grammar_leaves_no_choice_about_is_guessed(
    guided: tuple[ModelRunner, GrammarCompiler], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, compiler = guided
    requests = guided_requests(JSON_SPEC)
    expected = run(engine_on(runner, compiler), requests)
    monkeypatch.setattr(PromptLookup, "guess", lambda lookup, num_tokens: [])
    engine = engine_on(runner, compiler, speculative_config=ALWAYS)
    assert_same(run(engine, requests), expected)
    stats = engine.stats()
    assert stats.spec_decode_accepted_tokens_total == stats.spec_decode_draft_tokens_total
    assert stats.spec_decode_accepted_tokens_total > stats.generation_tokens_total / 3


def test_steps_launched_ahead_and_guesses_take_turns(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint("llama")
    requests = [
        Request(
            request_id=str(k),
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(
                temperature=0.4 * k, seed=k, max_tokens=60, ignore_eos=True
            ),
        )
        for k, prompt in enumerate(prompts_of_mixed_lengths()[:3])
    ]
    runner = ModelRunner(folder, engine_config(), dtype="float32", device="cpu")
    expected = run(engine_on(runner), requests)
    chance = random.Random(1)
    known = remembering(texts_of(requests, expected))
    guess_by(monkeypatch, lambda begun, n: known(begun, n) if chance.random() < 0.1 else [], seed=5)
    config = speculating(engine_config(overlap_steps=True))
    engine = Engine(ModelRunner(folder, config, dtype="float32", device="cpu"), config)
    assert_same(run(engine, requests), expected)
    assert engine._overlap is not None
    assert engine._overlap.num_hits > 0
    assert engine.stats().spec_decode_accepted_tokens_total > 0


def test_guesses_are_rows_of_graphs_on_a_gpu(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Triton's interpreter; see `test_gpu_steps`."""
    gpu = pytest.importorskip("tests.models.engine.test_gpu_steps")
    folder = make_checkpoint("llama", **gpu.SHAPE)
    expected = gpu.generate(folder, gpu.CONFIG, gpu.PROMPTS)
    texts = [prompt + output for prompt, output in zip(gpu.PROMPTS, expected, strict=True)]
    guess_by(monkeypatch, remembering(texts), seed=2)
    monkeypatch.setattr(model_runner, "runs_triton", lambda device: True)
    monkeypatch.setattr(model_runner, "make_recorder", gpu.Rerunner)
    assert gpu.generate(folder, speculating(gpu.CONFIG), gpu.PROMPTS) == expected
