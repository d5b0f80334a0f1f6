"""The chunk store while others read, and while writers and servers die."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from cluster.chunk_keys import ChunkKeys
from cluster.chunk_store import ChunkStore, ConflictError
from cluster.errors import ServiceUnavailableError
from cluster.redis_client import Argument, RedisClient, connect
from cluster.types import BucketRef
from tests.cluster.chunk_samples import BUCKET, SETTINGS, record_of, searchable_texts, write
from tests.redis_server import RedisServer, impatient, patient_config
from tests.stopped_clock import StoppedClock

ROOT = Path(__file__).resolve().parents[2]

# Writes a long file, segment after segment, and never comes to the commit.
WRITER = """
import asyncio, sys
from cluster.chunk_store import ChunkStore
from cluster.config import RedisConfig
from cluster.redis_client import connect
from tests.cluster.chunk_samples import write

async def main():
    async with connect(RedisConfig(url=sys.argv[1], timeout_s=60)) as redis:
        await write(ChunkStore(redis), "a.txt", 1_000_000, etag="e2")

asyncio.run(main())
"""


@pytest.fixture
async def breakable(breakable_redis_server: RedisServer) -> AsyncIterator[RedisClient]:
    async with connect(patient_config(breakable_redis_server.url)) as client:
        yield client


@pytest.fixture
def store(breakable: RedisClient) -> ChunkStore:
    return ChunkStore(breakable)


async def segment_keys(redis: RedisClient) -> list[str]:
    stem = ChunkKeys(redis, BUCKET).vectors("")
    return [key.decode() for key in await redis.execute("KEYS", f"{stem}*")]


async def test_no_reader_ever_sees_a_mixed_state(redis_client: RedisClient) -> None:
    store = ChunkStore(redis_client)
    num_commits, num_reads = 200, 0
    is_writing, has_read = True, asyncio.Event()

    async def keep_writing() -> None:
        nonlocal is_writing
        for number in range(num_commits):
            # The number of chunks changes as well, and a third file comes and goes.
            count, etag = 1 + number % 3, f"e{number}"
            names = ["a.txt", "b.txt", *(["c.txt"] if number % 2 else [])]
            records = [await write(store, name, count, etag=etag) for name in names]
            drop = [] if number % 2 else ["c.txt"]
            await store.commit(BUCKET, settings=SETTINGS, put=records, drop=drop)
            while num_reads <= number / 4:  # or all would be committed before much is read
                has_read.clear()
                await has_read.wait()
        is_writing = False

    async def keep_reading() -> None:
        nonlocal num_reads
        seen = 0
        while is_writing:
            snapshot = await store.snapshot(BUCKET)
            assert snapshot.version >= seen
            seen = snapshot.version
            parts = [part async for _, part in store.all_chunks(BUCKET, snapshot.segments)]
            texts = [chunk.text for part in parts for chunk in part]
            etags = {text.split()[1] for text in texts}
            assert len(etags) <= 1, texts
            assert {segment.etag for segment in snapshot.segments} == etags
            if etags:
                number = int(etags.pop()[1:])
                names = ["a.txt", "b.txt", *(["c.txt"] if number % 2 else [])]
                count = 1 + number % 3
                expected = [f"{name} e{number} {row}" for name in names for row in range(count)]
                assert texts == expected
            num_reads += 1
            has_read.set()

    await asyncio.gather(keep_writing(), keep_reading(), keep_reading())


async def test_of_two_writers_that_saw_the_same_version_one_is_refused(
    redis_client: RedisClient,
) -> None:
    store = ChunkStore(redis_client)
    version = 0
    for number in range(30):
        outcomes = await asyncio.gather(
            *(
                store.commit(
                    BUCKET,
                    settings=SETTINGS,
                    put=[record_of(f"{number}-{writer}")],
                    expected_version=version,
                )
                for writer in range(4)
            ),
            return_exceptions=True,
        )
        (version,) = (outcome for outcome in outcomes if isinstance(outcome, int))
        assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 3
    assert len(await store.files(BUCKET)) == 30


async def test_writers_that_expect_nothing_all_come_through(redis_client: RedisClient) -> None:
    store = ChunkStore(redis_client)
    versions = await asyncio.gather(
        *(
            store.commit(BUCKET, settings=SETTINGS, put=[record_of(f"{writer}")])
            for writer in range(20)
        )
    )
    assert len(set(versions)) == 20
    changes = await store.changes_since(BUCKET, 0)
    assert changes is not None
    assert [change.version for change in changes] == sorted(versions)


async def test_a_writer_killed_between_segments_leaves_the_old_state(
    store: ChunkStore, breakable: RedisClient, breakable_redis_server: RedisServer
) -> None:
    old = await write(store, "a.txt", 2)
    version = await store.commit(BUCKET, settings=SETTINGS, put=[old])
    url = breakable_redis_server.url
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, url, cwd=ROOT)
    while len(await segment_keys(breakable)) < 4:
        assert writer.returncode is None
    writer.kill()
    await writer.wait()
    assert await searchable_texts(store) == ["a.txt e1 0", "a.txt e1 1"]
    assert await store.versions([BUCKET]) == [version]
    assert await store.staged(BUCKET, "a.txt", "e2", settings=SETTINGS) is None
    # What it has left ends by itself; what is searchable does not.
    live = ChunkKeys(breakable, BUCKET).vectors(old.segments[0].segment_id)
    for key in await segment_keys(breakable):
        texts_key = key.replace(":vectors:", ":texts:")
        ttls = await breakable.execute_many([("TTL", key), ("TTL", texts_key)])
        if key == live:
            assert ttls == [-1, -1]
        else:
            assert 0 < ttls[0] <= 24 * 3600
            # The kill may fall between the texts and their end: never before the vectors.
            assert ttls[1] == -2 or 0 < ttls[1] <= 24 * 3600


async def test_a_server_killed_at_any_moment_keeps_every_commit_that_was_answered(
    store: ChunkStore, breakable_redis_server: RedisServer
) -> None:
    answered: list[str] = []
    is_enough = asyncio.Event()

    async def keep_committing() -> None:
        for number in range(10_000):
            record = await write(store, f"{number}.txt", 3)
            await store.commit(BUCKET, settings=SETTINGS, put=[record])
            answered.append(record.filename)
            if len(answered) == 20:
                is_enough.set()

    for _ in range(3):
        committing = asyncio.create_task(keep_committing())
        await is_enough.wait()
        breakable_redis_server.kill()
        with pytest.raises(ServiceUnavailableError):
            await committing
        await asyncio.to_thread(breakable_redis_server.start)
        assert set(answered) <= set(await store.files(BUCKET))
        assert len(await searchable_texts(store)) == 3 * len(await store.files(BUCKET))
        await store.delete(BUCKET)
        answered.clear()
        is_enough.clear()


async def test_everything_is_unavailable_within_two_seconds_of_a_frozen_server(
    store: ChunkStore, breakable: RedisClient, breakable_redis_server: RedisServer
) -> None:
    record = await write(store, "a.txt", 3)
    await store.commit(BUCKET, settings=SETTINGS, put=[record])
    snapshot = await store.snapshot(BUCKET)
    breakable_redis_server.freeze()
    try:
        calls = (
            store.buckets("default"),
            store.meta(BUCKET),
            store.files(BUCKET),
            store.snapshot(BUCKET),
            store.chunks(BUCKET, [(record.segments[0].segment_id, 0)]),
            store.changes_since(BUCKET, 0),
            store.delete(BUCKET),
            write(store, "b.txt", 3),
            store.commit(BUCKET, settings=SETTINGS, drop=["a.txt"]),
            anext(store.vectors(BUCKET, snapshot.segments)),
            anext(store.all_chunks(BUCKET, snapshot.segments)),
        )
        with impatient(breakable), StoppedClock() as clock:
            waiting = asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(0)  # all have begun
            clock.move_on(2)
            outcomes = await waiting  # and time stands still
        assert all(isinstance(outcome, ServiceUnavailableError) for outcome in outcomes)
    finally:
        breakable_redis_server.thaw()
    # Some of them may have been carried out; each whole or not at all.
    assert await searchable_texts(store) in ([], [f"a.txt e1 {row}" for row in range(3)])


async def test_followers_go_on_after_a_restart_and_miss_nothing(
    store: ChunkStore,
    breakable: RedisClient,
    breakable_redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hear_of(bucket: BucketRef, version: int) -> None:
        async for item in following:
            if item == (bucket, version):
                return

    following = store.follow(lambda: [BUCKET])
    first = await store.commit(BUCKET, settings=SETTINGS, put=[record_of("a.txt")])
    await hear_of(BUCKET, first)

    breakable_redis_server.kill()
    hearing = asyncio.create_task(anext(following))
    await asyncio.to_thread(breakable_redis_server.start)
    assert await hearing == (BUCKET, first)  # compared after the outage
    second = await store.commit(BUCKET, settings=SETTINGS, put=[record_of("b.txt")])
    await hear_of(BUCKET, second)

    breakable_redis_server.freeze()
    has_given_up = asyncio.Event()
    monkeypatch.setattr(breakable, "_log", lambda *_: has_given_up.set())
    with impatient(breakable, 0.2):
        hearing = asyncio.create_task(anext(following))
        await has_given_up.wait()  # the blocked read
    breakable_redis_server.thaw()
    assert await hearing == (BUCKET, second)


@pytest.mark.slow
async def test_followers_notice_a_server_that_has_lost_everything(
    store: ChunkStore, breakable: RedisClient, breakable_redis_server: RedisServer
) -> None:
    following = store.follow(lambda: [BUCKET])
    first = await store.commit(BUCKET, settings=SETTINGS, put=[record_of("a.txt")])
    assert await anext(following) == (BUCKET, first)
    await breakable.execute("FLUSHALL")
    await asyncio.to_thread(breakable_redis_server.stop)
    await asyncio.to_thread(breakable_redis_server.start)
    while await anext(following) != (BUCKET, 0):
        pass
    second = await store.commit(BUCKET, settings=SETTINGS, put=[record_of("b.txt")])
    while await anext(following) != (BUCKET, second):
        pass


@pytest.mark.slow
async def test_deleting_a_large_bucket_does_not_hold_up_others(
    store: ChunkStore, breakable: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done in steps, each with few keys: commands of others come between them."""
    names = [f"{number:05}.txt" for number in range(5_000)]
    for first in range(0, len(names), 500):
        part = names[first : first + 500]
        records = await asyncio.gather(*(write(store, name, 1) for name in part))
        await store.commit(BUCKET, settings=SETTINGS, put=records)
    sizes: list[int] = []  # of what is sent at once
    execute, execute_many = breakable.execute, breakable.execute_many

    async def sized(*command: Argument, timeout_s: float | None = None) -> object:
        sizes.append(len(command))
        return await execute(*command, timeout_s=timeout_s)

    async def many_sized(commands: Sequence[Sequence[Argument]]) -> list[object]:
        sizes.append(sum(map(len, commands)))
        return await execute_many(commands)

    monkeypatch.setattr(breakable, "execute", sized)
    monkeypatch.setattr(breakable, "execute_many", many_sized)
    assert await store.delete(BUCKET)
    assert sum(sizes) > 2 * len(names)
    assert max(sizes) < 1000
    keys = await segment_keys(breakable)
    assert len(keys) == len(names)
    ttls = await breakable.execute_many([("TTL", key) for key in keys])
    assert all(0 < ttl <= 300 for ttl in ttls)
