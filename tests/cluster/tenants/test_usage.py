"""Usage on a real Redis: counted once, whatever fails on the way."""

import asyncio
import datetime

import pytest

from cluster.redis_client import RedisClient, connect
from cluster.tenants import usage as usage_module
from cluster.tenants.usage import (
    UsageCounts,
    UsageGroup,
    UsageRecorder,
    UsageRow,
    UsageStore,
    grouped,
    today,
)
from tests.redis_server import RedisServer, impatient, patient_config

COUNTS = UsageCounts(num_requests=1, prompt_tokens=10, cached_tokens=4, completion_tokens=3)
TODAY = datetime.date.fromisoformat(today())


async def found(redis: RedisClient, tenants: list[str]) -> list[UsageRow]:
    """Of yesterday too: a test may run at midnight."""
    store, day = UsageStore(redis), datetime.timedelta(days=1)
    return await store.find(tenants, first=TODAY - day, last=TODAY + day)


async def test_what_many_requests_used_is_added_up_by_tenant_model_and_key(
    redis_client: RedisClient,
) -> None:
    recorder = UsageRecorder(redis_client, retention_days=2)
    async with recorder.following():
        for number in range(100):
            recorder.add(f"t{number % 2}", model="a/b", key_id="config/x/y", counts=COUNTS)
            if number % 10 == 0:
                await asyncio.sleep(0)
        recorder.add("t1", model="c", key_id="k", counts=COUNTS)
    rows = await found(redis_client, ["t0", "t1"])
    by_day = {(row.tenant, row.model, row.key_id): row.counts for row in rows}
    fifty = UsageCounts(50, 500, 200, 150)
    assert by_day == {
        ("t0", "a/b", "config/x/y"): fifty,
        ("t1", "a/b", "config/x/y"): fifty,
        ("t1", "c", "k"): COUNTS,
    }
    assert await UsageStore(redis_client).tenants() == ["t0", "t1"]
    key = redis_client.key("{tenant/t0}", "usage", rows[0].day)
    assert 0 < await redis_client.execute("TTL", key) <= 2 * 86400


async def test_rows_are_summed_by_what_is_asked_for() -> None:
    rows = [
        UsageRow(day, tenant, model, "k", COUNTS)
        for day in ("2026-01-01", "2026-01-02")
        for tenant in ("a", "b")
        for model in ("m", "n")
    ]
    two = COUNTS.plus(COUNTS)
    assert grouped(rows, [UsageGroup.MODEL, UsageGroup.DAY]) == [
        UsageRow(day, "", model, "", two)
        for day in ("2026-01-01", "2026-01-02")
        for model in ("m", "n")
    ]
    assert grouped(rows, list(UsageGroup)) == rows


async def test_usage_is_kept_while_redis_is_away_and_counted_once(
    breakable_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "_TRY_AGAIN_S", 0.02)
    server = breakable_redis_server
    async with connect(patient_config(server.url)) as redis:
        recorder = UsageRecorder(redis, retention_days=2)
        recorder.add("t", model="m", key_id="k", counts=COUNTS)
        await recorder.written()
        # The server carries out what it got while it was frozen; we did not hear of it.
        server.freeze()
        has_given_up = asyncio.Event()
        with impatient(redis, 0.3), monkeypatch.context() as patch:
            patch.setattr(redis, "_log", lambda *_: has_given_up.set())
            recorder.add("t", model="m", key_id="k", counts=COUNTS)
            await has_given_up.wait()
        server.thaw()
        await recorder.written()
        server.kill()
        for _ in range(3):
            recorder.add("t", model="m", key_id="k", counts=COUNTS)
        server.start()
        await recorder.written()
        (row,) = await found(redis, ["t"])
        assert row.counts == UsageCounts(5, 50, 20, 15)


async def test_something_with_a_name_is_counted_once(redis_client: RedisClient) -> None:
    for _ in range(3):
        recorder = UsageRecorder(redis_client, retention_days=2)
        await recorder.add_once("batch_1", "t", model="m", key_id="k", counts=COUNTS)
    (row,) = await found(redis_client, ["t"])
    assert row.counts == COUNTS
