"""Each sampling parameter changes what comes out over HTTP exactly as its definition says.

The reference is a loop over transformers' logits, one full forward per token.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from tests.deployments.ingress.engine_server import EngineServer, make_model, serving_engine

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_TOKENS = 14
TEXT = "hello there there, world"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EngineServer]:
    folder = tmp_path_factory.mktemp("model")
    make_model(checkpoint, folder)
    async with serving_engine(folder) as running:
        yield running


async def ask(server: EngineServer, **fields: Any) -> dict[str, Any]:
    body = {"prompt": TEXT, "max_tokens": MAX_TOKENS, **fields}
    async with server.http() as client:
        answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def tokens(server: EngineServer, **fields: Any) -> list[int]:
    await ask(server, **fields)
    return server.chosen(0)[1]


def edited(logits: torch.Tensor, prompt: list[int], output: list[int], **how: Any) -> torch.Tensor:
    """The documented order: bias, repetition, frequency, presence."""
    logits = logits.clone()
    for token, bias in how.get("logit_bias", {}).items():
        logits[int(token)] += bias
    for token in {*prompt, *output}:
        penalty = how.get("repetition_penalty", 1.0)
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    for token in set(output):
        logits[token] -= how.get("frequency_penalty", 0.0) * output.count(token)
        logits[token] -= how.get("presence_penalty", 0.0)
    return logits


def greedy_reference(server: EngineServer, **how: Any) -> list[int]:
    prompt = server.tokenizer.encode(TEXT, add_special_tokens=True)
    stops = {*how.get("stop_token_ids", ())}
    if not how.get("ignore_eos"):
        stops |= set(server.end_tokens)
    output: list[int] = []
    while len(output) < how.get("max_tokens", MAX_TOKENS) and not stops & set(output[-1:]):
        with torch.inference_mode():
            logits = server.model(torch.tensor([prompt + output])).logits[0, -1]
        logits = edited(logits, prompt, output, **how)
        if len(output) < how.get("min_tokens", 0):
            logits[list(stops)] = float("-inf")
        output.append(int(logits.argmax()))
    return output


async def test_parameters_of_greedy_choice_follow_their_definitions(server: EngineServer) -> None:
    plain = greedy_reference(server)
    assert await tokens(server, temperature=0) == plain
    middle = plain[len(plain) // 2]
    end = server.end_tokens[0]
    changes: list[dict[str, Any]] = [
        {"max_tokens": 3},
        {"frequency_penalty": 2},
        {"presence_penalty": 2},
        {"frequency_penalty": -2},
        {"repetition_penalty": 1.8},
        {"logit_bias": {str(plain[0]): -100}},
        {"logit_bias": {"40": 100}},
        {"stop_token_ids": [middle]},
        {"stop_token_ids": [middle], "min_tokens": len(plain)},
        {"logit_bias": {str(end): 100}},
        {"logit_bias": {str(end): 100}, "min_tokens": 4},
        {"logit_bias": {str(end): 100}, "ignore_eos": True},
    ]
    for how in changes:
        expected = greedy_reference(server, **how)
        assert await tokens(server, temperature=0, **how) == expected, how
        assert expected != plain, f"{how} changes nothing: the comparison shows nothing"


@pytest.mark.parametrize(
    "filtered", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}, {"temperature": 0}], ids=str
)
async def test_a_filter_that_leaves_one_token_is_greedy(
    server: EngineServer, filtered: dict[str, Any]
) -> None:
    assert await tokens(server, temperature=2, seed=1) != greedy_reference(server)
    assert await tokens(server, **{"temperature": 2, "seed": 1, **filtered}) == greedy_reference(
        server
    )


async def test_filters_keep_what_their_definitions_keep(server: EngineServer) -> None:
    prompt = server.tokenizer.encode(TEXT, add_special_tokens=True)
    ranked = server.logprobs(prompt)[-1].exp().sort(descending=True)
    num_in_mass = int((ranked.values.cumsum(0) < 0.3).sum()) + 1
    num_likely = int((ranked.values >= 0.3 * ranked.values[0]).sum())
    for filtered, num_kept in (
        ({"top_k": 3}, 3),
        ({"top_p": 0.3}, num_in_mass),
        ({"min_p": 0.3}, num_likely),
    ):
        await ask(server, n=100, max_tokens=1, temperature=1, seed=7, **filtered)
        seen = {server.chosen(index)[1][0] for index in range(100)}
        assert seen <= set(ranked.indices[:num_kept].tolist()), filtered
        assert len(seen) > 1 or num_kept == 1, filtered
    await ask(server, n=100, max_tokens=1, temperature=1, seed=7)
    free = {server.chosen(index)[1][0] for index in range(100)}
    assert len(free) > max(3, num_in_mass, num_likely)


async def test_temperature_flattens_the_distribution(server: EngineServer) -> None:
    kinds = []
    for temperature in (0.2, 1.0, 2.0):
        await ask(server, n=100, max_tokens=1, temperature=temperature, seed=3)
        kinds.append(len({server.chosen(index)[1][0] for index in range(100)}))
    assert kinds == sorted(set(kinds))


async def test_a_seed_repeats_itself_and_choices_differ(server: EngineServer) -> None:
    texts = [
        [choice["text"] for choice in (await ask(server, n=3, temperature=1, seed=seed))["choices"]]
        for seed in (5, 5, 6, -1, -1)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[3] != texts[4], "-1 is no seed"
    assert len(set(texts[0])) == 3


async def test_max_tokens_is_counted_in_usage_and_says_length(server: EngineServer) -> None:
    answer = await ask(server, max_tokens=5, min_tokens=5, n=2, temperature=1)
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["length"] * 2
    assert answer["usage"]["completion_tokens"] == 10
    prompt, _ = server.chosen(0)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
