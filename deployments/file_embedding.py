"""One object of a bucket: fetched, read into chunks, embedded, and written as segments.

Nothing of it can be seen until the bucket is committed. What was written stays for a day, by the
object's version and the settings: who comes after a crash finds it and does not do it again.

Shapes: N = chunks, D = the embedding's width.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import psutil
from numpy.typing import NDArray

from cluster.chunk_records import BucketSettings, SegmentRef
from cluster.chunk_store import ChunkStore
from cluster.errors import ServiceUnavailableError, TooManyRequestsError
from cluster.object_store import ObjectStore
from cluster.retrieval import Embedder, InputKind
from cluster.storage.errors import check_size
from cluster.storage.stored_object import ObjectInfo
from cluster.types import BucketRef, Chunk
from deployments.work_group import collect
from models.documents.settings import ChunkSettings

MAX_FILES_AT_ONCE = 8
_MAX_BYTES_AT_ONCE = 128 * 2**20  # of files; a larger one is alone
_MAX_BATCHES_AT_ONCE = 4
_BATCH_TOKENS = 8192
_CHARS_PER_TOKEN = 3  # a low guess; a chunk has no more tokens than its settings say
_PART_CHUNKS = 1000  # written at once; what a crash costs, of a large file
_MAX_REFUSALS = 120  # by an embedder whose queue is full
_REFUSED_PAUSE_S = 1.0
_REPLACED_PAUSE_S = 1.0
_FOLDER_PREFIX = "shoal-embedding-"


class ChunkReader(Protocol):
    """Reads files: `models.documents.reader.DocumentReader`."""

    def stream(
        self, path: Path, filename: str, settings: ChunkSettings
    ) -> AsyncGenerator[list[Chunk], None]:
        """A file's chunks, as they come; closed when it is not read to its end.

        Raises:
            UnreadableDocumentError: it cannot be read; the message says why.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the chunks of a bucket's files go, and how they are made."""

    bucket: BucketRef
    settings: BucketSettings
    chunk_settings: ChunkSettings
    embedder: Embedder


class FileEmbedding:
    """All files of a worker pass through one of these: it bounds what they take together."""

    def __init__(
        self,
        objects: ObjectStore,
        chunks: ChunkStore,
        reader: ChunkReader,
        *,
        max_object_bytes: int,
    ) -> None:
        self._objects = objects
        self._chunks = chunks
        self._reader = reader
        self._max_object_bytes = max_object_bytes
        self._files = asyncio.Semaphore(MAX_FILES_AT_ONCE)
        self._bytes = _Budget(max(_MAX_BYTES_AT_ONCE, max_object_bytes))
        self._batches = asyncio.Semaphore(_MAX_BATCHES_AT_ONCE)
        _remove_folders_of_the_dead()
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-"))

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    @asynccontextmanager
    async def place_for(self, info: ObjectInfo) -> AsyncIterator[None]:
        """Wait until there is room for a file."""
        async with self._files, self._bytes.reserved(info.num_bytes):
            yield

    async def embed(
        self, info: ObjectInfo, target: Target
    ) -> tuple[ObjectInfo, tuple[SegmentRef, ...]]:
        """The segments of an object, and the version of it that was read.

        Raises:
            UnreadableDocumentError: it cannot be read; the message says why.
            ObjectTooLargeError: it is larger than is read.
            ObjectNotFoundError: there is no such object any more.
            ServiceUnavailableError: the store, the embedder or Redis does not answer.
        """
        staged = await self._staged(info.key, info.etag, target)
        if staged is not None:
            return info, staged
        check_size(info, self._max_object_bytes)
        async with (
            self._fetched(target.bucket, info.key) as (read_info, path),
            aclosing(self._reader.stream(path, info.key, target.chunk_settings)) as pieces,
        ):
            parts = _parts(pieces, _PART_CHUNKS)
            return read_info, await self._write_parts(parts, read_info, target)

    async def _write_parts(
        self, parts: AsyncIterator[tuple[list[Chunk], bool]], info: ObjectInfo, target: Target
    ) -> tuple[SegmentRef, ...]:
        refs: list[SegmentRef] = []
        number = 0
        async for part, is_only in parts:
            # A key has no line break: the name of a part cannot be that of another object.
            name = info.key if is_only else f"{info.key}\n{number}"
            refs += await self._write_part(part, name, info.etag, target)
            number += 1
        return tuple(refs)

    async def _write_part(
        self, part: list[Chunk], name: str, etag: str, target: Target
    ) -> tuple[SegmentRef, ...]:
        staged = await self._staged(name, etag, target)
        if staged is not None:
            return staged
        vectors_ND = await self._vectors(part, target)
        return await self._chunks.write_segments(
            target.bucket, name, etag, part, vectors_ND, settings=target.settings
        )

    async def _staged(self, name: str, etag: str, target: Target) -> tuple[SegmentRef, ...] | None:
        return await self._chunks.staged(target.bucket, name, etag, settings=target.settings)

    @asynccontextmanager
    async def _fetched(self, bucket: BucketRef, key: str) -> AsyncIterator[tuple[ObjectInfo, Path]]:
        """The object as a file, for as long as it is needed."""
        with tempfile.NamedTemporaryFile(dir=self._folder) as file:
            async with self._objects.open(bucket, key) as opened:
                check_size(opened.info, self._max_object_bytes)
                async for data in opened.chunks():
                    file.write(data)
            file.flush()
            yield opened.info, Path(file.name)

    async def _vectors(self, chunks: Sequence[Chunk], target: Target) -> NDArray[np.float32]:
        batches = _batches(chunks, target.chunk_settings.capacity)
        return np.concatenate(await collect(self._embed_batch(batch, target) for batch in batches))

    async def _embed_batch(self, texts: Sequence[str], target: Target) -> NDArray[np.float32]:
        async with self._batches:
            for _ in range(_MAX_REFUSALS):
                try:
                    return await _embedded(texts, target)
                except TooManyRequestsError as error:  # others have filled its queue
                    await asyncio.sleep(error.retry_after_s or _REFUSED_PAUSE_S)
            return await _embedded(texts, target)


