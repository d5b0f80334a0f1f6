"""The ingress's ASGI app: authentication around routes around endpoints, and one error boundary.

Everything here runs in one process without torch; models are reached through their pools.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import orjson
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.anthropic_schema.message import error_body, status_of
from cluster.config import ShoalConfig
from cluster.errors import AuthenticationError, BodyTooLargeError, PoolReplacedError
from cluster.integration_secrets import IntegrationSecrets
from cluster.log_context import add_log_tags, tagged
from cluster.object_store import S3_FACE_PATH
from cluster.storage.folder_store import FolderStore
from cluster.telemetry import Telemetry
from cluster.tenant_config import KeyScope
from cluster.tenants.key_directory import KeyDirectory
from cluster.tenants.records import ApiKey
from cluster.tenants.storage_quota import StorageQuota
from deployments.ingress import operations
from deployments.ingress.access_log import log_request, request_id_of
from deployments.ingress.batch_routes import batch_endpoints
from deployments.ingress.bucket_routes import bucket_endpoints
from deployments.ingress.chat_generation import ChatGenerations
from deployments.ingress.chat_routes import ChatCompletions
from deployments.ingress.cluster_operations import CLUSTER
from deployments.ingress.cluster_routes import Cluster, ReadCluster
from deployments.ingress.completion_routes import Completions
from deployments.ingress.deadline import Deadline
from deployments.ingress.embedding_routes import EmbeddingModels, OpenAIEmbeddings
from deployments.ingress.errors import (
    STATUS_CLIENT_LEFT,
    ClientLeftError,
    as_serving_error,
    error_headers,
    send_json,
)
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.file_routes import file_endpoints
from deployments.ingress.grounding import Grounding
from deployments.ingress.integration_secret_routes import secret_endpoints
from deployments.ingress.message_routes import CountTokens, Messages, speaks_anthropic
from deployments.ingress.metering import Metering
from deployments.ingress.openapi import OpenAPIDocument
from deployments.ingress.operation import Operation
from deployments.ingress.plain_routes import (
    Health,
    Metrics,
    Models,
    NoRedis,
    OneModel,
    Ready,
    RetrievalIsOff,
)
from deployments.ingress.prompts import PromptBuilder
from deployments.ingress.providers.external_chat import ExternalChat
from deployments.ingress.providers.providers import Providers
from deployments.ingress.replay import Replay, replay_of
from deployments.ingress.request_body import linger
from deployments.ingress.response_routes import Responses
from deployments.ingress.s3.face import S3Face
from deployments.ingress.served_model import ModelDirectory, ServedModel
from deployments.ingress.services import (
    BatchServices,
    RetrievalServices,
    TenantServices,
    storage_quota,
)
from deployments.ingress.tenant_routes import tenant_endpoints
from deployments.ingress.tokenize_routes import Detokenize, Tokenize
from deployments.ingress.usage_routes import usage_endpoints


def build_asgi_app(  # noqa: PLR0913 - all that it serves, part by part
    config: ShoalConfig,
    models: Mapping[str, ServedModel],
    tenants: TenantServices,
    telemetry: Telemetry,
    *,
    retrieval: RetrievalServices | None = None,
    secrets: IntegrationSecrets | None = None,
    batches: BatchServices | None = None,
    read_cluster: ReadCluster | None = None,
) -> ASGIApp:
    """The whole HTTP side. `models` has every model of the configuration, by name; `retrieval` is
    None where the configuration has no embedders, `secrets` where there is no Redis,
    `read_cluster` where there is no cluster.

    Raises:
        ValueError: a file of a provider cannot be used.
    """
    directory = ModelDirectory(
        models, default_name=config.default_model_name, providers=config.providers
    )
    prompts = PromptBuilder()
    for model in models.values():
        telemetry.model(model.name)  # present from the first scrape on
        telemetry.watch_replicas(model.name, model.pool.stats)
    retriever = None if retrieval is None else retrieval.retriever
    grounding = Grounding(retriever, prompts, config.retrieval)
    generations = ChatGenerations(directory, prompts, telemetry, grounding)
    providers = Providers(config.providers, is_served=directory.has)
    external = ExternalChat(providers, secrets, grounding, telemetry)
    limit = config.http.max_body_bytes
    quota = storage_quota(tenants, retrieval, batches)
    endpoints: dict[Operation, ASGIApp] = {
        **_endpoints(directory, prompts, telemetry, generations, limit=limit),
        **_retrieval_endpoints(retrieval, directory, telemetry, limit=limit),
        **secret_endpoints(secrets, max_body_bytes=limit),
        operations.CHAT: ChatCompletions(generations, max_body_bytes=limit, external=external),
        operations.MODELS: Models(directory, external=providers.cards),
        operations.ONE_MODEL: OneModel(directory, external=providers.cards),
        **_batch_endpoints(batches, config, quota),
        **tenant_endpoints(tenants, max_body_bytes=limit),
        **usage_endpoints(tenants.usage),
        CLUSTER: Cluster(directory, read_cluster),
    }
    routes = routes_of(endpoints)
    document = OpenAPIDocument(is_key_required=tenants.keys.required)
    routes.append(Route(operations.OPENAPI_PATH, document, methods=["GET"]))

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        try:
            async with tenants.metering.following():
                yield
        finally:
            prompts.close()
            await providers.close()

    router = Router(routes, redirect_slashes=False, lifespan=lifespan)
    app: ASGIApp = Authentication(router, tenants.keys, tenants.metering)
    telemetry.watch_unlimited(lambda: tenants.metering.num_unlimited)
    if retrieval is not None and isinstance(retrieval.objects, FolderStore):
        app = StorageFront(
            app,
            S3Face(
                retrieval.objects,
                tenants.keys,
                on_change=retrieval.tasks.request_sync,
                max_object_bytes=config.storage.max_upload_bytes,
                quota=quota,
            ),
        )
    return ErrorBoundary(app, telemetry)


def routes_of(endpoints: Mapping[Operation, ASGIApp]) -> list[Route]:
    """A route for each path, in the order of the operations; its methods may differ in what serves
    them."""
    by_path: dict[str, dict[str, ASGIApp]] = {}
    for operation in operations.OPERATIONS:
        for path in operation.paths:
            app = WithScope(endpoints[operation], operation.scopes)
            by_path.setdefault(path, {})[operation.method] = app
    return [Route(path, ByMethod(apps), methods=list(apps)) for path, apps in by_path.items()]


class ByMethod:
    """Sends a request on by its method; HEAD goes where GET does."""

    def __init__(self, apps: Mapping[str, ASGIApp]) -> None:
        self._apps = dict(apps)
        if "GET" in apps:
            self._apps["HEAD"] = apps["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._apps[scope["method"]](scope, receive, send)


class WithScope:
    """Lets a request through whose key has one of the scopes."""

    def __init__(self, app: ASGIApp, scopes: tuple[KeyScope, ...]) -> None:
        self._app = app
        self._scopes = scopes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].require(*self._scopes)
        await self._app(scope, receive, send)


def _endpoints(
    directory: ModelDirectory,
    prompts: PromptBuilder,
    telemetry: Telemetry,
    generations: ChatGenerations,
    *,
    limit: int,
) -> dict[Operation, ASGIApp]:
    """What serves each operation. `limit`: the largest body, in bytes."""
    return {
        operations.COMPLETIONS: Completions(directory, prompts, telemetry, max_body_bytes=limit),
        operations.RESPONSES: Responses(generations, max_body_bytes=limit),
        operations.MESSAGES: Messages(generations, max_body_bytes=limit),
        operations.COUNT_TOKENS: CountTokens(generations, max_body_bytes=limit),
        operations.TOKENIZE: Tokenize(generations, prompts, max_body_bytes=limit),
        operations.DETOKENIZE: Detokenize(generations, prompts, max_body_bytes=limit),
        operations.HEALTH: Health(),
        operations.READY: Ready(directory),
        operations.METRICS: Metrics(telemetry),
    }


def _batch_endpoints(
    batches: BatchServices | None, config: ShoalConfig, quota: StorageQuota
) -> dict[Operation, ASGIApp]:
    """What serves files and batches."""
    if batches is None:
        both = (*operations.FILE_OPERATIONS, *operations.BATCH_OPERATIONS)
        return dict.fromkeys(both, NoRedis())
    return {
        **file_endpoints(batches.files, batch_retention_s=config.batches.retention_s, quota=quota),
        **batch_endpoints(batches.tasks, max_body_bytes=config.http.max_body_bytes),
    }


def _retrieval_endpoints(
    retrieval: RetrievalServices | None,
    directory: ModelDirectory,
    telemetry: Telemetry,
    *,
    limit: int,
) -> dict[Operation, ASGIApp]:
    """What serves embeddings and the operations about buckets."""
    embedders = {} if retrieval is None else retrieval.embedders
    embeddings = OpenAIEmbeddings(
        embedders,
        telemetry,
        chat_model_names=[model.name for model in directory.all()],
        max_body_bytes=limit,
    )
    endpoints: dict[Operation, ASGIApp] = {
        operations.EMBEDDINGS: embeddings,
        operations.EMBEDDING_MODELS: EmbeddingModels(embedders),
    }
    if retrieval is None:
        return endpoints | dict.fromkeys(operations.BUCKET_OPERATIONS, RetrievalIsOff())
    return endpoints | bucket_endpoints(
        chunks=retrieval.chunks,
        tasks=retrieval.tasks,
        objects=retrieval.objects,
        retriever=retrieval.retriever,
        openai_embeddings=embeddings,
        embedding_models=list(embedders),
        max_body_bytes=limit,
    )


class StorageFront:
    """Sends what is for the S3 face there, which has its own keys, errors and bodies."""

    def __init__(self, app: ASGIApp, s3_face: S3Face) -> None:
        self._app = app
        self._s3_face = s3_face

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and (path + "/").startswith(S3_FACE_PATH + "/"):
            scope[SCOPE_KEY].route = S3_FACE_PATH
            await self._s3_face(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Authentication:
    """Lets a request through that carries one of the keys, or needs none."""

    def __init__(self, app: ASGIApp, keys: KeyDirectory, metering: Metering | None = None) -> None:
        """`metering`: None: what requests use is not measured."""
        self._app = app
        self._keys = keys
        self._metering = metering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] != "http" or scope["path"] in operations.OPEN_PATHS
        if not is_open and scope["method"] != "OPTIONS":
            exchange: Exchange = scope[SCOPE_KEY]
            key = await self._key(scope)
            exchange.key = key
            add_log_tags(tenant=key.tenant, key_id=key.key_id)
            if self._metering is not None:
                exchange.meter = self._metering.meter(key)
        await self._app(scope, receive, send)

    async def _key(self, scope: Scope) -> ApiKey:
        presented = _presented_keys(scope)
        if self._keys.required and not presented:
            raise AuthenticationError("No API key was given; send `Authorization: Bearer KEY`.")
        for text in presented:
            key = await self._keys.find(text)
            if key is not None:
                return key
        if self._keys.required:
            raise AuthenticationError("The API key is not valid.", openai_code="invalid_api_key")
        return self._keys.nobody()


def _presented_keys(scope: Scope) -> list[str]:
    """The bearer token ("" for another scheme) and, on Anthropic's paths, the `x-api-key`."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    keys = []
    if authorization := headers.get(b"authorization"):
        scheme, _, key = authorization.partition(" ")
        keys.append(key.strip() if scheme.lower() == "bearer" else "")
    if scope[SCOPE_KEY].is_anthropic and (key := headers.get(b"x-api-key")):
        keys.append(key.strip())
    return keys


