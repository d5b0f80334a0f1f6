"""Files where they may be kept: a folder and an S3 endpoint, one Redis and a cluster."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from cluster.batch_config import BatchConfig
from cluster.batch_results import BatchResults, LineResult, Pointer, TokenCounts, pointers_of
from cluster.config import StorageConfig
from cluster.errors import BodyTooLargeError, NotFoundError
from cluster.file_store import FileStore, WrittenBytes, open_file_objects
from cluster.object_store import open_object_store
from cluster.redis_client import RedisClient
from cluster.types import BucketRef


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture(params=["folder", "s3"])
async def files(
    request: pytest.FixtureRequest, tmp_path: Path, endpoint: str, redis_client: RedisClient
) -> AsyncIterator[FileStore]:
    storage = StorageConfig()
    unique = hashlib.md5(request.node.name.encode()).hexdigest()[:8]
    batches = BatchConfig(s3_bucket_name=f"{unique}-{{tenant}}-files")
    if request.param == "s3":
        storage = StorageConfig(
            s3_endpoint=endpoint, s3_access_key_id="key", s3_secret_access_key="secret"
        )
    objects = open_file_objects(storage, batches, tmp_path)
    yield FileStore(redis_client, objects, max_bytes=1000)
    await objects.close()


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def put(files: FileStore, *data: bytes, tenant: str = "acme") -> WrittenBytes:
    written = await files.write(tenant, pieces(*data))
    await files.add(tenant, written, filename="f", purpose="batch", expires_after_s=None)
    return written


async def content(files: FileStore, tenant: str, file_id: str) -> bytes:
    async with files.open(tenant, file_id) as opened:
        return b"".join([data async for data in opened.chunks()])


async def test_what_was_written_is_read_listed_and_deleted(files: FileStore) -> None:
    written = await put(files, b"hello ", b"there")
    stored = await files.get("acme", written.file_id)
    assert stored.num_bytes == 11
    assert stored.sha256 == hashlib.sha256(b"hello there").hexdigest()
    assert await content(files, "acme", written.file_id) == b"hello there"
    page = await files.find("acme", limit=10, is_descending=True)
    assert page.files == [stored]
    assert await files.total_bytes("acme") == 11
    await files.delete("acme", written.file_id)
    with pytest.raises(NotFoundError):
        await content(files, "acme", written.file_id)
    assert await files.total_bytes("acme") == 0


async def test_tenants_do_not_share_files(files: FileStore) -> None:
    written = await put(files, b"mine")
    for call in (files.get("other", written.file_id), files.delete("other", written.file_id)):
        with pytest.raises(NotFoundError):
            await call
    assert await content(files, "acme", written.file_id) == b"mine"


async def test_bytes_that_are_too_many_leave_nothing(files: FileStore) -> None:
    with pytest.raises(BodyTooLargeError, match="limit is 1000"):
        await files.write("acme", pieces(b"x" * 600, b"x" * 600))
    bucket = await files.bucket("acme")
    assert [info.key async for info in files.objects.list_objects(bucket)] == []


async def test_adding_twice_is_adding_once(files: FileStore) -> None:
    written = await put(files, b"abc")
    await files.add("acme", written, filename="g", purpose="batch", expires_after_s=5)
    assert (await files.get("acme", written.file_id)).filename == "f"
    assert await files.total_bytes("acme") == 3


async def test_results_are_read_in_any_order_from_their_segments(files: FileStore) -> None:
    results = BatchResults(files, "acme", "batch_1")
    pointers: dict[str, bytes] = {}
    for start in (6, 3, 0):
        lines = [
            LineResult(
                number=start + k,
                is_error=k == 1,
                data=f"line {start + k}".encode(),
                tokens=TokenCounts(input_tokens=k),
            )
            for k in range(3)
        ]
        pointers |= await results.write(lines)
    found = pointers_of(pointers)
    assert list(found) == list(range(9))
    assert [pointer.is_error for pointer in found.values()] == [False, True, False] * 3
    read = [line async for line in results.lines(found.values())]
    assert read == [f"line {number}\n".encode() for number in range(9)]
    backwards: list[Pointer] = list(found.values())[::-1]
    assert [line async for line in results.lines(backwards)] == read[::-1]
    await results.delete()
    bucket = await files.bucket("acme")
    assert [info.key async for info in files.objects.list_objects(bucket)] == []


async def test_buckets_and_files_do_not_see_each_other(
    tmp_path: Path, redis_client: RedisClient
) -> None:
    objects = open_file_objects(StorageConfig(), BatchConfig(), tmp_path)
    files = FileStore(redis_client, objects, max_bytes=1000)
    buckets = open_object_store(StorageConfig(), tmp_path)
    await put(files, b"x")
    assert await buckets.list_buckets("acme") == []
    for name in ("files", ".files", "../.files/acme/files"):
        assert not await buckets.bucket_exists(BucketRef("acme", name))
    await buckets.create_bucket(BucketRef("acme", "files"))
    assert [info async for info in buckets.list_objects(BucketRef("acme", "files"))] == []
    await buckets.close()
    await objects.close()
