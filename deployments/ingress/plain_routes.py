"""The GET routes: models, health, readiness, metrics."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.errors import NotFoundError, ServiceUnavailableError
from cluster.openai_schema.models import ModelList, ModelObject
from cluster.telemetry import CONTENT_TYPE, Telemetry
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.served_model import ModelDirectory


class Models:
    """`GET …/models`: those served here, their adapters, and those of providers that the
    configuration names; of all those that the tenant may use."""

    def __init__(self, models: ModelDirectory, *, external: Sequence[ModelObject] = ()) -> None:
        self._models = models
        self._external = external

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = "/v1/models"
        limits = exchange.meter.limits
        served = (*self._models.all(), *self._models.adapters())
        cards = [*(model.card for model in served), *self._external]
        answer = ModelList(data=[card for card in cards if limits.allows_model(card.id)])
        await _json(answer.model_dump_json().encode())(scope, receive, send)


class OneModel:
    """`GET …/models/{model_id}`; the id may contain slashes."""

    def __init__(self, models: ModelDirectory, *, external: Sequence[ModelObject] = ()) -> None:
        self._models = models
        self._external = {card.id: card for card in external}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = "/v1/models/{model}"
        name, limits = Request(scope).path_params["model_id"], exchange.meter.limits
        is_external = name in self._external and limits.allows_model(name)
        card = self._external[name] if is_external else self._models.find(name, limits).card
        await _json(card.model_dump_json().encode())(scope, receive, send)


class Health:
    """`GET /health`: this process answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].route = "/health"
        await _json(b'{"status":"ok"}')(scope, receive, send)


class Ready:
    """`GET /ready`: every model has a replica; 503 until then."""

    def __init__(self, models: ModelDirectory) -> None:
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].route = "/ready"
        missing = [model.name for model in self._models.all() if not model.pool.is_ready()]
        if missing:
            raise ServiceUnavailableError(f"No replica yet of: {', '.join(missing)}")
        await _json(b'{"status":"ready"}')(scope, receive, send)


class Metrics:
    """`GET /metrics`: Prometheus text."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].route = "/metrics"
        page = self._telemetry.exposition()
        await Response(page, headers={"content-type": CONTENT_TYPE})(scope, receive, send)


class NoRedis:
    """Every operation about files and batches, where the configuration has no Redis."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFoundError("Files and batches are switched off here: there is no Redis.")


class RetrievalIsOff:
    """Every operation about buckets, where the configuration has no embedders."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFoundError("Retrieval is switched off here: the configuration has no embedders.")


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
