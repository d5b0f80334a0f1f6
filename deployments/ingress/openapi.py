"""The OpenAPI 3.1 document, generated from the types that check requests and make answers."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.types import Receive, Scope, Send

from cluster.anthropic_schema.message import ErrorBody
from cluster.openai_schema.error_bodies import ErrorsBody, ValidationErrorBody
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY
from deployments.ingress.message_routes import VERSIONS
from deployments.ingress.operations import OPENAPI_PATH, OPERATIONS, Operation

JSON = "application/json"
Schema = dict[str, Any]

_BEARER: Schema = {"type": "http", "scheme": "bearer"}
_ANTHROPIC_KEY: Schema = {"type": "apiKey", "in": "header", "name": "x-api-key"}
_DESCRIPTIONS = {
    200: "The answer.",
    400: "Refused, though well-formed; or not JSON.",
    401: "No valid API key.",
    404: "No such model.",
    408: "The client reads too slowly.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "Fields that are wrong, each by its path.",
    429: "Too many requests; see Retry-After.",
    500: "An error of the server.",
    503: "No replica can answer now; see Retry-After.",
}
_STREAM = (
    "The answer; with `stream: true` as server-sent events, and an error after the first of them "
    "as an event."
)


def openapi_document(*, is_key_required: bool) -> Schema:
    """What `/openapi.json` serves."""
    types: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        (ErrorsBody, "serialization"),
        (ValidationErrorBody, "serialization"),
        (ErrorBody, "serialization"),
    ]
    for operation in OPERATIONS:
        types += [(request, "validation") for request in operation.requests]
        types += [(operation.answer, "serialization")] if operation.answer else []
    refs, definitions = models_json_schema(types, ref_template="#/components/schemas/{model}")
    writer = _Writer(refs, is_key_required=is_key_required)
    document: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "Shoal", "version": "1.0.0", "summary": "Inference on your own machines"},
        "servers": [{"url": "/"}],
        "paths": writer.paths(),
        "components": {"schemas": definitions["$defs"]},
    }
    if is_key_required:
        schemes = {"bearer": _BEARER, "anthropicKey": _ANTHROPIC_KEY}
        document["components"]["securitySchemes"] = schemes
    return document


class OpenAPIDocument:
    """`GET /openapi.json`, an ASGI app."""

    def __init__(self, *, is_key_required: bool) -> None:
        self._body = orjson.dumps(openapi_document(is_key_required=is_key_required))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].route = OPENAPI_PATH
        await send_json(send, self._body)


class _Writer:
    """Operations as the document has them. `refs`: from a type and a mode to its schema."""

    def __init__(self, refs: Mapping[Any, Schema], *, is_key_required: bool) -> None:
        self._refs = refs
        self._is_key_required = is_key_required

    def paths(self) -> Schema:
        written: Schema = {}
        for operation in OPERATIONS:
            for path in operation.paths:
                method = operation.method.lower()
                written[path.replace(":path}", "}")] = {method: self._operation(operation, path)}
        own = {"description": "This document.", "content": {JSON: {"schema": {"type": "object"}}}}
        written[OPENAPI_PATH] = {
            "get": {
                "operationId": "openapi",
                "summary": "This document",
                "security": [],
                "responses": {"200": own},
            }
        }
        return written

    def _operation(self, operation: Operation, path: str) -> Schema:
        written: Schema = {
            "operationId": operation.method.lower() + re.sub(r"\W+", "_", path).rstrip("_"),
            "summary": operation.summary,
            "tags": [operation.name],
            "parameters": _parameters(operation),
            "responses": self._responses(operation),
            "security": self._security(operation),
        }
        if operation.requests:
            schema = _any_of([self._refs[request, "validation"] for request in operation.requests])
            written["requestBody"] = {"required": True, "content": {JSON: {"schema": schema}}}
        return written

    def _security(self, operation: Operation) -> list[Schema]:
        if operation.is_open or not self._is_key_required:
            return []
        schemes: list[Schema] = [{"bearer": []}]
        return [*schemes, {"anthropicKey": []}] if operation.is_anthropic else schemes

    def _responses(self, operation: Operation) -> Schema:
        statuses = set(operation.errors)
        if self._is_key_required and not operation.is_open:
            statuses.add(401)
        if operation.is_anthropic:
            statuses.discard(422)  # theirs is 400
        responses = {"200": self._success(operation)}
        for status in sorted(statuses):
            responses[str(status)] = {
                "description": _DESCRIPTIONS[status],
                "content": {JSON: {"schema": self._error_ref(operation, status)}},
            }
        return responses

    def _success(self, operation: Operation) -> Schema:
        if operation.answer is None:
            content: Schema = {"text/plain": {"schema": {"type": "string"}}}
        else:
            content = {JSON: {"schema": self._refs[operation.answer, "serialization"]}}
        if operation.has_stream:
            content["text/event-stream"] = {"schema": {"type": "string"}}
        description = _STREAM if operation.has_stream else _DESCRIPTIONS[200]
        return {"description": description, "content": content}

    def _error_ref(self, operation: Operation, status: int) -> Schema:
        if operation.is_anthropic:
            return self._refs[ErrorBody, "serialization"]
        body = ValidationErrorBody if status == 422 else ErrorsBody
        return self._refs[body, "serialization"]


def _parameters(operation: Operation) -> list[Schema]:
    parameters: list[Schema] = []
    if any("{model_id" in path for path in operation.paths):
        parameters.append(
            {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string"}}
        )
    if operation.is_anthropic:
        versions = {"type": "string", "enum": [version.decode() for version in VERSIONS]}
        parameters.append({"name": "anthropic-version", "in": "header", "schema": versions})
    return parameters


def _any_of(schemas: Sequence[Schema]) -> Schema:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
