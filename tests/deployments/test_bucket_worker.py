"""Workers of buckets in trouble, and buckets that follow their objects."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from cluster.chunk_records import FileStatus
from cluster.chunk_store import ChunkStore
from cluster.errors import ServiceUnavailableError
from cluster.storage.stored_object import ObjectInfo
from cluster.task_queue.task import TaskStatus
from cluster.types import BucketRef
from models.documents.reader import DocumentReader
from models.documents.settings import ReadingLimits
from tests.cluster.task_queue.tasks import end_leases
from tests.deployments.bucket_process import EMBEDDED_KEY
from tests.deployments.bucket_rig import BUCKET, Rig, rig
from tests.redis_server import RedisServer

LIMITS = ReadingLimits(max_bytes=10**7, timeout_s=60, memory_bytes=2**30)
QUIET = 3600.0  # no comparison comes between
BROKEN = {  # what is wrong with it -> its ending and its bytes
    "a truncated PDF": ("pdf", b"%PDF-1.4\n1 0 obj <<"),
    "a damaged package": ("docx", b"PK\x03\x04 and nothing more"),
    "nothing at all": ("txt", b""),
    "white space alone": ("md", b" \n\n "),
}


@pytest.fixture
async def bucket_rig(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(redis_server.url, tmp_path, sync_interval_s=QUIET) as made:
        yield made


async def until(is_so: Callable[[], object]) -> None:
    """For what nobody announces."""
    async with asyncio.timeout(120):
        while True:
            if await is_so():  # type: ignore[misc]
                return
            await asyncio.sleep(0.02)


async def until_texts(of: Rig, texts: dict[str, list[str]], bucket: BucketRef = BUCKET) -> None:
    async def has_them() -> bool:
        return await of.texts(bucket) == texts

    await until(has_them)


async def test_a_bucket_follows_its_objects(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one", b="two")
    async with bucket_rig.working():
        await bucket_rig.embed()
    await bucket_rig.put(a="changed", c="more")
    await bucket_rig.objects.delete(BUCKET, "b.txt")
    for _ in range(50):  # one task comes of many changes
        await bucket_rig.tasks.request_sync(BUCKET)
    counts = await bucket_rig.queue.counts()
    assert counts[TaskStatus.QUEUED] == 1
    async with bucket_rig.working():
        await until_texts(bucket_rig, {"a.txt": ["changed"], "c.txt": ["more"]})


async def test_tasks_that_wait_are_counted(bucket_rig: Rig) -> None:
    worker = bucket_rig.worker()
    assert await worker.num_waiting() == 0
    record = await bucket_rig.request()
    assert await worker.num_waiting() == 1
    async with bucket_rig.working():
        await bucket_rig.end_of(record)
    assert await worker.num_waiting() == 0


async def test_a_sync_does_not_read_again_what_could_not_be_read(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one", b="broken")
    async with bucket_rig.working():
        await bucket_rig.embed()
        await bucket_rig.put(c="three")
        await bucket_rig.tasks.request_sync(BUCKET)
        await until_texts(bucket_rig, {"a.txt": ["one"], "c.txt": ["three"]})
        assert bucket_rig.filenames.count("b.txt") == 1
        await bucket_rig.embed()  # who asks for it gets it
    assert bucket_rig.filenames.count("b.txt") == 2


async def test_a_bucket_that_was_never_embedded_does_not_become_so_by_a_sync(
    bucket_rig: Rig,
) -> None:
    await bucket_rig.put(a="one")
    async with bucket_rig.working():
        await bucket_rig.tasks.request_sync(BUCKET)

        async def is_done() -> bool:
            return (await bucket_rig.queue.counts())[TaskStatus.SUCCEEDED] == 1

        await until(is_done)
    assert await bucket_rig.chunks.meta(BUCKET) is None
    assert await bucket_rig.files() == {}


async def test_the_embedding_of_a_bucket_goes_with_it(bucket_rig: Rig) -> None:
    await bucket_rig.put(a="one")
    async with bucket_rig.working():
        await bucket_rig.embed()
        await bucket_rig.objects.delete(BUCKET, "a.txt")
        await bucket_rig.objects.delete_bucket(BUCKET)
        await bucket_rig.tasks.request_sync(BUCKET)

        async def is_gone() -> bool:
            return await bucket_rig.chunks.buckets("default") == []

        await until(is_gone)


async def test_changes_that_nobody_tells_are_found_by_comparison(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with rig(redis_server.url, tmp_path, sync_interval_s=0.1) as made:
        await made.put(a="one", b="two")
        async with made.working(num_workers=2):
            await made.embed()
            await made.objects.delete(BUCKET, "b.txt")
            await made.put(a="changed")
            await until_texts(made, {"a.txt": ["changed"]})
            made.embedder.revision = "2"  # the model behind the name is another one

            async def is_new() -> bool:
                meta = await made.chunks.meta(BUCKET)
                return meta is not None and meta.embedder.revision == "2"

            await until(is_new)
            await made.objects.delete(BUCKET, "a.txt")
            await until_texts(made, {})
            await made.objects.delete_bucket(BUCKET)  # an endpoint that lost it would look so
            await asyncio.sleep(0.3)
        assert await made.chunks.buckets("default") == ["handbook"]


async def test_a_bucket_that_cannot_be_compared_holds_up_no_other(
    redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(redis_server.url, tmp_path, sync_interval_s=0.1) as made:
        broken = BucketRef("default", "a-broken-one")  # comes first
        list_objects = made.objects.list_objects

        def listed(ref: BucketRef, prefix: str = "") -> AsyncIterator[ObjectInfo]:
            if ref == broken:
                raise OSError("the disk is odd")
            return list_objects(ref, prefix)

        for bucket in (broken, BUCKET):
            await made.put(bucket, a="one")
        async with made.working():
            for bucket in (broken, BUCKET):
                await made.embed(bucket)
            monkeypatch.setattr(made.objects, "list_objects", listed)
            for text in ("changed", "and again"):
                await made.put(a=text)
                await until_texts(made, {"a.txt": [text]})


async def test_a_worker_killed_again_and_again_loses_and_doubles_no_chunk(
    breakable_redis_server: RedisServer, tmp_path: Path
) -> None:
    url = breakable_redis_server.url
    async with rig(url, tmp_path, sync_interval_s=QUIET) as made:
        texts = {f"f{n}": " ".join(f"word{n}x{i}." for i in range(50 + 40 * n)) for n in range(40)}
        await made.put(**texts)
        made.reader = DocumentReader(LIMITS)
        expected = await undisturbed(made, texts)
        num_chunks = sum(map(len, expected.values()))
        await made.redis.execute("SET", EMBEDDED_KEY, 0)
        record = await made.request()
        process = start_process(url, tmp_path)
        try:
            for part in (1, 2, 3):

                async def has_embedded(part: int = part) -> bool:
                    return int(await made.redis.execute("GET", EMBEDDED_KEY)) > (
                        num_chunks * part // 5
                    )

                await until(has_embedded)
                process.kill()
                process.wait()
                await end_leases(made.queue)
                process = start_process(url, tmp_path)
            done = await made.end_of(record)
        finally:
            process.kill()
            process.wait()
            await made.reader.close()
        assert done.status is TaskStatus.SUCCEEDED
        assert done.num_losses == 3
        assert await made.texts() == expected
        num_embedded = int(await made.redis.execute("GET", EMBEDDED_KEY))
        assert num_chunks <= num_embedded < 2 * num_chunks  # it went on, not from the beginning


async def undisturbed(made: Rig, texts: dict[str, str]) -> dict[str, list[str]]:
    calm = BucketRef("default", "undisturbed")
    await made.put(calm, **texts)
    async with made.working():
        await made.embed(calm)
    return await made.texts(calm)


def start_process(url: str, home: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "tests.deployments.bucket_process", url, home])


async def test_a_server_killed_in_the_middle_costs_nothing_that_was_written(
    breakable_redis_server: RedisServer, tmp_path: Path
) -> None:
    server = breakable_redis_server
    async with rig(server.url, tmp_path, sync_interval_s=QUIET) as made:
        await made.put(**{f"f{n:02}": f"text {n}" for n in range(30)})
        made.embedder.gate = asyncio.Event()
        async with made.working():
            record = await made.request()
            await made.embedder.has_begun.wait()
            server.kill()
            made.embedder.gate.set()
            with pytest.raises(ServiceUnavailableError):
                await made.files()
            server.start()
            done = await made.end_of(record)
        assert done.status is TaskStatus.SUCCEEDED
        assert await made.texts() == {f"f{n:02}.txt": [f"text {n}"] for n in range(30)}


async def test_a_thousand_files_of_which_twenty_are_broken_are_a_partial_success(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with rig(redis_server.url, tmp_path, sync_interval_s=QUIET) as made:
        made.reader = DocumentReader(LIMITS)
        await made.put()
        broken = {}
        for number in range(20):
            ending, data = list(BROKEN.values())[number % len(BROKEN)]
            name = f"broken{number}.{ending}"
            broken[name] = (await made.objects.put(BUCKET, name, data)).key
        for number in range(980):
            await made.objects.put(BUCKET, f"good{number}.md", f"# {number}\n\nText.".encode())
        async with made.working(num_workers=2):
            done = await made.embed()
        await made.reader.close()
        assert done.status is TaskStatus.PARTLY_SUCCEEDED
        assert done.error.startswith("20 of 1000 files could not be embedded")
        assert (done.progress.num_done, done.progress.num_failed) == (1000, 20)
        files = await made.files()
        failed = {name: r for name, r in files.items() if r.status is FileStatus.FAILURE}
        assert set(failed) == set(broken)
        assert all(len(record.error_reason) > 10 for record in failed.values())
        assert len(await made.texts()) == 980


async def test_tenants_have_buckets_of_the_same_name(bucket_rig: Rig) -> None:
    theirs = BucketRef("other", "handbook")
    await bucket_rig.put(a="ours")
    await bucket_rig.put(theirs, a="theirs")
    async with bucket_rig.working():
        await bucket_rig.embed()
        await bucket_rig.embed(theirs)
    assert await bucket_rig.texts() == {"a.txt": ["ours"]}
    assert await bucket_rig.texts(theirs) == {"a.txt": ["theirs"]}
    assert await ChunkStore(bucket_rig.redis).buckets("other") == ["handbook"]
