"""Tenants and keys in a real Redis, one server and a cluster."""

import asyncio
import time

import pytest

from cluster.errors import BadRequestError, NotFoundError
from cluster.redis_client import RedisClient
from cluster.tenant_config import PLAIN_SCOPES, KeyScope
from cluster.tenants.limits import OwnLimits
from cluster.tenants.records import NewKey
from cluster.tenants.tenant_store import TenantExistsError, TenantStore


@pytest.fixture
def store(redis_client: RedisClient) -> TenantStore:
    return TenantStore(redis_client, configured=["default"])


async def make_key(store: TenantStore, tenant: str = "acme", **how: object) -> NewKey:
    expires_at = how.get("expires_at")
    assert expires_at is None or isinstance(expires_at, float)
    return await store.create_key(tenant, "app", scopes=PLAIN_SCOPES, expires_at=expires_at)


async def test_tenants_are_made_once_listed_and_deleted_with_their_keys(store: TenantStore) -> None:
    made = await store.create_tenant("acme", OwnLimits(requests_per_minute=5))
    with pytest.raises(TenantExistsError):
        await store.create_tenant("acme", OwnLimits())
    with pytest.raises(TenantExistsError):
        await store.create_tenant("default", OwnLimits())
    assert [tenant.name for tenant in await store.tenants()] == ["acme", "default"]
    assert await store.tenant("acme") == made
    key = await make_key(store)
    assert await store.delete_tenant("acme") == 1
    assert (await store.find_key(key.record.key_id)).record is None
    for gone in (store.tenant("acme"), store.delete_tenant("acme"), make_key(store)):
        with pytest.raises(NotFoundError):
            await gone


async def test_a_tenant_of_the_configuration_stays_and_may_have_limits(store: TenantStore) -> None:
    with pytest.raises(BadRequestError, match="configuration"):
        await store.delete_tenant("default")
    changed = await store.change_limits("default", lambda _: OwnLimits(stored_bytes=7))
    assert changed.limits.stored_bytes == 7
    assert await store.tenant("default") == changed
    assert (await make_key(store, "default")).record.tenant == "default"


async def test_changes_of_limits_at_the_same_time_are_all_kept(store: TenantStore) -> None:
    await store.create_tenant("acme", OwnLimits(requests_per_minute=0))

    def one_more(limits: OwnLimits) -> OwnLimits:
        assert isinstance(limits.requests_per_minute, int)
        return OwnLimits(requests_per_minute=limits.requests_per_minute + 1)

    await asyncio.gather(*(store.change_limits("acme", one_more) for _ in range(8)))
    assert (await store.tenant("acme")).limits.requests_per_minute == 8


async def test_a_key_is_found_by_its_id_and_stored_as_a_digest(
    store: TenantStore, redis_client: RedisClient
) -> None:
    await store.create_tenant("acme", OwnLimits())
    new = await make_key(store)
    found = (await store.find_key(new.record.key_id)).record
    assert found == new.record
    assert found.is_of(new.text)
    assert not found.is_of(new.text[:-1] + "x")
    assert new.text not in repr(new)
    stored = await redis_client.execute("HVALS", redis_client.key("{access}", "keys"))
    secret = new.text.split("-", 2)[2]  # which may contain hyphens
    assert stored
    assert all(secret.encode() not in value for value in stored)


async def test_keys_are_listed_with_their_last_use_and_revoked(store: TenantStore) -> None:
    await store.create_tenant("acme", OwnLimits())
    await store.create_tenant("zeta", OwnLimits())
    first, second = await make_key(store), await make_key(store)
    await store.touch({first.record.key_id: 1000.4, "unknown": 1.0})
    listed = {key.record.key_id: key.last_used_at for key in await store.keys("acme")}
    assert listed == {first.record.key_id: 1000.0, second.record.key_id: None}
    assert await store.keys("zeta") == []
    with pytest.raises(NotFoundError):
        await store.delete_key("zeta", first.record.key_id)
    await store.delete_key("acme", first.record.key_id)
    with pytest.raises(NotFoundError):
        await store.delete_key("acme", first.record.key_id)
    assert [key.record for key in await store.keys("acme")] == [second.record]


async def test_a_rotated_key_lives_for_the_overlap_and_its_heir_is_like_it(
    store: TenantStore,
) -> None:
    await store.create_tenant("acme", OwnLimits())
    end = round(time.time() + 1000, 3)
    old = await make_key(store, expires_at=end)
    rotated = await store.rotate_key("acme", old.record.key_id, overlap_s=60)
    assert rotated.new.record.scopes == old.record.scopes
    assert rotated.new.record.expires_at == end
    ending = (await store.find_key(old.record.key_id)).record
    assert ending == rotated.old
    assert ending is not None
    assert ending.expires_at is not None
    assert ending.expires_at < end
    at_once = await store.rotate_key("acme", rotated.new.record.key_id, overlap_s=0)
    assert at_once.old.is_expired()
    with pytest.raises(BadRequestError, match="expired"):
        await store.rotate_key("acme", rotated.new.record.key_id, overlap_s=0)
    with pytest.raises(NotFoundError):
        await store.rotate_key("zeta", at_once.new.record.key_id, overlap_s=0)


async def test_a_key_that_is_rotated_without_an_overlap_ends_within_the_same_millisecond(
    store: TenantStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create_tenant("acme", OwnLimits())
    old = await make_key(store)
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0007)
    rotated = await store.rotate_key("acme", old.record.key_id, overlap_s=0)
    assert rotated.old.is_expired()


async def test_every_change_has_a_version_of_its_own(store: TenantStore) -> None:
    versions = [await store.version()]

    async def note() -> None:
        versions.append(await store.version())

    await store.create_tenant("acme", OwnLimits())
    await note()
    key = await make_key(store)
    await note()
    rotated = await store.rotate_key("acme", key.record.key_id, overlap_s=0)
    await note()
    await store.change_limits("acme", lambda limits: limits)
    await note()
    await store.delete_key("acme", rotated.new.record.key_id)
    await note()
    await store.delete_tenant("acme")
    await note()
    assert len(set(versions)) == len(versions)
    assert KeyScope.ADMIN not in key.record.scopes
