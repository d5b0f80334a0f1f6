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
from deployments.ingress.operation import Operation
from deployments.ingress.operations import OPENAPI_PATH, OPERATIONS

JSON = "application/json"
FORM = "multipart/form-data"
BINARY = "application/octet-stream"
Schema = dict[str, Any]

_BEARER: Schema = {"type": "http", "scheme": "bearer"}
_ANTHROPIC_KEY: Schema = {"type": "apiKey", "in": "header", "name": "x-api-key"}
_DESCRIPTIONS = {
    200: "The answer.",
    400: "Refused, though well-formed; or not JSON.",
    401: "No valid API key.",
    403: "The key lacks the scope; or the tenant may store no more.",
    404: "No such model, bucket, task or secret.",
    408: "The client reads too slowly.",
    409: "There is one with this name already.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "Fields that are wrong, each by its path.",
    429: "Too many requests; see Retry-After.",
    500: "An error of the server.",
    502: "An external provider answers with what is no answer.",
    503: "No replica or provider can answer now; see Retry-After.",
    504: "An external provider does not answer in time.",
}
# A parameter in a route's path, and starlette's converter for it.
_IN_PATH = re.compile(r"\{(\w+)(:\w+)?\}")
_PATH_SCHEMAS: dict[str, Schema] = {
    "": {"type": "string", "minLength": 1},
    ":path": {"type": "string"},
    ":uuid": {"type": "string", "format": "uuid"},
}
_STREAM = (
    "The answer; with `stream: true` as server-sent events, and an error after the first of them "
    "as an event."
)
# OpenAPI 3.1 says nothing about streams of events; its tools read the schema as that of one event.
_EVENT: Schema = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "description": "Where the API has names for its events."},
        "data": {"type": "string", "description": "An object in JSON, or the `[DONE]` at the end."},
    },
    "required": ["data"],
}


def openapi_document(
    *, is_key_required: bool, operations: Sequence[Operation] = OPERATIONS
) -> Schema:
    """What `/openapi.json` serves."""
    types: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        (ErrorsBody, "serialization"),
        (ValidationErrorBody, "serialization"),
        (ErrorBody, "serialization"),
    ]
    for operation in operations:
        types += [(request, "validation") for request in operation.requests]
        answers = (
            *(operation.answer, operation.other_answer),
            *(operation.not_found, operation.refused),
        )
        types += [(answer, "serialization") for answer in answers if answer is not None]
    refs, definitions = models_json_schema(types, ref_template="#/components/schemas/{model}")
    writer = _Writer(operations, refs, is_key_required=is_key_required)
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

    def __init__(
        self,
        operations: Sequence[Operation],
        refs: Mapping[Any, Schema],
        *,
        is_key_required: bool,
    ) -> None:
        self._operations = operations
        self._refs = refs
        self._is_key_required = is_key_required

    def paths(self) -> Schema:
        written: Schema = {}
        for operation in self._operations:
            for path in operation.paths:
                item = written.setdefault(documented(path), {})
                item[operation.method.lower()] = self._operation(operation, path)
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
            "operationId": _operation_id(operation, path),
            "summary": operation.summary,
            "tags": [operation.name],
            "parameters": _parameters(operation, path),
            "responses": self._responses(operation),
            "security": self._security(operation),
        }
        if operation.requests:
            schema = _any_of([self._refs[request, "validation"] for request in operation.requests])
            content_type = FORM if operation.is_form else JSON
            written["requestBody"] = {
                "required": True,
                "content": {content_type: {"schema": schema}},
            }
        return written

    def _security(self, operation: Operation) -> list[Schema]:
        if operation.is_open or not self._is_key_required:
            return []
        schemes: list[Schema] = [{"bearer": []}]
        return [*schemes, {"anthropicKey": []}] if operation.is_anthropic else schemes

    def _responses(self, operation: Operation) -> Schema:
        statuses = set(operation.errors)
        if self._is_key_required and not operation.is_open:
            statuses |= {401, 503}  # 503: the key cannot be checked now
        if operation.scopes:
            statuses.add(403)
        if operation.is_anthropic:
            statuses.discard(422)  # theirs is 400
        responses = {str(operation.success): self._success(operation)}
        for status in sorted(statuses):
            responses[str(status)] = {
                "description": _DESCRIPTIONS[status],
                "content": {JSON: {"schema": self._error_ref(operation, status)}},
            }
        return responses

    def _success(self, operation: Operation) -> Schema:
        if operation.is_empty:
            return {"description": "Done; the answer is empty."}
        answers = [
            self._refs[answer, "serialization"]
            for answer in (operation.answer, operation.other_answer)
            if answer is not None
        ]
        content: Schema = {"text/plain": {"schema": {"type": "string"}}}
        if operation.is_binary:
            content = {BINARY: {"schema": {"type": "string", "format": "binary"}}}
        if answers:
            content = {JSON: {"schema": _any_of(answers)}}
        if operation.has_stream:
            content["text/event-stream"] = {"schema": _EVENT}
        description = _STREAM if operation.has_stream else _DESCRIPTIONS[200]
        return {"description": description, "content": content}

    def _error_ref(self, operation: Operation, status: int) -> Schema:
        if operation.is_anthropic:
            return self._refs[ErrorBody, "serialization"]
        if status == 404 and operation.not_found is not None:
            bodies = (operation.not_found, ErrorsBody)
            return _any_of([self._refs[body, "serialization"] for body in bodies])
        if status in (400, 422) and operation.refused is not None:
            return self._refs[operation.refused, "serialization"]
        body = ValidationErrorBody if status == 422 else ErrorsBody
        return self._refs[body, "serialization"]


def documented(path: str) -> str:
    """A route's path as the document has it: without converters."""
    return _IN_PATH.sub(r"{\1}", path)


def _operation_id(operation: Operation, path: str) -> str:
    return operation.method.lower() + re.sub(r"\W+", "_", path).rstrip("_")


def _parameters(operation: Operation, path: str) -> list[Schema]:
    parameters: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS[converter]}
        for name, converter in _IN_PATH.findall(path)
    ]
    for parameter in operation.parameters:
        schema = dict(parameter.schema)
        parameters.append({"name": parameter.name, "in": parameter.place, "schema": schema})
    if operation.is_anthropic:
        versions = {"type": "string", "enum": [version.decode() for version in VERSIONS]}
        parameters.append({"name": "anthropic-version", "in": "header", "schema": versions})
    return parameters


def _any_of(schemas: Sequence[Schema]) -> Schema:
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
