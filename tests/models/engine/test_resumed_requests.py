"""A request that goes on in another engine after k tokens ends as if nothing had happened."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cluster.errors import BadRequestError
from cluster.types import BeamParams, GrammarKind, GrammarSpec, Request, SamplingParams, TokenDelta
from models.engine.engine import Engine
from models.grammar.compiler import GrammarCompiler
from tests.models.conftest import MakeCheckpoint
from tests.models.engine_runs import make_engine, prompts_of_mixed_lengths, run, tokens
from tests.models.grammar.grammar_walk import EOS_TOKEN_IDS, byte_level_tokenizer
from tests.models.parallel.rank_threads import engine_config

GRAMMAR = GrammarSpec(kind=GrammarKind.REGEX, text=r"[a-c]{12,20}-\d{6}")
KINDS: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 0.9, "top_p": 0.9, "seed": 17},
    "penalties": {
        "temperature": 0.8,
        "seed": 5,
        "frequency_penalty": 0.9,
        "presence_penalty": 0.4,
        "repetition_penalty": 1.3,
    },
    "a shortest length": {"temperature": 1.0, "seed": 2, "min_tokens": 14},
    "logprobs": {"temperature": 0.7, "seed": 9, "logprobs": 2},
    "three": {"temperature": 0.9, "seed": 3, "n": 3},
    "guided": {"temperature": 1.0, "seed": 11, "grammar": GRAMMAR, "max_tokens": 40},
    "guided, two": {"temperature": 1.0, "seed": 4, "n": 2, "grammar": GRAMMAR, "max_tokens": 40},
}


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    folder = make_checkpoint("llama", vocab_size=545, eos_token_id=sorted(EOS_TOKEN_IDS))
    byte_level_tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with GrammarCompiler(
        folder / "tokenizer.json", vocab_size=545, eos_token_ids=EOS_TOKEN_IDS
    ) as compiler:
        runner = make_engine(folder)._runner
        yield Engine(runner, engine_config(), grammar_compiler=compiler)


def request(request_id: str, **params: object) -> Request:
    params = {"max_tokens": 20, **params}
    return Request(
        request_id=request_id,
        prompt_token_ids=prompts_of_mixed_lengths()[6],
        sampling_params=SamplingParams(**params),  # type: ignore[arg-type]
    )


def cut(deltas: dict[tuple[str, int], list[TokenDelta]], count: int) -> dict[int, list[int]]:
    """The first tokens of each sequence that is longer."""
    outputs = {index: tokens(mine) for (_, index), mine in deltas.items()}
    return {index: output[:count] for index, output in outputs.items() if len(output) > count}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 7, 15])
def test_the_rest_is_the_same(engine: Engine, kind: str, count: int) -> None:
    whole = run(engine, [request("whole", **KINDS[kind])])
    so_far = cut(whole, count)
    assert so_far, "something is left to come"
    rest = msgspec.structs.replace(request("rest", **KINDS[kind]), resumed=so_far)
    rests = run(engine, [rest])
    assert {index for _, index in rests} == set(so_far)
    for (_, index), mine in rests.items():
        before = whole[("whole", index)]
        assert so_far[index] + tokens(mine) == tokens(before)
        assert mine[-1].finish_reason == before[-1].finish_reason
        assert mine[-1].stop_token_id == before[-1].stop_token_id
        if before[0].logprobs is not None:
            assert len([item for delta in mine for item in delta.logprobs or ()]) == len(
                tokens(mine)
            )


@pytest.mark.parametrize(
    ("so_far", "message"),
    [
        ({}, "cannot go on"),
        ({0: list(range(20))}, "no token can follow"),
        ({0: [545]}, "does not know"),
    ],
)
def test_what_cannot_go_on_is_refused(
    engine: Engine, so_far: dict[int, list[int]], message: str
) -> None:
    with pytest.raises(BadRequestError, match=message):
        engine.add_request(msgspec.structs.replace(request("r"), resumed=so_far))
    assert not engine.has_unfinished


def test_a_beam_search_cannot_go_on(engine: Engine) -> None:
    beams = msgspec.structs.replace(request("r", beam=BeamParams(width=2)), resumed={0: [1]})
    with pytest.raises(BadRequestError, match="a beam search"):
        engine.add_request(beams)
