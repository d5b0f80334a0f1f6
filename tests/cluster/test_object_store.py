import asyncio
import hashlib
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cluster.config import ConfigError, StorageConfig
from cluster.errors import ServiceUnavailableError, ValidationError
from cluster.object_store import ObjectStore, open_object_store
from cluster.storage import folder_store, s3_store
from cluster.storage.errors import (
    BucketExistsError,
    BucketNotEmptyError,
    BucketNotFoundError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    StorageCredentialsError,
)
from cluster.types import BucketRef
from tests.deployments.ingress.s3.face_server import KEY, serving_face

HANDBOOK = BucketRef("default", "handbook")
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def at_endpoint(endpoint: str, request: pytest.FixtureRequest) -> StorageConfig:
    # The server outlives a test: each has bucket names of its own.
    unique = hashlib.md5(request.node.name.encode()).hexdigest()[:8]
    return StorageConfig(
        s3_endpoint=endpoint,
        s3_access_key_id="key",
        s3_secret_access_key="secret",
        s3_bucket_name=f"{unique}-{{tenant}}-{{bucket}}",
    )


@pytest.fixture(params=["folder", "s3"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, at_endpoint: StorageConfig
) -> AsyncIterator[ObjectStore]:
    config = StorageConfig() if request.param == "folder" else at_endpoint
    opened = open_object_store(config, tmp_path)
    yield opened
    await opened.close()


def boto_at(endpoint: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list_objects(HANDBOOK, prefix)]


async def pieces(*, num: int, size: int = MEGABYTE) -> AsyncIterator[bytes]:
    for number in range(num):
        yield bytes([number % 251]) * size


async def test_what_was_put_is_found_with_its_facts(store: ObjectStore) -> None:
    await store.create_bucket(HANDBOOK)
    put = await store.put(HANDBOOK, "a/b c.txt", b"hello", headers={"content-type": "text/plain"})
    info, data = await store.get(HANDBOOK, "a/b c.txt", max_bytes=5)
    assert data == b"hello"
    assert info == put == await store.head(HANDBOOK, "a/b c.txt")
    assert info.key == "a/b c.txt"
    assert info.num_bytes == 5
    assert info.etag == hashlib.md5(b"hello").hexdigest()
    assert info.content_type == "text/plain"
    assert abs(info.modified_at - time.time()) < 60


@pytest.mark.parametrize("size", [0, 1, 20 * MEGABYTE])
async def test_objects_of_any_size_come_back_as_they_were(store: ObjectStore, size: int) -> None:
    await store.create_bucket(HANDBOOK)
    data = os.urandom(size)
    await store.put(HANDBOOK, "data.bin", data)
    info, found = await store.get(HANDBOOK, "data.bin", max_bytes=size)
    assert (info.num_bytes, found == data) == (size, True)


async def test_a_part_of_an_object_can_be_read(store: ObjectStore) -> None:
    await store.create_bucket(HANDBOOK)
    await store.put(HANDBOOK, "digits", b"0123456789")
    async with store.open(HANDBOOK, "digits") as found:
        assert b"".join([part async for part in found.read(3, 7)]) == b"3456"
        assert b"".join([part async for part in found.read(4, 4)]) == b""
        assert b"".join([part async for part in found.chunks()]) == b"0123456789"


async def test_the_etag_changes_with_the_content_and_only_then(store: ObjectStore) -> None:
    await store.create_bucket(HANDBOOK)
    etags = [
        (await store.put(HANDBOOK, "notes.md", data)).etag for data in (b"one", b"two", b"one")
    ]
    assert etags[0] == etags[2] != etags[1]


async def test_a_put_that_fails_midway_changes_nothing(store: ObjectStore) -> None:
    await store.create_bucket(HANDBOOK)
    await store.put(HANDBOOK, "notes.md", b"old")

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * (9 * MEGABYTE)
        raise RuntimeError("the client left")

    for key in ("notes.md", "new.md"):
        with pytest.raises(RuntimeError, match="the client left"):
            await store.put(HANDBOOK, key, broken())
    assert await keys(store) == ["notes.md"]
    assert (await store.get(HANDBOOK, "notes.md", max_bytes=100))[1] == b"old"


async def test_a_put_that_is_broken_or_cancelled_leaves_no_parts_at_the_endpoint(
    endpoint: str, at_endpoint: StorageConfig, tmp_path: Path
) -> None:
    store = open_object_store(at_endpoint, tmp_path)
    await store.create_bucket(HANDBOOK)
    has_begun = asyncio.Event()

    async def content(*, breaks: bool) -> AsyncIterator[bytes]:
        for _ in range(20):
            yield bytes(MEGABYTE)
        if breaks:
            raise RuntimeError("broken")
        has_begun.set()
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="broken"):
        await store.put(HANDBOOK, "x", content(breaks=True))
    putting = asyncio.create_task(store.put(HANDBOOK, "y", content(breaks=False)))
    await has_begun.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    name = at_endpoint.s3_bucket_name.format(tenant="default", bucket="handbook")
    assert "Uploads" not in boto_at(endpoint).list_multipart_uploads(Bucket=name)
    assert await keys(store) == []
    await store.close()


