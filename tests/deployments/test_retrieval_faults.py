"""Redis goes away and comes back while buckets are searched: refused in time, never out of date."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.errors import NotFoundError, ServiceUnavailableError
from cluster.redis_client import Argument
from tests.deployments.retrieval_rig import BUCKET, Rig, eventually, rig, until
from tests.redis_server import RedisServer, impatient, patient_config
from tests.stopped_clock import StoppedClock


async def check_that_it_is_refused(r: Rig) -> None:
    with pytest.raises(ServiceUnavailableError, match="Redis") as caught:
        await r.search("first")
    assert caught.value.retry_after_s is not None


async def is_served(r: Rig) -> bool:
    try:
        await r.search("first")
    except ServiceUnavailableError:
        return False
    return True


async def test_a_killed_redis_refuses_searches_and_its_return_serves_them(
    breakable_redis_server: RedisServer,
) -> None:
    async with rig(patient_config(breakable_redis_server.url)) as r:
        await r.put(a=["first"])
        assert await r.texts("first") == ["first"]
        breakable_redis_server.kill()
        for _ in range(2):
            await check_that_it_is_refused(r)
        breakable_redis_server.start()
        await eventually(lambda: is_served(r))
        assert await r.texts("first") == ["first"]
        version = await r.put(b=["second"])
        # The feed is followed again, too.
        await until(lambda: r.loaded()["handbook"] == version)
        r.service.check_health()


async def test_a_frozen_redis_refuses_searches_within_two_seconds(
    breakable_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(patient_config(breakable_redis_server.url)) as r:
        await r.put(a=["first"])
        await r.texts("first")
        num_questions, all_have_asked = 0, asyncio.Event()
        execute_many = r.redis.execute_many

        async def counted(commands: Sequence[Sequence[Argument]]) -> list[Any]:
            nonlocal num_questions
            num_questions += 1
            if num_questions == 5 * 2:  # the texts and the versions
                all_have_asked.set()
            return await execute_many(commands)

        monkeypatch.setattr(r.redis, "execute_many", counted)
        breakable_redis_server.freeze()
        with impatient(r.redis), StoppedClock() as clock:
            refusals = [asyncio.create_task(check_that_it_is_refused(r)) for _ in range(5)]
            await all_have_asked.wait()
            clock.move_on(2)
            await asyncio.gather(*refusals)  # and time stands still
        monkeypatch.undo()
        breakable_redis_server.thaw()
        await eventually(lambda: is_served(r))


async def test_a_bucket_that_is_not_loaded_is_refused_while_redis_is_away_and_loaded_later(
    breakable_redis_server: RedisServer,
) -> None:
    async with rig(patient_config(breakable_redis_server.url)) as r:
        await r.put(a=["first"])
        breakable_redis_server.kill()
        await check_that_it_is_refused(r)
        breakable_redis_server.start()
        await eventually(lambda: is_served(r))


async def test_what_was_deleted_by_others_while_redis_was_out_of_reach_is_not_served(
    breakable_redis_server: RedisServer,
) -> None:
    config = patient_config(breakable_redis_server.url)
    async with rig(config) as r, rig(config) as other:
        await r.put(a=["first"])
        await r.texts("first")
        breakable_redis_server.kill()
        await check_that_it_is_refused(r)
        breakable_redis_server.start()
        await eventually(lambda: is_served(other))
        await other.store.delete(BUCKET)
        with pytest.raises(NotFoundError):
            await eventually(lambda: is_served(r))


async def test_crowds_of_searches_and_commits_survive_kills_of_redis(
    breakable_redis_server: RedisServer,
) -> None:
    """No search ever answers with less than was committed when it began."""
    async with rig(patient_config(breakable_redis_server.url)) as r:
        await r.put(f0=["first number0"])
        newest, is_done = 0, False

        async def commit() -> None:
            nonlocal newest, is_done
            while newest < 60:
                try:
                    await r.put(**{f"f{newest + 1}": [f"later number{newest + 1}"]})
                    newest += 1
                except ServiceUnavailableError:
                    await asyncio.sleep(0.02)
            is_done = True

        async def search() -> None:
            num_answers = 0
            while not is_done or num_answers < 3:
                wanted = newest
                try:
                    texts = await r.texts(f"number{wanted}", count=1)
                except ServiceUnavailableError:
                    await asyncio.sleep(0.02)
                    continue
                assert texts[0].endswith(f"number{wanted}")
                num_answers += 1

        async def break_redis() -> None:
            for at in (10, 25, 40):
                await until(lambda at=at: newest >= at)  # type: ignore[misc]
                breakable_redis_server.kill()
                await asyncio.to_thread(breakable_redis_server.start)

        await asyncio.gather(commit(), break_redis(), search(), search(), search())
        r.service.check_health()
