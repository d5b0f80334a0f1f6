"""Which buckets this process has indexes of: loaded when asked for, kept up to date, dropped.

A bucket is loaded once, however many ask for it. Every commit is followed; a search that knows of a
newer version than the index has waits for it (`caught_up`). When the indexes exceed their memory,
the least recently used go; one that alone is too large is refused.
"""

import asyncio
import logging
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cluster.chunk_records import BucketMeta, Change, Snapshot
from cluster.chunk_store import ChunkStore, SegmentGoneError
from cluster.config import RetrievalConfig
from cluster.errors import NotFoundError, ServiceUnavailableError, ServingError
from cluster.retrieval import EmbedderFacts
from cluster.types import BucketRef
from deployments.bucket_loading import IndexWriter, combined
from deployments.fair_places import FairPlaces
from deployments.progress_log import ProgressLog
from models.retrieval.approximate_index import TARGET_RECALL
from models.retrieval.bucket_index import BucketIndex
from models.retrieval.dense_index import SearchKind

logger = logging.getLogger(__name__)

# Of the time a search may take: then it is told that its bucket is still being loaded.
_LOADING_SHARE = 0.8
_RETRY_LOADING_AFTER_S = 2.0
_MAX_LOADS_AT_ONCE = 2
_MAX_THREADS = 8  # loads and changes
_MAX_UPKEEP_THREADS = 2
_UPKEEP_NICENESS = 5  # a third of the others' share of a busy CPU
_BYTES_PER_NUMBER = 4  # of a vector, while it is searched exactly
_CAPACITY_RESERVE = 1.1  # for the next commits
_LOAD_ATTEMPTS = 3  # a bucket that is replaced while it is read is read again


@dataclass(slots=True, kw_only=True, eq=False)
class LoadedBucket:
    """A bucket's index, and what it was made with."""

    ref: BucketRef
    embedder: EmbedderFacts
    index: BucketIndex
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanted_version: int = 0  # the newest that is known to exist
    catching_up: asyncio.Task[None] | None = None
    keeping_up: asyncio.Task[None] | None = None

    @property
    def version(self) -> int:
        return self.index.view.version


