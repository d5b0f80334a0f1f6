"""What a client wants an output to match: three spellings of the same few kinds of grammar.

`guided_json` and its siblings are the page's, `structured_outputs` is what vLLM renamed them to,
`response_format` is OpenAI's. A request may use one kind, once.
"""

from typing import Annotated, Literal, NamedTuple

import orjson
from pydantic import Discriminator, Field, Tag

from cluster.errors import FieldProblem
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import Checked, refusal
from cluster.types import GrammarKind, GrammarSpec

MAX_GUIDED_CHOICES = 10_000


class Guide(NamedTuple):
    """A grammar, and the field of the request that asks for it."""

    loc: tuple[str, ...]
    spec: GrammarSpec


def _schema_text(value: object) -> str:
    """A JSON Schema as text, its keys in the client's order: documents are written in it."""
    allowed = "must be a JSON Schema: an object, or the JSON text of one"
    text = value if isinstance(value, str) else None
    if text is not None:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            raise refusal(allowed, text) from None
    if not isinstance(value, dict):
        raise refusal(allowed, value, kind="dict_type")
    try:
        return text if text is not None else orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # the only reason left: a few hundred levels
        raise refusal("must be nested less deeply", value) from None


_SCHEMA_SCHEMA: dict[str, object] = {"anyOf": [{"type": "object"}, {"type": "string"}]}
SchemaText = Annotated[str, Checked(_schema_text, _SCHEMA_SCHEMA)]
NonEmpty = Annotated[str, Field(min_length=1)]
Choices = Annotated[
    list[NonEmpty], Field(min_length=1, max_length=MAX_GUIDED_CHOICES, fail_fast=True)
]


class StructuredOutputs(Fields):
    """vLLM's newer spelling; exactly one of them."""

    json_schema: Annotated[SchemaText | None, Field(alias="json")] = None
    regex: NonEmpty | None = None
    choice: Choices | None = None
    grammar: NonEmpty | None = None
    json_object: bool | None = None


class TextFormat(Fields):
    type: Literal["text"]


class JSONObjectFormat(Fields):
    type: Literal["json_object"]


class JSONSchema(Fields):
    """The output matches `schema` whether or not it is `strict`; name and description are for the
    caller's own use.
    """

    name: NonEmpty
    description: str | None = None
    json_schema: Annotated[SchemaText, Field(alias="schema")]
    strict: bool | None = None


class JSONSchemaFormat(Fields):
    type: Literal["json_schema"]
    json_schema: JSONSchema


def _format_tag(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("text", "json_object", "json_schema") else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JSONObjectFormat, Tag("<json_object>")]
    | Annotated[JSONSchemaFormat, Tag("<json_schema>")],
    Discriminator(
        _format_tag,
        custom_error_type="format_type",
        custom_error_message="must be 'text', 'json_object' or 'json_schema'",
    ),
]


class GuideFields(Fields):
    """The fields that every generating endpoint has for it."""

    guided_json: SchemaText | None = None
    guided_regex: NonEmpty | None = None
    guided_choice: Choices | None = None
    guided_grammar: NonEmpty | None = None  # GBNF or Lark
    structured_outputs: StructuredOutputs | None = None
    response_format: ResponseFormat | None = None

    @property
    def guide(self) -> Guide | None:
        """What the output must match. Of a checked request: it has at most one."""
        return next(iter(self._guides()), None)

    def guide_problems(self) -> list[FieldProblem]:
        """What is wrong between these fields."""
        guides = self._guides()
        found: list[FieldProblem] = []
        if len(guides) > 1:
            message = "only one kind of guided decoding can be used; the request also has " + (
                ".".join(guides[0].loc)
            )
            found.append(FieldProblem(loc=guides[1].loc, message=message))
        if self.structured_outputs is not None and not _structured(self.structured_outputs):
            message = "must have one of json, regex, choice, grammar and json_object"
            found.append(FieldProblem(loc=("structured_outputs",), message=message))
        return found

    def _guides(self) -> list[Guide]:
        texts = (
            ("guided_json", GrammarKind.JSON_SCHEMA, self.guided_json),
            ("guided_regex", GrammarKind.REGEX, self.guided_regex),
            ("guided_choice", GrammarKind.CHOICE, _choices_text(self.guided_choice)),
            ("guided_grammar", GrammarKind.EBNF, self.guided_grammar),
        )
        guides = [_guide((name,), kind, text) for name, kind, text in texts if text is not None]
        if self.structured_outputs is not None:
            guides += _structured(self.structured_outputs)
        if isinstance(self.response_format, JSONObjectFormat):
            guides.append(_guide(("response_format",), GrammarKind.JSON_OBJECT, ""))
        elif isinstance(self.response_format, JSONSchemaFormat):
            loc = ("response_format", "json_schema", "schema")
            text = self.response_format.json_schema.json_schema
            guides.append(_guide(loc, GrammarKind.JSON_SCHEMA, text))
        return guides


def _structured(outputs: StructuredOutputs) -> list[Guide]:
    texts = (
        ("json", GrammarKind.JSON_SCHEMA, outputs.json_schema),
        ("regex", GrammarKind.REGEX, outputs.regex),
        ("choice", GrammarKind.CHOICE, _choices_text(outputs.choice)),
        ("grammar", GrammarKind.EBNF, outputs.grammar),
        ("json_object", GrammarKind.JSON_OBJECT, "" if outputs.json_object else None),
    )
    return [
        _guide(("structured_outputs", name), kind, text)
        for name, kind, text in texts
        if text is not None
    ]


def _choices_text(choices: list[str] | None) -> str | None:
    return None if choices is None else orjson.dumps(choices).decode()


def _guide(loc: tuple[str, ...], kind: GrammarKind, text: str) -> Guide:
    return Guide(loc, GrammarSpec(kind=kind, text=text))
