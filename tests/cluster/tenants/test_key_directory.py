"""What a process knows of keys: fresh within seconds, and for a while without Redis."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cluster.api_keys import ApiKeys, hash_key
from cluster.config import ApiKeyConfig, RedisConfig
from cluster.errors import ServiceUnavailableError
from cluster.redis_client import connect
from cluster.tenant_config import PLAIN_SCOPES, KeyScope, LimitsConfig, TenantsConfig
from cluster.tenants import key_directory
from cluster.tenants.key_directory import KeyDirectory
from cluster.tenants.limits import OwnLimits
from cluster.tenants.tenant_store import TenantStore
from tests.redis_server import RedisServer, patient_config

CONFIGURED = ApiKeys([ApiKeyConfig(name="first", sha256=hash_key("shoal-first"))])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_directory, "POLL_S", 0.02)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)


async def opens(keys: KeyDirectory, text: str) -> bool:
    return await keys.find(text) is not None


async def is_unknown(keys: KeyDirectory, text: str) -> bool:
    """Whether only Redis would know."""
    try:
        await keys.find(text)
    except ServiceUnavailableError:
        return True
    return False


async def test_configured_keys_need_no_redis_and_are_the_operators() -> None:
    keys = KeyDirectory(CONFIGURED, TenantsConfig())
    found = await keys.find("shoal-first")
    assert found is not None
    assert (found.key_id, found.tenant) == ("config/first", "default")
    assert found.scopes == frozenset(KeyScope)
    assert await keys.find("shoal-other") is None


async def test_a_stored_key_opens_and_one_that_is_revoked_does_not(
    redis_config: RedisConfig, quick: None
) -> None:
    async with connect(redis_config) as redis:
        store = TenantStore(redis, configured=["default"])
        keys = KeyDirectory(CONFIGURED, TenantsConfig(), store)
        async with keys.following():
            await store.create_tenant("acme", OwnLimits())
            new = await store.create_key("acme", "app", scopes=PLAIN_SCOPES, expires_at=None)
            found = await keys.find(new.text)
            assert found is not None
            assert (found.tenant, found.key_id) == ("acme", new.record.key_id)
            assert await keys.find(new.text[:-1] + "~") is None
            wrong = new.text[:-2] + ("aa" if not new.text.endswith("aa") else "bb")
            assert await keys.find(wrong) is None
            await store.delete_key("acme", new.record.key_id)

            async def is_closed() -> bool:
                return not await opens(keys, new.text)

            await until(is_closed)
        assert await store.keys("default") == []


async def test_a_tenants_limits_go_before_the_defaults(
    redis_config: RedisConfig, quick: None
) -> None:
    config = TenantsConfig(default_limits=LimitsConfig(requests_per_minute=9, models=("a/*", "b")))
    async with connect(redis_config) as redis:
        store = TenantStore(redis, configured=["default"])
        keys = KeyDirectory(CONFIGURED, config, store)
        async with keys.following():
            assert keys.limits("acme").requests_per_minute == 9
            own = OwnLimits(requests_per_minute="unlimited", stored_bytes=0, models=("*",))
            await store.create_tenant("acme", own)

            async def is_seen() -> bool:
                return keys.limits("acme").stored_bytes == 0

            await until(is_seen)
            assert keys.limits("acme").requests_per_minute is None
            assert keys.limits("acme").allows_model("anything")
            others = keys.limits("other")
            assert [others.allows_model(name) for name in ("a/x", "b", "bb", "c")] == [
                *(True, True),
                *(False, False),
            ]


async def test_known_keys_open_for_a_while_when_redis_is_away(
    breakable_redis_server: RedisServer, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = breakable_redis_server
    async with connect(patient_config(server.url)) as redis:
        store = TenantStore(redis, configured=["default"])
        keys = KeyDirectory(CONFIGURED, TenantsConfig(redis_grace_s=300), store)
        async with keys.following():
            known = await store.create_key("default", "a", scopes=PLAIN_SCOPES, expires_at=None)
            unknown = await store.create_key("default", "b", scopes=PLAIN_SCOPES, expires_at=None)
            await keys.refresh()
            assert await keys.find(known.text) is not None
            server.kill()
            assert await keys.find(known.text) is not None
            with pytest.raises(ServiceUnavailableError):
                await keys.find(unknown.text)
            assert await keys.find("shoal-first") is not None
            monkeypatch.setattr(keys, "_grace_s", 0.0)
            await until(lambda: is_unknown(keys, known.text))  # and then no longer
            server.start()

            async def is_back() -> bool:
                return not await is_unknown(keys, unknown.text)

            await until(is_back)
            assert await opens(keys, unknown.text)


async def test_the_last_use_of_a_key_is_written_down(redis_config: RedisConfig) -> None:
    async with connect(redis_config) as redis:
        store = TenantStore(redis, configured=["default"])
        keys = KeyDirectory(CONFIGURED, TenantsConfig(), store)
        new = await store.create_key("default", "a", scopes=PLAIN_SCOPES, expires_at=None)
        async with keys.following():
            await keys.find(new.text)
        (listed,) = await store.keys("default")
        assert listed.last_used_at is not None
