"""The embeddings endpoints on a free port, over a real embedder: tiny random weights, no Ray."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from openai import AsyncOpenAI
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from cluster.config import EmbedderConfig
from cluster.errors import ServingError, ValidationError
from cluster.retrieval import EmbedderFacts, Embeddings, InputKind
from cluster.telemetry import Telemetry
from deployments.ingress.app import ErrorBoundary
from deployments.ingress.embedding_routes import (
    EmbeddingModels,
    OpenAIEmbeddings,
    is_embeddings_request,
)
from deployments.ingress.request_body import read_json
from deployments.local_embedder import LocalEmbedder
from models.embedding.text_embedder import TextEmbedder
from tests.deployments.ingress.scripted_server import KEY, listening

MODEL = "test/embed"
CHAT_MODEL = "test/chat"
WIDTH = 32


@dataclass
class WatchedEmbedder:
    """Remembers what it was asked for, and may be told to fail."""

    embedder: LocalEmbedder
    calls: list[tuple[list[str] | list[list[int]], InputKind]] = field(default_factory=list)
    error: ServingError | None = None
    is_called: asyncio.Event = field(default_factory=asyncio.Event)

    async def facts(self) -> EmbedderFacts:
        return await self.embedder.facts()

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], *, kind: InputKind
    ) -> Embeddings:
        self.calls.append((list(inputs), kind))  # type: ignore[arg-type]  # one or the other
        self.is_called.set()
        if self.error is not None:
            raise self.error
        return await self.embedder.embed(inputs, kind=kind)


@dataclass
class EmbeddingServer:
    port: int
    model: TextEmbedder
    embedder: WatchedEmbedder
    telemetry: Telemetry

    def openai(self, path: str = "/v1") -> AsyncOpenAI:
        url = f"http://127.0.0.1:{self.port}{path}"
        return AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=120)

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=120)


class BucketsOrEmbeddings:
    """`POST /v2/ai/embeddings`, where one path has two meanings."""

    def __init__(self, embeddings: OpenAIEmbeddings) -> None:
        self._embeddings = embeddings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(scope, receive, max_body_bytes=2**20)
        if not is_embeddings_request(body):
            raise ValidationError.of("bucket_name", "this would embed a bucket")
        await self._embeddings.answer(body, scope, receive, send)


@asynccontextmanager
async def serving_embeddings(folder: Path) -> AsyncIterator[EmbeddingServer]:
    config = EmbedderConfig(
        name=MODEL, source=str(folder), dtype="float32", device="cpu", query_prefix="query: "
    )
    model = TextEmbedder(config, folder)
    local = LocalEmbedder(config, model)
    local.start()
    embedder = WatchedEmbedder(local)
    telemetry = Telemetry()
    embeddings = OpenAIEmbeddings(
        {MODEL: embedder}, telemetry, chat_model_names={CHAT_MODEL}, max_body_bytes=16 * 2**20
    )
    models = EmbeddingModels([MODEL])
    routes = [Route("/v2/ai/embeddings", BucketsOrEmbeddings(embeddings), methods=["POST"])]
    for prefix in ("/v1", "/v2/ai/openai"):
        routes += [
            Route(f"{prefix}/embeddings", embeddings, methods=["POST"]),
            Route(f"{prefix}/embeddings/models", models, methods=["GET"]),
        ]
    app = ErrorBoundary(Router(routes), telemetry)
    try:
        async with listening(app) as port:
            yield EmbeddingServer(port, model, embedder, telemetry)
    finally:
        await local.stop()
