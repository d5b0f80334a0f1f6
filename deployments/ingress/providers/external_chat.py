"""A chat request for a model that is not served here: from the checked request to its answer."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from starlette.types import Send

from cluster.errors import BadRequestError
from cluster.integration_secrets import IntegrationSecrets, SecretValue
from cluster.openai_schema.chat import ChatCompletionRequest, RetrievalSources, RetrievedChunk
from cluster.telemetry import ModelMetrics, Telemetry
from cluster.tenant_config import KeyScope
from cluster.tenants.usage import UsageCounts
from cluster.types import FoundChunk
from deployments.ingress.answer import error_event, new_id
from deployments.ingress.deadline import bounded, until
from deployments.ingress.errors import as_serving_error, send_json
from deployments.ingress.exchange import Exchange
from deployments.ingress.grounding import Grounding
from deployments.ingress.metering import reserved_tokens, tokens_in
from deployments.ingress.providers.external_grounding import context_text, fitting_chunks
from deployments.ingress.providers.provider_answer import ProviderAnswer
from deployments.ingress.providers.provider_errors import API_KEY_REF, ProviderWords
from deployments.ingress.providers.providers import ExternalModel, Providers
from deployments.ingress.providers.request_translation import (
    add_context,
    encoded,
    provider_body,
    without_media,
)
from deployments.ingress.responses import KEEP_ALIVE, KEEP_ALIVE_S, START_AFTER_S, STREAM_HEADERS
from deployments.ingress.served_model import unknown_model

MAX_REF_CHARS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One request to a provider, ready to be sent."""

    model: ExternalModel
    body: bytes
    secret: SecretValue | None
    answer: ProviderAnswer
    metrics: ModelMetrics
    exchange: Exchange


class ExternalChat:
    """Asks providers with the tenant's own keys."""

    def __init__(
        self,
        providers: Providers,
        secrets: IntegrationSecrets | None,
        grounding: Grounding,
        telemetry: Telemetry,
    ) -> None:
        """`secrets`: None where nothing can keep them."""
        self._providers = providers
        self._secrets = secrets
        self._grounding = grounding
        self._telemetry = telemetry

    def find(self, name: str | None) -> ExternalModel | None:
        """See `Providers.find`."""
        return self._providers.find(name)

    async def close(self) -> None:
        await self._providers.close()

    async def answer(
        self, request: ChatCompletionRequest, model: ExternalModel, send: Send, exchange: Exchange
    ) -> None:
        """
        Raises:
            ServingError: before the answer starts; afterwards a stream ends with an error event.
        """
        if not exchange.meter.limits.allows_model(model.name):
            allowed = exchange.meter.limits.models or ()
            raise unknown_model(model.name, allowed)
        exchange.model = model.label
        exchange.answer_id = new_id("chatcmpl")
        body = provider_body(request, model.config, model_name=model.name)
        secret = await self._secret(request, model, exchange.tenant)
        chunks = await self._retrieved(request, model, exchange)
        if chunks:
            add_context(body["messages"], context_text(model, chunks))
        words = ProviderWords(model.config.name, secret)
        sources = RetrievalSources(chunks=[RetrievedChunk.of(one) for one in chunks])
        call = _Call(
            model=model,
            body=encoded(body),
            secret=secret,
            answer=ProviderAnswer(
                request, exchange, words, sources=sources if request.returns_chunks else None
            ),
            metrics=self._telemetry.model(model.label),
            exchange=exchange,
        )
        estimate = reserved_tokens(
            tokens_in(len(call.body)), request.token_limit, num_choices=request.num_choices
        )
        async with exchange.meter.running(
            model=model.label, num_tokens=estimate, used=lambda: _used(call)
        ):
            try:
                if request.stream:
                    await _send_stream(call, send)
                else:
                    await bounded(exchange.deadline, _send_whole(call, send))
            finally:
                _count(call)

    async def _secret(
        self, request: ChatCompletionRequest, model: ExternalModel, tenant: str
    ) -> SecretValue | None:
        """None: the provider needs none.

        Raises:
            BadRequestError: there is none that the request may use. Its name is not repeated: it
                may be a key in the wrong place.
        """
        if model.config.auth == "none":
            return None
        reference = request.api_key_ref
        if not reference:
            raise BadRequestError(
                f"Models of {model.config.name} need api_key_ref: the identifier of an integration"
                " secret with a key for them.",
                param=API_KEY_REF,
            )
        secret = None
        if self._secrets is not None and len(reference) <= MAX_REF_CHARS:
            secret = await self._secrets.value(tenant, reference)
        if secret is None:
            raise BadRequestError(
                "There is no integration secret with this identifier; POST"
                " /v2/integration_secrets makes one.",
                param=API_KEY_REF,
            )
        return secret

    async def _retrieved(
        self, request: ChatCompletionRequest, model: ExternalModel, exchange: Exchange
    ) -> tuple[FoundChunk, ...]:
        if not request.retrieval_tools:
            return ()
        exchange.require(KeyScope.BUCKETS)
        started_s = time.perf_counter()
        searching = self._grounding.search(without_media(request), exchange.tenant)
        found = await bounded(exchange.deadline, searching)
        elapsed_s = time.perf_counter() - started_s
        self._telemetry.model(model.label).retrieval.observe(elapsed_s)
        return fitting_chunks(found, max_chars=model.config.retrieval_chars)


