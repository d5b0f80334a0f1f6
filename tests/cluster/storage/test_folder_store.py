import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.storage.errors import BucketNotFoundError
from cluster.storage.folder_store import FolderStore
from cluster.types import BucketRef

ROOT = Path(__file__).resolve().parents[3]
DOCS = BucketRef("default", "docs")

WRITER = """
import asyncio, sys
from pathlib import Path
from cluster.storage.folder_store import FolderStore
from cluster.types import BucketRef

async def main():
    store = FolderStore(Path(sys.argv[1]))
    number = 0
    while True:
        await store.put(BucketRef("default", "docs"), "x", bytes([number % 256]) * 300_000)
        number += 1
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FolderStore]:
    opened = FolderStore(tmp_path)
    await opened.create_bucket(DOCS)
    yield opened
    await opened.close()


def files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in paths)


async def test_puts_and_deletes_in_one_folder_do_not_disturb_each_other(
    store: FolderStore, tmp_path: Path
) -> None:
    async def come_and_go(name: str) -> None:
        for _ in range(20):
            await store.put(DOCS, f"deep/er/{name}", b"x")
            await store.delete(DOCS, f"deep/er/{name}")

    await asyncio.gather(*(come_and_go(f"{number}") for number in range(8)))
    assert files(tmp_path) == []
    assert os.listdir(tmp_path / "default" / "docs") == []


async def test_of_puts_of_one_object_at_once_one_wins_whole(store: FolderStore) -> None:
    contents = [bytes([number]) * 3_000_000 for number in range(8)]
    await asyncio.gather(*(store.put(DOCS, "x", content) for content in contents))
    _, data = await store.get(DOCS, "x", max_bytes=3_000_000)
    assert data in contents


async def test_a_put_into_a_bucket_that_is_deleted_meanwhile_does_not_bring_it_back(
    store: FolderStore, tmp_path: Path
) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"x"
        await store.delete_bucket(DOCS)

    with pytest.raises(BucketNotFoundError):
        await store.put(DOCS, "a/b", content())
    assert not (tmp_path / "default" / "docs").exists()
    assert files(tmp_path) == []


async def test_a_cancelled_put_leaves_nothing(store: FolderStore, tmp_path: Path) -> None:
    has_begun = asyncio.Event()

    async def content() -> AsyncIterator[bytes]:
        yield bytes(3_000_000)
        has_begun.set()
        await asyncio.Event().wait()

    putting = asyncio.create_task(store.put(DOCS, "x", content()))
    await has_begun.wait()
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    await store.close()
    assert files(tmp_path) == []


async def test_a_killed_process_leaves_the_last_whole_object(
    store: FolderStore, tmp_path: Path
) -> None:
    for num_puts in (1, 4, 9):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(tmp_path), cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(num_puts):
            assert await process.stdout.readline()
        process.kill()
        await process.wait()
        info, data = await store.get(DOCS, "x", max_bytes=300_000)
        assert (len(data), len(set(data))) == (300_000, 1)
        listed = [found async for found in store.list_objects(DOCS)]
        assert [found.key for found in listed] == ["x"]
        assert listed[0].etag == info.etag
        assert "-" not in info.etag  # the record is there too


async def test_a_file_system_without_attributes_keeps_the_bytes_alone(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    first = await store.put(DOCS, "x", b"one", headers={"content-type": "text/plain"})
    assert (await store.head(DOCS, "x")) == first
    assert first.content_type is None
    second = await store.put(DOCS, "x", b"two")
    assert second.etag != first.etag
    assert (await store.get(DOCS, "x", max_bytes=3))[1] == b"two"


async def test_a_broken_record_is_as_good_as_none(store: FolderStore, tmp_path: Path) -> None:
    await store.put(DOCS, "x", b"one")
    os.setxattr(tmp_path / "default" / "docs" / "x", "user.shoal.object", b"{not json")
    assert "-" in (await store.head(DOCS, "x")).etag


async def test_buckets_of_a_tenant_are_listed_by_name(store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "default" / "Not A Bucket").mkdir()
    (tmp_path / "default" / "a-file").write_text("x")
    await store.create_bucket(BucketRef("default", "archive"))
    await store.create_bucket(BucketRef("other", "theirs"))
    names = [[bucket.name for bucket in await store.list_buckets(tenant)] for tenant in
             ("default", "other", "nobody")]  # fmt: skip
    assert names == [["archive", "docs"], ["theirs"], []]
