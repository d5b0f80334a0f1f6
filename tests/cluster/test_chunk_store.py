"""The chunk store against a real server and a real cluster."""

import time
from collections.abc import AsyncIterator

import numpy as np
import pytest

from cluster.chunk_records import BucketSettings, Change, FileRecord, FileStatus, SegmentRef
from cluster.chunk_store import ChunkStore, ConflictError
from cluster.config import RedisConfig
from cluster.redis_client import RedisClient, connect
from cluster.retrieval import EmbedderFacts
from cluster.types import BucketRef, Chunk
from tests.redis_server import RedisServer

BUCKET = BucketRef("default", "handbook")
SETTINGS = BucketSettings(
    embedder=EmbedderFacts(model_name="m", revision="r", width=4, max_input_tokens=256),
    chunk_size=1024,
    chunk_overlap=512,
    loader="default",
)


@pytest.fixture(params=["one server", "cluster"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[RedisClient]:
    name = "redis_config" if request.param == "one server" else "redis_cluster_config"
    config: RedisConfig = request.getfixturevalue(name)
    async with connect(config) as client:
        yield client


@pytest.fixture
def store(redis: RedisClient) -> ChunkStore:
    return ChunkStore(redis)


def chunks_of(text: str, count: int) -> list[Chunk]:
    return [Chunk(text=f"{text} {i}", start=i, end=i + 1, page=i) for i in range(count)]


def vectors_of(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def record_of(filename: str, segments: tuple[SegmentRef, ...], *, etag: str = "e1") -> FileRecord:
    now = time.time()
    return FileRecord(
        filename=filename,
        etag=etag,
        num_bytes=1,
        status=FileStatus.SUCCESS,
        created_at=now,
        updated_at=now,
        segments=segments,
    )


async def test_what_is_written_appears_with_the_commit(store: ChunkStore) -> None:
    vectors = vectors_of(2_500)
    refs = await store.write_segments(
        BUCKET, "a.txt", "e1", chunks_of("a", 2_500), vectors, settings=SETTINGS
    )
    assert [ref.num_chunks for ref in refs] == [1000, 1000, 500]
    assert await store.meta(BUCKET) is None
    assert (await store.snapshot(BUCKET)).segments == ()
    assert await store.buckets("default") == []

    version = await store.commit(
        BUCKET, settings=SETTINGS, put=[record_of("a.txt", refs)], expected_version=0
    )

    assert version == 1
    assert await store.buckets("default") == ["handbook"]
    meta = await store.meta(BUCKET)
    assert meta is not None
    assert meta.version == 1
    assert meta.settings() == SETTINGS
    snapshot = await store.snapshot(BUCKET)
    assert snapshot.version == 1
    assert [s.first_position for s in snapshot.segments] == [0, 1000, 2000]
    read = [array async for _, array in store.vectors(BUCKET, snapshot.segments)]
    assert np.array_equal(np.concatenate(read), vectors.astype(np.float16))
    texts = [c async for _, part in store.all_chunks(BUCKET, snapshot.segments) for c in part]
    assert texts == chunks_of("a", 2_500)
    found = await store.chunks(BUCKET, [(refs[2].segment_id, 3), (refs[0].segment_id, 7)])
    assert [chunk and chunk.text for chunk in found] == ["a 2003", "a 7"]


async def test_a_replaced_file_is_logged_and_its_segments_get_an_end(
    store: ChunkStore, redis: RedisClient
) -> None:
    old = await store.write_segments(
        BUCKET, "a.txt", "e1", chunks_of("a", 3), vectors_of(3), settings=SETTINGS
    )
    await store.commit(BUCKET, settings=SETTINGS, put=[record_of("a.txt", old)])
    new = await store.write_segments(
        BUCKET, "a.txt", "e2", chunks_of("b", 2), vectors_of(2), settings=SETTINGS
    )
    version = await store.commit(
        BUCKET, settings=SETTINGS, put=[record_of("a.txt", new, etag="e2")], expected_version=1
    )

    changes = await store.changes_since(BUCKET, 0)
    assert changes is not None
    assert [change.version for change in changes] == [1, version]
    assert changes[1].removed == (old[0].segment_id,)
    assert [s.etag for s in changes[1].added] == ["e2"]
    assert await store.changes_since(BUCKET, version) == []
    stem = redis.key("{default/handbook}")
    ttls = [await redis.execute("TTL", f"{stem}:texts:{s[0].segment_id}") for s in (old, new)]
    assert 0 < ttls[0] <= 300
    assert ttls[1] == -1


async def test_who_was_overtaken_is_refused_but_a_lost_answer_can_be_asked_again(
    store: ChunkStore,
) -> None:
    first, second = record_of("a.txt", ()), record_of("b.txt", ())
    assert await store.commit(BUCKET, settings=SETTINGS, put=[first], expected_version=0) == 1
    assert await store.commit(BUCKET, settings=SETTINGS, put=[first], expected_version=0) == 1
    with pytest.raises(ConflictError, match="version 0 was expected"):
        await store.commit(BUCKET, settings=SETTINGS, put=[second], expected_version=0)
    assert list(await store.files(BUCKET)) == ["a.txt"]


async def test_a_deleted_bucket_is_gone_and_its_version_goes_on(store: ChunkStore) -> None:
    refs = await store.write_segments(
        BUCKET, "a.txt", "e1", chunks_of("a", 3), vectors_of(3), settings=SETTINGS
    )
    await store.commit(BUCKET, settings=SETTINGS, put=[record_of("a.txt", refs)])

    assert await store.delete(BUCKET)
    assert not await store.delete(BUCKET)

    assert await store.meta(BUCKET) is None
    assert await store.files(BUCKET) == {}
    assert await store.buckets("default") == []
    assert await store.changes_since(BUCKET, 1) == [Change(version=2, clears=True)]
    assert await store.commit(BUCKET, settings=SETTINGS, put=[record_of("b.txt", ())]) == 3


async def test_followers_hear_of_commits_and_deletions(store: ChunkStore) -> None:
    await store.commit(BUCKET, settings=SETTINGS, put=[record_of("a.txt", ())])
    following = store.follow(lambda: [BUCKET])
    assert await anext(following) == (BUCKET, 1)
    await store.commit(BUCKET, settings=SETTINGS, put=[record_of("b.txt", ())])
    assert await anext(following) == (BUCKET, 2)
    await store.delete(BUCKET)
    assert await anext(following) == (BUCKET, 3)


async def test_staged_segments_are_found_by_who_resumes(store: ChunkStore) -> None:
    assert await store.staged(BUCKET, "a.txt", "e1", settings=SETTINGS) is None
    refs = await store.write_segments(
        BUCKET, "a.txt", "e1", chunks_of("a", 3), vectors_of(3), settings=SETTINGS
    )
    assert await store.staged(BUCKET, "a.txt", "e1", settings=SETTINGS) == refs
    assert await store.staged(BUCKET, "a.txt", "e2", settings=SETTINGS) is None
    await store.commit(BUCKET, settings=SETTINGS, put=[record_of("a.txt", refs)])
    assert await store.staged(BUCKET, "a.txt", "e1", settings=SETTINGS) == refs


async def test_a_dead_server_is_an_error_within_two_seconds(
    breakable_redis_server: RedisServer,
) -> None:
    async with connect(RedisConfig(url=breakable_redis_server.url)) as client:
        assert await client.execute("PING")
