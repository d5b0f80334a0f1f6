"""Every endpoint of the ingress: its paths, and what goes in and comes out.

The app's routes and the OpenAPI document are both made of this table.
"""

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
from cluster.tenant_config import KeyScope
from deployments.ingress import deadline
from deployments.ingress.cluster_operations import CLUSTER
from deployments.ingress.operation import (
    ANTHROPIC_PREFIXES,
    BODY_ERRORS,
    PREFIXES,
    RUN_ERRORS,
    Operation,
    Parameter,
    paths_of,
)
from deployments.ingress.tenant_operations import TENANT_OPERATIONS

_INFERENCE = (KeyScope.INFERENCE,)
_BUCKETS = (KeyScope.BUCKETS,)
_BOTH = (KeyScope.INFERENCE, KeyScope.BUCKETS)
_ANY_KEY: tuple[KeyScope, ...] = ()

_TIMEOUT = Parameter(
    name=deadline.HEADER,
    place="header",
    schema={"type": "number", "exclusiveMinimum": 0, "maximum": deadline.MAX_TIMEOUT_S},
)

CHAT = Operation(
    name="chat_completions",
    summary="Answer a conversation (OpenAI, Telnyx)",
    paths=paths_of("chat/completions"),
    scopes=_INFERENCE,
    parameters=(_TIMEOUT,),
    requests=(ChatCompletionRequest,),
    answer=ChatCompletion,
    has_stream=True,
    errors=(*BODY_ERRORS, *RUN_ERRORS, 502, 504),
)
COMPLETIONS = Operation(
    name="completions",
    summary="Continue a text (OpenAI's older interface)",
    paths=paths_of("completions"),
    scopes=_INFERENCE,
    parameters=(_TIMEOUT,),
    requests=(CompletionRequest,),
    answer=TextCompletion,
    has_stream=True,
    errors=BODY_ERRORS + RUN_ERRORS,
)
RESPONSES = Operation(
    name="responses",
    summary="Answer items of input, storing nothing (OpenAI's newer interface)",
    paths=paths_of("responses"),
    scopes=_INFERENCE,
    parameters=(_TIMEOUT,),
    requests=(ResponseRequest,),
    answer=ResponseObject,
    has_stream=True,
    errors=BODY_ERRORS + RUN_ERRORS,
)
MESSAGES = Operation(
    name="messages",
    summary="Answer a conversation (Anthropic)",
    paths=paths_of("messages", prefixes=ANTHROPIC_PREFIXES),
    scopes=_INFERENCE,
    parameters=(_TIMEOUT,),
    requests=(MessageRequest,),
    answer=MessageObject,
    has_stream=True,
    errors=BODY_ERRORS + RUN_ERRORS,
    is_anthropic=True,
)
COUNT_TOKENS = Operation(
    name="count_tokens",
    summary="Count the tokens of a conversation (Anthropic)",
    paths=paths_of("messages/count_tokens", prefixes=ANTHROPIC_PREFIXES),
    scopes=_INFERENCE,
    requests=(CountTokensRequest,),
    answer=TokenCount,
    errors=BODY_ERRORS,
    is_anthropic=True,
)
TOKENIZE = Operation(
    name="tokenize",
    summary="The tokens of a text or a conversation (vLLM)",
    paths=paths_of("tokenize", prefixes=("", *PREFIXES)),
    scopes=_INFERENCE,
    requests=(TokenizePromptRequest, TokenizeChatRequest),
    answer=TokenizeAnswer,
    errors=BODY_ERRORS,
)
DETOKENIZE = Operation(
    name="detokenize",
    summary="The text of tokens (vLLM)",
    paths=paths_of("detokenize", prefixes=("", *PREFIXES)),
    scopes=_INFERENCE,
    requests=(DetokenizeRequest,),
    answer=DetokenizeAnswer,
    errors=BODY_ERRORS,
)
EMBEDDINGS = Operation(
    name="embeddings",
    summary="Vectors of texts (OpenAI)",
    paths=paths_of("embeddings", prefixes=("/v1", "/v2/ai/openai")),
    scopes=_INFERENCE,
    parameters=(_TIMEOUT,),
    requests=(EmbeddingRequest,),
    answer=EmbeddingAnswer,
    errors=BODY_ERRORS + RUN_ERRORS,
)
EMBEDDING_MODELS = Operation(
    name="embedding_models",
    summary="The embedding models served here",
    method="GET",
    paths=paths_of("embeddings/models", prefixes=("/v1", "/v2/ai/openai")),
    scopes=_ANY_KEY,
    answer=EmbeddingModelList,
)
MODELS = Operation(
    name="models",
    summary="The models served here",
    method="GET",
    paths=paths_of("models"),
    scopes=_ANY_KEY,
    answer=ModelList,
)
ONE_MODEL = Operation(
    name="one_model",
    summary="One model; its id may contain slashes",
    method="GET",
    paths=paths_of("models/{model_id:path}"),
    scopes=_ANY_KEY,
    answer=ModelObject,
    errors=(404,),
)
HEALTH = Operation(
    name="health",
    summary="This process answers",
    method="GET",
    paths=("/health", "/-/healthz"),  # the second is where KubeRay looks
    scopes=_ANY_KEY,
    answer=Status,
    is_open=True,
)
READY = Operation(
    name="ready",
    summary="Every model has a replica",
    method="GET",
    paths=("/ready",),
    scopes=_ANY_KEY,
    answer=Status,
    errors=(503,),
    is_open=True,
)
METRICS = Operation(
    name="metrics",
    summary="Prometheus text",
    method="GET",
    paths=("/metrics",),
    scopes=_ANY_KEY,
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
    scopes=_BOTH,
    parameters=(_IDEMPOTENCY_KEY,),
    requests=(EmbedBucketRequest, EmbeddingRequest),
    answer=TaskAnswer,
    other_answer=EmbeddingAnswer,
    errors=BODY_ERRORS + RUN_ERRORS,
)
EMBEDDING_TASKS = Operation(
    name="embedding_tasks",
    summary="The tenant's embedding tasks by status, the newest first",
    method="GET",
    paths=(_EMBEDDINGS,),
    scopes=_BUCKETS,
    parameters=(_STATUS, *_PAGE),
    answer=TaskListAnswer,
    errors=(422, *_UNAVAILABLE),
)
EMBED_URL = Operation(
    name="embed_url",
    summary="Put the pages of a website into a bucket and embed them, in the background",
    paths=(f"{_EMBEDDINGS}/url",),
    scopes=_BUCKETS,
    parameters=(_IDEMPOTENCY_KEY,),
    requests=(EmbedURLRequest,),
    answer=TaskAnswer,
    errors=BODY_ERRORS + RUN_ERRORS,
)
SIMILARITY_SEARCH = Operation(
    name="similarity_search",
    summary="The passages of a bucket that are most similar to a text",
    paths=(f"{_EMBEDDINGS}/similarity-search",),
    scopes=_BUCKETS,
    requests=(SimilaritySearchRequest,),
    answer=SimilaritySearchAnswer,
    errors=BODY_ERRORS + RUN_ERRORS,
)
EMBEDDED_BUCKETS = Operation(
    name="embedded_buckets",
    summary="The names of the tenant's embedded buckets",
    method="GET",
    paths=(f"{_EMBEDDINGS}/buckets",),
    scopes=_BUCKETS,
    answer=BucketNamesAnswer,
    errors=_UNAVAILABLE,
)
EMBEDDED_BUCKET = Operation(
    name="embedded_bucket",
    summary="The files of an embedded bucket, and how the embedding of each went",
    method="GET",
    paths=(f"{_EMBEDDINGS}/buckets/{{bucket_name}}",),
    scopes=_BUCKETS,
    answer=BucketFilesAnswer,
    errors=_UNAVAILABLE,
)
DELETE_EMBEDDINGS = Operation(
    name="delete_embeddings",
    summary="Remove a bucket's embeddings; its objects stay",
    method="DELETE",
    paths=EMBEDDED_BUCKET.paths,
    scopes=_BUCKETS,
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
    scopes=_BUCKETS,
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
    scopes=_INFERENCE,
    requests=(IntegrationSecretRequest,),
    answer=IntegrationSecretAnswer,
    success=201,
    errors=(*BODY_ERRORS, 409, 500, 503),
    refused=SecretErrorsBody,
)
SECRETS = Operation(
    name="integration_secrets",
    summary="The tenant's integration secrets without their values, the newest first",
    method="GET",
    paths=(_SECRETS,),
    scopes=_INFERENCE,
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
    scopes=_INFERENCE,
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
    paths=paths_of("files"),
    scopes=_INFERENCE,
    requests=(FileUpload,),
    is_form=True,
    answer=FileObject,
    errors=(*BODY_ERRORS, 500, 503),
)
FILES = Operation(
    name="files",
    summary="The tenant's files",
    method="GET",
    paths=paths_of("files"),
    scopes=_INFERENCE,
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
    paths=paths_of("files/{file_id}/content"),
    scopes=_INFERENCE,
    answer=None,
    is_binary=True,
    errors=_UNAVAILABLE,
)
ONE_FILE = Operation(
    name="one_file",
    summary="What is known of a file",
    method="GET",
    paths=paths_of("files/{file_id}"),
    scopes=_INFERENCE,
    answer=FileObject,
    errors=_UNAVAILABLE,
)
DELETE_FILE = Operation(
    name="delete_file",
    summary="Delete a file",
    method="DELETE",
    paths=ONE_FILE.paths,
    scopes=_INFERENCE,
    answer=FileDeleted,
    errors=_UNAVAILABLE,
)
FILE_OPERATIONS = (UPLOAD_FILE, FILES, FILE_CONTENT, ONE_FILE, DELETE_FILE)

CREATE_BATCH = Operation(
    name="create_batch",
    summary="Run the requests of a file in the background, behind all others (OpenAI)",
    paths=paths_of("batches"),
    scopes=_INFERENCE,
    parameters=(_IDEMPOTENCY_KEY,),
    requests=(BatchRequest,),
    answer=BatchObject,
    errors=(*BODY_ERRORS, 500, 503),
)
BATCHES = Operation(
    name="batches",
    summary="The tenant's batches, the newest first",
    method="GET",
    paths=paths_of("batches"),
    scopes=_INFERENCE,
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
    paths=paths_of("batches/{batch_id}"),
    scopes=_INFERENCE,
    answer=BatchObject,
    errors=_UNAVAILABLE,
)
CANCEL_BATCH = Operation(
    name="cancel_batch",
    summary="Cancel a batch; what is done is kept",
    paths=paths_of("batches/{batch_id}/cancel"),
    scopes=_INFERENCE,
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
    *TENANT_OPERATIONS,
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
    CLUSTER,
    METRICS,
)
OPENAPI_PATH = "/openapi.json"
OPEN_PATHS = frozenset(
    path for operation in OPERATIONS if operation.is_open for path in operation.paths
) | {OPENAPI_PATH}
