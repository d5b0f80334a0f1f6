"""`POST /messages` and `/messages/count_tokens` of Anthropic's API: the requests."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from cluster.anthropic_schema.blocks import CacheControl, SystemContent, Turn
from cluster.errors import FieldProblem
from cluster.openai_schema.generation import MAX_STOP_STRING_CHARS, Count
from cluster.openai_schema.guides import SchemaText
from cluster.openai_schema.tools import FunctionName
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import JSONObject, integer, real

MAX_STOP_SEQUENCES = 64


class InputTool(Fields):
    """A function of the client. Anthropic's own tools do not run here."""

    name: FunctionName
    input_schema: JSONObject
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


class AutoChoice(Fields):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool | None = None


class NoChoice(Fields):
    type: Literal["none"]


class NamedChoice(Fields):
    type: Literal["tool"]
    name: FunctionName
    disable_parallel_tool_use: bool | None = None


def _kind(value: object) -> object:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


def _choice_tag(value: object) -> str | None:
    kind = _kind(value)
    if kind in ("auto", "any"):
        return "<auto>"
    return f"<{kind}>" if kind in ("none", "tool") else None


InputToolChoice = Annotated[
    Annotated[AutoChoice, Tag("<auto>")]
    | Annotated[NoChoice, Tag("<none>")]
    | Annotated[NamedChoice, Tag("<tool>")],
    Discriminator(
        _choice_tag,
        custom_error_type="block_type",
        custom_error_message="must be 'auto', 'any', 'tool' or 'none'",
    ),
]


class Thinking(Fields):
    """How much to think cannot be bounded here, so `enabled` with its budget is refused."""

    type: Literal["adaptive", "disabled"]


class JSONOutput(Fields):
    type: Literal["json_schema"]
    json_schema: Annotated[SchemaText, Field(alias="schema")]


class OutputConfig(Fields):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JSONOutput | None = None


class CallerMetadata(Fields):
    user_id: str | None = None


class CountTokensRequest(Fields):
    """What a message's prompt is made of."""

    messages: Annotated[list[Turn], Field(min_length=1, fail_fast=True)]
    model: str | None = None  # None: the configured default
    system: SystemContent | None = None
    tools: Annotated[list[InputTool], Field(fail_fast=True)] | None = None
    tool_choice: InputToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None

    def problems(self) -> list[FieldProblem]:
        last = len(self.messages) - 1
        if self.messages[last].role != "assistant":
            return []
        message = "the last message must not be the assistant's: continuing it is not available"
        return [FieldProblem(loc=("messages", last, "role"), message=message)]


class MessageRequest(CountTokensRequest):
    max_tokens: Count
    stream: bool | None = None
    stop_sequences: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_STRING_CHARS)]],
            Field(max_length=MAX_STOP_SEQUENCES),
        ]
        | None
    ) = None
    temperature: Annotated[float, real(low=0, high=1)] | None = None
    top_p: Annotated[float, real(low=0, high=1, is_low_open=True)] | None = None
    top_k: Annotated[int, integer(low=0)] | None = None

    # Accepted and without effect, as documented: they describe the caller or the billing.
    metadata: CallerMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
