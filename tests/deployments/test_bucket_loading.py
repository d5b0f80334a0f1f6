"""What several changes come to, and segments on their way from Redis into an index."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.chunk_records import Change, LiveSegment
from cluster.chunk_store import ChunkStore, SegmentGoneError
from cluster.config import RedisConfig
from cluster.redis_client import connect
from cluster.types import Chunk
from deployments import bucket_loading
from deployments.bucket_loading import IndexWriter, combined
from models.retrieval.bucket_index import BucketIndex
from models.retrieval.lexical_index import CorpusWeights, parse_query
from tests.cluster.chunk_samples import BUCKET, SETTINGS, WIDTH, record_of, write


def live(segment_id: str, *, etag: str = "e") -> LiveSegment:
    return LiveSegment(
        segment_id=segment_id, filename="f", etag=etag, first_position=0, num_chunks=1
    )


def applied(there: dict[str, LiveSegment], change: Change) -> dict[str, LiveSegment]:
    """One change, as its definition says."""
    there = {} if change.clears else dict(there)
    for segment_id in change.removed:
        there.pop(segment_id, None)
    return there | {segment.segment_id: segment for segment in change.added}


IDS = st.lists(st.sampled_from("abcdef"), max_size=3, unique=True)


@given(
    held=IDS,
    steps=st.lists(st.tuples(IDS, IDS, st.booleans(), st.sampled_from(["e1", "e2"])), max_size=5),
)
def test_changes_together_do_what_they_do_one_after_another(
    held: list[str], steps: list[tuple[list[str], list[str], bool, str]]
) -> None:
    start = {segment_id: live(segment_id) for segment_id in held}
    changes = [
        Change(
            version=number,
            added=tuple(live(segment_id, etag=etag) for segment_id in added),
            removed=tuple(removed),
            clears=clears,
        )
        for number, (added, removed, clears, etag) in enumerate(steps)
    ]
    expected = start
    for change in changes:
        expected = applied(expected, change)
    added, removed = combined(changes, held)
    remaining = {id_: segment for id_, segment in start.items() if id_ not in removed}
    assert remaining | {segment.segment_id: segment for segment in added} == expected


@pytest.fixture
async def store(redis_config: RedisConfig) -> AsyncIterator[ChunkStore]:
    async with connect(redis_config) as redis:
        yield ChunkStore(redis)


@pytest.fixture(params=["read first", "read and indexed at once"])
def _chunks_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "read first":
        monkeypatch.setattr(bucket_loading, "_MAX_CHUNKS_AT_ONCE", 0)
        monkeypatch.setattr(bucket_loading, "_MAX_SEGMENTS_ON_THE_WAY", 2)


def new_index() -> BucketIndex:
    return BucketIndex(WIDTH, max_exact_chunks=10**6, num_threads=1)


async def commit_files(store: ChunkStore, count: int) -> tuple[LiveSegment, ...]:
    records = [await write(store, f"f{number}", 50) for number in range(count)]
    await store.commit(BUCKET, settings=SETTINGS, put=records)
    return (await store.snapshot(BUCKET)).segments


@pytest.mark.usefixtures("_chunks_at_once")
async def test_all_segments_reach_the_index(store: ChunkStore) -> None:
    segments = await commit_files(store, 12)
    index, progress = new_index(), []
    with ThreadPoolExecutor(1) as executor:
        writer = IndexWriter(store, executor)
        await writer.change(*(index, BUCKET, 7), added=segments, removed=(), check=progress.append)
    assert (index.view.version, index.num_chunks) == (7, 600)
    assert progress == [50 * number for number in range(1, 13)]
    assert [entry.filename for entry in index.view.segments] == sorted(f"f{n}" for n in range(12))


@pytest.mark.usefixtures("_chunks_at_once")
async def test_what_ends_the_reading_ends_the_indexing(store: ChunkStore) -> None:
    segments = await commit_files(store, 12)
    index = new_index()

    def refuse(num_chunks: int) -> None:
        if num_chunks > 300:
            raise MemoryError("enough")

    with ThreadPoolExecutor(1) as executor:
        writer = IndexWriter(store, executor)
        async with asyncio.timeout(120):
            with pytest.raises(MemoryError, match="enough"):
                await writer.change(*(index, BUCKET, 7), added=segments, removed=(), check=refuse)
            gone = (*segments, live("gone"))
            with pytest.raises(SegmentGoneError):
                await writer.change(*(new_index(), BUCKET, 7), added=gone, removed=())
    assert index.view.version == 0


async def test_an_index_that_fails_ends_the_reading(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_loading, "_MAX_CHUNKS_AT_ONCE", 0)
    monkeypatch.setattr(bucket_loading, "_MAX_SEGMENTS_ON_THE_WAY", 2)
    segments = await commit_files(store, 30)
    index = BucketIndex(WIDTH + 1, max_exact_chunks=10**6, num_threads=1)  # vectors do not fit
    with ThreadPoolExecutor(1) as executor:
        async with asyncio.timeout(120):
            with pytest.raises(ValueError, match="broadcast"):
                await IndexWriter(store, executor).change(
                    *(index, BUCKET, 7), added=segments, removed=()
                )
    assert not index.is_whole


async def test_headings_are_words_of_their_chunks(store: ChunkStore) -> None:
    chunk = Chunk(text="Twenty days.", start=0, end=12, heading="Staff > Holidays")
    segments = await store.write_segments(
        BUCKET, "f", "e", [chunk], np.ones((1, WIDTH), np.float32), settings=SETTINGS
    )
    await store.commit(BUCKET, settings=SETTINGS, put=[record_of("f", segments)])
    index = new_index()
    with ThreadPoolExecutor(1) as executor:
        snapshot = await store.snapshot(BUCKET)
        await IndexWriter(store, executor).change(
            *(index, BUCKET, 1), added=snapshot.segments, removed=()
        )
    lexical = index.view.lexical
    for query in ("holidays", "twenty"):
        assert len(lexical.search(parse_query(query), 5, CorpusWeights([lexical]))) == 1
