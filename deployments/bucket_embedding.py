"""Embedding a bucket: its objects are listed, read, embedded, and become searchable all at once.

Objects that have not changed are left as they are. With new settings (another model, other chunks)
everything is made anew and replaces the old in one commit. Who is interrupted finds on the next
attempt what had been written, and who is overtaken begins again.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import tokenizers

from cluster.chunk_records import BucketSettings, FileRecord, FileStatus
from cluster.chunk_store import ChunkStore, ConflictError
from cluster.errors import (
    BadRequestError,
    ServiceUnavailableError,
    ServingError,
    TooManyRequestsError,
)
from cluster.object_store import ObjectStore
from cluster.retrieval import Embedder
from cluster.storage.errors import ObjectNotFoundError, StorageAccessError
from cluster.storage.stored_object import ObjectInfo
from cluster.task_queue.running_task import RunningTask
from cluster.task_queue.task import Outcome, Progress, TaskStatus
from cluster.types import BucketRef
from deployments.embedding_plan import EmbeddingPlan, file_record, plan_embedding
from deployments.file_embedding import MAX_FILES_AT_ONCE, FileEmbedding, Target
from deployments.work_group import do_each
from models.documents.errors import UnreadableDocumentError
from models.documents.settings import ChunkSettings, Loader

logger = logging.getLogger(__name__)

_MAX_CONFLICTS = 5
_REPORT_S = 0.5


class PassageEmbedder(Embedder, Protocol):
    """An embedder that also says what its model reads whole."""

    async def tokenizer(self) -> tokenizers.Tokenizer: ...
    async def max_passage_tokens(self) -> int: ...


class EmbeddingWish(msgspec.Struct, frozen=True, kw_only=True):
    """How a bucket is to be embedded."""

    embedding_model: str
    chunk_size: int
    chunk_overlap: int
    loader: str


class EmbeddingResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a task that embeds a bucket, as JSON."""

    num_files: int
    num_failed: int
    num_read: int  # the others had not changed


@dataclass(kw_only=True)
class _Run:
    """One attempt: what was seen at its beginning, and what has come of it."""

    task: RunningTask
    target: Target
    version: int
    is_embedded: bool  # with whatever settings
    are_settings_new: bool
    files: Mapping[str, FileRecord]
    plan: EmbeddingPlan
    put: list[FileRecord] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)  # objects deleted while we were at it
    reported_s: float = 0.0

    @property
    def num_failed(self) -> int:
        records = [*self.plan.kept, *self.put]
        return sum(record.status is FileStatus.FAILURE for record in records)

    @property
    def num_files(self) -> int:
        return self.plan.num_files - len(self.vanished)

    @property
    def status(self) -> TaskStatus:
        if self.num_failed == 0:
            return TaskStatus.SUCCEEDED
        all_failed = self.num_failed == self.num_files
        return TaskStatus.FAILED if all_failed else TaskStatus.PARTLY_SUCCEEDED


