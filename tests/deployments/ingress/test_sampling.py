"""Defaults and limits that depend on the model."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ModelConfig
from cluster.errors import BadRequestError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.validation import parse_request
from cluster.types import BeamParams, GrammarKind, GrammarSpec, SamplingParams
from deployments.ingress.sampling import output_limit, sampling_params
from deployments.ingress.served_model import ServedModel, load_served_model
from tests.deployments.ingress.scripted_server import ScriptedPool


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> ServedModel:
    config = ModelConfig(name="m", source="unused")
    return load_served_model(
        config, checkpoint, ScriptedPool(lambda _: iter(())), max_model_len=100
    )


def with_defaults(model: ServedModel, **defaults: Any) -> ServedModel:
    config = ModelConfig(name="m", source="unused", defaults=defaults)  # type: ignore[arg-type]
    return dataclasses.replace(model, config=config)


def params(model: ServedModel, **fields: Any) -> SamplingParams:
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    request = parse_request(ChatCompletionRequest, body)
    return sampling_params(request, model, max_tokens=10)


def limit(model: ServedModel, requested: int | None, num_prompt_tokens: int) -> int:
    return output_limit(
        requested, num_prompt_tokens=num_prompt_tokens, model=model, prompt_field="messages"
    )


def test_the_output_limit_is_what_was_asked_or_what_is_left(model: ServedModel) -> None:
    assert limit(model, 5, 60) == 5
    assert limit(model, 40, 60) == 40
    assert limit(model, None, 60) == 40
    assert limit(model, None, 99) == 1


def test_a_configured_limit_is_cut_to_what_is_left(model: ServedModel) -> None:
    configured = with_defaults(model, max_tokens=30)
    assert limit(configured, None, 60) == 30
    assert limit(configured, None, 90) == 10
    assert limit(configured, 35, 60) == 35


@pytest.mark.parametrize(("requested", "num_prompt_tokens"), [(None, 100), (1, 100), (41, 60)])
def test_what_does_not_fit_is_refused(
    model: ServedModel, requested: int | None, num_prompt_tokens: int
) -> None:
    with pytest.raises(BadRequestError) as caught:
        limit(model, requested, num_prompt_tokens)
    assert caught.value.openai_code == "context_length_exceeded"


def test_absent_fields_take_the_models_defaults(model: ServedModel) -> None:
    assert params(model).temperature == 0.1
    configured = with_defaults(model, temperature=0.5, top_p=0.8)
    assert (params(configured).temperature, params(configured).top_p) == (0.5, 0.8)
    asked = params(configured, temperature=0, top_p=1)
    assert (asked.temperature, asked.top_p) == (0, 1)


def test_tiny_temperatures_are_raised_to_what_floats_can_bear(model: ServedModel) -> None:
    assert params(model, temperature=1e-30).temperature == 0.01
    assert params(model, temperature=0).temperature == 0


def test_off_values_are_off(model: ServedModel) -> None:
    for top_k in (-1, 0):
        assert params(model, top_k=top_k).top_k == 0
    assert params(model, seed=-1).seed is None
    assert params(model, seed=0).seed == 0
    assert params(model, seed=-2).seed == -2
    assert params(model, logit_bias={}).logit_bias is None


def test_beams_are_four_and_draw_nothing_unless_the_request_says_otherwise(
    model: ServedModel,
) -> None:
    configured = with_defaults(model, temperature=0.5, top_p=0.8)
    found = params(configured, use_beam_search=True)
    assert (found.beam, found.n) == (BeamParams(width=4), 1)
    assert (found.temperature, found.top_p) == (0, 1)
    found = params(
        model,
        use_beam_search=True,
        n=6,
        temperature=0,
        top_p=1,
        top_k=-1,
        min_p=0,
        length_penalty=0.5,
        early_stopping=True,
        stop="x",
        seed=3,
    )
    assert found.beam == BeamParams(
        width=6, length_penalty=0.5, early_stopping=True, stop_strings=("x",)
    )
    assert (found.n, params(model, use_beam_search=True, n=2, best_of=3).beam) == (
        6,
        BeamParams(width=3),
    )


def test_samples_to_choose_from_are_drawn_with_logprobs(model: ServedModel) -> None:
    found = params(model, n=2, best_of=5)
    assert (found.n, found.logprobs, found.beam) == (5, 0, None)
    same = params(model, n=2, best_of=2)
    assert (same.n, same.logprobs) == (2, None)


def test_a_grammar_is_part_of_the_params(model: ServedModel) -> None:
    spec = GrammarSpec(kind=GrammarKind.REGEX, text="a+")
    assert params(model, guided_regex="a+").grammar == spec
    assert params(model).grammar is None
