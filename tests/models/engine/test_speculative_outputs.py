"""Guessed tokens change the time and nothing else: on tiny checkpoints of every family."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import EngineConfig
from cluster.types import GrammarKind, GrammarSpec, Request, SamplingParams, TokenDelta
from models.engine import model_runner
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.engine.prompt_lookup import PromptLookup
from models.grammar.compiler import GrammarCompiler, GrammarMatcher
from tests.models.conftest import MakeCheckpoint
from tests.models.engine.guess_oracle import ALWAYS, guess_by, remembering, speculating
from tests.models.engine.test_engine import prompts_of_mixed_lengths, run, tokens
from tests.models.engine.test_engine_grammar import JSON_SPEC, REGEX_SPEC
from tests.models.grammar.grammar_walk import EOS_TOKEN_IDS, byte_level_tokenizer
from tests.models.parallel.rank_threads import engine_config, engine_on, parallel_runner
from tests.models.parallel.test_equality import (
    VARIANTS,
    assert_close,
    heads_of,
    memory_of,
    mixed_requests,
)
from tests.models.parallel.test_equality import VOCAB_SIZE as MODEL_VOCAB_SIZE

Outputs = dict[tuple[str, int], list[TokenDelta]]


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(variant: str, make_checkpoint: MakeCheckpoint) -> Path:
    family, overrides = VARIANTS[variant]
    eos_token_ids = sorted(EOS_TOKEN_IDS)
    folder = make_checkpoint(
        family, vocab_size=MODEL_VOCAB_SIZE, eos_token_id=eos_token_ids, **overrides
    )
    byte_level_tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def compiler(folder: Path) -> Iterator[GrammarCompiler]:
    with GrammarCompiler(
        folder / "tokenizer.json", vocab_size=MODEL_VOCAB_SIZE, eos_token_ids=EOS_TOKEN_IDS
    ) as compiler:
        yield compiler


def all_requests() -> list[Request]:
    """Those of the ranks' test (greedy with logprobs, forks with penalties, beams, grammars), and
    everything else that a row of logits may be changed by."""
    edited = SamplingParams(
        max_tokens=14,
        temperature=0.7,
        seed=3,
        n=2,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        logit_bias={7: 2.0, 9: -4.0},
        min_tokens=6,
        stop_token_ids=tuple(range(100, 200)),
        top_k=40,
        min_p=0.01,
        logprobs=1,
    )
    prompts = prompts_of_mixed_lengths()
    return [
        *mixed_requests(),
        *(
            Request(request_id=f"edited {k}", prompt_token_ids=prompt, sampling_params=edited)
            for k, prompt in enumerate(prompts[3:9])
        ),
    ]


def remember(requests: list[Request], outputs: Outputs) -> list[list[int]]:
    prompts = {request.request_id: request.prompt_token_ids for request in requests}
    return [prompts[request_id] + tokens(deltas) for (request_id, _), deltas in outputs.items()]


def assert_same(got: Outputs, wanted: Outputs) -> None:
    assert got.keys() == wanted.keys()
    for key, deltas in wanted.items():
        assert tokens(got[key]) == tokens(deltas), key
        last, other = got[key][-1], deltas[-1]
        assert (last.finish_reason, last.stop_token_id) == (
            other.finish_reason,
            other.stop_token_id,
        )
        assert_close(one_by_one(got[key]), one_by_one(deltas))


def one_by_one(deltas: list[TokenDelta]) -> list[TokenDelta]:
    return [
        TokenDelta(
            request_id=delta.request_id,
            index=delta.index,
            token_ids=[token],
            logprobs=None if delta.logprobs is None else [delta.logprobs[place]],
            prompt_logprobs=delta.prompt_logprobs if place == 0 else None,
        )
        for delta in deltas
        for place, token in enumerate(delta.token_ids)
    ]


def test_every_kind_of_request_gives_the_same_on_and_off(
    folder: Path, variant: str, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice each, so that the second time finds prefixes cached."""
    memory = memory_of(26, **heads_of(variant, size=1))
    plain = engine_config()
    runner = ModelRunner(folder, plain, dtype="float32", device="cpu")
    expected = run(engine_on(runner, compiler), all_requests())
    guess_by(monkeypatch, remembering(remember(all_requests(), expected)), seed=5)
    situations: dict[str, dict[str, object]] = {
        "one big step": {"max_num_batched_tokens": 4096},
        "chunked prefill": {"max_num_batched_tokens": 64},
        "preemption": {"kv_cache_memory_bytes": memory, "max_num_batched_tokens": 64},
    }
    for situation, options in situations.items():
        options["speculative_config"] = ALWAYS
        runner = ModelRunner(folder, engine_config(**options), dtype="float32", device="cpu")
        engine = engine_on(runner, compiler, **options)
        for _ in range(2):
            assert_same(run(engine, all_requests()), expected)
        stats = engine.stats()
        assert (stats.preemptions_total > 0) == (situation == "preemption"), situation
        assert stats.cached_prompt_tokens_total > 0
        assert 0 < stats.spec_decode_accepted_tokens_total < stats.spec_decode_draft_tokens_total


