"""The chunk store against a real server and a real cluster."""

import asyncio

import numpy as np
import pytest

from cluster.chunk_keys import DELETED_TTL_S, MAX_LOG_ENTRIES, ChunkKeys
from cluster.chunk_records import BucketSettings, Change, FileRecord, FileStatus
from cluster.chunk_store import ChunkStore, ConflictError, SegmentGoneError
from cluster.config import RedisConfig
from cluster.redis_client import RedisClient, connect
from cluster.retrieval import EmbedderFacts
from cluster.types import BucketRef, Chunk
from tests.cluster.chunk_samples import (
    BUCKET,
    SETTINGS,
    chunks_of,
    record_of,
    searchable_texts,
    vectors_of,
    write,
)

OTHER_SETTINGS = BucketSettings(
    embedder=EmbedderFacts(model_name="m2", revision="r", width=4, max_input_tokens=256),
    chunk_size=1024,
    chunk_overlap=512,
    loader="default",
)


@pytest.fixture
def store(redis_client: RedisClient) -> ChunkStore:
    return ChunkStore(redis_client)


async def commit(store: ChunkStore, *records: FileRecord, bucket: BucketRef = BUCKET) -> int:
    return await store.commit(bucket, settings=SETTINGS, put=records)


async def ttls_of(redis: RedisClient, record: FileRecord) -> set[int]:
    keys = ChunkKeys(redis, BUCKET)
    names = [key for segment in record.segments for key in keys.segment(segment.segment_id)]
    return set(await redis.execute_many([("TTL", name) for name in names]))


async def test_what_is_written_appears_with_the_commit(store: ChunkStore) -> None:
    chunks, vectors = chunks_of("a", 2_500), vectors_of(2_500)
    refs = await store.write_segments(BUCKET, "a.txt", "e1", chunks, vectors, settings=SETTINGS)
    assert [ref.num_chunks for ref in refs] == [1000, 1000, 500]
    assert await store.meta(BUCKET) is None
    assert (await store.snapshot(BUCKET)).segments == ()
    assert await store.buckets("default") == []

    record = record_of("a.txt", refs)
    version = await store.commit(BUCKET, settings=SETTINGS, put=[record], expected_version=0)

    assert await store.buckets("default") == ["handbook"]
    assert await store.buckets("another") == []
    meta = await store.meta(BUCKET)
    assert meta is not None
    assert (meta.version, meta.settings()) == (version, SETTINGS)
    snapshot = await store.snapshot(BUCKET)
    assert snapshot.version == version
    assert [s.first_position for s in snapshot.segments] == [0, 1000, 2000]
    read = [array async for _, array in store.vectors(BUCKET, snapshot.segments)]
    assert np.array_equal(np.concatenate(read), vectors.astype(np.float16))
    texts = [c async for _, part in store.all_chunks(BUCKET, snapshot.segments) for c in part]
    assert texts == chunks
    found = await store.chunks(BUCKET, [(refs[2].segment_id, 3), (refs[0].segment_id, 7), ("x", 0)])
    assert found == [chunks[2003], chunks[7], None]


async def test_wide_vectors_make_smaller_segments(store: ChunkStore) -> None:
    vectors = np.ones((600, 4096), dtype=np.float32)
    chunks = chunks_of("a", 600)
    refs = await store.write_segments(BUCKET, "a.txt", "e1", chunks, vectors, settings=SETTINGS)
    assert [ref.num_chunks for ref in refs] == [256, 256, 88]
    await commit(store, record_of("a.txt", refs))
    snapshot = await store.snapshot(BUCKET)
    read = [array.shape async for _, array in store.vectors(BUCKET, snapshot.segments)]
    assert read == [(256, 4096), (256, 4096), (88, 4096)]


async def test_long_texts_make_smaller_segments(store: ChunkStore) -> None:
    chunks = [Chunk(text=f"{i} " + "x" * 600_000, start=0, end=1) for i in range(7)]
    chunks.append(Chunk(text="y" * 3_000_000, start=0, end=1))
    refs = await store.write_segments(
        BUCKET, "a.txt", "e1", chunks, vectors_of(8), settings=SETTINGS
    )
    assert [ref.num_chunks for ref in refs] == [3, 3, 1, 1]
    await commit(store, record_of("a.txt", refs))
    snapshot = await store.snapshot(BUCKET)
    parts = [part async for _, part in store.all_chunks(BUCKET, snapshot.segments)]
    assert [chunk for part in parts for chunk in part] == chunks


