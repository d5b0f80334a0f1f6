"""Buckets in a folder: `<root>/<tenant>/<bucket>/<key>`, so that copied files are objects too.

An upload is written beside the buckets, synced, and moved into place whole. Links are never
followed: they are no objects, and no key leads through them. What a folder cannot hold that S3 can
(an object `a` beside an object `a/b`, segments of more than 255 bytes) is refused by name.

    <root>/<tenant>/.shoal/staged/    uploads being written; a name with a dot is no bucket's
    <root>/<tenant>/.shoal/uploads/   see `folder_uploads`
"""

import asyncio
import itertools
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
)
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from urllib.parse import quote

from cluster.storage.errors import ObjectNotFoundError, check_size
from cluster.storage.folder_files import FileReader, StagedFile, look_at
from cluster.storage.folder_layout import FolderLayout
from cluster.storage.folder_walk import LAST, FolderWalk
from cluster.storage.stored_object import BucketInfo, ObjectInfo, ObjectPage, OpenObject
from cluster.types import BucketRef

NUM_THREADS = 16
READ_BYTES = 256 * 1024
WRITE_BYTES = 1024 * 1024  # what is collected before it is written
PAGE_SIZE = 1000

T = TypeVar("T")
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class FolderStore:
    """See the module. Safe for several processes on one folder."""

    def __init__(self, root: Path, *, base_url: str = "") -> None:
        """
        Args:
            base_url: what `url` puts before `/bucket/key`.
        """
        self.layout = FolderLayout(root)
        self.layout.sweep()
        self._base_url = base_url
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="storage")

    async def close(self) -> None:
        """Let what runs end; nothing else may be called afterwards."""
        await asyncio.to_thread(self._threads.shutdown)

    async def run(self, work: Callable[[], T]) -> T:
        """Run blocking work on this store's threads. When cancelled, what has begun still ends."""
        return await asyncio.wrap_future(self._threads.submit(work))

    async def list_buckets(self, tenant: str) -> list[BucketInfo]:
        """By name."""
        return await self.run(lambda: self.layout.buckets(tenant))

    async def bucket_exists(self, ref: BucketRef) -> bool:
        return await self.run(lambda: self.layout.has_bucket(ref))

    async def create_bucket(self, ref: BucketRef) -> None:
        """
        Raises:
            ValidationError: a bucket cannot be called so.
            BucketExistsError: it is there already.
        """
        await self.run(lambda: self.layout.create_bucket(ref))

    async def delete_bucket(self, ref: BucketRef) -> None:
        """
        Raises:
            BucketNotFoundError: there is none.
            BucketNotEmptyError: it has objects.
        """
        await self.run(lambda: self.layout.delete_bucket(ref))

    async def list_objects(self, ref: BucketRef, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Ordered by the keys' UTF-8 bytes, in memory bounded by the largest folder.

        Raises:
            BucketNotFoundError: there is none.
        """
        folder = await self.run(lambda: self.layout.bucket(ref))
        found = iter(FolderWalk(folder, prefix=prefix))
        while page := await self.run(lambda: _infos(itertools.islice(found, PAGE_SIZE))):
            for info in page:
                yield info

    async def list_page(
        self,
        ref: BucketRef,
        *,
        prefix: str = "",
        delimiter: str = "",
        after: bytes = b"",
        max_keys: int = PAGE_SIZE,
    ) -> ObjectPage:
        """One page of S3's ListObjects: what comes behind `after`, grouped by `delimiter`.

        Raises:
            BucketNotFoundError: there is none.
        """

        def work() -> ObjectPage:
            walk = FolderWalk(self.layout.bucket(ref), prefix=prefix, after=after)
            return _page(walk, prefix=prefix, delimiter=delimiter, max_keys=max_keys)

        return await self.run(work)

    async def head(self, ref: BucketRef, key: str) -> ObjectInfo:
        """
        Raises:
            BucketNotFoundError, ObjectNotFoundError: there is none.
        """

        def work() -> ObjectInfo:
            path = self.layout.object(ref, key)
            try:
                return look_at(path, key)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ObjectNotFoundError.of(ref, key) from error

        return await self.run(work)

    @asynccontextmanager
    async def open(self, ref: BucketRef, key: str) -> AsyncIterator[OpenObject]:
        """An object to read; a put meanwhile does not disturb it.

        Raises:
            BucketNotFoundError, ObjectNotFoundError: there is none.
        """

        def work() -> FileReader:
            path = self.layout.object(ref, key)
            try:
                return FileReader(path, key)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ObjectNotFoundError.of(ref, key) from error

        opening = self._threads.submit(work)
        try:
            reader = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise
        try:
            yield OpenObject(info=reader.info, read=lambda a, b: self._read(reader, a, b))
        finally:
            self._threads.submit(reader.close)

    async def get(self, ref: BucketRef, key: str, *, max_bytes: int) -> tuple[ObjectInfo, bytes]:
        """A whole object.

        Raises:
            BucketNotFoundError, ObjectNotFoundError: there is none.
            ObjectTooLargeError: it has more than `max_bytes`.
        """
        async with self.open(ref, key) as found:
            check_size(found.info, max_bytes)
            return found.info, b"".join([chunk async for chunk in found.chunks()])

    async def put(
        self,
        ref: BucketRef,
        key: str,
        content: bytes | AsyncIterable[bytes],
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        is_new: bool = False,
    ) -> ObjectInfo:
        """Store an object, whole or not at all: when `content` raises, nothing has changed.

        Raises:
            ObjectExistsError: there is one already, and `is_new` forbids that.
            ValidationError: no object can be called so, or not beside those that are there.
            BucketNotFoundError: there is none.
            StorageFullError: there is no room.
        """
        await self.run(lambda: self.layout.object(ref, key))
        async with self.staged(ref) as staged:
            await self.write(staged, content)
            place = partial(self.layout.place, etag=staged.md5, headers=headers, is_new=is_new)
            return await self.run(lambda: place(staged, ref, key))

    async def delete(self, ref: BucketRef, key: str) -> None:
        """Delete an object, if it is there, and the folders that it leaves empty.

        Raises:
            BucketNotFoundError: there is none.
        """
        await self.run(lambda: self.layout.delete_object(ref, key))

    async def stored_bytes(self, tenant: str) -> int:
        """Of all that a tenant has, parts of multipart uploads among it."""
        return await self.run(lambda: self.layout.stored_bytes(tenant))

    def url(self, ref: BucketRef, key: str) -> str:
        """Where it can be had."""
        return f"{self._base_url}/{ref.name}/{quote(key)}"

    @asynccontextmanager
    async def staged(self, ref: BucketRef) -> AsyncIterator[StagedFile]:
        """A file to write, thrown away at the end unless it was published."""
        folder = self.layout.staged_folder(ref.tenant)
        opening = self._threads.submit(lambda: StagedFile(folder))
        try:
            staged = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_discard_opened)
            raise
        try:
            yield staged
        finally:
            discarding = asyncio.wrap_future(self._threads.submit(staged.discard))
            await asyncio.shield(discarding)  # also when this is cancelled once more

    async def write(self, staged: StagedFile, content: bytes | AsyncIterable[bytes]) -> None:
        """
        Raises:
            StorageFullError: there is no room.
        """
        async for data in _collected(content):
            await self.run(partial(staged.write, data))

    async def _read(self, reader: FileReader, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        position = start
        while position < stop:
            length = min(READ_BYTES, stop - position)
            data = await self.run(partial(reader.read, position, length))
            if not data:
                raise OSError(f"{reader.info.key} became shorter while it was read")
            position += len(data)
            yield data


async def _collected(content: bytes | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces that are worth a write."""
    if isinstance(content, bytes):
        yield content
        return
    waiting = bytearray()
    async for data in content:
        waiting += data
        if len(waiting) >= WRITE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


def _page(walk: FolderWalk, *, prefix: str, delimiter: str, max_keys: int) -> ObjectPage:
    objects: list[ObjectInfo] = []
    groups: list[str] = []
    last = b""
    for key, path in walk if max_keys else ():
        if len(objects) + len(groups) == max_keys:
            return ObjectPage(objects=objects, common_prefixes=groups, next_after=last)
        head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        if found:
            groups.append(prefix + head + delimiter)
            last = walk.after = groups[-1].encode() + LAST  # the rest of the group
            continue
        for info in _infos([(key, path)]):
            objects.append(info)
            last = key.encode()
    return ObjectPage(objects=objects, common_prefixes=groups, next_after=None)


def _infos(found: Iterable[tuple[str, Path]]) -> list[ObjectInfo]:
    """What is known of files, less those that are gone by now."""
    infos = []
    for key, path in found:
        try:
            infos.append(look_at(path, key))
        except (FileNotFoundError, NotADirectoryError):
            continue
    return infos


def _close_opened(opening: Future[FileReader]) -> None:
    """For a file that was opened after the one who wanted it had left."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _discard_opened(opening: Future[StagedFile]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().discard()
