"""Requests are checked as JSON means them, and the published schema says the same as the checks."""

import json
from typing import Any

import pytest

from cluster.errors import ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.completions import CompletionRequest
from cluster.openai_schema.models import parameters_text, tier_of
from cluster.openai_schema.validation import MAX_REPORTED_PROBLEMS, parse_request
from cluster.openai_schema.values import shown

USER = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatCompletionRequest:
    return parse_request(ChatCompletionRequest, {"messages": USER, **fields})


def problems_of(**fields: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        chat(**fields)
    return [(".".join(map(str, p.loc)), p.message) for p in caught.value.problems]


def test_whole_floats_are_integers_and_integers_are_numbers() -> None:
    request = chat(n=2.0, max_tokens=16.0, temperature=1, seed=-5.0)
    assert (request.n, request.max_tokens, request.temperature, request.seed) == (2, 16, 1.0, -5)
    assert isinstance(request.n, int)


def test_null_means_not_given() -> None:
    nulls = {name: None for name in ChatCompletionRequest.model_fields if name != "messages"}
    assert chat(**nulls) == chat()


def test_stop_is_always_a_tuple() -> None:
    assert chat(stop="a").stop == ("a",)
    assert chat(stop=["a", "b"]).stop == ("a", "b")


def test_every_wrong_field_is_reported_up_to_a_limit() -> None:
    found = problems_of(temperature=9, top_p=9, nonsense=1)
    assert [path for path, _ in found] == ["temperature", "top_p", "nonsense"]
    many = {f"unknown_{number}": 1 for number in range(50)}
    assert len(problems_of(**many)) == MAX_REPORTED_PROBLEMS


def test_braces_in_a_value_do_not_confuse_the_message() -> None:
    (problem,) = problems_of(temperature="{given} {0}")
    assert problem == ("temperature", 'must be a number in [0, 2]; given "{given} {0}"')


def test_our_tags_of_unions_do_not_show_in_paths_but_clients_keys_do() -> None:
    messages: list[Any] = [{"role": "user", "content": "x", "<user>": 1}]
    (problem,) = problems_of(messages=messages)
    assert problem[0] == "messages.0.<user>"


def test_long_values_are_cut_in_messages() -> None:
    assert len(shown("x" * 10**6)) == 60
    assert shown({"a": [1, None]}) == '{"a":[1,null]}'


@pytest.mark.parametrize("kind", [ChatCompletionRequest, CompletionRequest])
def test_the_json_schema_can_be_published_and_shows_the_ranges(kind: Any) -> None:
    schema = kind.model_json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    number = schema["properties"]["temperature"]["anyOf"][0]
    assert number == {"type": "number", "minimum": 0, "maximum": 2}
    top_p = schema["properties"]["top_p"]["anyOf"][0]
    assert top_p == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}


def test_model_sizes_are_written_for_people() -> None:
    assert [parameters_text(n) for n in (512, 9_400_000, 7_612_756_480)] == ["512", "9.4M", "7.6B"]
    assert [tier_of(n) for n in (10**9, 32 * 10**9, 70 * 10**9)] == ["small", "medium", "large"]
