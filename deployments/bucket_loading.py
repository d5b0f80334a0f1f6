"""From the chunk store into an index: segments are read on the event loop, indexed on a thread.

Both go on at once; a bounded number of segments is on the way between them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from queue import SimpleQueue

from cluster.chunk_records import Change, LiveSegment
from cluster.chunk_store import ChunkStore
from cluster.types import BucketRef, Chunk
from models.retrieval.bucket_index import BucketIndex
from models.retrieval.segments import IndexSegment

_MAX_SEGMENTS_ON_THE_WAY = 16
_MAX_CHUNKS_AT_ONCE = 20_000  # of a change that is read entirely before the index is touched


def combined(
    changes: Sequence[Change], held: Collection[str]
) -> tuple[list[LiveSegment], set[str]]:
    """What several changes, oldest first, come to: segments to add, and ids to remove.

    `held` are the ids of all segments before these changes.
    """
    added: dict[str, LiveSegment] = {}
    removed: set[str] = set()
    for change in changes:
        if change.clears:
            added, removed = {}, set(held)
        for segment_id in change.removed:
            if added.pop(segment_id, None) is None or segment_id in held:
                removed.add(segment_id)
        added |= {segment.segment_id: segment for segment in change.added}
    return list(added.values()), removed


class IndexWriter:
    """Brings indexes to newer versions. Where it raises, `BucketIndex.is_whole` says whether the
    index is as it was.
    """

    def __init__(self, store: ChunkStore, executor: Executor) -> None:
        self._store = store
        self._executor = executor

    async def change(
        self,
        index: BucketIndex,
        bucket: BucketRef,
        version: int,
        *,
        added: Sequence[LiveSegment],
        removed: Collection[str],
        check: Callable[[int], None] = lambda num_chunks: None,
    ) -> None:
        """`check` is called with the number of chunks read so far, and may raise to end it.

        Raises:
            SegmentGoneError: one of `added` was replaced some minutes ago.
            ServiceUnavailableError: Redis does not answer.
            what `check` raises.
        """
        loop = asyncio.get_running_loop()
        feed = _SegmentFeed(loop)
        if sum(segment.num_chunks for segment in added) <= _MAX_CHUNKS_AT_ONCE:
            read = [segment async for segment in self._read(bucket, added, check)]
            await loop.run_in_executor(
                self._executor, lambda: index.change(version, added=read, removed=removed)
            )
            return
        writing = loop.run_in_executor(
            self._executor, lambda: index.change(version, added=feed, removed=removed)
        )
        try:
            async for segment in self._read(bucket, added, check):
                await feed.put(segment, writing)
        except BaseException as error:
            feed.fail(error)
            await asyncio.gather(writing, return_exceptions=True)
            raise
        feed.finish()
        await writing

    async def _read(
        self, bucket: BucketRef, segments: Sequence[LiveSegment], check: Callable[[int], None]
    ) -> AsyncIterator[IndexSegment]:
        all_chunks = self._store.all_chunks(bucket, segments)
        num_chunks = 0
        async for segment, vectors_ND in self._store.vectors(bucket, segments):
            _, chunks = await anext(all_chunks)
            num_chunks += len(chunks)
            check(num_chunks)
            yield IndexSegment(
                segment_id=segment.segment_id,
                filename=segment.filename,
                etag=segment.etag,
                first_position=segment.first_position,
                vectors_ND=vectors_ND,
                texts=[_indexed_text(chunk) for chunk in chunks],
            )


class _SegmentFeed:
    """Carries segments to the thread that indexes them; iterated there."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._places = asyncio.Semaphore(_MAX_SEGMENTS_ON_THE_WAY)
        self._queue: SimpleQueue[IndexSegment | BaseException | None] = SimpleQueue()

    async def put(self, segment: IndexSegment, reader: asyncio.Future[None]) -> None:
        """Wait for a place.

        Raises:
            what the reading thread has ended with.
        """
        place = asyncio.ensure_future(self._places.acquire())
        try:
            await asyncio.wait((place, reader), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not place.done():
                place.cancel()
        if reader.done():
            reader.result()
        self._queue.put(segment)

    def finish(self) -> None:
        self._queue.put(None)

    def fail(self, error: BaseException) -> None:
        self._queue.put(error)

    def __iter__(self) -> Iterator[IndexSegment]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise _ReadingFailed from item
            yield item
            self._loop.call_soon_threadsafe(self._places.release)


class _ReadingFailed(Exception):
    """Ends the indexing thread; the reader raises the reason itself."""


def _indexed_text(chunk: Chunk) -> str:
    """What a chunk's words are: the headings above it are looked for too."""
    return f"{chunk.heading}\n{chunk.text}" if chunk.heading else chunk.text