async def test_a_file_without_chunks_is_embedded_too(store: ChunkStore) -> None:
    record = await write(store, "empty.txt", 0)
    assert await store.staged(BUCKET, "empty.txt", "e1", settings=SETTINGS) == ()
    await commit(store, record)
    assert list(await store.files(BUCKET)) == ["empty.txt"]
    assert await searchable_texts(store) == []


async def test_a_replaced_file_is_logged_and_its_segments_get_an_end(
    store: ChunkStore, redis_client: RedisClient
) -> None:
    old, new = await write(store, "a.txt", 3), await write(store, "a.txt", 2, etag="e2")
    first = await commit(store, old)
    held = await store.snapshot(BUCKET)
    second = await commit(store, new)

    changes = await store.changes_since(BUCKET, 0)
    assert changes is not None
    assert [(change.previous, change.version) for change in changes] == [
        (0, first),
        (first, second),
    ]
    assert changes[1].removed == (old.segments[0].segment_id,)
    assert [segment.etag for segment in changes[1].added] == ["e2"]
    assert await store.changes_since(BUCKET, second) == []
    assert all(0 < ttl <= 300 for ttl in await ttls_of(redis_client, old))
    assert await ttls_of(redis_client, new) == {-1}
    # Who holds the older snapshot reads on.
    parts = [part async for _, part in store.all_chunks(BUCKET, held.segments)]
    assert [chunk.text for part in parts for chunk in part] == [f"a.txt e1 {i}" for i in range(3)]


async def test_a_segment_that_is_gone_is_said(store: ChunkStore, redis_client: RedisClient) -> None:
    record = await write(store, "a.txt", 3)
    await commit(store, record)
    held = await store.snapshot(BUCKET)
    await store.delete(BUCKET)
    for key in ChunkKeys(redis_client, BUCKET).segment(record.segments[0].segment_id):
        await redis_client.execute("UNLINK", key)
    with pytest.raises(SegmentGoneError):
        [_ async for _ in store.vectors(BUCKET, held.segments)]
    with pytest.raises(SegmentGoneError):
        [_ async for _ in store.all_chunks(BUCKET, held.segments)]


async def test_a_segment_that_stays_under_another_etag_is_described_anew(
    store: ChunkStore, redis_client: RedisClient
) -> None:
    record = await write(store, "a.txt", 3)
    await commit(store, record)
    version = await commit(store, record_of("a.txt", record.segments, etag="e2"))
    (change,) = (await store.changes_since(BUCKET, 0) or [])[1:]
    assert change.version == version
    assert change.removed == (record.segments[0].segment_id,)
    assert [(s.segment_id, s.etag) for s in change.added] == [(record.segments[0].segment_id, "e2")]
    assert await ttls_of(redis_client, record) == {-1}


async def test_a_commit_of_very_many_files_is_one_commit(
    store: ChunkStore, redis_client: RedisClient
) -> None:
    names = [f"{number:04}" for number in range(1_100)]
    # A few at a time: each has as long as a command may take, on a machine of any speed.
    records = [
        record
        for first in range(0, len(names), 50)
        for record in await asyncio.gather(
            *(write(store, name, 1) for name in names[first : first + 50])
        )
    ]
    version = await commit(store, *records)
    assert await searchable_texts(store) == [f"{name} e1 0" for name in names]
    assert set().union(*[await ttls_of(redis_client, record) for record in records]) == {-1}
    await store.commit(
        BUCKET, settings=SETTINGS, put=[record_of("z")], drop=names[:-1], expected_version=version
    )
    assert list(await store.files(BUCKET)) == [names[-1], "z"]
    assert await searchable_texts(store) == [f"{names[-1]} e1 0"]
    ttls = set().union(*[await ttls_of(redis_client, record) for record in records[:-1]])
    assert all(0 < ttl <= 300 for ttl in ttls)


async def test_who_was_overtaken_is_refused_but_a_lost_answer_can_be_asked_again(
    store: ChunkStore,
) -> None:
    first, second = record_of("a.txt"), record_of("b.txt")
    version = await store.commit(BUCKET, settings=SETTINGS, put=[first], expected_version=0)
    again = await store.commit(BUCKET, settings=SETTINGS, put=[first], expected_version=0)
    assert again == version
    with pytest.raises(ConflictError, match="version 0 was expected"):
        await store.commit(BUCKET, settings=SETTINGS, put=[second], expected_version=0)
    assert list(await store.files(BUCKET)) == ["a.txt"]
    assert await store.versions([BUCKET]) == [version]


