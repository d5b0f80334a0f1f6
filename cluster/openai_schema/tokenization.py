"""`POST /tokenize` and `/detokenize`, as vLLM has them."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from cluster.errors import FieldProblem
from cluster.openai_schema.chat import ReasoningEffort
from cluster.openai_schema.messages import Message
from cluster.openai_schema.tools import Tool
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import integer


class TokenizePromptRequest(Fields):
    """A text as `/completions` would read it."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None  # None: true
    return_token_strs: bool | None = None

    def problems(self) -> list[FieldProblem]:
        return []


class TokenizeChatRequest(Fields):
    """Messages as `/chat/completions` would read them."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    add_generation_prompt: bool | None = None  # None: true
    add_special_tokens: bool | None = None  # None: false; templates write their own
    continue_final_message: Literal[False] | None = None
    return_token_strs: bool | None = None
    tools: Annotated[list[Tool], Field(min_length=1, fail_fast=True)] | None = None
    enable_thinking: bool | None = None
    reasoning_effort: ReasoningEffort | None = None

    def problems(self) -> list[FieldProblem]:
        return []


class TokenizeAnswer(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None  # as the vocabulary spells them


class DetokenizeRequest(Fields):
    model: str | None = None
    tokens: Annotated[list[Annotated[int, integer(low=0)]], Field(fail_fast=True)]

    def problems(self) -> list[FieldProblem]:
        return []


class DetokenizeAnswer(BaseModel):
    prompt: str
