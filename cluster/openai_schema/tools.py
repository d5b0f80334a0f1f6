"""Tools in a chat request: functions (the client runs them) and retrieval (the server does)."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import integer

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class FunctionDefinition(Fields):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON Schema
    strict: bool | None = None


class FunctionTool(Fields):
    type: Literal["function"]
    function: FunctionDefinition


class RetrievalOptions(Fields):
    bucket_ids: Annotated[list[str], Field(min_length=1, max_length=64)]
    max_num_results: Annotated[int, integer(low=1, high=100)] | None = None


class RetrievalTool(Fields):
    type: Literal["retrieval"]
    retrieval: RetrievalOptions


def _tool_tag(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("function", "retrieval") else None


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")] | Annotated[RetrievalTool, Tag("<retrieval>")],
    Discriminator(
        _tool_tag,
        custom_error_type="tool_type",
        custom_error_message="must be 'function' or 'retrieval'",
    ),
]


class NamedFunction(Fields):
    name: FunctionName


class NamedToolChoice(Fields):
    type: Literal["function"]
    function: NamedFunction


def _choice_tag(value: object) -> str:
    return "<mode>" if isinstance(value, str) else "<named>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedToolChoice, Tag("<named>")],
    Discriminator(_choice_tag),
]
