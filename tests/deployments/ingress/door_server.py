"""An ingress with integration secrets and external providers, and what a test needs of it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from starlette.routing import Route, Router
from starlette.types import ASGIApp
from telnyx import AsyncTelnyx

from cluster.api_keys import hash_key
from cluster.config import ShoalConfig, parse_config
from cluster.integration_secrets import IntegrationSecrets
from cluster.provider_config import ProviderConfig
from cluster.redis_client import RedisClient
from cluster.retrieval import Retriever
from cluster.secret_box import SecretBox
from cluster.secret_keys import SecretKeys, ensure_keys_file
from cluster.telemetry import Telemetry
from deployments.ingress import operations
from deployments.ingress.app import Authentication, ErrorBoundary
from deployments.ingress.chat_generation import ChatGenerations
from deployments.ingress.chat_routes import ChatCompletions
from deployments.ingress.grounding import Grounding
from deployments.ingress.integration_secret_routes import secret_endpoints
from deployments.ingress.operation import Operation
from deployments.ingress.plain_routes import Metrics
from deployments.ingress.prompts import PromptBuilder
from deployments.ingress.providers.external_chat import ExternalChat
from deployments.ingress.providers.providers import Providers
from deployments.ingress.served_model import ModelDirectory, load_served_model
from deployments.ingress.services import TenantServices
from tests.deployments.ingress.scripted_server import (
    KEY,
    MODEL,
    ScriptedPool,
    deltas,
    listening,
)

OTHER_KEY = "shoal-other-key"  # of the tenant "other"


@dataclass
class DoorServer:
    port: int
    pool: ScriptedPool
    telemetry: Telemetry
    secrets: IntegrationSecrets

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def telnyx(self, key: str = KEY) -> AsyncTelnyx:
        return AsyncTelnyx(api_key=key, base_url=f"{self.url}/v2", max_retries=0, timeout=120)

    def openai(self, path: str = "/v2/ai", key: str = KEY) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url + path, api_key=key, max_retries=0, timeout=120)

    def http(self, key: str | None = KEY) -> httpx.AsyncClient:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=120, trust_env=False)

    async def chat(self, **body: Any) -> httpx.Response:
        """A whole answer."""
        messages = [{"role": "user", "content": "hi"}]
        async with self.http() as client:
            return await client.post("/v1/chat/completions", json={"messages": messages, **body})


def door_configuration(**more: Any) -> ShoalConfig:
    keys = [
        {"name": "test", "sha256": hash_key(KEY)},
        {"name": "other", "sha256": hash_key(OTHER_KEY), "tenant": "other"},
    ]
    models = [{"name": MODEL, "source": "unused"}]
    return parse_config({"models": models, "auth": {"api_keys": keys}, **more})


@asynccontextmanager
async def serving_doors(
    checkpoint: Path,
    home: Path,
    redis: RedisClient,
    providers: Sequence[ProviderConfig],
    *,
    retriever: Retriever | None = None,
) -> AsyncIterator[DoorServer]:
    config = door_configuration()
    pool = ScriptedPool(lambda request: iter(deltas(request, [])))
    model = load_served_model(config.models[0], checkpoint, pool, max_model_len=256)
    telemetry, prompts, keys = Telemetry(), PromptBuilder(), TenantServices.of(config).keys
    grounding = Grounding(retriever, prompts, config.retrieval)
    directory = ModelDirectory({model.name: model}, default_name=model.name)
    generations = ChatGenerations(directory, prompts, telemetry, grounding)
    ensure_keys_file(home)
    secrets = IntegrationSecrets(redis, SecretBox(SecretKeys.load(home)))
    external = ExternalChat(
        Providers(providers, is_served=model.name.__eq__), secrets, grounding, telemetry
    )
    limit = config.http.max_body_bytes
    endpoints: dict[Operation, ASGIApp] = {
        operations.CHAT: ChatCompletions(generations, max_body_bytes=limit, external=external),
        operations.METRICS: Metrics(telemetry),
        **secret_endpoints(secrets, max_body_bytes=limit),
    }
    routes = [
        Route(path, endpoint, methods=[operation.method])
        for operation, endpoint in endpoints.items()
        for path in operation.paths
    ]
    app = ErrorBoundary(Authentication(Router(routes, redirect_slashes=False), keys), telemetry)
    try:
        async with listening(app) as port:
            yield DoorServer(port, pool, telemetry, secrets)
    finally:
        await external.close()
        prompts.close()
