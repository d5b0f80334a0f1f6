"""One request of a batch, answered in this process by the very endpoint that clients call.

There is no HTTP and no limit of requests between: whoever calls has checked the key. What runs is
at batch priority, and what it uses is counted with its batch.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
from starlette.types import ASGIApp, Message

from cluster.config import ShoalConfig
from cluster.log_context import log_tags
from cluster.retrieval import Embedder, Retriever
from cluster.telemetry import Telemetry
from cluster.tenants.limits import TenantLimits
from cluster.tenants.records import ApiKey
from cluster.types import PRIORITY_BATCH
from deployments.ingress.chat_generation import ChatGenerations
from deployments.ingress.chat_routes import ChatCompletions
from deployments.ingress.completion_routes import Completions
from deployments.ingress.embedding_routes import OpenAIEmbeddings
from deployments.ingress.errors import as_serving_error
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.grounding import Grounding
from deployments.ingress.metering import Meter
from deployments.ingress.prompts import PromptBuilder
from deployments.ingress.served_model import ModelDirectory, ServedModel

_HEADERS = [(b"content-type", b"application/json")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineAnswer:
    """What a client would have got."""

    status: int
    body: bytes  # JSON
    request_id: str  # "" when it has none
    retry_after_s: float | None = None


class LineCalls:
    """Answers lines. `endpoints` by the path that lines name."""

    def __init__(self, endpoints: Mapping[str, ASGIApp], prompts: PromptBuilder) -> None:
        self._endpoints = endpoints
        self._prompts = prompts

    def close(self) -> None:
        """Nothing may be called afterwards."""
        self._prompts.close()

    async def call(self, key: ApiKey, url: str, body: bytes, *, limits: TenantLimits) -> LineAnswer:
        """Never raises for what is wrong with the request, or with a model: that is the answer.
        Of the tenant's limits the one on models holds."""
        meter = Meter(tenant=key.tenant, key_id=key.key_id, limits=limits)
        exchange = Exchange(
            key=key,
            meter=meter,
            priority=PRIORITY_BATCH,
            request_id=log_tags().get("task_id", ""),  # of the batch, in whose name it comes
        )
        scope = {
            "type": "http",
            "method": "POST",
            "path": url,
            "query_string": b"",
            "headers": _HEADERS,
            SCOPE_KEY: exchange,
        }
        conversation = _Conversation(body)
        try:
            await self._endpoints[url](scope, conversation.receive, conversation.send)
        except Exception as error:  # as the ingress' ErrorBoundary: each becomes an answer
            answer = as_serving_error(error)
            return LineAnswer(
                status=answer.status,
                body=orjson.dumps(answer.body()),
                request_id=exchange.answer_id,
                retry_after_s=answer.retry_after_s,
            )
        return LineAnswer(
            status=conversation.status,
            body=bytes(conversation.answer),
            request_id=exchange.answer_id,
        )


def line_calls(
    config: ShoalConfig,
    models: Mapping[str, ServedModel],
    embedders: Mapping[str, Embedder],
    retriever: Retriever | None,
) -> LineCalls:
    """All that a batch's lines may call. `models` and `embedders`: as `build_asgi_app` has them."""
    directory = ModelDirectory(models, default_name=config.default_model_name)
    prompts, telemetry = PromptBuilder(), Telemetry()
    limit = config.http.max_body_bytes
    generations = ChatGenerations(
        directory, prompts, telemetry, Grounding(retriever, prompts, config.retrieval)
    )
    return LineCalls(
        {
            "/v1/chat/completions": ChatCompletions(generations, max_body_bytes=limit),
            "/v1/completions": Completions(directory, prompts, telemetry, max_body_bytes=limit),
            "/v1/embeddings": OpenAIEmbeddings(
                embedders, telemetry, chat_model_names=list(models), max_body_bytes=limit
            ),
        },
        prompts,
    )


@dataclass(slots=True)
class _Conversation:
    """A client that sends a whole body, waits, and keeps the answer."""

    body: bytes
    status: int = 0
    answer: bytearray = field(default_factory=bytearray)
    has_sent: bool = False

    async def receive(self) -> Message:
        if not self.has_sent:
            self.has_sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await asyncio.Event().wait()  # it does not leave; the endpoint ends the waiting
        raise AssertionError("nobody sets the event")

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.answer += message.get("body", b"")
