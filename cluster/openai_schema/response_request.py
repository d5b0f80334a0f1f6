"""`POST /responses`, OpenAI's newer interface, without its memory: the request.

Nothing is stored: `store` is accepted (answers say `store: false`), and fields that refer to
something stored are refused by name, as are those of tools and services that do not run here.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from cluster.errors import FieldProblem
from cluster.openai_schema.chat import MAX_TOP_LOGPROBS, ReasoningEffort
from cluster.openai_schema.generation import Count
from cluster.openai_schema.guides import JSONObjectFormat, JSONSchema, TextFormat
from cluster.openai_schema.response_items import InputItem
from cluster.openai_schema.tools import MAX_TOOLS, FunctionName, RetrievalTool
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import JSONObject, integer, real, shown

INCLUDE_LOGPROBS = "message.output_text.logprobs"
KIND = "not_available"


class JSONSchemaTextFormat(JSONSchema):
    """`json_schema` without the nesting that chat completions have."""

    type: Literal["json_schema"]


def _format_tag(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("text", "json_object", "json_schema") else None


FlatFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[JSONObjectFormat, Tag("<json_object>")]
    | Annotated[JSONSchemaTextFormat, Tag("<json_schema>")],
    Discriminator(
        _format_tag,
        custom_error_type="format_type",
        custom_error_message="must be 'text', 'json_object' or 'json_schema'",
    ),
]


class TextOptions(Fields):
    format: FlatFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Fields):
    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class FlatFunctionTool(Fields):
    """A function without the nesting that chat completions have."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: JSONObject | None = None  # a JSON Schema
    strict: bool | None = None


def _tool_tag(value: object) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("function", "retrieval") else None


FlatTool = Annotated[
    Annotated[FlatFunctionTool, Tag("<function>")] | Annotated[RetrievalTool, Tag("<retrieval>")],
    Discriminator(
        _tool_tag,
        custom_error_type="tool_type",
        custom_error_message="must be 'function' or 'retrieval': no other tools run here",
    ),
]


class FlatNamedToolChoice(Fields):
    type: Literal["function"]
    name: FunctionName


class FlatAllowedTools(Fields):
    """Some of the tools only."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FlatNamedToolChoice], Field(min_length=1, max_length=MAX_TOOLS)]


def _choice_tag(value: object) -> str:
    if isinstance(value, str):
        return "<mode>"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<allowed>" if kind == "allowed_tools" else "<named>"


FlatToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[FlatNamedToolChoice, Tag("<named>")]
    | Annotated[FlatAllowedTools, Tag("<allowed>")],
    Discriminator(_choice_tag),
]


class ResponseStreamOptions(Fields):
    include_obfuscation: bool | None = None


def _input_tag(value: object) -> str | None:
    if isinstance(value, str):
        return "<string>"
    return "<items>" if isinstance(value, list) else None


class ResponseRequest(Fields):
    """null means "not given" everywhere."""

    input: Annotated[
        Annotated[str, Tag("<string>")]
        | Annotated[list[InputItem], Field(min_length=1, fail_fast=True), Tag("<items>")],
        Discriminator(
            _input_tag,
            custom_error_type="input_type",
            custom_error_message="must be a string or an array of items",
        ),
    ]
    model: str | None = None  # None: the configured default
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, real(low=0, high=2)] | None = None
    top_p: Annotated[float, real(low=0, high=1, is_low_open=True)] | None = None
    top_logprobs: Annotated[int, integer(low=0, high=MAX_TOP_LOGPROBS)] | None = None
    include: list[str] | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[list[FlatTool], Field(fail_fast=True)] | None = None
    tool_choice: FlatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None

    # Accepted and without effect, as documented: they describe the caller or the billing.
    store: bool | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None

    # Known, and refused by name.
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    max_tool_calls: Any = None
    context_management: Any = None
    moderation: Any = None
    prompt_cache_options: Any = None

    @property
    def has_logprobs(self) -> bool:
        return INCLUDE_LOGPROBS in (self.include or ())

    def problems(self) -> list[FieldProblem]:
        found = [
            _unavailable(name, f"{why}; given {shown(value)}")
            for name, (is_refused, why) in _REFUSED.items()
            if is_refused(value := getattr(self, name))
        ]
        for position, name in enumerate(self.include or ()):
            if name != INCLUDE_LOGPROBS:
                message = f"only {INCLUDE_LOGPROBS!r} can be included; given {shown(name)}"
                found.append(_unavailable("include", message, position))
        if self.top_logprobs and not self.has_logprobs:
            message = f"needs {INCLUDE_LOGPROBS!r} in include; given {self.top_logprobs}"
            found.append(FieldProblem(loc=("top_logprobs",), message=message))
        if self.stream_options is not None and not self.stream:
            message = "is only allowed with stream: true"
            found.append(FieldProblem(loc=("stream_options",), message=message))
        found.extend(self._option_problems())
        return found

    def _option_problems(self) -> list[FieldProblem]:
        found = []
        if self.text is not None and self.text.verbosity not in (None, "medium"):
            found.append(_unavailable("text", "verbosity control is not available", "verbosity"))
        if self.reasoning is not None:
            for name in ("summary", "generate_summary"):
                if getattr(self.reasoning, name) is not None:
                    message = "summaries are not available; the reasoning itself is in the answer"
                    found.append(_unavailable("reasoning", message, name))
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            message = "padding of stream events is not available"
            found.append(_unavailable("stream_options", message, "include_obfuscation"))
        return found


def _is_given(value: object) -> bool:
    return value is not None


_NO_MEMORY = "responses are not stored here; send the whole conversation as input"

_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "previous_response_id": (_is_given, _NO_MEMORY),
    "conversation": (_is_given, _NO_MEMORY),
    "background": (bool, "responses are not stored here, so nobody could fetch it later"),
    "prompt": (_is_given, "there are no stored prompts here"),
    "truncation": (lambda value: value == "auto", "input is never cut; must be 'disabled'"),
    "max_tool_calls": (_is_given, "it limits OpenAI's own tools, which do not run here"),
    "context_management": (_is_given, "compaction is not available"),
    "moderation": (_is_given, "moderation is not available"),
    "prompt_cache_options": (_is_given, "prompts are cached without options"),
}


def _unavailable(name: str, message: str, *path: str | int) -> FieldProblem:
    return FieldProblem(loc=(name, *path), message=message, kind=KIND)
