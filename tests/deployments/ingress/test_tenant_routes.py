"""The admin API on a real Redis: tenants and keys, and what keys then open."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cluster.config import RedisConfig
from cluster.redis_client import connect
from cluster.tenants import key_directory
from deployments.ingress.services import TenantServices
from tests.deployments.ingress.scripted_server import MODEL, Server, configuration, serving
from tests.redis_server import RedisServer

TENANTS = "/v1/admin/tenants"


@pytest.fixture
async def server(
    checkpoint: Path, redis_config: RedisConfig, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Server]:
    monkeypatch.setattr(key_directory, "POLL_S", 0.02)
    config = configuration(max_body_bytes=100_000)
    async with connect(redis_config) as redis:
        tenants = TenantServices.of(config, redis)
        async with serving(checkpoint, config, tenants=tenants) as running:
            yield running


async def post(client: httpx.AsyncClient, path: str, *, status: int = 201, **body: Any) -> Any:
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def opens(server: Server, key: str) -> bool:
    async with server.http(key) as client:
        return (await client.get("/v1/models")).status_code == 200


async def until_closed(server: Server, key: str) -> None:
    async with asyncio.timeout(120):
        while True:
            if not await opens(server, key):
                return
            await asyncio.sleep(0.01)


async def test_a_tenant_gets_a_key_uses_it_rotates_it_and_loses_it(server: Server) -> None:
    async with server.http() as admin:
        tenant = await post(admin, TENANTS, name="acme", limits={"requests_per_minute": 100})
        assert tenant["limits"]["requests_per_minute"] == 100
        keys = f"{TENANTS}/acme/keys"
        made = await post(admin, keys, name="app")
        assert set(made["scopes"]) == {"inference", "buckets"}
        assert await opens(server, made["key"])
        listed = (await admin.get(keys)).json()["data"]
        assert [key["id"] for key in listed] == [made["id"]]
        assert "key" not in listed[0]
        assert made["key"] not in (await admin.get(keys)).text

        rotated = await post(admin, f"{keys}/{made['id']}/rotate", overlap_s=3600)
        assert await opens(server, made["key"])
        assert await opens(server, rotated["new"]["key"])
        again = await post(admin, f"{keys}/{rotated['new']['id']}/rotate", overlap_s=0)
        await until_closed(server, rotated["new"]["key"])
        assert await opens(server, again["new"]["key"])

        gone = await admin.delete(f"{keys}/{again['new']['id']}")
        assert gone.json() == {"object": "api_key", "id": again["new"]["id"], "deleted": True}
        await until_closed(server, again["new"]["key"])

        deleted = (await admin.delete(f"{TENANTS}/acme")).json()
        assert deleted["num_keys_revoked"] == 2
        await until_closed(server, made["key"])


async def test_limits_are_changed_one_by_one_and_null_is_the_default(server: Server) -> None:
    async with server.http() as admin:
        await post(admin, TENANTS, name="acme", limits={"models": ["a/*"], "stored_bytes": 5})
        path = f"{TENANTS}/acme"
        changed = await admin.patch(path, json={"limits": {"tokens_per_minute": "unlimited"}})
        assert changed.json()["own_limits"] == {
            "requests_per_minute": None,
            "tokens_per_minute": "unlimited",
            "concurrent_requests": None,
            "stored_bytes": 5,
            "models": ["a/*"],
        }
        await admin.patch(path, json={"limits": {"models": None, "stored_bytes": None}})
        shown = (await admin.get(path)).json()
        assert shown["own_limits"]["models"] is None
        assert shown["limits"]["stored_bytes"] is None
        names = [one["name"] for one in (await admin.get(TENANTS)).json()["data"]]
        assert names == ["acme", "default"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", TENANTS, {"name": "A b"}, 422, "name"),
        ("POST", TENANTS, {"name": "default"}, 409, "already"),
        ("POST", TENANTS, {"name": "x", "limits": {"stored_bytes": -1}}, 422, "unlimited"),
        ("POST", TENANTS, {"name": "x", "limits": {"speed": 1}}, 422, "limits.speed"),
        ("PATCH", f"{TENANTS}/nobody", {"limits": {}}, 404, "nobody"),
        ("DELETE", f"{TENANTS}/default", None, 400, "configuration"),
        ("POST", f"{TENANTS}/nobody/keys", {"name": "k"}, 404, "nobody"),
        ("POST", f"{TENANTS}/default/keys", {"name": "k", "scopes": ["all"]}, 422, "scopes.0"),
        ("POST", f"{TENANTS}/default/keys", {"name": "k", "expires_in_s": 0}, 422, "expires_in_s"),
        ("DELETE", f"{TENANTS}/default/keys/none", None, 404, "none"),
        ("POST", f"{TENANTS}/default/keys/none/rotate", {}, 404, "none"),
    ],
)
async def test_wrong_requests_are_refused_by_name(
    server: Server, method: str, path: str, body: Any, status: int, said: str
) -> None:
    async with server.http() as admin:
        answer = await admin.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]["message"]


async def test_a_key_expires(server: Server) -> None:
    async with server.http() as admin:
        made = await post(admin, f"{TENANTS}/default/keys", name="short", expires_in_s=1)
        await until_closed(server, made["key"])
        (listed,) = (await admin.get(f"{TENANTS}/default/keys")).json()["data"]
    assert listed["is_expired"]


async def test_a_keys_text_is_in_no_log_metric_and_value(
    server: Server, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with server.http() as admin:
        made = await post(admin, f"{TENANTS}/default/keys", name="app", scopes=["inference"])
        wrong = made["key"][:-4] + "AAAA"
        async with server.openai(key=made["key"]) as client:
            messages: Any = [{"role": "user", "content": "hi"}]
            await client.chat.completions.create(model=MODEL, messages=messages)
            with pytest.raises(openai.PermissionDeniedError) as refused:
                await client.get("/admin/tenants", cast_to=object)
        assert not await opens(server, wrong)
        metrics = (await admin.get("/metrics")).text
    secret = made["key"].split("-", 2)[2][:-4]  # which may contain hyphens
    readers = {b"string": "GET", b"hash": "HGETALL", b"set": "SMEMBERS"}
    with redis_server.connect() as redis:
        stored = [
            repr((key, redis.execute_command(readers[redis.type(key)], key)))
            for key in redis.scan_iter()
        ]
    assert any(made["id"] in text for text in stored)
    for text in (*stored, metrics, caplog.text, str(refused.value)):
        assert secret not in text
