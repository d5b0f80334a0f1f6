"""Every endpoint asks for its scope: the table of routes is walked, so that none is forgotten."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.api_keys import ApiKeys, hash_key
from cluster.config import ApiKeyConfig, parse_config
from cluster.tenant_config import KeyScope
from deployments.ingress import operations
from deployments.ingress.app import routes_of
from deployments.ingress.operation import Operation
from deployments.ingress.plain_routes import Health
from tests.deployments.ingress.scripted_server import MODEL, Server, serving

VALUES = {
    "model_id": MODEL,
    "bucket_name": "none",
    "task_id:uuid": str(uuid.uuid4()),
    "task_id": str(uuid.uuid4()),
    "file_id": "file-none",
    "batch_id": "batch_none",
    "tenant": "none",
    "key_id": "none",
    "id": "none",
}


def key_with(*scopes: KeyScope) -> str:
    return "shoal-" + "-".join(sorted(scope.value for scope in scopes))


SETS = [
    *((scope,) for scope in KeyScope),
    *(tuple(other for other in KeyScope if other is not scope) for scope in KeyScope),
]


@pytest.fixture
async def scoped(checkpoint: Path) -> AsyncIterator[Server]:
    keys = [
        {
            "name": key_with(*scopes),
            "sha256": hash_key(key_with(*scopes)),
            "scopes": [scope.value for scope in scopes],
        }
        for scopes in SETS
    ]
    config = parse_config(
        {"models": [{"name": MODEL, "source": "unused"}], "auth": {"api_keys": keys}}
    )
    async with serving(checkpoint, config) as running:
        yield running


def path_of(operation: Operation, path: str) -> str:
    for name, value in VALUES.items():
        path = path.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
    return path.replace("{task_id:uuid}", VALUES["task_id"])


async def test_each_endpoint_opens_to_its_scopes_alone(scoped: Server) -> None:
    for operation in operations.OPERATIONS:
        if operation.is_open:
            continue
        for path in operation.paths:
            for scopes in SETS:
                async with scoped.http(key_with(*scopes)) as client:
                    answer = await client.request(operation.method, path_of(operation, path))
                is_refused = "insufficient_scope" in answer.text or (
                    operation.is_anthropic and answer.status_code == 403
                )
                is_due = bool(operation.scopes) and not set(scopes) & set(operation.scopes)
                assert is_refused == is_due, (operation.method, path, scopes, answer.text)
                assert not is_refused or answer.status_code == 403
                assert answer.status_code != 401


def test_no_endpoint_of_administrators_is_for_other_keys() -> None:
    for operation in operations.OPERATIONS:
        for path in operation.paths:
            if "/admin" in path:
                assert operation.scopes == (KeyScope.ADMIN,), path


def test_routes_are_those_of_the_table() -> None:
    """A route beside the table would have no scope."""
    endpoints = {operation: Health() for operation in operations.OPERATIONS}
    in_table = {path for operation in operations.OPERATIONS for path in operation.paths}
    assert {route.path for route in routes_of(endpoints)} == in_table
    assert operations.OPEN_PATHS - in_table == {operations.OPENAPI_PATH}


async def test_a_scope_is_needed_for_what_a_body_asks_for(scoped: Server) -> None:
    inference, buckets = key_with(KeyScope.INFERENCE), key_with(KeyScope.BUCKETS)
    tools = [{"type": "retrieval", "retrieval": {"bucket_ids": ["docs"]}}]
    messages = [{"role": "user", "content": "hi"}]
    async with scoped.http(inference) as client:
        answer = await client.post(
            "/v1/chat/completions", json={"messages": messages, "tools": tools}
        )
        assert answer.status_code == 403
        assert "'buckets'" in answer.json()["errors"][0]["detail"]
    async with scoped.http(buckets) as client:
        answer = await client.post("/v1/chat/completions", json={"messages": messages})
        assert answer.status_code == 403
        assert answer.json()["errors"][0]["code"] == "10010"


async def test_where_no_key_is_needed_administration_still_needs_one(checkpoint: Path) -> None:
    config = parse_config(
        {"models": [{"name": MODEL, "source": "unused"}], "auth": {"required": False}}
    )
    root = ApiKeyConfig(name="root", sha256=hash_key("shoal-root"))
    keys = ApiKeys([root], required=False)
    async with serving(checkpoint, config, keys) as running:
        async with running.http(None) as client:
            assert (await client.get("/v1/models")).status_code == 200
            assert (await client.get("/v1/admin/tenants")).status_code == 403
        async with running.http("shoal-root") as client:
            assert (await client.get("/v1/admin/tenants")).status_code == 404  # there is no Redis
