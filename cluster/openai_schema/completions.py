"""`POST /completions`, OpenAI's older interface: plain text or token ids in, text out."""

from typing import Annotated, Literal

from pydantic import BaseModel

from cluster.errors import FieldProblem
from cluster.openai_schema.generation import GenerationFields
from cluster.openai_schema.usage import Usage
from cluster.openai_schema.values import Checked, integer, refusal

MAX_PROMPTS = 256
MAX_COMPLETION_LOGPROBS = 5

Prompt = str | list[int]


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value
    )


def _prompts(value: object) -> tuple[Prompt, ...]:
    """A prompt is a string or an array of token ids; one, or an array of them."""
    allowed = "must be a string, an array of token ids, or a non-empty array of either"
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise refusal(allowed, value)
    if _is_token_ids(value):
        return (value,)
    if len(value) > MAX_PROMPTS:
        raise refusal(f"must be at most {MAX_PROMPTS} prompts", len(value), kind="too_long")
    if all(isinstance(item, str) for item in value):
        return tuple(value)
    if all(item and _is_token_ids(item) for item in value):
        return tuple(value)
    raise refusal(allowed, value)


_TOKEN_IDS_SCHEMA: dict[str, object] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 0},
}
_PROMPT_SCHEMA: dict[str, object] = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"type": "string"}},
        _TOKEN_IDS_SCHEMA,
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _TOKEN_IDS_SCHEMA},
    ]
}


class CompletionRequest(GenerationFields):
    prompt: Annotated[tuple[Prompt, ...], Checked(_prompts, _PROMPT_SCHEMA)]
    # 0 is only for `echo`: score the prompt, generate nothing.
    max_tokens: Annotated[int, integer(low=0)] | None = None
    logprobs: Annotated[int, integer(low=0, high=MAX_COMPLETION_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None

    def problems(self) -> list[FieldProblem]:
        found = super().problems()
        if self.max_tokens == 0 and not self.echo:
            message = "must be at least 1 without echo; given 0"
            found.append(FieldProblem(loc=("max_tokens",), message=message))
        return found


class LegacyLogprobs(BaseModel):
    """Parallel lists, one item per token; the first prompt token has no logprob."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: LegacyLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class TextCompletion(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