async def _send_whole(call: _Call, send: Send) -> None:
    body = bytearray()
    async with call.model.client.answer(call.body, call.secret, is_stream=False) as incoming:
        async for chunk in incoming.chunks:
            body += chunk
        written = call.answer.whole(bytes(body))
    await send_json(send, written, headers=call.exchange.headers)


async def _send_stream(call: _Call, send: Send) -> None:
    """As `responses.send_stream`: the first event is awaited, but not for ever."""
    deadline = call.exchange.deadline
    async with (
        aclosing(_events(call)) as all_events,
        aclosing(until(deadline, all_events)) as events,
    ):
        first = asyncio.ensure_future(anext(events))
        try:
            await asyncio.wait({first}, timeout=START_AFTER_S)
            if first.done():
                first.result()  # an error that still has its status
            headers = [*STREAM_HEADERS, *call.exchange.headers]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while not first.done():
                await _send_data(send, KEEP_ALIVE)
                await asyncio.wait({first}, timeout=KEEP_ALIVE_S)
            async with aclosing(_with_failure(call, first, events)) as rest:
                async for data in rest:
                    await _send_data(send, data)
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _with_failure(
    call: _Call, first: asyncio.Future[bytes], events: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    """The events; an error becomes the last of them."""
    try:
        yield await first
        async for data in events:
            yield data
    except Exception as error:
        problem = as_serving_error(error)
        call.exchange.note_failure(problem)
        yield error_event(problem)


async def _events(call: _Call) -> AsyncGenerator[bytes, None]:
    """What goes to the client, an item per chunk of the provider's that has something for it."""
    has_begun = False
    async with call.model.client.answer(call.body, call.secret, is_stream=True) as incoming:
        async for chunk in incoming.chunks:
            data = call.answer.feed(chunk)
            if data:
                if not has_begun:
                    has_begun = True
                    incoming.note_begun()
                    elapsed_s = time.perf_counter() - call.exchange.started_s
                    call.metrics.time_to_first_token.observe(elapsed_s)
                yield data
            if call.answer.is_finished:
                return  # whether or not the provider ever closes
        if data := call.answer.end():
            yield data


async def _send_data(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _used(call: _Call) -> UsageCounts:
    """As the provider says; it says nothing of an answer that is cut."""
    prompt_tokens, completion_tokens = call.answer.num_tokens
    return UsageCounts(
        num_requests=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
    )


def _count(call: _Call) -> None:
    prompt_tokens, completion_tokens = call.answer.num_tokens
    call.metrics.prompt_tokens += prompt_tokens
    call.metrics.generation_tokens += completion_tokens
    call.metrics.e2e_request_latency.observe(time.perf_counter() - call.exchange.started_s)
