"""`/batches` of OpenAI's API: the request, and the `batch` object."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from cluster.errors import FieldProblem
from cluster.openai_schema.files import MAX_EXPIRY_S, MIN_EXPIRY_S
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import integer

BatchEndpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
MAX_LISTED_BATCHES = 100
DEFAULT_LISTED_BATCHES = 20
_MAX_METADATA = 16

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=_MAX_METADATA)]


class OutputExpiry(Fields):
    """How long the files with the results are kept, from when they are made."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, integer(low=MIN_EXPIRY_S, high=MAX_EXPIRY_S)]


class BatchRequest(Fields):
    input_file_id: str
    endpoint: BatchEndpoint
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None

    def problems(self) -> list[FieldProblem]:
        return []


class BatchError(BaseModel):
    """One thing wrong with an input file; `line` counts from 1."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchCounts(BaseModel):
    total: int
    completed: int
    failed: int


class InputTokenDetails(BaseModel):
    cached_tokens: int


class OutputTokenDetails(BaseModel):
    reasoning_tokens: int


class BatchUsage(BaseModel):
    """Of all requests together."""

    input_tokens: int
    input_tokens_details: InputTokenDetails
    output_tokens: int
    output_tokens_details: OutputTokenDetails
    total_tokens: int


class BatchObject(BaseModel):
    """Times are Unix times, None while it has not come to that."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