async def _embedded(texts: Sequence[str], target: Target) -> NDArray[np.float32]:
    """
    Raises:
        ServiceUnavailableError: the model is being replaced by another revision.
    """
    embeddings = await target.embedder.embed(texts, kind=InputKind.PASSAGE)
    facts = target.settings.embedder
    if embeddings.revision not in ("", facts.revision):
        raise ServiceUnavailableError(
            f"The embedding model {facts.model_name} is being replaced: {embeddings.revision} "
            f"answers for {facts.revision}.",
            retry_after_s=_REPLACED_PAUSE_S,
        )
    return embeddings.vectors_ND


class _Budget:
    """A number of bytes that several hold parts of. Who comes first is served first."""

    def __init__(self, num_bytes: int) -> None:
        self._total = num_bytes
        self._free = num_bytes
        self._turn = asyncio.Lock()
        self._freed = asyncio.Condition()

    @asynccontextmanager
    async def reserved(self, num_bytes: int) -> AsyncIterator[None]:
        part = min(num_bytes, self._total)
        async with self._turn, self._freed:
            await self._freed.wait_for(lambda: self._free >= part)
            self._free -= part
        try:
            yield
        finally:
            async with self._freed:
                self._free += part
                self._freed.notify_all()


async def _parts(
    pieces: AsyncIterator[list[Chunk]], size: int
) -> AsyncIterator[tuple[list[Chunk], bool]]:
    """Runs of `size` chunks, and whether the run is the only one."""
    waiting: list[Chunk] = []
    is_first = True
    async for piece in pieces:
        waiting += piece
        while len(waiting) > size:
            yield waiting[:size], False
            waiting = waiting[size:]
            is_first = False
    if waiting:
        yield waiting, is_first


def _batches(chunks: Sequence[Chunk], capacity: int) -> Iterator[list[str]]:
    """Runs of texts of about `_BATCH_TOKENS` tokens."""
    batch: list[str] = []
    num_tokens = 0
    for chunk in chunks:
        expected = min(capacity, len(chunk.text) // _CHARS_PER_TOKEN + 1)
        if batch and num_tokens + expected > _BATCH_TOKENS:
            yield batch
            batch, num_tokens = [], 0
        batch.append(chunk.text)
        num_tokens += expected
    if batch:
        yield batch


def _remove_folders_of_the_dead() -> None:
    """Workers that were killed could not remove theirs."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*-*"):
        pid = folder.name.removeprefix(_FOLDER_PREFIX).split("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            with suppress(OSError):
                shutil.rmtree(folder)
