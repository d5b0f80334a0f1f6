"""`/v2/integration_secrets`: keys for external providers, stored, listed, deleted, never shown."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.audit import Act, audited
from cluster.errors import InvalidJSONError, NotFoundError, ValidationError
from cluster.integration_secrets import IntegrationSecrets
from cluster.telnyx_schema.integration_secrets import (
    SECRET_TYPES,
    IntegrationSecretAnswer,
    IntegrationSecretListAnswer,
    IntegrationSecretObject,
    IntegrationSecretRequest,
    SecretFieldsError,
    SecretQueryError,
)
from cluster.telnyx_schema.tasks import PageMeta
from deployments.ingress import operations
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.operation import Operation
from deployments.ingress.query_parameters import read_choices, read_page
from deployments.ingress.request_body import read_json

SECRETS_ROUTE = "/v2/integration_secrets"
SECRET_ROUTE = "/v2/integration_secrets/{id}"
FILTER = "filter[type]"


def secret_endpoints(
    secrets: IntegrationSecrets | None, *, max_body_bytes: int
) -> dict[Operation, ASGIApp]:
    """What serves the operations about secrets; None: there is no Redis to keep them in."""
    if secrets is None:
        return dict.fromkeys(operations.SECRET_OPERATIONS, SecretsAreOff())
    return {
        operations.CREATE_SECRET: CreateSecret(secrets, max_body_bytes=max_body_bytes),
        operations.SECRETS: ListSecrets(secrets),
        operations.DELETE_SECRET: DeleteSecret(secrets),
    }


class CreateSecret:
    """`POST /v2/integration_secrets`, an ASGI app."""

    def __init__(self, secrets: IntegrationSecrets, *, max_body_bytes: int) -> None:
        self._secrets = secrets
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = SECRETS_ROUTE
        try:
            body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        except ValidationError as error:
            raise SecretFieldsError.of(error) from None
        except InvalidJSONError:  # its words are the parser's, about the body
            raise InvalidJSONError("The body is not valid JSON.") from None
        request = IntegrationSecretRequest.parsed(body)
        with audited(Act.SECRET_CREATED, "integration secret") as act:
            record = await self._secrets.create(exchange.tenant, request.identifier, request.value)
            act.target = f"integration secret {record.secret_id}"
        answer = IntegrationSecretAnswer(data=IntegrationSecretObject.of(record))
        await send_json(send, answer.model_dump_json().encode(), status=201)


class ListSecrets:
    """`GET /v2/integration_secrets`, an ASGI app."""

    def __init__(self, secrets: IntegrationSecrets) -> None:
        self._secrets = secrets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = SECRETS_ROUTE
        try:
            types = read_choices(scope, FILTER, SECRET_TYPES, default=())
            page = read_page(scope)
        except ValidationError as error:
            raise SecretQueryError.of(error) from None
        found = await self._secrets.find(
            exchange.tenant,
            secret_type=types[0] if len(types) == 1 else None,
            offset=page.offset,
            limit=page.size,
        )
        answer = IntegrationSecretListAnswer(
            data=[IntegrationSecretObject.of(record) for record in found.records],
            meta=PageMeta.of(number=page.number, size=page.size, num_total=found.num_total),
        )
        await send_json(send, answer.model_dump_json().encode())


class DeleteSecret:
    """`DELETE /v2/integration_secrets/{id}`, an ASGI app. By id, not by identifier."""

    def __init__(self, secrets: IntegrationSecrets) -> None:
        self._secrets = secrets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = SECRET_ROUTE
        secret_id = str(Request(scope).path_params["id"])
        with audited(Act.SECRET_DELETED, f"integration secret {secret_id}"):
            await self._secrets.delete(exchange.tenant, secret_id)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class SecretsAreOff:
    """Every operation about secrets, where nothing can keep them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFoundError("Integration secrets are switched off here: there is no Redis.")
