import json
from collections.abc import Iterator
from typing import Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

from cluster.types import GrammarKind
from models.grammar.compiler import GrammarError
from models.grammar.json_schema_check import check_schema
from tests.models.grammar.grammar_walk import Rig, byte_level_tokenizer, sentencepiece_tokenizer
from tests.models.grammar.schema_generator import SchemaGenerator


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece"])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    make = {"byte_level": byte_level_tokenizer, "sentencepiece": sentencepiece_tokenizer}
    path = make[request.param](tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    rig = Rig(path)
    yield rig
    rig.compiler.close()


@pytest.fixture(scope="module")
def byte_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(byte_level_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"))
    yield rig
    rig.compiler.close()


# JSON Schema


class Animal(BaseModel):
    kind: Literal["cat", "dog"]
    name: str = Field(min_length=1, max_length=12, pattern="^[A-Z][a-z]+$")


class Robot(BaseModel):
    kind: Literal["robot"]
    volts: float = Field(gt=0, le=0.5)


class Home(BaseModel):
    """A nested model with a discriminated union, a default and a recursive reference."""

    owner: Animal
    guests: list[Animal | Robot] = Field(default_factory=list, max_length=3)
    pet: Animal | Robot = Field(discriminator="kind")
    size: Literal["small", "large"] | None = None
    rooms: dict[Literal["bath", "hall"], int] = {}
    annex: "Home | None" = None


def test_pydantic_schemas_give_documents_that_pydantic_accepts(rig: Rig) -> None:
    for text in rig.texts(GrammarKind.JSON_SCHEMA, Home.model_json_schema(), count=12):
        Home.model_validate_json(text)


def test_strict_schemas_allow_no_other_property(rig: Rig) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert rig.takes(GrammarKind.JSON_SCHEMA, schema, '{"a": 1}')
    assert not rig.takes(GrammarKind.JSON_SCHEMA, schema, '{"a": 1, "b": 2}')
    assert not rig.takes(GrammarKind.JSON_SCHEMA, schema, "{}")


def check_generated_schemas(rig: Rig, seeds: range, *, walks: int) -> int:
    """Every accepted schema yields only valid documents. Returns how many were accepted."""
    num_accepted = 0
    for seed in seeds:
        schema = SchemaGenerator(seed).document()
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(
            schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
        try:
            matcher = rig.matcher(GrammarKind.JSON_SCHEMA, schema)
        except GrammarError:
            continue
        num_accepted += 1
        for number in range(walks):
            walk = rig.walker.walk(matcher.fork(), number)
            if walk.is_complete:
                validator.validate(json.loads(walk.text))
    return num_accepted


def test_500_generated_schemas_are_refused_by_name_or_yield_only_valid_documents(
    byte_rig: Rig,
) -> None:
    assert check_generated_schemas(byte_rig, range(500), walks=3) > 300


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("rig", "first"), [("byte_level", 10_000), ("sentencepiece", 12_500)], indirect=["rig"]
)
def test_5000_more_generated_schemas(rig: Rig, first: int) -> None:
    """Half of them for each kind of tokenizer."""
    assert check_generated_schemas(rig, range(first, first + 2500), walks=4) > 1500


# What is refused, and what it is rewritten to


def check(schema: object) -> object:
    return check_schema(json.dumps(schema), check_pattern=lambda _: None)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"not": {}}, "#/not"),
        ({"if": {}, "then": {}}, "#/if"),
        ({"items": {"contains": {}}}, "#/items/contains"),
        ({"properties": {"a/b": {"uniqueItems": True}}}, "#/properties/a~1b/uniqueItems"),
        ({"dependentRequired": {"a": ["b"]}}, "#/dependentRequired"),
        ({"dependentSchemas": {"a": {}}}, "#/dependentSchemas"),
        ({"dependencies": {"a": ["b"]}}, "#/dependencies"),
        ({"unevaluatedItems": False}, "#/unevaluatedItems"),
        ({"unevaluatedProperties": False, "allOf": [{}]}, "#/unevaluatedProperties"),
        ({"propertyNames": {"minLength": 2}}, "#/propertyNames"),
        ({"$dynamicRef": "#x"}, "#/\\$dynamicRef"),
        ({"$ref": "https://example.com/x"}, "#/\\$ref"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"$schema": "https://example.com/draft"}, "#/\\$schema"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "#/oneOf"),
        ({"anyOf": [{}, {"format": "idn-email"}]}, "#/anyOf/1/format"),
        ({"pattern": "(?!x)"}, "#/pattern: look-ahead"),
        ({"patternProperties": {"(a)\\1": {}}}, "#/patternProperties/.*back-reference"),
        ({"minProperties": 2}, "#/minProperties"),
        ({"maximum": "5"}, "#/maximum"),
        ({"multipleOf": 0}, "#/multipleOf"),
        ({"minLength": -1}, "#/minLength"),
        ({"const": 2**53 + 1}, "#/const"),
        ({"const": 0.12345678901234567}, "#/const.*digits"),
        ({"enum": []}, "#/enum"),
        ({"enum": [{"a": [1e300]}]}, "#/enum/0/a/0"),
        ({"type": "text"}, "#/type"),
        ({"properties": []}, "#/properties"),
        ({"required": "a"}, "#/required"),
        ({"items": [{}]}, "#/items.*prefixItems"),
        ([], "#: a schema is"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_keyword_and_place(
    schema: object, place: str
) -> None:
    with pytest.raises(GrammarError, match=place):
        check(schema)


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "NaN", '{"const": NaN}', '"\\ud800"'])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(GrammarError, match=r"not valid JSON|surrogate"):
        check_schema(text, check_pattern=lambda _: None)