class ErrorBoundary:
    """Answers for every exception below it; names, counts and logs every request."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(
            request_id=request_id_of(scope), is_anthropic=speaks_anthropic(scope["path"])
        )
        if (replay := replay_of(scope)) is not None:
            exchange.started_s = replay.started_s
        scope[SCOPE_KEY] = exchange
        scope["app"] = self  # makes the router raise its 404 and 405, for us to shape
        with tagged(request_id=exchange.request_id):
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        replay = replay_of(scope)
        status = 0
        moves_on = False

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                if replay is not None:
                    replay.forget()
                status = message["status"]
                headers = [*message.get("headers", ()), exchange.request_id_header]
                message = {**message, "headers": headers}
            await send(message)

        try:
            exchange.deadline = _deadline(scope, replay)
            await self._app(scope, receive, watched_send)
        except ClientLeftError:
            status = STATUS_CLIENT_LEFT
        except Exception as error:
            if status:
                raise  # half an answer is out: only closing the connection is left
            if isinstance(error, PoolReplacedError) and replay is not None and replay.is_possible:
                moves_on = True
                raise
            await _send_error(error, exchange, receive, watched_send)
        finally:
            if not moves_on:
                self._note(scope, exchange, status=status or STATUS_CLIENT_LEFT)

    def _note(self, scope: Scope, exchange: Exchange, *, status: int) -> None:
        self._telemetry.count_request(
            model=exchange.model,
            route=exchange.route,
            status=status,
            finish_reason=exchange.finish_reason,
        )
        log_request(scope, exchange, status=status)


def _deadline(scope: Scope, replay: Replay | None) -> Deadline | None:
    """See `Deadline.of`; the time of a request that begins again goes on.

    Raises:
        DeadlineExceededError: and is over.
    """
    if replay is None:
        return Deadline.of(scope)
    if replay.deadline is None:
        replay.deadline = Deadline.of(scope)
    else:
        replay.deadline.check()
    return replay.deadline


async def _send_error(error: Exception, exchange: Exchange, receive: Receive, send: Send) -> None:
    answer = as_serving_error(error)
    headers = [*error_headers(error, answer), *exchange.headers]
    status, body = answer.status, orjson.dumps(answer.body())
    if exchange.is_anthropic:
        status = status_of(answer)
        body = error_body(answer, exchange.request_id).model_dump_json().encode()
    if not isinstance(answer, BodyTooLargeError):
        await send_json(send, body, status=status, headers=headers)
        return
    headers.append((b"connection", b"close"))
    await send_json(send, body, status=status, headers=headers, is_complete=False)
    await linger(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