async def test_keys_are_listed_in_the_order_of_their_bytes(store: ObjectStore) -> None:
    await store.create_bucket(HANDBOOK)
    names = ["a-b", "a/b", "a0", "Z", "é", "日本/語.txt", "docs/1", "docs/deep/2", "docs.txt", "~"]
    for name in names:
        await store.put(HANDBOOK, name, b"x")
    assert await keys(store) == sorted(names, key=str.encode)


async def test_a_prefix_is_text_and_not_a_folder(store: ObjectStore) -> None:
    await store.create_bucket(HANDBOOK)
    for name in ("docs/1", "docs/deep/2", "docs.txt", "dog", "x"):
        await store.put(HANDBOOK, name, b"x")
    assert await keys(store, "do") == ["docs.txt", "docs/1", "docs/deep/2", "dog"]
    assert await keys(store, "docs/") == ["docs/1", "docs/deep/2"]
    assert await keys(store, "docs/deep") == ["docs/deep/2"]
    assert await keys(store, "docs/1") == ["docs/1"]
    assert await keys(store, "y") == []


async def test_a_listing_goes_on_behind_its_first_page(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_store, "PAGE_SIZE", 10)
    monkeypatch.setattr(folder_store, "PAGE_SIZE", 10)
    await store.create_bucket(HANDBOOK)
    names = [f"{number % 7}/{number:04}" for number in range(35)]
    for name in names:
        await store.put(HANDBOOK, name, b"")
    assert await keys(store) == sorted(names)


async def test_a_deleted_object_is_gone_and_may_be_deleted_again(store: ObjectStore) -> None:
    await store.create_bucket(HANDBOOK)
    await store.put(HANDBOOK, "a/b/c", b"x")
    await store.delete(HANDBOOK, "a/b/c")
    await store.delete(HANDBOOK, "a/b/c")
    assert await keys(store) == []
    with pytest.raises(ObjectNotFoundError, match=r"no object 'a/b/c' in the bucket 'handbook'"):
        await store.head(HANDBOOK, "a/b/c")
    await store.put(HANDBOOK, "a/b", b"now a file")
    assert await keys(store) == ["a/b"]


async def test_a_missing_bucket_is_named_by_every_operation(store: ObjectStore) -> None:
    assert not await store.bucket_exists(HANDBOOK)
    missing = pytest.raises(BucketNotFoundError, match="no bucket 'handbook'")
    with missing:
        await store.head(HANDBOOK, "x")
    with missing:
        await store.get(HANDBOOK, "x", max_bytes=1)
    with missing:
        await store.put(HANDBOOK, "x", b"")
    with missing:
        await store.delete(HANDBOOK, "x")
    with missing:
        await store.delete_bucket(HANDBOOK)
    with missing:
        await keys(store)


