"""`/v2/ai/embeddings` and `…/url`: tasks that embed buckets, asked for, listed and looked at."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from cluster.bucket_tasks import BucketTasks, EmbedBucket, EmbedWebsite
from cluster.errors import FieldProblem, ValidationError
from cluster.object_store import ObjectStore
from cluster.openai_schema.validation import parse_request
from cluster.openai_schema.values import shown
from cluster.storage.errors import BucketNotFoundError
from cluster.task_queue.task import TaskRecord
from cluster.telnyx_schema.tasks import (
    STATUS_FILTERS,
    EmbedBucketRequest,
    EmbedURLRequest,
    PageMeta,
    TaskAnswer,
    TaskListAnswer,
    TaskObject,
)
from cluster.tenant_config import KeyScope
from cluster.types import BucketRef
from deployments.crawler.errors import CrawlError
from deployments.crawler.site_url import SiteURL
from deployments.ingress.embedding_routes import OpenAIEmbeddings, is_embeddings_request
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.query_parameters import read_choices, read_idempotency_key, read_page
from deployments.ingress.request_body import read_json

TASKS_ROUTE = "/v2/ai/embeddings"
TASK_ROUTE = "/v2/ai/embeddings/{task_id}"
URL_ROUTE = "/v2/ai/embeddings/url"


class TaskMaker:
    """From checked requests to tasks in the queue."""

    def __init__(
        self, tasks: BucketTasks, objects: ObjectStore, *, embedding_models: Sequence[str]
    ) -> None:
        """`embedding_models`: the names of the configuration, the default one first."""
        self._tasks = tasks
        self._objects = objects
        self._models = list(embedding_models)

    async def embed_bucket(self, tenant: str, request: EmbedBucketRequest, key: str) -> TaskRecord:
        """
        Raises:
            ValidationError: there is no such model; or the idempotency key was used before.
            BucketNotFoundError: there is no such bucket.
            ServiceUnavailableError: Redis or the object store does not answer.
        """
        body = EmbedBucket(
            bucket_name=request.bucket_name,
            embedding_model=self._model(request.embedding_model),
            chunk_size=request.chunk_size,
            chunk_overlap=request.chunk_overlap,
            loader=request.loader or "default",
        )
        return await self._request(tenant, body, key)

    async def embed_website(self, tenant: str, request: EmbedURLRequest, key: str) -> TaskRecord:
        """
        Raises:
            ValidationError: it is no address of a website; or the idempotency key was used before.
            BucketNotFoundError: there is no such bucket.
            ServiceUnavailableError: Redis or the object store does not answer.
        """
        _check_url(request.url)
        defaults = EmbedBucketRequest(bucket_name=request.bucket_name)
        body = EmbedWebsite(
            url=request.url,
            bucket_name=request.bucket_name,
            embedding_model=self._model(None),
            chunk_size=defaults.chunk_size,
            chunk_overlap=defaults.chunk_overlap,
            loader="default",
        )
        return await self._request(tenant, body, key)

    async def _request(self, tenant: str, body: EmbedBucket, key: str) -> TaskRecord:
        bucket = BucketRef(tenant, body.bucket_name)
        if not await self._objects.bucket_exists(bucket):
            raise BucketNotFoundError.of(bucket)
        return await self._tasks.request(tenant, body, idempotency_key=key)

    def _model(self, name: str | None) -> str:
        if name is None:
            return self._models[0]
        if name in self._models:
            return name
        message = f"must be one of {', '.join(self._models)}; given {shown(name)}"
        raise ValidationError([FieldProblem(loc=("embedding_model",), message=message)])


class EmbedBuckets:
    """`POST /v2/ai/embeddings`, an ASGI app. A body with `input` is OpenAI's, and not for us."""

    def __init__(
        self, maker: TaskMaker, openai_embeddings: OpenAIEmbeddings, *, max_body_bytes: int
    ) -> None:
        self._maker = maker
        self._openai_embeddings = openai_embeddings
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = TASKS_ROUTE
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        if is_embeddings_request(body):
            exchange.require(KeyScope.INFERENCE)
            await self._openai_embeddings.answer(body, scope, receive, send)
            return
        exchange.require(KeyScope.BUCKETS)
        request = parse_request(EmbedBucketRequest, body)
        key = read_idempotency_key(scope)
        await _send_task(send, await self._maker.embed_bucket(exchange.tenant, request, key))


class EmbedWebsites:
    """`POST /v2/ai/embeddings/url`, an ASGI app."""

    def __init__(self, maker: TaskMaker, *, max_body_bytes: int) -> None:
        self._maker = maker
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = URL_ROUTE
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(EmbedURLRequest, body)
        key = read_idempotency_key(scope)
        await _send_task(send, await self._maker.embed_website(exchange.tenant, request, key))


class ListTasks:
    """`GET /v2/ai/embeddings`, an ASGI app."""

    def __init__(self, tasks: BucketTasks) -> None:
        self._tasks = tasks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = TASKS_ROUTE
        unfinished = ("queued", "processing")
        statuses = read_choices(scope, "status", STATUS_FILTERS, default=unfinished)
        page = read_page(scope)
        found = await self._tasks.find(
            exchange.tenant, statuses, offset=page.offset, limit=page.size
        )
        answer = TaskListAnswer(
            data=[TaskObject.of(record) for record in found.records],
            meta=PageMeta.of(number=page.number, size=page.size, num_total=found.num_total),
        )
        await send_json(send, answer.model_dump_json().encode())


class OneTask:
    """`GET /v2/ai/embeddings/{task_id}`, an ASGI app."""

    def __init__(self, tasks: BucketTasks) -> None:
        self._tasks = tasks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = TASK_ROUTE
        task_id = str(Request(scope).path_params["task_id"])  # the route takes UUIDs only
        await _send_task(send, await self._tasks.get(exchange.tenant, task_id))


async def _send_task(send: Send, record: TaskRecord) -> None:
    await send_json(send, TaskAnswer(data=TaskObject.of(record)).model_dump_json().encode())


def _check_url(url: str) -> None:
    """
    Raises:
        ValidationError: it is none that can be crawled; says why.
    """
    try:
        SiteURL.parse(url)
    except CrawlError as error:
        raise ValidationError([FieldProblem(loc=("url",), message=str(error))]) from error
