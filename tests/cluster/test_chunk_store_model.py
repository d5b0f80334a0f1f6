"""Random operations on a bucket against a plain dictionary."""

import asyncio
from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cluster.chunk_keys import ChunkKeys
from cluster.chunk_records import FileRecord, FileStatus, LiveSegment
from cluster.chunk_store import ChunkStore, ConflictError
from cluster.config import RedisConfig
from cluster.redis_client import RedisClient, connect
from tests.cluster.chunk_samples import BUCKET, SETTINGS, record_of, searchable_texts, write

NAMES = st.sampled_from(["a", "b", "c", "ü/ {x}"])
ETAGS = st.sampled_from(["e1", "e2", "e3"])
COUNTS = st.sampled_from([0, 1, 3, 1001])

T = TypeVar("T")


class BucketMachine(RuleBasedStateMachine):
    """The model is name -> (etag, number of chunks); a follower applies the change log."""

    config: ClassVar[RedisConfig]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis: RedisClient = connect(self.config)
        self.store = ChunkStore(self.redis)
        self.run(self.redis.execute("FLUSHALL"))
        self.model: dict[str, tuple[str, int]] = {}
        self.noted: set[str] = set()
        self.exists = False
        self.version = 0
        self.followed: dict[str, LiveSegment] = {}
        self.followed_version = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.redis.close())
        self.runner.close()

    @rule(files=st.dictionaries(NAMES, st.tuples(ETAGS, COUNTS), max_size=3), drop=st.sets(NAMES))
    def commit(self, files: dict[str, tuple[str, int]], drop: set[str]) -> None:
        drop -= set(files)

        async def work() -> int:
            records = [await self._written(name, *file) for name, file in files.items()]
            return await self.store.commit(
                BUCKET,
                settings=SETTINGS,
                put=records,
                drop=sorted(drop),
                expected_version=self.version,
            )

        # An empty commit that repeats the last one is the last one.
        assert self.run(work()) >= self.version
        self.exists = True
        self.model = {
            name: file for name, file in {**self.model, **files}.items() if name not in drop
        }
        self.noted = (self.noted | set(files)) - drop

    async def _written(self, name: str, etag: str, count: int) -> FileRecord:
        """As a task does it: what another one has left is used."""
        refs = await self.store.staged(BUCKET, name, f"{etag}-{count}", settings=SETTINGS)
        if refs is not None:
            return record_of(name, refs, etag=f"{etag}-{count}")
        return await write(self.store, name, count, etag=f"{etag}-{count}")

    @rule(name=NAMES, etag=ETAGS, count=COUNTS)
    def write_and_give_up(self, name: str, etag: str, count: int) -> None:
        self.run(write(self.store, name, count, etag=f"{etag}-{count}"))

    @rule(name=NAMES)
    def commit_too_late(self, name: str) -> None:
        stale = self.version - 1

        async def work() -> None:
            with pytest.raises(ConflictError):
                await self.store.commit(
                    BUCKET, settings=SETTINGS, put=[record_of(name)], expected_version=stale
                )

        self.run(work())

    @rule(name=NAMES)
    def note(self, name: str) -> None:
        record = record_of(name, status=FileStatus.PROCESSING)
        self.run(self.store.note_file(BUCKET, record, expected_version=self.version))
        self.noted.add(name)

    @rule()
    def delete(self) -> None:
        assert self.run(self.store.delete(BUCKET)) == (self.exists or bool(self.noted))
        self.exists = False
        self.model.clear()
        self.noted.clear()

    @rule()
    def follow(self) -> None:
        changes = self.run(self.store.changes_since(BUCKET, self.followed_version))
        assert changes is not None
        for change in changes:
            assert change.clears or change.previous == self.followed_version
            if change.clears:
                self.followed.clear()
            for segment_id in change.removed:
                del self.followed[segment_id]
            for segment in change.added:
                assert segment.segment_id not in self.followed
                self.followed[segment.segment_id] = segment
            self.followed_version = change.version
        snapshot = self.run(self.store.snapshot(BUCKET))
        assert set(self.followed.values()) == set(snapshot.segments)
        assert snapshot.version == self.followed_version

    @invariant()
    def versions_rise(self) -> None:
        (version,) = self.run(self.store.versions([BUCKET]))
        assert version >= self.version
        self.version = version

    @invariant()
    def what_is_searchable_is_the_model(self) -> None:
        expected = [
            f"{name} {etag}-{count} {row}"
            for name, (etag, count) in sorted(self.model.items())
            for row in range(count)
        ]
        assert self.run(searchable_texts(self.store)) == expected
        assert set(self.run(self.store.files(BUCKET))) == self.noted
        assert self.run(self.store.buckets("default")) == (["handbook"] if self.exists else [])

    @invariant()
    def only_what_is_searchable_stays(self) -> None:
        keys = ChunkKeys(self.redis, BUCKET)

        async def work() -> None:
            snapshot = await self.store.snapshot(BUCKET)
            live = {key for s in snapshot.segments for key in keys.segment(s.segment_id)}
            stored = [key.decode() for key in await self.redis.execute("KEYS", "*")]
            segments = [key for key in stored if ":vectors:" in key or ":texts:" in key]
            ttls = await self.redis.execute_many([("TTL", key) for key in segments])
            assert {key for key, ttl in zip(segments, ttls, strict=True) if ttl == -1} == live
            assert not any(":trash" in key for key in stored)

        self.run(work())


def test_a_bucket_does_what_a_dictionary_does(redis_config: RedisConfig) -> None:
    BucketMachine.config = redis_config
    run_state_machine_as_test(
        BucketMachine,
        settings=hypothesis_settings(
            max_examples=25, stateful_step_count=15, deadline=None, database=None
        ),
    )