def test_the_back_end_complaint_about_a_pattern_comes_with_its_place() -> None:
    with pytest.raises(GrammarError, match="#/items/pattern: too strange"):
        check_schema('{"items": {"pattern": "x"}}', check_pattern=lambda _: "too strange")


def test_annotations_and_unknown_words_are_left_out_and_guidance_options_cannot_pass() -> None:
    schema = {"title": "T", "default": 1, "x-guidance": {"lenient": True}, "nullable": True}
    assert check({**schema, "type": "string", "format": "my-own"}) == {"type": "string"}


def test_references_are_followed_through_escapes_and_only_where_they_lead() -> None:
    definitions = {"a/b c": {"type": "null"}, "unused": {"not": {}}}
    schema = {"$ref": "#/definitions/a~1b%20c", "definitions": definitions}
    assert check(schema) == {"$ref": "#/$defs/a1bc", "$defs": {"a1bc": {"type": "null"}}}


def test_bounds_beyond_64_bits_move_inward() -> None:
    bounds = {"type": "integer", "minimum": -(2**70), "maximum": 2**63 - 1}
    assert check(bounds) == {**bounds, "minimum": -(2**63) + 1024, "maximum": 2**63 - 1024}


def test_exclusive_bounds_become_the_nearest_number_inside() -> None:
    assert check({"type": "number", "exclusiveMinimum": 0}) == {"type": "number", "minimum": 1e-9}
    assert check({"exclusiveMaximum": 1.5}) == {"maximum": 1.499999999999}


def test_long_fractions_are_rounded_inward() -> None:
    bounds = {"minimum": 0.030000000000000002, "maximum": 1.9999999999999998}
    assert check(bounds) == {"minimum": 0.03000000000001, "maximum": 1.999999999999}


def test_draft_4_and_7_mean_what_they_meant() -> None:
    draft = {"$schema": "http://json-schema.org/draft-04/schema#"}
    schema = {**draft, "type": "integer", "minimum": 3, "exclusiveMinimum": True}
    assert check(schema) == {"type": "integer", "exclusiveMinimum": 3}
    listed = {**draft, "items": [{"type": "null"}], "additionalItems": False}
    assert check(listed) == {"prefixItems": [{"type": "null"}], "items": False}


@pytest.mark.parametrize(
    "alternatives",
    [
        [{"type": "string"}, {"type": "integer"}, {"type": "null"}],
        [{"const": 1}, {"const": True}, {"enum": ["a", 2]}],
        [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
        [{"allOf": [{"type": "string"}]}, {"anyOf": [{"type": "null"}, {"type": "array"}]}],
    ],
)
def test_one_of_passes_where_the_alternatives_exclude_each_other(alternatives: object) -> None:
    tagged = {
        kind: {"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]}
        for kind in ("cat", "dog")
    }
    written = check({"oneOf": alternatives, "$defs": tagged})
    assert isinstance(written, dict)
    assert "oneOf" not in json.dumps(written)
