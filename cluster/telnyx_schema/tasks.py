"""`/v2/ai/embeddings`: requests that make tasks, and the tasks (api.md 5.1, 5.2, 5.5)."""

import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

import msgspec
from pydantic import BaseModel, Field

from cluster.errors import FieldProblem
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import integer
from cluster.task_queue.task import TaskRecord, TaskStatus

DEFAULT_CHUNK_SIZE = 1024  # tokens; models that read less at once get less
MAX_CHUNK_SIZE = 8192
_USER_NAMESPACE = uuid.UUID("5f0f1a9c-2f4b-4c9e-9a55-7d0b6f3d2c11")

BucketName = Annotated[str, Field(min_length=1, max_length=255)]


class EmbedBucketRequest(Fields):
    """`POST /ai/embeddings`"""

    bucket_name: BucketName
    document_chunk_size: Annotated[int, integer(low=16, high=MAX_CHUNK_SIZE)] | None = None
    # None: half the size
    document_chunk_overlap_size: Annotated[int, integer(low=0, high=MAX_CHUNK_SIZE)] | None = None
    embedding_model: str | None = None  # None: the first of the configuration
    loader: Literal["default", "intercom"] | None = None

    @property
    def chunk_size(self) -> int:
        return self.document_chunk_size or DEFAULT_CHUNK_SIZE

    @property
    def chunk_overlap(self) -> int:
        overlap = self.document_chunk_overlap_size
        return self.chunk_size // 2 if overlap is None else overlap

    def problems(self) -> list[FieldProblem]:
        if self.chunk_overlap < self.chunk_size:
            return []
        message = (
            f"must be less than document_chunk_size ({self.chunk_size}); given {self.chunk_overlap}"
        )
        return [FieldProblem(loc=("document_chunk_overlap_size",), message=message)]


class EmbedURLRequest(Fields):
    """`POST /ai/embeddings/url`"""

    url: Annotated[str, Field(min_length=1, max_length=2048)]
    bucket_name: BucketName

    def problems(self) -> list[FieldProblem]:
        return []


class EmbeddingTaskStatus(StrEnum):
    """Telnyx's `BackgroundTaskStatus`."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCESS = "success"
    PARTIAL_SUCCESS = "partial_success"
    FAILURE = "failure"


#: What a filter may say -> the queue's statuses. A task that was cancelled has failed, to Telnyx.
STATUS_FILTERS: dict[str, tuple[TaskStatus, ...]] = {
    "queued": (TaskStatus.QUEUED,),
    "processing": (TaskStatus.RUNNING,),
    "success": (TaskStatus.SUCCEEDED,),
    "partial_success": (TaskStatus.PARTLY_SUCCEEDED,),
    "failure": (TaskStatus.FAILED, TaskStatus.CANCELLED),
    "failed": (TaskStatus.FAILED, TaskStatus.CANCELLED),
}
_STATUSES = {
    status: EmbeddingTaskStatus(name)
    for name, statuses in STATUS_FILTERS.items()
    if name != "failed"
    for status in statuses
}


class TaskProgress(BaseModel):
    """Ours: how many of the bucket's files have been looked at."""

    num_files: int | None  # null: not known yet
    num_done: int  # failed ones included
    num_failed: int
    message: str


class TaskObject(BaseModel):
    """A task; the last three fields are ours."""

    task_id: str
    task_name: str
    status: EmbeddingTaskStatus
    created_at: str
    finished_at: str | None
    user_id: str
    bucket: str
    progress: TaskProgress
    error_reason: str | None

    @classmethod
    def of(cls, record: TaskRecord) -> "TaskObject":
        progress = record.progress
        return cls(
            task_id=record.task_id,
            task_name=record.task_type,
            status=_STATUSES[record.status],
            created_at=iso_time(record.created_at),
            finished_at=None if record.finished_at is None else iso_time(record.finished_at),
            user_id=user_id(record.tenant),
            bucket=_bucket_name(record),
            progress=TaskProgress(
                num_files=progress.num_total,
                num_done=progress.num_done,
                num_failed=progress.num_failed,
                message=progress.message,
            ),
            error_reason=_error_reason(record),
        )


class TaskAnswer(BaseModel):
    data: TaskObject


class PageMeta(BaseModel):
    page_number: int
    page_size: int
    total_pages: int
    total_results: int

    @classmethod
    def of(cls, *, number: int, size: int, num_total: int) -> Self:
        """Of page `number`, from 1. An empty list has one page."""
        return cls(
            page_number=number,
            page_size=size,
            total_pages=max(1, -(-num_total // size)),
            total_results=num_total,
        )


class TaskListAnswer(BaseModel):
    data: list[TaskObject]
    meta: PageMeta


def iso_time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


def user_id(tenant: str) -> str:
    """Always the same for a tenant."""
    return str(uuid.uuid5(_USER_NAMESPACE, tenant))


def _bucket_name(record: TaskRecord) -> str:
    return msgspec.json.decode(record.body, type=_AnyBucketTask).bucket_name


class _AnyBucketTask(msgspec.Struct):
    bucket_name: str


def _error_reason(record: TaskRecord) -> str | None:
    if record.status is TaskStatus.CANCELLED:
        return "it was cancelled"
    # The error of an attempt that failed unexpectedly may show what is not for tenants: paths.
    if record.num_failures and (record.is_dead or not record.status.is_final):
        return f"an error of the server, {record.num_failures} times; its log says more"
    return record.error or None
