"""Guided decoding in the engine: with random weights, whatever comes out still matches."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import EngineConfig
from cluster.errors import ValidationError
from cluster.types import (
    BeamParams,
    FinishReason,
    GrammarKind,
    GrammarSpec,
    Request,
    SamplingParams,
    TokenDelta,
)
from models.engine.async_engine import AsyncEngine
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.grammar.compiler import GrammarCompiler
from models.tokenizer import Tokenizer
from tests.models.conftest import MakeCheckpoint
from tests.models.engine_runs import run, tokens
from tests.models.family_samples import JSON_SPEC, REGEX_SPEC
from tests.models.grammar.grammar_walk import EOS_TOKEN_IDS, byte_level_tokenizer, load_tokenizer

CHOICES = ["positive", "negative", "posh"]
CHOICE_SPEC = GrammarSpec(kind=GrammarKind.CHOICE, text=json.dumps(CHOICES))
BYTES_PER_BLOCK = 2 * 2 * 2 * 16 * 4 * 16


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    folder = make_checkpoint("llama", vocab_size=545, eos_token_id=sorted(EOS_TOKEN_IDS))
    byte_level_tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def compiler(folder: Path) -> Iterator[GrammarCompiler]:
    with GrammarCompiler(
        folder / "tokenizer.json", vocab_size=545, eos_token_ids=EOS_TOKEN_IDS
    ) as compiler:
        yield compiler


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder / "tokenizer.json")


def make_engine(folder: Path, compiler: GrammarCompiler, **config: object) -> Engine:
    engine_config = EngineConfig(**{"max_model_len": 256, "max_num_seqs": 32, **config})  # type: ignore[arg-type]
    runner = ModelRunner(folder, engine_config, dtype="float32")
    return Engine(runner, engine_config, grammar_compiler=compiler)


def request(request_id: str, spec: GrammarSpec | None, **params: object) -> Request:
    params = {"temperature": 1.0, "max_tokens": 120, "grammar": spec, **params}
    return Request(
        request_id=request_id,
        prompt_token_ids=[5 + len(request_id), 7, 9, *range(40, 60)],
        sampling_params=SamplingParams(**params),  # type: ignore[arg-type]
    )


def text_of(tokenizer: Tokenizer, deltas: list[TokenDelta]) -> str:
    return tokenizer.decode(tokens(deltas), skip_special_tokens=True)


def assert_matches(spec: GrammarSpec, text: str) -> None:
    if spec is JSON_SPEC:
        value = json.loads(text)
        assert set(value) == {"sentiment", "stars", "tags"}
        assert value["sentiment"] in ("positive", "negative")
        assert 1 <= value["stars"] <= 5
        assert set(value["tags"]) <= {"clean", "quiet"}
    elif spec is REGEX_SPEC:
        assert re.fullmatch(spec.text, text)
    else:
        assert text in CHOICES


@pytest.mark.parametrize("num_blocks", [None, 40])
def test_every_output_matches_its_own_grammar_whatever_else_is_in_the_batch(
    folder: Path, compiler: GrammarCompiler, tokenizer: Tokenizer, num_blocks: int | None
) -> None:
    memory = None if num_blocks is None else num_blocks * BYTES_PER_BLOCK
    engine = make_engine(folder, compiler, kv_cache_memory_bytes=memory, max_num_batched_tokens=48)
    specs = [JSON_SPEC, REGEX_SPEC, CHOICE_SPEC, None] * 4
    requests = [request(str(k), spec, n=2, logprobs=1) for k, spec in enumerate(specs)]
    deltas = run(engine, requests)
    assert (engine.stats().preemptions_total > 0) == (num_blocks is not None)
    for k, spec in enumerate(specs):
        for index in range(2):
            mine = deltas[(str(k), index)]
            if spec is not None and mine[-1].finish_reason is FinishReason.STOP:
                assert_matches(spec, text_of(tokenizer, mine))
            elif spec is not None:
                assert mine[-1].finish_reason is FinishReason.LENGTH


def test_an_output_that_max_tokens_cuts_is_a_beginning_and_says_length(
    folder: Path, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    engine = make_engine(folder, compiler)
    deltas = run(engine, [request("r", JSON_SPEC, max_tokens=4)])[("r", 0)]
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    text = text_of(tokenizer, deltas)
    assert text.startswith("{")
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


def test_a_grammar_with_one_way_to_end_ends_without_an_end_token(
    folder: Path, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    engine = make_engine(folder, compiler)
    deltas = run(engine, [request("r", CHOICE_SPEC, min_tokens=100, ignore_eos=True)])[("r", 0)]
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert text_of(tokenizer, deltas) in CHOICES


def test_beams_hold_to_their_grammar(
    folder: Path, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    engine = make_engine(folder, compiler)
    beam = BeamParams(width=4)
    requests = [
        request("json", JSON_SPEC, beam=beam, n=3, temperature=0.0),
        request("choice", CHOICE_SPEC, beam=beam, n=3, temperature=0.0),
        request("plain", None, max_tokens=10),
    ]
    deltas = run(engine, requests)
    for index in range(3):
        assert_matches(JSON_SPEC, text_of(tokenizer, deltas[("json", index)]))
    ranked = [text_of(tokenizer, deltas[("choice", index)]) for index in range(3)]
    assert sorted(ranked) == sorted(CHOICES)


async def test_a_refused_grammar_fails_its_own_request_only(
    folder: Path, compiler: GrammarCompiler
) -> None:
    engine = AsyncEngine(make_engine(folder, compiler))
    engine.start()
    try:
        bad = GrammarSpec(kind=GrammarKind.REGEX, text="(")
        good = engine.generate(request("good", REGEX_SPEC))
        with pytest.raises(ValidationError, match="grammar"):
            await anext(engine.generate(request("bad", bad)))
        assert [delta async for delta in good]
        assert engine.num_open_requests == 0
    finally:
        await engine.stop()


async def test_leaving_while_the_grammar_compiles_leaves_nothing_behind(
    folder: Path, compiler: GrammarCompiler
) -> None:
    engine = AsyncEngine(make_engine(folder, compiler))
    engine.start()
    try:
        spec = GrammarSpec(kind=GrammarKind.REGEX, text="[x-z]{7}")
        engine.submit(request("gone", spec), lambda _: pytest.fail("it was aborted"))
        engine.abort("gone")
        assert [delta async for delta in engine.generate(request("next", REGEX_SPEC))]
        assert engine.stats().num_free_blocks == engine.stats().num_blocks
    finally:
        await engine.stop()
