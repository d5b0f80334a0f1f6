"""Embedding a bucket: what becomes searchable, when, and what its files' statuses say."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cluster.chunk_records import FileStatus
from cluster.errors import ServiceUnavailableError, TooManyRequestsError, ValidationError
from cluster.task_queue.task import TaskStatus
from cluster.types import BucketRef
from tests.deployments.bucket_fakes import vector_of
from tests.deployments.bucket_rig import BUCKET, Rig, rig
from tests.redis_server import RedisServer


class TextGate:
    """Lets texts through until so many were embedded, then holds the rest."""

    def __init__(self, of: Rig) -> None:
        self._embedder = of.embedder

    async def after_texts(self, num_texts: int) -> None:
        async with asyncio.timeout(120):
            while True:
                if len(self._embedder.texts) >= num_texts:
                    self._embedder.gate = asyncio.Event()
                    return
                await asyncio.sleep(0.001)

    def open(self) -> None:
        self._embedder.gate = None


@pytest.fixture
async def bucket_rig(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(redis_server.url, tmp_path) as made:
        yield made


async def test_a_bucket_becomes_searchable_with_the_vectors_of_its_chunks(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one\ntwo", b="three")
    async with bucket_rig.working():
        done = await bucket_rig.embed()
    assert done.status is TaskStatus.SUCCEEDED
    assert (done.progress.num_total, done.progress.num_done) == (2, 2)
    assert msgspec.json.decode(done.result) == {"num_files": 2, "num_failed": 0, "num_read": 2}
    assert await bucket_rig.texts() == {"a.txt": ["one", "two"], "b.txt": ["three"]}
    snapshot = await bucket_rig.chunks.snapshot(BUCKET)
    vectors = [v async for _, v in bucket_rig.chunks.vectors(BUCKET, snapshot.segments)]
    expected = [vector_of(text) for text in ("one", "two", "three")]
    np.testing.assert_allclose(np.concatenate(vectors), expected, atol=1e-3)
    files = await bucket_rig.files()
    assert {record.status for record in files.values()} == {FileStatus.SUCCESS}
    assert all(record.last_embedded_at is not None for record in files.values())


async def test_only_what_has_changed_is_read_again_and_what_is_gone_is_dropped(
    bucket_rig: Rig,
) -> None:
    await bucket_rig.put(a="old", b="same", c="gone")
    async with bucket_rig.working():
        await bucket_rig.embed()
        before = await bucket_rig.files()
        bucket_rig.filenames.clear()
        await bucket_rig.put(a="new", d="more")
        await bucket_rig.objects.delete(BUCKET, "c.txt")
        done = await bucket_rig.embed()
    assert sorted(bucket_rig.filenames) == ["a.txt", "d.txt"]
    assert await bucket_rig.texts() == {"a.txt": ["new"], "b.txt": ["same"], "d.txt": ["more"]}
    assert msgspec.json.decode(done.result)["num_read"] == 2
    after = await bucket_rig.files()
    assert after["b.txt"] == before["b.txt"]
    assert after["a.txt"].created_at == before["a.txt"].created_at
    assert after["a.txt"].updated_at > before["a.txt"].updated_at


async def test_nothing_changed_is_no_commit(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one")
    async with bucket_rig.working():
        await bucket_rig.embed()
        version = await bucket_rig.chunks.versions([BUCKET])
        assert (await bucket_rig.embed()).status is TaskStatus.SUCCEEDED
    assert await bucket_rig.chunks.versions([BUCKET]) == version


async def test_broken_files_fail_alone_and_say_why(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one", b="broken twice", c="broken badly")
    async with bucket_rig.working():
        done = await bucket_rig.embed()
    assert done.status is TaskStatus.PARTLY_SUCCEEDED
    assert done.error.startswith("2 of 3 files could not be embedded")
    assert (done.progress.num_done, done.progress.num_failed) == (3, 2)
    files = await bucket_rig.files()
    assert files["b.txt"].status is FileStatus.FAILURE
    assert files["b.txt"].error_reason == "It is broken twice."
    assert await bucket_rig.texts() == {"a.txt": ["one"]}


async def test_a_bucket_of_which_no_file_works_is_not_embedded(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="broken", b="broken")
    async with bucket_rig.working():
        done = await bucket_rig.embed()
    assert (done.status, done.is_dead) == (TaskStatus.FAILED, False)
    assert await bucket_rig.chunks.meta(BUCKET) is None
    files = await bucket_rig.files()
    assert [record.error_reason for record in files.values()] == ["It is broken."] * 2


async def test_a_file_that_became_unreadable_is_not_found_any_more(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one", b="two")
    async with bucket_rig.working():
        await bucket_rig.embed()
        await bucket_rig.put(b="broken")
        done = await bucket_rig.embed()
        assert done.status is TaskStatus.PARTLY_SUCCEEDED
        assert await bucket_rig.texts() == {"a.txt": ["one"]}
        assert (await bucket_rig.files())["b.txt"].last_embedded_at is not None


async def test_too_large_a_file_is_refused_by_name(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with rig(redis_server.url, tmp_path, max_object_bytes=10) as small:
        await small.put(a="one", b="x" * 11)
        async with small.working():
            done = await small.embed()
        assert done.status is TaskStatus.PARTLY_SUCCEEDED
        reason = (await small.files())["b.txt"].error_reason
        assert reason == "The object 'b.txt' has 11 bytes; the limit is 10."


async def test_an_empty_bucket_is_embedded_too(bucket_rig: Rig) -> None:
    await bucket_rig.put()
    async with bucket_rig.working():
        assert (await bucket_rig.embed()).status is TaskStatus.SUCCEEDED
    assert await bucket_rig.chunks.buckets("default") == ["handbook"]


async def test_a_bucket_that_does_not_exist_fails_the_task_by_name(bucket_rig: Rig) -> None:
    async with bucket_rig.working():
        done = await bucket_rig.embed(BucketRef("default", "missing"))
        unknown = await bucket_rig.embed(model="unheard-of")
    assert (done.status, done.error) == (TaskStatus.FAILED, "There is no bucket 'missing'.")
    assert "'unheard-of' is not configured (any more); there is: m, other" in unknown.error


async def test_nothing_is_visible_before_everything_is(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one", b="two")
    bucket_rig.embedder.gate = asyncio.Event()
    async with bucket_rig.working():
        record = await bucket_rig.request()
        await bucket_rig.embedder.has_begun.wait()
        assert await bucket_rig.texts() == {}
        statuses = {record.status for record in (await bucket_rig.files()).values()}
        assert statuses <= {FileStatus.QUEUED, FileStatus.PROCESSING}
        assert FileStatus.PROCESSING in statuses
        bucket_rig.embedder.gate.set()
        await bucket_rig.end_of(record)
    assert len(await bucket_rig.texts()) == 2


async def test_other_settings_make_everything_anew_and_switch_at_once(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one", b="two")
    other = bucket_rig.embedders["other"]
    other.gate = asyncio.Event()
    async with bucket_rig.working():
        await bucket_rig.embed()
        record = await bucket_rig.request(model="other")
        await other.has_begun.wait()
        meta = await bucket_rig.chunks.meta(BUCKET)
        assert meta is not None
        assert meta.embedder.model_name == "m"
        assert len(await bucket_rig.texts()) == 2
        other.gate.set()
        await bucket_rig.end_of(record)
        meta = await bucket_rig.chunks.meta(BUCKET)
        assert meta is not None
        assert meta.embedder.model_name == "other"
        assert sorted(other.texts) == ["one", "two"]
        await bucket_rig.embed(model="other", chunk_size=32)
        assert sorted(other.texts) == ["one", "one", "two", "two"]


async def test_a_switch_of_which_no_file_works_leaves_the_old_embedding(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one")
    bad = ValidationError.of("input.0", "has no tokens")
    bucket_rig.embedders["other"].errors = [bad]
    async with bucket_rig.working():
        await bucket_rig.embed()
        done = await bucket_rig.embed(model="other")
    assert done.status is TaskStatus.FAILED
    assert await bucket_rig.texts() == {"a.txt": ["one"]}
    assert (await bucket_rig.files())["a.txt"].error_reason == "input.0: has no tokens"


async def test_a_full_embedder_is_waited_for(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one")
    full = TooManyRequestsError("full", retry_after_s=0.01)
    bucket_rig.embedder.errors = [full, full, full]
    async with bucket_rig.working():
        done = await bucket_rig.embed()
    assert (done.status, done.num_attempts) == (TaskStatus.SUCCEEDED, 1)


async def test_an_absent_embedder_postpones_the_task_which_then_goes_on(bucket_rig: Rig) -> None:
    await bucket_rig.put(**{f"f{number}": f"text {number}" for number in range(5)})
    bucket_rig.embedder.errors = [ServiceUnavailableError("away", retry_after_s=0.01)]
    async with bucket_rig.working():
        done = await bucket_rig.embed()
    assert (done.status, done.num_attempts, done.num_postponed) == (TaskStatus.SUCCEEDED, 2, 1)
    assert len(await bucket_rig.texts()) == 5


async def test_vectors_of_two_revisions_do_not_mix_while_a_model_is_replaced(
    bucket_rig: Rig,
) -> None:
    await bucket_rig.put(a="one")
    embedder = bucket_rig.embedder
    embedder.gate = asyncio.Event()
    async with bucket_rig.working():
        record = await bucket_rig.request()
        await embedder.has_begun.wait()
        embedder.revision = "2"  # the replica that answers is a new one
        embedder.gate.set()
        done = await bucket_rig.end_of(record)
    assert (done.status, done.num_postponed) == (TaskStatus.SUCCEEDED, 1)
    assert embedder.texts == ["one", "one"]
    meta = await bucket_rig.chunks.meta(BUCKET)
    assert meta is not None
    assert meta.embedder.revision == "2"


async def test_what_was_written_before_an_interruption_is_not_done_again(bucket_rig: Rig) -> None:
    lines = [f"line {number}" for number in range(2500)]
    await bucket_rig.put(a="one", large="\n".join(lines), z="last")
    worker = bucket_rig.worker()
    running = asyncio.create_task(worker.run())
    record = await bucket_rig.request()
    gate = TextGate(bucket_rig)
    await gate.after_texts(1001)
    await worker.stop(grace_s=0)
    await running
    gate.open()
    before = len(bucket_rig.embedder.texts)
    assert before >= 1001
    assert (await bucket_rig.queue.get("default", record.task_id)).status is TaskStatus.QUEUED
    async with bucket_rig.working():
        done = await bucket_rig.end_of(record)
    assert done.status is TaskStatus.SUCCEEDED
    assert await bucket_rig.texts() == {"a.txt": ["one"], "large.txt": lines, "z.txt": ["last"]}
    assert (
        len(bucket_rig.embedder.texts) <= 2502 + 1002
    )  # at most a part of the large file, and the small ones


async def test_two_tasks_of_a_bucket_do_not_run_at_once(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one")
    bucket_rig.embedder.gate = asyncio.Event()
    async with bucket_rig.working(num_workers=2):
        first = await bucket_rig.request()
        await bucket_rig.embedder.has_begun.wait()
        second = await bucket_rig.request(chunk_size=32)
        free = BucketRef("default", "free")
        await bucket_rig.put(free)
        await bucket_rig.embed(free)
        waiting = await bucket_rig.queue.get("default", second.task_id)
        assert waiting.status is TaskStatus.QUEUED
        bucket_rig.embedder.gate.set()
        ends = [await bucket_rig.end_of(record) for record in (first, second)]
    assert [record.status for record in ends] == [TaskStatus.SUCCEEDED] * 2
    meta = await bucket_rig.chunks.meta(BUCKET)
    assert meta is not None
    assert meta.chunk_size == 32


async def test_a_cancelled_task_commits_nothing(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one")
    bucket_rig.embedder.gate = asyncio.Event()
    async with bucket_rig.working():
        record = await bucket_rig.request()
        await bucket_rig.embedder.has_begun.wait()
        assert await bucket_rig.tasks.cancel_all(BUCKET) == 1
        await bucket_rig.chunks.delete(BUCKET)
        bucket_rig.embedder.gate.set()
        assert (await bucket_rig.end_of(record)).status is TaskStatus.CANCELLED
    assert await bucket_rig.chunks.meta(BUCKET) is None
    assert await bucket_rig.files() == {}


async def test_who_is_overtaken_begins_again(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one")
    bucket_rig.embedder.gate = asyncio.Event()
    async with bucket_rig.working():
        await bucket_rig.put(a="one")
        record = await bucket_rig.request()
        await bucket_rig.embedder.has_begun.wait()
        await bucket_rig.chunks.delete(BUCKET)  # and nobody cancels the task
        bucket_rig.embedder.gate.set()
        assert (await bucket_rig.end_of(record)).status is TaskStatus.SUCCEEDED
    assert await bucket_rig.texts() == {"a.txt": ["one"]}
    assert bucket_rig.embedder.texts == ["one"]


async def test_an_object_that_goes_while_it_is_read_is_no_failure(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one", b="two")
    worker_objects = bucket_rig.objects
    original = worker_objects.list_objects

    async def list_then_delete(ref: BucketRef, prefix: str = "") -> AsyncIterator[object]:
        infos = [info async for info in original(ref, prefix)]
        await worker_objects.delete(ref, "b.txt")
        for info in infos:
            yield info

    worker_objects.list_objects = list_then_delete  # type: ignore[method-assign, assignment]
    async with bucket_rig.working():
        done = await bucket_rig.embed()
    assert done.status is TaskStatus.SUCCEEDED
    assert list(await bucket_rig.files()) == ["a.txt"]
