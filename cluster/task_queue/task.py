"""What a task of the durable queue is: its body, its status, its progress, its end.

Everything is frozen: the queue's state is in Redis and is changed there, by scripts.
"""

from enum import IntEnum, StrEnum
from typing import TypeVar

import msgspec


class TaskStatus(StrEnum):
    """Where a task is. The last four are final."""

    QUEUED = "queued"  # waits for a worker, for its next attempt, or for its lane
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTLY_SUCCEEDED = "partly_succeeded"  # some of it could not be done; the result says what
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self not in (TaskStatus.QUEUED, TaskStatus.RUNNING)


class TaskPriority(IntEnum):
    """A lower number is claimed first, always: each has a stream of its own."""

    HIGH = 0  # somebody waits for it
    NORMAL = 1
    LOW = 2  # nobody would notice


class TaskBody(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of typed tasks. A subclass gives its name, as `tag="embed_bucket"`.

    It is kept as JSON, so a field that is added later needs a default.
    """


BodyT = TypeVar("BodyT", bound=TaskBody)


def type_name(body_type: type[TaskBody]) -> str:
    """The name under which a type of tasks is kept."""
    tag = body_type.__struct_config__.tag
    assert isinstance(tag, str), f"{body_type.__name__} needs a tag"
    return tag


class Progress(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a task is. Units are what its type counts: files, lines."""

    num_total: int | None = None  # None: not known yet
    num_done: int = 0  # failed ones included
    num_failed: int = 0
    message: str = ""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a handler ended its task; `status` is final, `result` is JSON of the type's own."""

    status: TaskStatus
    result: bytes = b""
    error: str = ""


class NewTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it is given to the queue."""

    tenant: str
    body: TaskBody
    priority: TaskPriority = TaskPriority.NORMAL
    # Tasks with the same lane run one at a time, first come, first served.
    lane: str = ""
    # While a task with this key has not started, another with the same key is that one.
    coalesce_key: str = ""
    # The same key and body again is the same task, also when it is finished.
    idempotency_key: str = ""
    delay_s: float = 0.0
    retention_s: float | None = None  # how long it is remembered when finished; None: the queue's


class TaskRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it is now. Times are unix seconds of the server's clock."""

    task_id: str
    task_type: str
    body: bytes  # JSON; `decode_body` makes the struct
    tenant: str
    priority: TaskPriority
    status: TaskStatus
    created_at: float
    lane: str = ""
    started_at: float | None = None  # the first time
    finished_at: float | None = None
    num_attempts: int = 0  # times it was claimed
    num_failures: int = 0  # times its handler raised
    num_losses: int = 0  # times its lease ran out: the worker died or froze
    num_postponed: int = 0  # times something it needs did not answer
    progress: Progress = Progress()
    result: bytes = b""
    error: str = ""  # of the last attempt, or why it failed
    is_dead: bool = False  # failed for good by an error: a dead letter
    is_cancel_requested: bool = False
    worker: str = ""  # who claimed it last

    def decode_body(self, body_type: type[BodyT]) -> BodyT:
        return msgspec.json.decode(self.body, type=body_type)


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The right to work on a task, until somebody else has a newer one.

    `token` is the fencing token: it grows with each claim, and every write of a worker carries it.
    """

    record: TaskRecord
    token: int


class LeaseLostError(Exception):
    """Another worker has the task now; what this one still writes about it is refused."""


class TaskCancelledError(Exception):
    """Nobody wants the task any more; its handler lets this pass."""
