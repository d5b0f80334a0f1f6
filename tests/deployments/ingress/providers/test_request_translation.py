"""Every field of a chat request is handed on, translated, or refused by name."""

from typing import Any

import orjson
import pytest

from cluster.errors import BadRequestError, ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.validation import parse_request
from cluster.provider_config import (
    BUILTIN,
    EXTRA_PARAMETERS,
    OPENAI_PARAMETERS,
    ProviderConfig,
)
from deployments.ingress.providers.request_translation import (
    add_context,
    encoded,
    provider_body,
)

SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"enum": [None, 1.0]}}}
FUNCTION = {"name": "f", "parameters": {"type": "object", "default": None}}


def provider(name: str = "openai", **more: Any) -> ProviderConfig:
    return ProviderConfig.model_validate({"name": name, **more})


def sent(config: ProviderConfig | None = None, **fields: Any) -> dict[str, Any]:
    """What a provider reads, without the model and the messages of a plain request."""
    config = config or provider()
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": f"{config.prefix}big", "messages": messages, **fields}
    request = parse_request(ChatCompletionRequest, body)
    written = provider_body(request, config, model_name=f"{config.prefix}big")
    read: dict[str, Any] = orjson.loads(encoded(written))
    assert read.pop("model") == "big"
    if "messages" not in fields:
        assert read.pop("messages") == messages
    return read


def refused(config: ProviderConfig | None = None, **fields: Any) -> list[tuple[Any, ...]]:
    with pytest.raises(ValidationError) as raised:
        sent(config, **fields)
    return [problem.loc for problem in raised.value.problems]


AS_THEY_ARE: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "n": 2,
    "stop": ["a", "b"],
    "seed": 7,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": {"17": 5},
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "safety_identifier": "x",
    "prompt_cache_key": "y",
    "prompt_cache_retention": "24h",
    "modalities": ["text", "audio"],
    "audio": {"voice": "x"},
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "web_search_options": {},
    "prediction": {"type": "content"},
    "verbosity": "low",
    "moderation": {"a": 1},
    "prompt_cache_options": {"a": 1},
}


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_openais_own_parameters_are_handed_on(name: str) -> None:
    assert sent(**{name: AS_THEY_ARE[name]}) == {name: AS_THEY_ARE[name]}


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_a_provider_that_does_not_know_a_parameter_is_not_sent_it(name: str) -> None:
    bare = provider(parameters=[])
    descriptions = {"user", "metadata", "store", "service_tier", "safety_identifier"}
    if name in descriptions or name.startswith("prompt_cache_key"):
        assert sent(bare, **{name: AS_THEY_ARE[name]}) == {}
    elif name != "prompt_cache_retention":
        assert refused(bare, **{name: AS_THEY_ARE[name]}) == [(name,)]


def test_nothing_is_added_to_a_plain_request() -> None:
    assert sent() == {}
    assert sent(stream=False, temperature=None, guided_json=None, api_key_ref="x") == {}


def test_every_field_of_a_request_has_a_place() -> None:
    """A new field is refused by name until somebody decides what becomes of it."""
    places = {*OPENAI_PARAMETERS, *EXTRA_PARAMETERS}
    handled = {"model", "messages", "stream", "max_tokens", "max_completion_tokens", "tools"}
    handled |= {"tool_choice", "api_key_ref", "structured_outputs", "region", "mode"}
    assert set(ChatCompletionRequest.model_fields) == places | handled


OURS: dict[str, Any] = {
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "stop_token_ids": [1],
    "min_tokens": 1,
    "ignore_eos": True,
    "use_beam_search": True,
    "best_of": 2,
    "enable_thinking": False,
    "mode": "strict",
    "guided_regex": "a+",
    "guided_choice": ["a", "b"],
    "guided_grammar": 'root ::= "a"',
}


@pytest.mark.parametrize("name", OURS)
def test_what_only_our_engine_can_do_is_refused_by_name(name: str) -> None:
    assert refused(**{name: OURS[name]}) == [(name,)]


@pytest.mark.parametrize("name", [name for name in OURS if name in EXTRA_PARAMETERS])
def test_a_provider_may_be_said_to_know_more(name: str) -> None:
    config = provider(more_parameters=[name])
    assert sent(config, **{name: OURS[name]}) == {name: OURS[name]}


def test_all_that_is_wrong_is_named_at_once() -> None:
    assert refused(top_k=5, min_p=0.1, guided_regex="a") == [
        ("top_k",),
        ("min_p",),
        ("guided_regex",),
    ]


@pytest.mark.parametrize(
    "neutral",
    [
        {"top_k": -1},
        {"min_p": 0},
        {"repetition_penalty": 1},
        {"use_beam_search": False},
        {"best_of": 1},
        {"length_penalty": 1},
        {"early_stopping": False},
        {"seed": -1},
        {"enable_thinking": True},
        {"mode": "preferred", "region": "EU"},
        {"min_tokens": 0},
        {"ignore_eos": False},
        {"response_format": {"type": "text"}},
        {"stop_token_ids": []},
    ],
)
def test_values_that_change_nothing_are_dropped(neutral: dict[str, Any]) -> None:
    assert sent(**neutral) == {}
    assert sent(provider(parameters=[]), logprobs=False, n=1, **neutral) == {}