async def test_buckets_are_created_once_and_deleted_when_they_are_empty(
    store: ObjectStore,
) -> None:
    await store.create_bucket(HANDBOOK)
    with pytest.raises(BucketExistsError):
        await store.create_bucket(HANDBOOK)
    await store.put(HANDBOOK, "a/b", b"")
    with pytest.raises(BucketNotEmptyError):
        await store.delete_bucket(HANDBOOK)
    await store.delete(HANDBOOK, "a/b")
    await store.delete_bucket(HANDBOOK)
    assert not await store.bucket_exists(HANDBOOK)


@pytest.mark.parametrize("name", ["", "ab", "Handbook", "a_b", "-ab", "a..b", "10.0.0.1", "../x"])
async def test_names_that_no_bucket_can_have_are_refused(store: ObjectStore, name: str) -> None:
    ref = BucketRef("default", name)
    with pytest.raises(ValidationError, match="bucket_name"):
        await store.create_bucket(ref)


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\nb", "a\0b", "x" * 1025, "\ud800"]
)
async def test_names_that_no_object_can_have_are_refused(store: ObjectStore, key: str) -> None:
    await store.create_bucket(HANDBOOK)
    for call in (store.head(HANDBOOK, key), store.put(HANDBOOK, key, b"")):
        with pytest.raises(ValidationError, match="key"):
            await call


async def test_tenants_have_their_own_buckets(store: ObjectStore) -> None:
    other = BucketRef("other", "handbook")
    await store.create_bucket(HANDBOOK)
    assert not await store.bucket_exists(other)
    await store.create_bucket(other)
    await store.put(HANDBOOK, "x", b"mine")
    with pytest.raises(ObjectNotFoundError):
        await store.head(other, "x")


async def test_an_object_that_is_too_large_is_not_read(store: ObjectStore) -> None:
    await store.create_bucket(HANDBOOK)
    await store.put(HANDBOOK, "x", b"12345")
    with pytest.raises(ObjectTooLargeError, match="has 5 bytes; the limit is 4"):
        await store.get(HANDBOOK, "x", max_bytes=4)


async def test_a_large_object_streams_through_flat_memory(store: ObjectStore) -> None:
    await store.create_bucket(HANDBOOK)
    await store.put(HANDBOOK, "warm", pieces(num=2))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # moto keeps what it is given in this process, so through it only reading can be judged.
    if type(store).__name__ == "FolderStore":
        info = await store.put(HANDBOOK, "large", pieces(num=300))
        async with store.open(HANDBOOK, "large") as found:
            num_bytes = sum([len(chunk) async for chunk in found.chunks()])
        assert num_bytes == info.num_bytes == 300 * MEGABYTE
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
        assert grown_kb < 40 * 1024


async def test_objects_with_keys_that_nobody_can_read_are_left_out_of_listings(
    endpoint: str, at_endpoint: StorageConfig, tmp_path: Path
) -> None:
    store = open_object_store(at_endpoint, tmp_path)
    await store.create_bucket(HANDBOOK)
    client = boto_at(endpoint)
    name = at_endpoint.s3_bucket_name.format(tenant="default", bucket="handbook")
    for key in ("a//b", "docs/", "fine", "tab\tbed", "docs/../x"):
        client.put_object(Bucket=name, Key=key, Body=b"x")
    assert await keys(store) == ["fine"]
    await store.close()


async def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(
    store: ObjectStore,
) -> None:
    await store.create_bucket(HANDBOOK)
    await store.put(HANDBOOK, "x", b"one")
    async with store.open(HANDBOOK, "x") as found:
        await store.put(HANDBOOK, "x", b"two")
        try:
            data = b"".join([chunk async for chunk in found.chunks()])
        except ObjectNotFoundError:
            data = b"one"  # the endpoint does not have it any more, and says so
    assert data == b"one"


async def test_wrong_credentials_are_said_to_be_wrong(tmp_path: Path) -> None:
    with serving_face(tmp_path) as server:
        config = StorageConfig(
            s3_endpoint=server.url, s3_access_key_id="wrong", s3_secret_access_key="wrong"
        )
        store = open_object_store(config, tmp_path)
        refused = pytest.raises(StorageCredentialsError, match=r"storage\.s3_access_key_id")
        with refused as caught:
            await keys(store)
        assert caught.value.retry_after_s is None
        for call in (
            store.get(HANDBOOK, "x", max_bytes=1),
            store.put(HANDBOOK, "x", b""),
            store.bucket_exists(HANDBOOK),
        ):
            with refused:
                await call
        await store.close()