async def test_segments_that_are_gone_are_not_committed(
    store: ChunkStore, redis_client: RedisClient
) -> None:
    record = await write(store, "a.txt", 3)
    keys = ChunkKeys(redis_client, BUCKET)
    await redis_client.execute("UNLINK", keys.texts(record.segments[0].segment_id))
    with pytest.raises(ConflictError, match="is gone"):
        await commit(store, record)
    assert await store.meta(BUCKET) is None
    assert await store.staged(BUCKET, "a.txt", "e1", settings=SETTINGS) is None


async def test_files_of_other_settings_do_not_stay(store: ChunkStore) -> None:
    await commit(store, await write(store, "a.txt", 1), await write(store, "b.txt", 1))
    with pytest.raises(ValueError, match=r"would stay \(1, like 'b\.txt'\)"):
        await store.commit(BUCKET, settings=OTHER_SETTINGS, put=[record_of("a.txt")])
    await store.commit(BUCKET, settings=OTHER_SETTINGS, put=[record_of("a.txt")], drop=["b.txt"])
    meta = await store.meta(BUCKET)
    assert meta is not None
    assert meta.settings() == OTHER_SETTINGS


async def test_noting_a_status_touches_nothing_that_is_searchable(store: ChunkStore) -> None:
    record = await write(store, "a.txt", 3)
    version = await commit(store, record)
    failed = record_of("a.txt", etag="e2", status=FileStatus.FAILURE)
    await store.note_files(BUCKET, [failed, record_of("b.txt")], expected_version=version)
    files = await store.files(BUCKET)
    assert list(files) == ["a.txt", "b.txt"]
    assert files["a.txt"].status is FileStatus.FAILURE
    assert (files["a.txt"].etag, files["a.txt"].segments_etag) == ("e2", "e1")
    assert files["a.txt"].segments == record.segments
    assert await store.versions([BUCKET]) == [version]
    assert len(await searchable_texts(store)) == 3
    with pytest.raises(ConflictError):
        await store.note_file(BUCKET, record, expected_version=version - 1)


async def test_a_record_that_was_read_can_be_put_again(
    store: ChunkStore, redis_client: RedisClient
) -> None:
    record = await write(store, "a.txt", 3)
    await commit(store, record)
    await store.note_file(BUCKET, record_of("a.txt", etag="e2", status=FileStatus.FAILURE))
    (read,) = (await store.files(BUCKET)).values()
    await commit(store, read)
    snapshot = await store.snapshot(BUCKET)
    assert [segment.etag for segment in snapshot.segments] == ["e1"]
    assert await ttls_of(redis_client, record) == {-1}


async def test_a_deleted_bucket_is_gone_and_its_version_goes_on(
    store: ChunkStore, redis_client: RedisClient
) -> None:
    record = await write(store, "a.txt", 3)
    first = await commit(store, record)
    await store.note_file(BUCKET, record_of("b.txt"))

    assert await store.delete(BUCKET)
    assert not await store.delete(BUCKET)

    assert await store.meta(BUCKET) is None
    assert await store.files(BUCKET) == {}
    assert await store.buckets("default") == []
    assert (await store.snapshot(BUCKET)).segments == ()
    assert all(0 < ttl <= 300 for ttl in await ttls_of(redis_client, record))
    (second,) = await store.versions([BUCKET])
    assert second > first
    assert await store.changes_since(BUCKET, first) == [
        Change(version=second, previous=first, clears=True)
    ]
    keys = ChunkKeys(redis_client, BUCKET)
    for key in (keys.head, keys.log):  # all that is left, and not for ever
        assert 0 < await redis_client.execute("TTL", key) <= DELETED_TTL_S
    assert await commit(store, record_of("b.txt")) > second
    assert await store.buckets("default") == ["handbook"]
    for key in (keys.head, keys.log):
        assert await redis_client.execute("TTL", key) == -1