def test_a_guide_becomes_a_strict_schema_with_its_keys_in_order() -> None:
    expected = {"name": "answer", "strict": True, "schema": SCHEMA}
    guides: list[dict[str, Any]] = [
        {"guided_json": SCHEMA},
        {"guided_json": orjson.dumps(SCHEMA).decode()},
        {"structured_outputs": {"json": SCHEMA}},
    ]
    for guide in guides:
        written = sent(**guide)
        assert written == {"response_format": {"type": "json_schema", "json_schema": expected}}
        schema = written["response_format"]["json_schema"]["schema"]
        assert list(schema["properties"]) == ["z", "a"]


def test_a_clients_own_schema_stays_as_it_is() -> None:
    wanted = {"name": "mine", "description": "d", "schema": SCHEMA, "strict": False}
    response_format = {"type": "json_schema", "json_schema": wanted}
    assert sent(response_format=response_format) == {"response_format": response_format}


def test_json_objects_are_asked_for_in_openais_words() -> None:
    expected = {"response_format": {"type": "json_object"}}
    assert sent(response_format={"type": "json_object"}) == expected
    assert sent(structured_outputs={"json_object": True}) == expected


def test_a_provider_without_formats_refuses_every_guide_where_it_stands() -> None:
    plain = provider("anthropic")
    assert refused(plain, guided_json=SCHEMA) == [("guided_json",)]
    assert refused(plain, structured_outputs={"regex": "a"}) == [("structured_outputs", "regex")]
    assert refused(plain, response_format={"type": "json_object"}) == [("response_format",)]


def test_the_token_limit_has_the_providers_name() -> None:
    assert sent(max_tokens=5) == {"max_completion_tokens": 5}
    assert sent(provider("anthropic"), max_completion_tokens=5) == {"max_tokens": 5}


def test_functions_go_and_retrieval_stays() -> None:
    retrieval = {"type": "retrieval", "retrieval": {"bucket_ids": ["b"]}}
    function = {"type": "function", "function": FUNCTION}
    assert sent(tools=[retrieval, function], tool_choice="required") == {
        "tools": [function],
        "tool_choice": "required",
    }
    assert sent(tools=[retrieval], tool_choice="auto") == {}
    named = {"type": "function", "function": {"name": "f"}}
    assert sent(tools=[function], tool_choice=named)["tool_choice"] == named


def test_streams_ask_for_usage() -> None:
    assert sent(stream=True) == {"stream": True, "stream_options": {"include_usage": True}}
    bare = provider(parameters=[])
    assert sent(bare, stream=True) == {"stream": True}
    wanted = {"include_usage": True}
    assert refused(bare, stream=True, stream_options=wanted) == [
        ("stream_options", "include_usage")
    ]
    wanted = {"include_obfuscation": True}
    assert refused(stream=True, stream_options=wanted) == [
        ("stream_options", "include_obfuscation")
    ]


def test_messages_lose_what_clients_replay_and_providers_refuse() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": "https://example.com/a.png"}
    messages: list[Any] = [
        {"role": "developer", "content": "be nice"},
        {"role": "user", "content": [{"type": "text", "text": "what?"}, image]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "refusal": None,
            "annotations": [],
            "tool_calls": [{**call, "index": 0}],
        },
        {"role": "tool", "content": "17", "tool_call_id": "c", "name": "f"},
    ]
    nested = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    assert sent(messages=messages)["messages"] == [
        {"role": "system", "content": "be nice"},
        {"role": "user", "content": [{"type": "text", "text": "what?"}, nested]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "17", "tool_call_id": "c"},
    ]


def test_a_context_joins_the_system_message() -> None:
    user = {"role": "user", "content": "hi"}
    messages: list[dict[str, Any]] = [user]
    add_context(messages, "found")
    assert messages == [{"role": "system", "content": "found"}, user]
    add_context(messages, "more")
    assert messages[0]["content"] == "found\n\nmore"
    messages = [{"role": "system", "content": [{"type": "text", "text": "a"}]}]
    add_context(messages, "found")
    assert messages[0]["content"][1] == {"type": "text", "text": "found"}


@pytest.mark.parametrize("depth", [200, 258, 300, 900])
@pytest.mark.parametrize("place", ["tools", "metadata", "image"])
def test_what_is_nested_too_deeply_is_refused(place: str, depth: int) -> None:
    nested: dict[str, Any] = {}
    for _ in range(depth):
        nested = {"a": nested}
    image = {"type": "image_url", "image_url": nested}
    fields: dict[str, dict[str, Any]] = {
        "tools": {"tools": [{"type": "function", "function": {"name": "f", "parameters": nested}}]},
        "metadata": {"metadata": nested},
        "image": {"messages": [{"role": "user", "content": [image]}]},
    }
    if depth < 250:
        assert sent(**fields[place])
    else:
        with pytest.raises(BadRequestError, match="too deeply"):
            sent(**fields[place])


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_providers_need_no_more_than_their_name(name: str) -> None:
    config = provider(name)
    assert config.base_url.startswith("https://")
    assert sent(config, temperature=1) == {"temperature": 1}