async def test_shoals_own_s3_face_is_an_endpoint_too(tmp_path: Path) -> None:
    with serving_face(tmp_path) as server:
        config = StorageConfig(
            s3_endpoint=server.url, s3_access_key_id=KEY, s3_secret_access_key=KEY
        )
        store = open_object_store(config, tmp_path)
        await store.create_bucket(HANDBOOK)
        await store.put(HANDBOOK, "a b/ü+%.txt", pieces(num=20))
        info, data = await store.get(HANDBOOK, "a b/ü+%.txt", max_bytes=20 * MEGABYTE)
        assert data == b"".join([piece async for piece in pieces(num=20)])
        assert await keys(store, "a b/") == [info.key]
        assert store.url(HANDBOOK, info.key) == f"{server.url}/handbook/a%20b/%C3%BC%2B%25.txt"
        await store.delete(HANDBOOK, info.key)
        await store.delete_bucket(HANDBOOK)
        assert server.files() == []
        await store.close()


async def test_an_endpoint_that_accepts_and_says_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_store, "ANSWER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(s3_store, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(s3_store, "NUM_RETRIES", 0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = StorageConfig(
            s3_endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}",
            s3_access_key_id="k",
            s3_secret_access_key="s",
        )
        store = open_object_store(config, Path("unused"))
        for call in (store.head(HANDBOOK, "x"), store.bucket_exists(HANDBOOK)):
            with pytest.raises(ServiceUnavailableError, match="does not answer"):
                await call
        await store.close()


def test_an_endpoint_needs_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    config = StorageConfig(s3_endpoint="https://s3.example.com")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        open_object_store(config, Path("unused"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    open_object_store(config, Path("unused"))


def test_a_source_says_where_the_object_is(tmp_path: Path) -> None:
    keyed = {"s3_access_key_id": "k", "s3_secret_access_key": "s"}
    in_folder = open_object_store(StorageConfig(), tmp_path)
    path = StorageConfig(s3_endpoint="https://s3.example.com/", **keyed)
    host = StorageConfig(
        s3_endpoint="https://s3.example.com",
        s3_virtual_hosted_style=True,
        s3_bucket_name="{tenant}-{bucket}",
        **keyed,
    )
    urls = [open_object_store(config, tmp_path).url(HANDBOOK, "a b/c") for config in (path, host)]
    assert in_folder.url(HANDBOOK, "a b/c") == "/v2/storage/s3/handbook/a%20b/c"
    assert urls == [
        "https://s3.example.com/handbook/a%20b/c",
        "https://default-handbook.s3.example.com/a%20b/c",
    ]


async def test_no_request_is_made_for_what_no_bucket_can_be_called() -> None:
    config = StorageConfig(
        s3_endpoint="http://127.0.0.1:9", s3_access_key_id="k", s3_secret_access_key="s"
    )
    store = open_object_store(config, Path("unused"))
    ref = BucketRef("default", "x/../of-another")
    with pytest.raises(BucketNotFoundError):
        _ = [info async for info in store.list_objects(ref)]
    with pytest.raises(BucketNotFoundError):
        await store.delete_bucket(ref)
    assert not await store.bucket_exists(ref)
    await store.close()


async def test_an_endpoint_that_is_away_is_named_within_seconds() -> None:
    config = StorageConfig(
        s3_endpoint="http://127.0.0.1:9", s3_access_key_id="k", s3_secret_access_key="s"
    )
    store = open_object_store(config, Path("unused"))
    away = pytest.raises(ServiceUnavailableError, match=r"127\.0\.0\.1:9 does not answer")
    with away as caught:
        await store.head(HANDBOOK, "x")
    assert caught.value.retry_after_s is not None
    with away:
        await keys(store)
    with away:
        await store.bucket_exists(HANDBOOK)
    await store.close()
