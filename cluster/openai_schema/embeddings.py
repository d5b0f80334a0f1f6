"""`POST /embeddings` and `GET /embeddings/models`: OpenAI's interface to embedding models."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel

from cluster.errors import FieldProblem, ValidationError
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import Checked, integer, refusal

MAX_INPUTS = 2048
MAX_REQUEST_TOKENS = 300_000  # of all inputs of a request together
MAX_DIMENSIONS = 65_536
_MAX_PROBLEMS = 16


@dataclass(frozen=True, slots=True)
class EmbeddingInputs:
    """Texts, or rows of token ids."""

    items: list[str] | list[list[int]]
    is_alone: bool = False  # the client wrote a text or a row, not an array of them

    def place(self, index: int) -> tuple[str | int, ...]:
        """Where an item stands in the request."""
        return ("input",) if self.is_alone else ("input", index)


def _inputs(value: object) -> EmbeddingInputs:
    """A string or an array of token ids, or an array of either."""
    allowed = "must be a string, an array of token ids, or a non-empty array of either"
    if isinstance(value, str):
        return EmbeddingInputs([value], is_alone=True)
    if not isinstance(value, list) or not value:
        raise refusal(allowed, value)
    if _is_token_ids(value):
        return EmbeddingInputs([value], is_alone=True)
    if len(value) > MAX_INPUTS:
        raise refusal(f"must be at most {MAX_INPUTS} inputs", len(value), kind="too_long")
    if all(isinstance(item, str) for item in value):
        return EmbeddingInputs(value)
    if all(isinstance(item, list) and _is_token_ids(item) for item in value):
        return EmbeddingInputs(value)
    raise refusal(allowed, value)


def _is_token_ids(value: list[Any]) -> bool:
    # In C: there may be hundreds of thousands. The type of a boolean is not `int`.
    return set(map(type, value)) <= {int} and min(value, default=0) >= 0


_TOKEN_IDS_SCHEMA: dict[str, object] = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "integer", "minimum": 0},
}
_ONE_TEXT_SCHEMA: dict[str, object] = {"type": "string", "minLength": 1}
_INPUT_SCHEMA: dict[str, object] = {
    "anyOf": [
        _ONE_TEXT_SCHEMA,
        {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS, "items": _ONE_TEXT_SCHEMA},
        _TOKEN_IDS_SCHEMA,
        {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS, "items": _TOKEN_IDS_SCHEMA},
    ]
}


class EmbeddingRequest(Fields):
    """Token ids are read as they are: nothing is put before or around them."""

    input: Annotated[EmbeddingInputs, Checked(_inputs, _INPUT_SCHEMA)]
    model: str | None = None  # None: the default one
    encoding_format: Literal["float", "base64"] | None = None  # None: float
    # The first so many numbers, made a unit vector again; of a model that was not trained for it
    # they are as much worse as they are fewer.
    dimensions: Annotated[int, integer(low=1, high=MAX_DIMENSIONS)] | None = None
    user: str | None = None  # accepted, and used for nothing

    def problems(self) -> list[FieldProblem]:
        problems = [
            FieldProblem(loc=self.input.place(index), message="must not be empty")
            for index, item in enumerate(self.input.items)
            if not item
        ]
        if not problems and not isinstance(self.input.items[0], str):
            num_tokens = sum(map(len, self.input.items))
            if num_tokens > MAX_REQUEST_TOKENS:
                problems += too_many_tokens(str(num_tokens)).problems
        return problems[:_MAX_PROBLEMS]


def too_many_tokens(given: str) -> ValidationError:
    """The refusal of a request whose inputs are each short enough."""
    message = f"must have at most {MAX_REQUEST_TOKENS} tokens in all; given {given}"
    return ValidationError([FieldProblem(loc=("input",), message=message, kind="too_long")])


class EmbeddingObject(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str  # base64: little-endian float32


class EmbeddingUsage(BaseModel):
    """Tokens that the model has read, special ones included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingAnswer(BaseModel):
    object: Literal["list"] = "list"
    data: list[EmbeddingObject]
    model: str
    usage: EmbeddingUsage


class EmbeddingModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int  # Unix time
    owned_by: str


class EmbeddingModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[EmbeddingModelObject]