async def test_a_deletion_that_was_broken_off_spares_what_is_embedded_again(
    store: ChunkStore, redis_client: RedisClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, dropped = await write(store, "a.txt", 3), await write(store, "b.txt", 3)
    await commit(store, kept, dropped)

    async def crash(*_: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr("cluster.chunk_store.empty_trash", crash)
        with pytest.raises(InterruptedError):
            await store.delete(BUCKET)
    refs = await store.staged(BUCKET, "a.txt", "e1", settings=SETTINGS)
    assert refs == kept.segments

    await commit(store, record_of("a.txt", kept.segments))

    assert await ttls_of(redis_client, kept) == {-1}
    assert all(0 < ttl <= 300 for ttl in await ttls_of(redis_client, dropped))
    assert await redis_client.execute("EXISTS", ChunkKeys(redis_client, BUCKET).trash) == 0


async def test_followers_hear_of_commits_and_deletions(store: ChunkStore) -> None:
    other = BucketRef("tenant2", "b")
    first = await commit(store, record_of("a.txt"))
    following = store.follow(lambda: [BUCKET])
    assert await anext(following) == (BUCKET, first)
    second = await commit(store, record_of("b.txt"))
    assert await anext(following) == (BUCKET, second)
    third = await commit(store, record_of("b.txt"), bucket=other)
    assert await anext(following) == (other, third)
    await store.delete(BUCKET)
    assert await anext(following) == (BUCKET, (await store.versions([BUCKET]))[0])


async def test_staged_segments_are_found_by_who_resumes(store: ChunkStore) -> None:
    assert await store.staged(BUCKET, "a.txt", "e1", settings=SETTINGS) is None
    record = await write(store, "a.txt", 1_500)
    refs = record.segments
    assert await store.staged(BUCKET, "a.txt", "e1", settings=SETTINGS) == refs
    assert await store.staged(BUCKET, "a.txt", "e2", settings=SETTINGS) is None
    assert await store.staged(BUCKET, "b.txt", "e1", settings=SETTINGS) is None
    assert await store.staged(BUCKET, "a.txt", "e1", settings=OTHER_SETTINGS) is None
    await commit(store, record)
    assert await store.staged(BUCKET, "a.txt", "e1", settings=SETTINGS) == refs


@pytest.mark.slow
async def test_changes_are_forgotten_in_the_end_and_then_a_snapshot_is_due(
    redis_config: RedisConfig,
) -> None:
    async with connect(redis_config) as redis:
        store = ChunkStore(redis)
        versions = [await commit(store, record_of("a.txt")) for _ in range(MAX_LOG_ENTRIES + 200)]
        assert versions == sorted(set(versions))
        assert await store.changes_since(BUCKET, 0) is None
        assert await store.changes_since(BUCKET, versions[0]) is None
        recent = await store.changes_since(BUCKET, versions[-100])
        assert recent is not None
        assert [change.version for change in recent] == versions[-99:]
        length = await redis.execute("XLEN", ChunkKeys(redis, BUCKET).log)
        assert MAX_LOG_ENTRIES <= length < MAX_LOG_ENTRIES + 200


async def test_a_deletion_leaves_nothing_in_the_log_but_itself(
    store: ChunkStore, redis_client: RedisClient
) -> None:
    first = await commit(store, record_of("a.txt"))
    last = await commit(store, record_of("b.txt"))
    assert await store.delete(BUCKET)
    assert await redis_client.execute("XLEN", ChunkKeys(redis_client, BUCKET).log) == 1
    for version in (first, last):
        changes = await store.changes_since(BUCKET, version)
        assert changes is not None
        assert [change.clears for change in changes] == [True]


async def test_a_version_that_the_server_has_lost_is_noticed(
    store: ChunkStore, redis_client: RedisClient
) -> None:
    first = await commit(store, record_of("a.txt"))
    keys = ChunkKeys(redis_client, BUCKET)
    lost = await commit(store, record_of("b.txt"))
    # As a crash does that loses the last second.
    await redis_client.execute("HSET", keys.head, "version", first)
    await redis_client.execute("XDEL", keys.log, f"{lost}-0")
    assert await store.changes_since(BUCKET, lost) is None
    assert await commit(store, record_of("c.txt")) > lost
    assert await store.changes_since(BUCKET, lost) is None
    assert len(await store.changes_since(BUCKET, first) or []) == 1


async def test_tenants_and_names_with_braces_are_kept_apart(store: ChunkStore) -> None:
    buckets = [
        BucketRef("default", "b"),
        BucketRef("other", "b"),
        BucketRef("default", "{b}"),
        BucketRef("default", "%7Bb%7D"),
    ]
    for index, bucket in enumerate(buckets):
        record = await write(store, f"{index}.txt", 1, bucket=bucket)
        await commit(store, record, bucket=bucket)
    for index, bucket in enumerate(buckets):
        assert await searchable_texts(store, bucket) == [f"{index}.txt e1 0"]
    assert await store.buckets("default") == ["%7Bb%7D", "b", "{b}"]
    assert await store.delete(buckets[0])
    assert await searchable_texts(store, buckets[1]) == ["1.txt e1 0"]