class BucketStats(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a loaded bucket."""

    tenant: str
    name: str
    version: int
    num_chunks: int
    num_bytes: int
    kind: str  # exact or approximate
    recall: float | None  # recall@10, of an approximate one
    num_waiting: int  # chunks that are still to be linked into its graph, and compared one by one


@dataclass(slots=True)
class _Progress:
    num_chunks: int = 0
    of: int = 0
    num_bytes: int = 0  # that the index will take, as far as that is known


class LoadedBuckets:
    """Belongs to one event loop; `start` it there."""

    def __init__(self, store: ChunkStore, config: RetrievalConfig, *, num_threads: int) -> None:
        self._store = store
        self._config = config
        self._num_threads = num_threads
        self._executor = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="indexing")
        # Threads for graphs: those that usearch starts there are as nice.
        self._upkeep_executor = ThreadPoolExecutor(
            _MAX_UPKEEP_THREADS, thread_name_prefix="upkeep", initializer=_let_others_go_first
        )
        self._writer = IndexWriter(store, self._executor)
        self._loaded: OrderedDict[BucketRef, LoadedBucket] = OrderedDict()  # oldest use first
        self._loading: dict[BucketRef, asyncio.Task[LoadedBucket]] = {}
        self._progress: dict[BucketRef, _Progress] = {}  # of loads under way, oldest first
        self._load_ended = asyncio.Condition()
        self._load_places = FairPlaces(_MAX_LOADS_AT_ONCE)
        self._too_large: dict[BucketRef, tuple[int, ServiceUnavailableError]] = {}  # by version
        self._tasks: set[asyncio.Task[None]] = set()
        self._follower: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._follower = asyncio.create_task(self._follow(), name="change feed")

    async def stop(self) -> None:
        tasks: list[asyncio.Task[Any]] = [*self._tasks, *self._loading.values()]
        tasks += [self._follower] if self._follower else []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._executor.shutdown)
        await asyncio.to_thread(self._upkeep_executor.shutdown)

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: changes are not followed any more.
        """
        if self._follower is None or self._follower.done():
            raise RuntimeError("the change feed is not followed any more")

    def stats(self) -> list[BucketStats]:
        """The loaded buckets, the one used last at the end."""
        return [_stats(one) for one in self._loaded.values()]

    @property
    def num_bytes(self) -> int:
        return sum(one.index.num_bytes for one in self._loaded.values())

    async def get(self, ref: BucketRef) -> LoadedBucket:
        """The bucket as it is known here; loads it where it is not.

        Raises:
            NotFoundError: it was never embedded; names it.
            ServiceUnavailableError: Redis does not answer, the bucket is still being loaded, or it
                is too large for this process.
        """
        loaded = self._loaded.get(ref)
        if loaded is not None:
            self._loaded.move_to_end(ref)
            return loaded
        await self._refuse_if_too_large(ref)
        if ref not in self._loading:
            self._loading[ref] = asyncio.create_task(self._load(ref))
            self._loading[ref].add_done_callback(lambda task: self._end_loading(ref, task))
        try:
            async with asyncio.timeout(self._config.search_timeout_s * _LOADING_SHARE):
                return await asyncio.shield(self._loading[ref])
        except TimeoutError as error:
            progress = self._progress.get(ref, _Progress())
            raise ServiceUnavailableError(
                f"The bucket {ref.name!r} is being loaded: {progress.num_chunks:,} of "
                f"{progress.of:,} chunks.",
                retry_after_s=_RETRY_LOADING_AFTER_S,
            ) from error

    async def caught_up(self, ref: BucketRef, version: int) -> LoadedBucket:
        """The bucket, not older than a version that it has in Redis.

        Raises:
            as `get`.
        """
        while True:
            loaded = await self.get(ref)
            if loaded.version >= version:
                return loaded
            # It goes on when this caller leaves: others wait for it.
            await asyncio.shield(self._catch_up(loaded, version))

    def drop(self, ref: BucketRef) -> None:
        """Forget a bucket. Searches under way keep its view."""
        loaded = self._loaded.pop(ref, None)
        if loaded is not None and loaded.keeping_up is not None:
            loaded.keeping_up.cancel()

    async def _follow(self) -> None:
        async for ref, version in self._store.follow(self._loaded.keys):
            loaded = self._loaded.get(ref)
            if loaded is not None and loaded.version < version:
                self._catch_up(loaded, version)

    def _catch_up(self, loaded: LoadedBucket, version: int) -> asyncio.Task[None]:
        """One step towards a version. Where commits come all the time each step is behind again;
        who waits looks after each whether it is enough.
        """
        loaded.wanted_version = max(loaded.wanted_version, version)
        if loaded.catching_up is None or loaded.catching_up.done():
            loaded.catching_up = self._begin(self._apply_changes(loaded))
            loaded.catching_up.add_done_callback(lambda task: self._go_on(loaded, task))
        return loaded.catching_up

    def _go_on(self, loaded: LoadedBucket, task: asyncio.Task[None]) -> None:
        is_loaded = self._loaded.get(loaded.ref) is loaded
        has_failed = task.cancelled() or task.exception() is not None  # the next search tries again
        if is_loaded and not has_failed and loaded.version < loaded.wanted_version:
            self._catch_up(loaded, loaded.wanted_version)

    async def _apply_changes(self, loaded: LoadedBucket) -> None:
        """All that Redis has now; drop the index where that is not possible."""
        async with loaded.changing:
            changes = await self._store.changes_since(loaded.ref, loaded.version)
            meta = await self._store.meta(loaded.ref)
            # No changes, though there is a newer version: Redis has lost some.
            if not changes or meta is None or meta.embedder != loaded.embedder:
                self._drop(loaded)
                return
            try:
                await self._apply(loaded, changes)
            except SegmentGoneError:
                self._drop(loaded)
            finally:
                if not loaded.index.is_whole:
                    self._drop(loaded)
        self._make_room(loaded)
        self._keep_up(loaded)

    async def _apply(self, loaded: LoadedBucket, changes: Sequence[Change]) -> None:
        held = {segment.segment_id for segment in loaded.index.view.segments}
        added, removed = combined(changes, held)
        await self._writer.change(
            *(loaded.index, loaded.ref, changes[-1].version), added=added, removed=removed
        )

    async def _load(self, ref: BucketRef) -> LoadedBucket:
        async with self._load_places.place(ref.tenant):
            progress = self._progress[ref] = _Progress()
            try:
                for _ in range(_LOAD_ATTEMPTS):
                    loaded = await self._try_load(ref, progress)
                    if loaded is not None:
                        self._loaded[ref] = loaded
                        progress.num_bytes = 0  # counted there from now on
                        self._make_room(loaded)
                        self._keep_up(loaded)
                        return loaded
            finally:
                del self._progress[ref]
                async with self._load_ended:
                    self._load_ended.notify_all()
        raise ServiceUnavailableError(
            f"The bucket {ref.name!r} changes faster than it can be loaded.",
            retry_after_s=_RETRY_LOADING_AFTER_S,
        )

    async def _try_load(self, ref: BucketRef, progress: _Progress) -> LoadedBucket | None:
        """None: it was replaced while it was read."""
        meta = await self._meta(ref)
        snapshot = await self._store.snapshot(ref)
        progress.num_chunks, progress.of = 0, _num_chunks(snapshot)
        width = meta.embedder.width
        progress.num_bytes = progress.of * width * _BYTES_PER_NUMBER  # at least
        self._check_size(ref, snapshot.version, progress.num_bytes)
        await self._wait_for_other_loads(ref)
        index = BucketIndex(
            width,
            max_exact_chunks=self._config.max_exact_chunks,
            num_threads=self._num_threads,
            capacity=int(progress.of * _CAPACITY_RESERVE),
        )

        log = ProgressLog(logger, f"loading bucket {ref.name!r}, chunks")

        def check(num_chunks: int) -> None:
            progress.num_chunks = num_chunks
            log.update(num_chunks, progress.of)
            progress.num_bytes = max(progress.num_bytes, index.num_bytes)
            self._check_size(ref, snapshot.version, index.num_bytes)
            self._evict()

        try:
            await self._writer.change(
                *(index, ref, snapshot.version), added=snapshot.segments, removed=(), check=check
            )
        except SegmentGoneError:
            return None
        if (await self._meta(ref)).embedder != meta.embedder:
            return None
        log.finish(f"{index.num_chunks:,}, {_mebibytes(index.num_bytes)}")
        return LoadedBucket(ref=ref, embedder=meta.embedder, index=index)

    async def _meta(self, ref: BucketRef) -> BucketMeta:
        meta = await self._store.meta(ref)
        if meta is None:
            raise NotFoundError(
                f"The bucket {ref.name!r} does not exist or was never embedded.",
                param="bucket_name",
            )
        return meta

    async def _refuse_if_too_large(self, ref: BucketRef) -> None:
        known = self._too_large.get(ref)
        if known is None:
            return
        version, error = known
        if await self._store.versions([ref]) == [version]:
            raise ServiceUnavailableError(error.detail)
        self._too_large.pop(ref, None)

    def _check_size(self, ref: BucketRef, version: int, num_bytes: int) -> None:
        """
        Raises:
            ServiceUnavailableError: more than all the memory there is for indexes; both numbers.
        """
        limit = self._config.index_memory_bytes
        if num_bytes <= limit:
            return
        error = ServiceUnavailableError(
            f"The bucket {ref.name!r} is too large to be searched here: its index needs at least "
            f"{_mebibytes(num_bytes)}, and retrieval.index_memory_bytes allows "
            f"{_mebibytes(limit)}."
        )
        self._too_large[ref] = (version, error)
        raise error

    def _make_room(self, newest: LoadedBucket) -> None:
        """
        Raises:
            ServiceUnavailableError: the newest alone is too large; it is dropped.
        """
        if self._loaded.get(newest.ref) is not newest:
            return
        try:
            self._check_size(newest.ref, newest.version, newest.index.num_bytes)
        except ServiceUnavailableError:
            self._drop(newest)
            raise
        self._evict()

    def _evict(self) -> None:
        """Drop the least recently used until the others, and what is being loaded, fit."""
        while self._loaded and self._num_bytes_with_loads > self._config.index_memory_bytes:
            oldest = next(iter(self._loaded.values()))
            logger.info("bucket %r is dropped from memory for others", oldest.ref.name)
            self._drop(oldest)

    @property
    def _num_bytes_with_loads(self) -> int:
        return self.num_bytes + sum(load.num_bytes for load in self._progress.values())

    async def _wait_for_other_loads(self, ref: BucketRef) -> None:
        """Until this load and those that began earlier fit into memory together; the oldest one
        never waits."""
        async with self._load_ended:
            await self._load_ended.wait_for(lambda: self._fits_among_loads(ref))

    def _fits_among_loads(self, ref: BucketRef) -> bool:
        num_bytes = sum(load.num_bytes for load in self._progress.values())
        return next(iter(self._progress)) == ref or num_bytes <= self._config.index_memory_bytes

    def _drop(self, loaded: LoadedBucket) -> None:
        if self._loaded.get(loaded.ref) is loaded:
            self.drop(loaded.ref)

    def _end_loading(self, ref: BucketRef, task: asyncio.Task[LoadedBucket]) -> None:
        del self._loading[ref]
        self._log_failure(task)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._log_failure)
        return task

    def _log_failure(self, task: asyncio.Task[Any]) -> None:
        """Perhaps nobody waits for it: the next search meets it again and tells its client."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ServingError):
            logger.warning("%s", error)
        elif error is not None:
            logger.error("an index could not be brought up to date", exc_info=error)

    def _keep_up(self, loaded: LoadedBucket) -> None:
        """Have the index do in the background what may wait."""
        is_loaded = self._loaded.get(loaded.ref) is loaded
        if is_loaded and (loaded.keeping_up is None or loaded.keeping_up.done()):
            loaded.keeping_up = self._begin(self._work_on(loaded))

    async def _work_on(self, loaded: LoadedBucket) -> None:
        loop = asyncio.get_running_loop()
        log = ProgressLog(logger, f"linking bucket {loaded.ref.name!r} into a graph, chunks")
        is_busy = True
        while is_busy:
            async with loaded.changing:
                is_busy = await loop.run_in_executor(self._upkeep_executor, loaded.index.upkeep)
            _tell_linking(log, loaded.index)
        if loaded.index.dense_facts().kind is SearchKind.APPROXIMATE:
            log.finish(f"{loaded.index.num_chunks:,}, {_mebibytes(loaded.index.num_bytes)}")
        if await loop.run_in_executor(self._upkeep_executor, loaded.index.measure):
            _log_recall(loaded)


def _let_others_go_first() -> None:
    """This thread, and those that it will start, are niced; where the system has that by thread."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        niceness = max(_UPKEEP_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
        os.setpriority(os.PRIO_PROCESS, thread, niceness)


def _tell_linking(log: ProgressLog, index: BucketIndex) -> None:
    facts = index.dense_facts()
    if facts.kind is SearchKind.APPROXIMATE:  # before, other work may be done
        log.update(index.num_chunks - facts.num_waiting, index.num_chunks)


def _log_recall(loaded: LoadedBucket) -> None:
    facts = loaded.index.dense_facts()
    if facts.recall is not None:
        logger.log(
            logging.INFO if facts.recall >= TARGET_RECALL else logging.WARNING,
            "bucket %r, %s chunks, is searched approximately: recall@10 %.3f (effort %s)",
            *(loaded.ref.name, loaded.index.num_chunks, facts.recall, facts.expansion_search),
        )


def _stats(loaded: LoadedBucket) -> BucketStats:
    facts = loaded.index.dense_facts()
    return BucketStats(
        tenant=loaded.ref.tenant,
        name=loaded.ref.name,
        version=loaded.version,
        num_chunks=loaded.index.num_chunks,
        num_bytes=loaded.index.num_bytes,
        kind=facts.kind,
        recall=facts.recall,
        num_waiting=facts.num_waiting,
    )


def _num_chunks(snapshot: Snapshot) -> int:
    return sum(segment.num_chunks for segment in snapshot.segments)


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
