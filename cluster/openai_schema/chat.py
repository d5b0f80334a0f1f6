"""`POST /chat/completions`: the request, and the answer that is not streamed."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field
from pydantic_core import PydanticCustomError

from cluster.errors import FieldProblem
from cluster.openai_schema.generation import Count, GenerationFields
from cluster.openai_schema.messages import AssistantMessage, Message
from cluster.openai_schema.tools import (
    MAX_TOOLS,
    NamedToolChoice,
    RetrievalOptions,
    Tool,
    ToolChoice,
    tool_problems,
)
from cluster.openai_schema.usage import Usage
from cluster.openai_schema.values import Checked, integer
from cluster.types import FoundChunk

MAX_TOP_LOGPROBS = 20

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


_MAX_REFERENCE_CHARS = 255
_REFERENCE_SCHEMA: dict[str, object] = {"type": "string", "maxLength": _MAX_REFERENCE_CHARS}


def _reference(value: object) -> str:
    """What was given is not shown: it may be a key in the wrong place."""
    if not isinstance(value, str) or len(value) > _MAX_REFERENCE_CHARS:
        allowed = "must be the identifier of an integration secret: a string of at most 255 letters"
        raise PydanticCustomError("string_type", "{problem}", {"problem": allowed})
    return value


class ChatCompletionRequest(GenerationFields):
    """Everything of the page and of OpenAI's Chat Completions. What a later part of the server
    brings is parsed too, so that it is refused by name and not as an unknown field."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, integer(low=0, high=MAX_TOP_LOGPROBS)] | None = None
    tools: (
        Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)] | None
    ) = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    enable_thinking: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    api_key_ref: Annotated[str, Checked(_reference, _REFERENCE_SCHEMA)] | None = None
    region: Literal["USA", "EU", "AUS", "UAE"] | None = None
    mode: Literal["preferred", "strict"] | None = None

    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: Any = None
    web_search_options: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    verbosity: str | None = None
    moderation: Any = None
    prompt_cache_options: dict[str, Any] | None = None

    @property
    def token_limit(self) -> int | None:
        """The largest number of tokens to generate, None for "what the server allows"."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        """None: no logprobs at all."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def may_call_functions(self) -> bool:
        return self.tool_choice != "none" and any(
            tool.type == "function" for tool in self.tools or ()
        )

    @property
    def retrieval_tools(self) -> list[tuple[int, RetrievalOptions]]:
        """What to search, with each tool's position. `tool_choice` is about functions only."""
        return [
            (position, tool.retrieval)
            for position, tool in enumerate(self.tools or ())
            if tool.type == "retrieval"
        ]

    @property
    def returns_chunks(self) -> bool:
        """Whether the answer says what retrieval found."""
        return any(options.return_chunks is not False for _, options in self.retrieval_tools)

    @property
    def names_function(self) -> bool:
        """Whether the answer must be a call of one particular function."""
        return isinstance(self.tool_choice, NamedToolChoice)

    def problems(self) -> list[FieldProblem]:
        found = super().problems()
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            message = (
                f"max_tokens ({self.max_tokens}) and max_completion_tokens "
                f"({self.max_completion_tokens}) mean the same and must be equal"
            )
            found.append(FieldProblem(loc=("max_completion_tokens",), message=message))
        if self.top_logprobs and not self.logprobs:
            message = f"needs logprobs: true; given {self.top_logprobs}"
            found.append(FieldProblem(loc=("top_logprobs",), message=message))
        if self.tool_choice not in (None, "none") and not self.tools:
            found.append(FieldProblem(loc=("tool_choice",), message="needs tools"))
        if self.tools:
            found.extend(tool_problems(self.tools, self.tool_choice))
        found.extend(self._message_problems())
        return found

    def _message_problems(self) -> list[FieldProblem]:
        return [
            FieldProblem(
                loc=("messages", position, "content"),
                message="may be null or missing only beside tool_calls",
            )
            for position, message in enumerate(self.messages)
            if isinstance(message, AssistantMessage)
            and message.content is None
            and not message.tool_calls
        ][:1]


def _is_none(value: object) -> bool:
    return value is None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob] | None
    refusal: None = None


class AnswerCalledFunction(BaseModel):
    name: str
    arguments: str  # JSON text


class AnswerToolCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: AnswerCalledFunction


class RetrievedChunk(BaseModel):
    """A passage that the model was given; `page` and `heading` where the format has them."""

    bucket_id: str
    filename: str
    text: str
    position: int  # among the chunks of its file, from 0
    distance: float  # cosine, 0 to 2
    score: float  # what the search ranked it by
    heading: Annotated[str | None, Field(exclude_if=_is_none)] = None
    page: Annotated[int | None, Field(exclude_if=_is_none)] = None

    @classmethod
    def of(cls, found: FoundChunk) -> Self:
        return cls(
            bucket_id=found.bucket,
            filename=found.filename,
            text=found.chunk.text,
            position=found.position,
            distance=found.distance,
            score=found.score,
            heading=found.chunk.heading or None,
            page=found.chunk.page,
        )


class RetrievalSources(BaseModel):
    """What retrieval put into the context, in the order in which the model read it."""

    chunks: list[RetrievedChunk]


class AnswerMessage(BaseModel):
    """`tool_calls`, `reasoning_content` and `retrieval` are left out where there are none."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: Annotated[str | None, Field(exclude_if=_is_none)] = None
    tool_calls: Annotated[list[AnswerToolCall] | None, Field(exclude_if=_is_none)] = None
    retrieval: Annotated[RetrievalSources | None, Field(exclude_if=_is_none)] = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
