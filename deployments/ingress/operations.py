"""Every endpoint of the ingress: its paths, and what goes in and comes out.

The app's routes and the OpenAPI document are both made of this table.
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from cluster.anthropic_schema.message import MessageObject, TokenCount
from cluster.anthropic_schema.request import CountTokensRequest, MessageRequest
from cluster.openai_schema.chat import ChatCompletion, ChatCompletionRequest
from cluster.openai_schema.completions import CompletionRequest, TextCompletion
from cluster.openai_schema.error_bodies import Status
from cluster.openai_schema.models import ModelList, ModelObject
from cluster.openai_schema.response_object import ResponseObject
from cluster.openai_schema.response_request import ResponseRequest
from cluster.openai_schema.tokenization import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeChatRequest,
    TokenizePromptRequest,
)

#: OpenAI's paths, Telnyx's at the time of the page, Telnyx's now.
PREFIXES = ("/v1", "/v2/ai", "/v2/ai/openai")
ANTHROPIC_PREFIXES = ("/v1", "/v2/ai/anthropic/v1")

_BODY_ERRORS = (400, 404, 413, 415, 422)
_RUN_ERRORS = (408, 429, 500, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One endpoint under all its paths."""

    name: str
    summary: str
    method: Literal["GET", "POST"] = "POST"
    paths: tuple[str, ...]
    requests: tuple[type[BaseModel], ...] = ()  # the body is one of them; (): no body
    answer: type[BaseModel] | None  # None: text
    has_stream: bool = False  # with `stream: true` the answer is a stream of events
    errors: tuple[int, ...] = ()
    is_open: bool = False  # needs no key
    is_anthropic: bool = False


def _paths(*ends: str, prefixes: tuple[str, ...] = PREFIXES) -> tuple[str, ...]:
    return tuple(f"{prefix}/{end}" for prefix in prefixes for end in ends)


CHAT = Operation(
    name="chat_completions",
    summary="Answer a conversation (OpenAI, Telnyx)",
    paths=_paths("chat/completions"),
    requests=(ChatCompletionRequest,),
    answer=ChatCompletion,
    has_stream=True,
    errors=_BODY_ERRORS + _RUN_ERRORS,
)
COMPLETIONS = Operation(
    name="completions",
    summary="Continue a text (OpenAI's older interface)",
    paths=_paths("completions"),
    requests=(CompletionRequest,),
    answer=TextCompletion,
    has_stream=True,
    errors=_BODY_ERRORS + _RUN_ERRORS,
)
RESPONSES = Operation(
    name="responses",
    summary="Answer items of input, storing nothing (OpenAI's newer interface)",
    paths=_paths("responses"),
    requests=(ResponseRequest,),
    answer=ResponseObject,
    has_stream=True,
    errors=_BODY_ERRORS + _RUN_ERRORS,
)
MESSAGES = Operation(
    name="messages",
    summary="Answer a conversation (Anthropic)",
    paths=_paths("messages", prefixes=ANTHROPIC_PREFIXES),
    requests=(MessageRequest,),
    answer=MessageObject,
    has_stream=True,
    errors=_BODY_ERRORS + _RUN_ERRORS,
    is_anthropic=True,
)
COUNT_TOKENS = Operation(
    name="count_tokens",
    summary="Count the tokens of a conversation (Anthropic)",
    paths=_paths("messages/count_tokens", prefixes=ANTHROPIC_PREFIXES),
    requests=(CountTokensRequest,),
    answer=TokenCount,
    errors=_BODY_ERRORS,
    is_anthropic=True,
)
TOKENIZE = Operation(
    name="tokenize",
    summary="The tokens of a text or a conversation (vLLM)",
    paths=_paths("tokenize", prefixes=("", *PREFIXES)),
    requests=(TokenizePromptRequest, TokenizeChatRequest),
    answer=TokenizeAnswer,
    errors=_BODY_ERRORS,
)
DETOKENIZE = Operation(
    name="detokenize",
    summary="The text of tokens (vLLM)",
    paths=_paths("detokenize", prefixes=("", *PREFIXES)),
    requests=(DetokenizeRequest,),
    answer=DetokenizeAnswer,
    errors=_BODY_ERRORS,
)
MODELS = Operation(
    name="models",
    summary="The models served here",
    method="GET",
    paths=_paths("models"),
    answer=ModelList,
)
ONE_MODEL = Operation(
    name="one_model",
    summary="One model; its id may contain slashes",
    method="GET",
    paths=_paths("models/{model_id:path}"),
    answer=ModelObject,
    errors=(404,),
)
HEALTH = Operation(
    name="health",
    summary="This process answers",
    method="GET",
    paths=("/health",),
    answer=Status,
    is_open=True,
)
READY = Operation(
    name="ready",
    summary="Every model has a replica",
    method="GET",
    paths=("/ready",),
    answer=Status,
    errors=(503,),
    is_open=True,
)
METRICS = Operation(
    name="metrics",
    summary="Prometheus text",
    method="GET",
    paths=("/metrics",),
    answer=None,
    is_open=True,
)

OPERATIONS = (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    MESSAGES,
    COUNT_TOKENS,
    TOKENIZE,
    DETOKENIZE,
    MODELS,
    ONE_MODEL,
    HEALTH,
    READY,
    METRICS,
)
OPENAPI_PATH = "/openapi.json"
OPEN_PATHS = frozenset(
    path for operation in OPERATIONS if operation.is_open for path in operation.paths
) | {OPENAPI_PATH}
