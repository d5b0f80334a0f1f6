"""`/v2/ai/embeddings/buckets` and `…/similarity-search`: what is embedded, and what it says."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.audit import Act, audited
from cluster.bucket_tasks import BucketTasks
from cluster.chunk_store import ChunkStore
from cluster.errors import NotFoundError
from cluster.object_store import ObjectStore
from cluster.openai_schema.validation import parse_request
from cluster.retrieval import Retriever
from cluster.telnyx_schema.buckets import (
    BucketFilesAnswer,
    BucketNames,
    BucketNamesAnswer,
    EmbeddingsNotFoundError,
    FileObject,
    FoundDocument,
    SimilaritySearchAnswer,
    SimilaritySearchRequest,
)
from cluster.types import BucketRef
from deployments.ingress import operations
from deployments.ingress.embedding_routes import OpenAIEmbeddings
from deployments.ingress.embedding_task_routes import (
    EmbedBuckets,
    EmbedWebsites,
    ListTasks,
    OneTask,
    TaskMaker,
)
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.operation import Operation
from deployments.ingress.request_body import read_json
from deployments.ingress.responses import unless_client_leaves

BUCKETS_ROUTE = "/v2/ai/embeddings/buckets"
BUCKET_ROUTE = "/v2/ai/embeddings/buckets/{bucket_name}"
SEARCH_ROUTE = "/v2/ai/embeddings/similarity-search"


def bucket_endpoints(
    *,
    chunks: ChunkStore,
    tasks: BucketTasks,
    objects: ObjectStore,
    retriever: Retriever,
    openai_embeddings: OpenAIEmbeddings,
    embedding_models: Sequence[str],
    max_body_bytes: int,
) -> dict[Operation, ASGIApp]:
    """What serves the operations about buckets, where retrieval is on.

    `embedding_models`: the names of the configuration, the default one first.
    """
    maker = TaskMaker(tasks, objects, embedding_models=embedding_models)
    limit = max_body_bytes
    return {
        operations.EMBED_BUCKET: EmbedBuckets(maker, openai_embeddings, max_body_bytes=limit),
        operations.EMBEDDING_TASKS: ListTasks(tasks),
        operations.EMBED_URL: EmbedWebsites(maker, max_body_bytes=limit),
        operations.SIMILARITY_SEARCH: SimilaritySearch(retriever, objects, max_body_bytes=limit),
        operations.EMBEDDED_BUCKETS: EmbeddedBuckets(chunks),
        operations.EMBEDDED_BUCKET: EmbeddedBucket(chunks),
        operations.DELETE_EMBEDDINGS: DeleteEmbeddings(chunks, tasks),
        operations.EMBEDDING_TASK: OneTask(tasks),
    }


class SimilaritySearch:
    """The endpoint, an ASGI app. The best chunks by all the search knows, the nearest first."""

    def __init__(self, retriever: Retriever, objects: ObjectStore, *, max_body_bytes: int) -> None:
        self._retriever = retriever
        self._objects = objects
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].route = SEARCH_ROUTE
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(SimilaritySearchRequest, body)
        await unless_client_leaves(receive, self._answer(request, scope[SCOPE_KEY], send))

    async def _answer(
        self, request: SimilaritySearchRequest, exchange: Exchange, send: Send
    ) -> None:
        bucket = BucketRef(exchange.tenant, request.bucket_name)
        try:
            found = await self._retriever.search(
                [bucket], [request.query], max_results=request.max_results
            )
        except NotFoundError as error:
            raise NotFoundError(error.detail, param="bucket_name") from None
        found = sorted(found, key=lambda chunk: chunk.distance)
        documents = [
            FoundDocument.of(chunk, self._objects.url(bucket, chunk.filename)) for chunk in found
        ]
        answer = SimilaritySearchAnswer(data=documents)
        await send_json(send, answer.model_dump_json(exclude_none=True).encode())


class EmbeddedBuckets:
    """`GET …/buckets`, an ASGI app."""

    def __init__(self, chunks: ChunkStore) -> None:
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = BUCKETS_ROUTE
        names = await self._chunks.buckets(exchange.tenant)
        answer = BucketNamesAnswer(data=BucketNames(buckets=names))
        await send_json(send, answer.model_dump_json().encode())


class EmbeddedBucket:
    """`GET …/buckets/{bucket_name}`, an ASGI app: the status of each file."""

    def __init__(self, chunks: ChunkStore) -> None:
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].route = BUCKET_ROUTE
        bucket = _bucket(scope)
        files = await self._chunks.files(bucket)
        if not files and await self._chunks.meta(bucket) is None:
            raise NotFoundError(
                f"The bucket {bucket.name[:100]!r} has no embeddings.", param="bucket_name"
            )
        answer = BucketFilesAnswer(data=[FileObject.of(record) for record in files.values()])
        await send_json(send, answer.model_dump_json().encode())


class DeleteEmbeddings:
    """`DELETE …/buckets/{bucket_name}`, an ASGI app. The objects stay."""

    def __init__(self, chunks: ChunkStore, tasks: BucketTasks) -> None:
        self._chunks = chunks
        self._tasks = tasks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].route = BUCKET_ROUTE
        bucket = _bucket(scope)
        with audited(Act.EMBEDDINGS_DELETED, f"embeddings of bucket {bucket.name}"):
            # First the tasks: one that had read the bucket before would else make it again.
            num_cancelled = await self._tasks.cancel_all(bucket)
            if not await self._chunks.delete(bucket) and num_cancelled == 0:
                raise EmbeddingsNotFoundError(
                    f"The bucket {bucket.name[:100]!r} has no embeddings.", param="bucket_name"
                )
        await send({"type": "http.response.start", "status": 200, "headers": [_EMPTY]})
        await send({"type": "http.response.body", "body": b""})


_EMPTY = (b"content-length", b"0")


def _bucket(scope: Scope) -> BucketRef:
    exchange: Exchange = scope[SCOPE_KEY]
    return BucketRef(exchange.tenant, Request(scope).path_params["bucket_name"])
