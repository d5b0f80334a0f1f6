"""Anthropic's `message` object and its errors: what `POST /messages` answers."""

from typing import Any, Literal

from pydantic import BaseModel

from cluster.errors import ServingError
from cluster.openai_schema.usage import Usage

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "timeout_error",
    "api_error",
    "overloaded_error",
]

_ERROR_TYPES: dict[int, ErrorType] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class AnswerText(BaseModel):
    type: Literal["text"] = "text"
    text: str
    citations: None = None


class AnswerThinking(BaseModel):
    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str = ""


class AnswerToolUse(BaseModel):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


AnswerBlock = AnswerText | AnswerThinking | AnswerToolUse


class MessageUsage(BaseModel):
    """`input_tokens` are those that were not found in the cache."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "MessageUsage":
        cached = usage.prompt_tokens_details.cached_tokens
        return cls(
            input_tokens=usage.prompt_tokens - cached,
            output_tokens=usage.completion_tokens,
            cache_read_input_tokens=cached,
        )


class MessageObject(BaseModel):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(BaseModel):
    input_tokens: int


class ErrorObject(BaseModel):
    type: ErrorType
    message: str


class ErrorBody(BaseModel):
    type: Literal["error"] = "error"
    error: ErrorObject
    request_id: str | None = None


def status_of(error: ServingError) -> int:
    """Anthropic has no 422: what is wrong in a request is a 400."""
    return 400 if error.status == 422 else error.status


def error_body(error: ServingError, request_id: str = "") -> ErrorBody:
    fallback: ErrorType = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = _ERROR_TYPES.get(error.status, fallback)
    return ErrorBody(
        error=ErrorObject(type=kind, message=error.detail), request_id=request_id or None
    )