@pytest.fixture(scope="module")
def guided(make_checkpoint: MakeCheckpoint) -> Iterator[tuple[ModelRunner, GrammarCompiler]]:
    folder = make_checkpoint(
        "llama", vocab_size=MODEL_VOCAB_SIZE, eos_token_id=sorted(EOS_TOKEN_IDS)
    )
    byte_level_tokenizer(folder / "tokenizer.json")
    with GrammarCompiler(
        folder / "tokenizer.json", vocab_size=MODEL_VOCAB_SIZE, eos_token_ids=EOS_TOKEN_IDS
    ) as compiler:
        yield ModelRunner(folder, engine_config(), dtype="float32", device="cpu"), compiler


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
    guess_by(monkeypatch, remembering(remember(requests, expected)), seed=5)
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


def test_two_ranks_with_guesses_give_what_one_rank_gives_without(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint("qwen3")
    requests = [one for one in all_requests() if one.sampling_params.grammar is None]
    runner = ModelRunner(folder, engine_config(), dtype="float32", device="cpu")
    expected = run(engine_on(runner), requests)
    guess_by(monkeypatch, remembering(remember(requests, expected)), seed=5)
    options = {"speculative_config": ALWAYS, "max_num_batched_tokens": 64}
    with parallel_runner(folder, 2, **options) as shared:
        engine = engine_on(shared, **options)
        assert_same(run(engine, requests), expected)
    assert engine.stats().spec_decode_accepted_tokens_total > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deterministic_logprobs_have_the_same_bits_with_guesses(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    folder = make_checkpoint("llama", head_dim=32)
    params = SamplingParams(temperature=0.0, max_tokens=24, logprobs=3, ignore_eos=True)
    requests = [
        Request(request_id=str(k), prompt_token_ids=prompt, sampling_params=params)
        for k, prompt in enumerate(prompts_of_mixed_lengths()[:8])
    ]
    found = []
    for guesses in (None, ALWAYS):
        config = EngineConfig(
            max_model_len=256, max_num_seqs=32, deterministic=True, speculative_config=guesses
        )
        engine = Engine(ModelRunner(folder, config, dtype=dtype, device="cpu"), config)
        outputs = run(engine, requests)
        found.append({key: one_by_one(deltas) for key, deltas in outputs.items()})
        guess_by(monkeypatch, remembering(remember(requests, outputs)), seed=5)
    assert engine.stats().spec_decode_accepted_tokens_total > 0
    assert [d.logprobs for key in found[0] for d in found[0][key]] == [
        d.logprobs for key in found[0] for d in found[1][key]
    ]


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
    known = remembering(remember(requests, expected))
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
