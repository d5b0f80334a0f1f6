"""The published description of the API is valid, complete, and says the same as the checks."""

import re
import uuid
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from cluster.api_keys import ApiKeys
from deployments.ingress import operations
from deployments.ingress.openapi import documented, openapi_document
from tests.deployments.ingress.scripted_server import Server, configuration, serving


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document(is_key_required=True)


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()


def test_operation_ids_are_unique(document: dict[str, Any]) -> None:
    ids = [item["operationId"] for path in document["paths"].values() for item in path.values()]
    assert len(set(ids)) == len(ids)


def test_every_schema_is_used(document: dict[str, Any]) -> None:
    used = set(re.findall(r"#/components/schemas/([^'\"]+)", repr(document)))
    assert used == set(document["components"]["schemas"])


async def test_the_document_has_every_route_and_every_route_is_there(server: Server) -> None:
    async with server.http(key=None) as client:
        served = (await client.get("/openapi.json")).json()
    assert served == openapi_document(is_key_required=True)
    in_table = {
        (documented(path), operation.method.lower())
        for operation in operations.OPERATIONS
        for path in operation.paths
    }
    in_document = {(path, method) for path, item in served["paths"].items() for method in item}
    assert in_document == in_table | {(operations.OPENAPI_PATH, "get")}
    async with server.http() as client:
        for path, method in in_document:
            answer = await client.request(method, _with_values(path))
            is_unknown_path = answer.status_code == 404 and "no such path" in answer.text
            assert not is_unknown_path, path
            assert answer.status_code != 405, path


def _with_values(path: str) -> str:
    values = {
        "model_id": "no/such",
        "bucket_name": "none",
        "task_id": str(uuid.uuid4()),
        "file_id": "file-none",
        "batch_id": "batch_none",
        "tenant": "none",
        "key_id": "none",
    }
    values["id"] = values["task_id"]
    return path.format(**values)


async def test_without_keys_the_document_asks_for_none(checkpoint: Any) -> None:
    keys = ApiKeys([], required=False)
    async with serving(checkpoint, configuration(), keys) as server, server.http(None) as client:
        served = (await client.get("/openapi.json")).json()
    assert "securitySchemes" not in served["components"]
    assert "401" not in served["paths"]["/v1/chat/completions"]["post"]["responses"]


def test_anthropics_paths_have_its_errors_and_both_keys(document: dict[str, Any]) -> None:
    written = document["paths"]["/v1/messages"]["post"]
    assert written["security"] == [{"bearer": []}, {"anthropicKey": []}]
    refused = written["responses"]["400"]["content"]["application/json"]["schema"]
    assert refused == {"$ref": "#/components/schemas/ErrorBody"}
    assert "422" not in written["responses"]
