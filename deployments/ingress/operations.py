"""Every endpoint of the ingress: its paths, and what goes in and comes out.

The app's routes and the OpenAPI document are both made of this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from cluster.anthropic_schema.message import MessageObject, TokenCount
from cluster.anthropic_schema.request import CountTokensRequest, MessageRequest
from cluster.openai_schema.batches import (
    MAX_LISTED_BATCHES,
    BatchList,
    BatchObject,
    BatchRequest,
)
from cluster.openai_schema.chat import ChatCompletion, ChatCompletionRequest
from cluster.openai_schema.completions import CompletionRequest, TextCompletion
from cluster.openai_schema.embeddings import EmbeddingAnswer, EmbeddingModelList, EmbeddingRequest
from cluster.openai_schema.error_bodies import Status
from cluster.openai_schema.files import (
    MAX_LISTED_FILES,
    OUTPUT_PURPOSE,
    UPLOAD_PURPOSES,
    FileDeleted,
    FileList,
    FileObject,
    FileUpload,
)
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
from cluster.telnyx_schema.buckets import (
    BucketFilesAnswer,
    BucketNamesAnswer,
    BucketNotFoundBody,
    SimilaritySearchAnswer,
    SimilaritySearchRequest,
)
from cluster.telnyx_schema.integration_secrets import (
    SECRET_TYPES,
    IntegrationSecretAnswer,
    IntegrationSecretListAnswer,
    IntegrationSecretRequest,
    SecretErrorsBody,
)
from cluster.telnyx_schema.tasks import (
    STATUS_FILTERS,
    EmbedBucketRequest,
    EmbedURLRequest,
    TaskAnswer,
    TaskListAnswer,
)

#: OpenAI's paths, Telnyx's at the time of the page, Telnyx's now.
PREFIXES = ("/v1", "/v2/ai", "/v2/ai/openai")
ANTHROPIC_PREFIXES = ("/v1", "/v2/ai/anthropic/v1")

_BODY_ERRORS = (400, 404, 413, 415, 422)
_RUN_ERRORS = (408, 429, 500, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A value in the query or in a header; all of them may be left out."""

    name: str
    place: Literal["query", "header"] = "query"
    schema: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operation:
    """One endpoint under all its paths."""

    name: str
    summary: str
    method: Literal["GET", "POST", "DELETE"] = "POST"
    paths: tuple[str, ...]
    parameters: tuple[Parameter, ...] = ()
    requests: tuple[type[BaseModel], ...] = ()  # the body is one of them; (): no body
    is_form: bool = False  # the body is multipart/form-data, not JSON
    answer: type[BaseModel] | None  # None: text
    other_answer: type[BaseModel] | None = None  # what the second of the requests is answered with
    is_empty: bool = False  # the answer has no body
    is_binary: bool = False  # the answer is a file
    success: int = 200  # the status of an answer
    has_stream: bool = False  # with `stream: true` the answer is a stream of events
    errors: tuple[int, ...] = ()
    not_found: type[BaseModel] | None = None  # another body that a 404 may have
    refused: type[BaseModel] | None = None  # the body that a 400 or a 422 has instead
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
    errors=(*_BODY_ERRORS, *_RUN_ERRORS, 502, 504),
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
EMBEDDINGS = Operation(
    name="embeddings",
    summary="Vectors of texts (OpenAI)",
    paths=_paths("embeddings", prefixes=("/v1", "/v2/ai/openai")),
    requests=(EmbeddingRequest,),
    answer=EmbeddingAnswer,
    errors=_BODY_ERRORS + _RUN_ERRORS,
)
EMBEDDING_MODELS = Operation(
    name="embedding_models",
    summary="The embedding models served here",
    method="GET",
    paths=_paths("embeddings/models", prefixes=("/v1", "/v2/ai/openai")),
    answer=EmbeddingModelList,
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

_UNAVAILABLE = (404, 500, 503)  # 404: also where retrieval is switched off
_IDEMPOTENCY_KEY = Parameter(
    name="Idempotency-Key", place="header", schema={"type": "string", "maxLength": 255}
)
_PAGE = (
    Parameter(name="page[number]", schema={"type": "integer", "minimum": 0, "maximum": 1_000_000}),
    Parameter(name="page[size]", schema={"type": "integer", "minimum": 1, "maximum": 1000}),
)
_STATUS = Parameter(
    name="status", schema={"type": "array", "items": {"enum": list(STATUS_FILTERS)}}
)
_EMBEDDINGS = "/v2/ai/embeddings"

EMBED_BUCKET = Operation(
    name="embed_bucket",
    summary="Embed a bucket in the background; or, with `input`, embed texts as OpenAI does",
    paths=(_EMBEDDINGS,),
    parameters=(_IDEMPOTENCY_KEY,),
    requests=(EmbedBucketRequest, EmbeddingRequest),
    answer=TaskAnswer,
    other_answer=EmbeddingAnswer,
    errors=_BODY_ERRORS + _RUN_ERRORS,
)
EMBEDDING_TASKS = Operation(
    name="embedding_tasks",
    summary="The tenant's embedding tasks by status, the newest first",
    method="GET",
    paths=(_EMBEDDINGS,),
    parameters=(_STATUS, *_PAGE),
    answer=TaskListAnswer,
    errors=(422, *_UNAVAILABLE),
)
EMBED_URL = Operation(
    name="embed_url",
    summary="Put the pages of a website into a bucket and embed them, in the background",
    paths=(f"{_EMBEDDINGS}/url",),
    parameters=(_IDEMPOTENCY_KEY,),
    requests=(EmbedURLRequest,),
    answer=TaskAnswer,
    errors=_BODY_ERRORS + _RUN_ERRORS,
)
SIMILARITY_SEARCH = Operation(
    name="similarity_search",
    summary="The passages of a bucket that are most similar to a text",
    paths=(f"{_EMBEDDINGS}/similarity-search",),
    requests=(SimilaritySearchRequest,),
    answer=SimilaritySearchAnswer,
    errors=_BODY_ERRORS + _RUN_ERRORS,
)
EMBEDDED_BUCKETS = Operation(
    name="embedded_buckets",
    summary="The names of the tenant's embedded buckets",
    method="GET",
    paths=(f"{_EMBEDDINGS}/buckets",),
    answer=BucketNamesAnswer,
    errors=_UNAVAILABLE,
)
EMBEDDED_BUCKET = Operation(
    name="embedded_bucket",
    summary="The files of an embedded bucket, and how the embedding of each went",
    method="GET",
    paths=(f"{_EMBEDDINGS}/buckets/{{bucket_name}}",),
    answer=BucketFilesAnswer,
    errors=_UNAVAILABLE,
)
DELETE_EMBEDDINGS = Operation(
    name="delete_embeddings",
    summary="Remove a bucket's embeddings; its objects stay",
    method="DELETE",
    paths=EMBEDDED_BUCKET.paths,
    answer=None,
    is_empty=True,
    errors=_UNAVAILABLE,
    not_found=BucketNotFoundBody,
)
EMBEDDING_TASK = Operation(
    name="embedding_task",
    summary="One embedding task",
    method="GET",
    paths=(f"{_EMBEDDINGS}/{{task_id:uuid}}",),
    answer=TaskAnswer,
    errors=_UNAVAILABLE,
)

#: In the order in which paths are tried.
BUCKET_OPERATIONS = (
    EMBED_BUCKET,
    EMBEDDING_TASKS,
    EMBED_URL,
    SIMILARITY_SEARCH,
    EMBEDDED_BUCKETS,
    EMBEDDED_BUCKET,
    DELETE_EMBEDDINGS,
    EMBEDDING_TASK,
)
_SECRETS = "/v2/integration_secrets"

CREATE_SECRET = Operation(
    name="create_integration_secret",
    summary="Keep a key for another service, encrypted; its value is never shown again",
    paths=(_SECRETS,),
    requests=(IntegrationSecretRequest,),
    answer=IntegrationSecretAnswer,
    success=201,
    errors=(*_BODY_ERRORS, 409, 500, 503),
    refused=SecretErrorsBody,
)
SECRETS = Operation(
    name="integration_secrets",
    summary="The tenant's integration secrets without their values, the newest first",
    method="GET",
    paths=(_SECRETS,),
    parameters=(
        Parameter(name="filter[type]", schema={"type": "string", "enum": list(SECRET_TYPES)}),
        *_PAGE,
    ),
    answer=IntegrationSecretListAnswer,
    errors=(400, *_UNAVAILABLE),
    refused=SecretErrorsBody,
)
DELETE_SECRET = Operation(
    name="delete_integration_secret",
    summary="Delete an integration secret by its id",
    method="DELETE",
    paths=(f"{_SECRETS}/{{id}}",),
    answer=None,
    is_empty=True,
    success=204,
    errors=_UNAVAILABLE,
)
SECRET_OPERATIONS = (CREATE_SECRET, SECRETS, DELETE_SECRET)

_AFTER = Parameter(name="after", schema={"type": "string", "description": "the last page's end"})

UPLOAD_FILE = Operation(
    name="upload_file",
    summary="Upload a file, for a batch for example (OpenAI)",
    paths=_paths("files"),
    requests=(FileUpload,),
    is_form=True,
    answer=FileObject,
    errors=(*_BODY_ERRORS, 500, 503),
)
FILES = Operation(
    name="files",
    summary="The tenant's files",
    method="GET",
    paths=_paths("files"),
    parameters=(
        Parameter(
            name="limit",
            schema={"type": "integer", "minimum": 1, "maximum": MAX_LISTED_FILES},
        ),
        _AFTER,
        Parameter(name="order", schema={"type": "string", "enum": ["asc", "desc"]}),
        Parameter(
            name="purpose",
            schema={"type": "string", "enum": [*UPLOAD_PURPOSES, OUTPUT_PURPOSE]},
        ),
    ),
    answer=FileList,
    errors=(400, 422, *_UNAVAILABLE),
)
FILE_CONTENT = Operation(
    name="file_content",
    summary="The bytes of a file",
    method="GET",
    paths=_paths("files/{file_id}/content"),
    answer=None,
    is_binary=True,
    errors=_UNAVAILABLE,
)
ONE_FILE = Operation(
    name="one_file",
    summary="What is known of a file",
    method="GET",
    paths=_paths("files/{file_id}"),
    answer=FileObject,
    errors=_UNAVAILABLE,
)
DELETE_FILE = Operation(
    name="delete_file",
    summary="Delete a file",
    method="DELETE",
    paths=ONE_FILE.paths,
    answer=FileDeleted,
    errors=_UNAVAILABLE,
)
FILE_OPERATIONS = (UPLOAD_FILE, FILES, FILE_CONTENT, ONE_FILE, DELETE_FILE)

CREATE_BATCH = Operation(
    name="create_batch",
    summary="Run the requests of a file in the background, behind all others (OpenAI)",
    paths=_paths("batches"),
    parameters=(_IDEMPOTENCY_KEY,),
    requests=(BatchRequest,),
    answer=BatchObject,
    errors=(*_BODY_ERRORS, 500, 503),
)
BATCHES = Operation(
    name="batches",
    summary="The tenant's batches, the newest first",
    method="GET",
    paths=_paths("batches"),
    parameters=(
        Parameter(
            name="limit",
            schema={"type": "integer", "minimum": 1, "maximum": MAX_LISTED_BATCHES},
        ),
        _AFTER,
    ),
    answer=BatchList,
    errors=(400, 422, *_UNAVAILABLE),
)
ONE_BATCH = Operation(
    name="one_batch",
    summary="How far a batch is",
    method="GET",
    paths=_paths("batches/{batch_id}"),
    answer=BatchObject,
    errors=_UNAVAILABLE,
)
CANCEL_BATCH = Operation(
    name="cancel_batch",
    summary="Cancel a batch; what is done is kept",
    paths=_paths("batches/{batch_id}/cancel"),
    answer=BatchObject,
    errors=(400, *_UNAVAILABLE),
)
BATCH_OPERATIONS = (CREATE_BATCH, BATCHES, ONE_BATCH, CANCEL_BATCH)

OPERATIONS = (
    CHAT,
    EMBEDDINGS,
    EMBEDDING_MODELS,
    *BUCKET_OPERATIONS,
    *SECRET_OPERATIONS,
    *FILE_OPERATIONS,
    *BATCH_OPERATIONS,
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
