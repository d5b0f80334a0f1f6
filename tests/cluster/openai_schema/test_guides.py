"""Every spelling of a grammar is the same grammar to the engine."""

import json
from typing import Any

import pytest

from cluster.errors import ValidationError
from cluster.openai_schema.chat import ChatCompletionRequest
from cluster.openai_schema.completions import CompletionRequest
from cluster.openai_schema.validation import parse_request
from cluster.types import GrammarKind, GrammarSpec

SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"const": "é"}}}
TEXT = json.dumps(SCHEMA, ensure_ascii=False, separators=(",", ":"))
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def chat(**fields: Any) -> ChatCompletionRequest:
    messages = [{"role": "user", "content": "x"}]
    return parse_request(ChatCompletionRequest, {"messages": messages, **fields})


@pytest.mark.parametrize(
    ("fields", "kind", "text", "loc"),
    [
        ({"guided_json": SCHEMA}, "json_schema", TEXT, "guided_json"),
        ({"guided_json": TEXT}, "json_schema", TEXT, "guided_json"),
        ({"guided_json": {}}, "json_schema", "{}", "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["é", "b"]}, "choice", '["é","b"]', "guided_choice"),
        ({"guided_grammar": "root ::= x"}, "grammar", "root ::= x", "guided_grammar"),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", TEXT, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice", '["a"]', "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": "x"}}, "grammar", "x", "structured_outputs.grammar"),
        (
            {"structured_outputs": {"json_object": True}},
            "json_object",
            "",
            "structured_outputs.json_object",
        ),
        ({"response_format": {"type": "json_object"}}, "json_object", "", "response_format"),
        ({"response_format": FORMAT}, "json_schema", TEXT, "response_format.json_schema.schema"),
    ],
    ids=str,
)
def test_a_spelling_becomes_its_grammar_and_its_place(
    fields: dict[str, Any], kind: str, text: str, loc: str
) -> None:
    expected = (tuple(loc.split(".")), GrammarSpec(kind=GrammarKind(kind), text=text))
    assert chat(**fields).guide == expected
    assert parse_request(CompletionRequest, {"prompt": "x", **fields}).guide == expected


def test_no_guide_is_none() -> None:
    assert chat().guide is None
    assert chat(response_format={"type": "text"}, guided_json=None).guide is None


def test_two_kinds_name_both_fields() -> None:
    with pytest.raises(ValidationError) as caught:
        chat(guided_regex="a", response_format={"type": "json_object"})
    (problem,) = caught.value.problems
    assert problem.loc == ("response_format",)
    assert "guided_regex" in problem.message


def test_a_schema_nested_beyond_reason_is_refused_and_not_a_crash() -> None:
    schema: dict[str, Any] = {}
    for _ in range(900):
        schema = {"not": schema}
    with pytest.raises(ValidationError) as caught:
        chat(guided_json=schema)
    assert caught.value.problems[0].loc == ("guided_json",)