class BucketEmbedding:
    """Makes a bucket's embedding what its objects and a wish say."""

    def __init__(
        self,
        objects: ObjectStore,
        chunks: ChunkStore,
        files: FileEmbedding,
        embedders: Mapping[str, PassageEmbedder],
    ) -> None:
        self._objects = objects
        self._chunks = chunks
        self._files = files
        self._embedders = embedders

    async def embed(
        self,
        bucket: BucketRef,
        wish: EmbeddingWish,
        task: RunningTask,
        *,
        retries_failures: bool = True,
    ) -> Outcome:
        """`retries_failures`: read again what could not be read, though it has not changed.

        Raises:
            BucketNotFoundError: there is no such bucket.
            BadRequestError: its model is not configured.
            ServiceUnavailableError: something does not answer.
            LeaseLostError, TaskCancelledError: the task is not ours, or not wanted, any more.
        """
        embedder = self._embedder(wish.embedding_model)
        settings = BucketSettings(
            embedder=await embedder.facts(),
            chunk_size=wish.chunk_size,
            chunk_overlap=wish.chunk_overlap,
            loader=wish.loader,
        )
        target = Target(
            bucket=bucket,
            settings=settings,
            chunk_settings=ChunkSettings(
                tokenizer_json=(await embedder.tokenizer()).to_str(),
                max_tokens=await embedder.max_passage_tokens(),
                chunk_size=wish.chunk_size,
                chunk_overlap=wish.chunk_overlap,
                loader=Loader(wish.loader),
            ),
            embedder=embedder,
        )
        for attempt in range(_MAX_CONFLICTS):
            try:
                return await self._try_to_embed(target, task, retries_failures=retries_failures)
            except ConflictError as error:
                logger.info("attempt %d: %s", attempt + 1, error)
                await task.ensure_wanted()
        raise ServiceUnavailableError(f"The bucket {bucket.name!r} is changed by others.")

    async def wish_of(self, bucket: BucketRef) -> EmbeddingWish | None:
        """How the bucket is embedded; None: it is not."""
        meta = await self._chunks.meta(bucket)
        if meta is None:
            return None
        return EmbeddingWish(
            embedding_model=meta.embedder.model_name,
            chunk_size=meta.chunk_size,
            chunk_overlap=meta.chunk_overlap,
            loader=meta.loader,
        )

    async def has_changes(self, bucket: BucketRef) -> bool:
        """Whether an embedded bucket's objects, or its model, are not what is embedded.

        Raises:
            BucketNotFoundError: there is no such bucket.
            ServiceUnavailableError: something does not answer.
        """
        meta = await self._chunks.meta(bucket)
        embedder = None if meta is None else self._embedders.get(meta.embedder.model_name)
        if meta is None or embedder is None:
            return False
        plan = plan_embedding(
            [info async for info in self._objects.list_objects(bucket)],
            await self._chunks.files(bucket),
            are_settings_new=meta.embedder != await embedder.facts(),
            retries_failures=False,
        )
        return plan.has_changes

    def _embedder(self, model_name: str) -> PassageEmbedder:
        embedder = self._embedders.get(model_name)
        if embedder is None:
            raise BadRequestError(
                f"The embedding model {model_name!r} is not configured (any more); there is: "
                f"{', '.join(self._embedders)}. Embed the bucket with one of these."
            )
        return embedder

    async def _try_to_embed(
        self, target: Target, task: RunningTask, *, retries_failures: bool
    ) -> Outcome:
        """
        Raises:
            ConflictError: somebody else has changed the bucket's embedding.
        """
        run = await self._begin(target, task, retries_failures=retries_failures)
        await self._note(run, [self._waiting(run, info) for info in run.plan.todo])
        await self._report(run, "embedding", is_urgent=True)
        await do_each(
            run.plan.todo,
            lambda info: self._embed_file(run, info),
            num_at_once=MAX_FILES_AT_ONCE,
        )
        await task.ensure_wanted()
        if self._is_worth_a_commit(run):
            await self._report(run, "committing", is_urgent=True)
            await self._chunks.commit(
                target.bucket,
                settings=target.settings,
                put=run.put,
                drop=[*run.plan.gone, *run.vanished],
                expected_version=run.version,
            )
        await self._report(run, "", is_urgent=True)
        return _outcome(run)

    async def _begin(self, target: Target, task: RunningTask, *, retries_failures: bool) -> _Run:
        bucket = target.bucket
        await task.report(Progress(message="listing"))
        (version,) = await self._chunks.versions([bucket])  # first: what comes later conflicts
        meta = await self._chunks.meta(bucket)
        files = await self._chunks.files(bucket)
        objects = [info async for info in self._objects.list_objects(bucket)]
        are_settings_new = meta is None or meta.settings() != target.settings
        return _Run(
            task=task,
            target=target,
            version=version,
            is_embedded=meta is not None,
            are_settings_new=are_settings_new,
            files=files,
            plan=plan_embedding(
                objects,
                files,
                are_settings_new=are_settings_new,
                retries_failures=retries_failures,
            ),
        )

    def _is_worth_a_commit(self, run: _Run) -> bool:
        if run.are_settings_new:  # never give up an embedding that works for one without files
            return run.status is not TaskStatus.FAILED
        return run.plan.has_changes

    async def _embed_file(self, run: _Run, info: ObjectInfo) -> None:
        async with self._files.place_for(info):
            previous = run.files.get(info.key)
            await self._note(run, [file_record(info, FileStatus.PROCESSING, previous)])
            try:
                info, segments = await self._files.embed(info, run.target)
            except ObjectNotFoundError:
                run.vanished.append(info.key)
            except (UnreadableDocumentError, ServingError) as error:
                failed = file_record(
                    info, FileStatus.FAILURE, previous, error_reason=reason_of_failure(error)
                )
                await self._note(run, [failed])
                run.put.append(failed)
            else:
                run.put.append(file_record(info, FileStatus.SUCCESS, previous, segments=segments))
        await self._report(run, "embedding")

    def _waiting(self, run: _Run, info: ObjectInfo) -> FileRecord:
        return file_record(info, FileStatus.QUEUED, run.files.get(info.key))

    async def _note(self, run: _Run, records: Iterable[FileRecord]) -> None:
        await self._chunks.note_files(
            run.target.bucket, list(records), expected_version=run.version
        )

    async def _report(self, run: _Run, message: str, *, is_urgent: bool = False) -> None:
        now_s = time.monotonic()
        if not is_urgent and now_s - run.reported_s < _REPORT_S:
            return
        run.reported_s = now_s
        progress = Progress(
            num_total=run.num_files,
            num_done=len(run.plan.kept) + len(run.put),
            num_failed=run.num_failed,
            message=message,
        )
        await run.task.report(progress)


def _outcome(run: _Run) -> Outcome:
    result = EmbeddingResult(
        num_files=run.num_files, num_failed=run.num_failed, num_read=len(run.put)
    )
    error = ""
    if run.num_failed:
        error = (
            f"{run.num_failed} of {run.num_files} files could not be embedded; the bucket's list "
            "of files says why"
        )
    return Outcome(status=run.status, result=msgspec.json.encode(result), error=error)


def reason_of_failure(error: UnreadableDocumentError | ServingError) -> str:
    """Why a single file failed.

    Raises:
        ServingError: what is wrong is not the file.
    """
    if isinstance(error, UnreadableDocumentError):
        return str(error)
    is_outage = isinstance(error, (ServiceUnavailableError, TooManyRequestsError))
    if is_outage and not isinstance(error, StorageAccessError):
        raise error
    return error.detail
