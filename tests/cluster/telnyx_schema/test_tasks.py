"""What a tenant is told about a task."""

import msgspec

from cluster.bucket_tasks import EmbedBucket
from cluster.task_queue.task import TaskPriority, TaskRecord, TaskStatus
from cluster.telnyx_schema.tasks import TaskObject

BODY = EmbedBucket(
    bucket_name="handbook", embedding_model="m", chunk_size=64, chunk_overlap=0, loader="default"
)
RECORD = TaskRecord(
    task_id="t",
    task_type="embed_bucket",
    body=msgspec.json.encode(BODY),
    tenant="default",
    priority=TaskPriority.NORMAL,
    status=TaskStatus.QUEUED,
    created_at=0.0,
)


def reason(**facts: object) -> str | None:
    return TaskObject.of(msgspec.structs.replace(RECORD, **facts)).error_reason


def test_an_error_of_the_server_is_not_told_to_tenants() -> None:
    internal = "FileNotFoundError: [Errno 2] No such file or directory: '/srv/shoal/x'"
    tried = reason(num_failures=1, error=internal)
    running = reason(status=TaskStatus.RUNNING, num_failures=1, error=internal)
    dead = reason(status=TaskStatus.FAILED, num_failures=5, is_dead=True, error=internal)
    for told in (tried, running, dead):
        assert told is not None
        assert "error of the server" in told
        assert "/srv" not in told


def test_what_a_tenant_can_understand_is_told() -> None:
    assert reason() is None
    waits = "Redis does not answer within 1.5 s"
    assert reason(num_postponed=3, error=waits) == waits
    some = "1 of 2 files could not be embedded"
    assert reason(status=TaskStatus.PARTLY_SUCCEEDED, num_failures=1, error=some) == some
    missing = "There is no bucket 'b'."
    assert reason(status=TaskStatus.FAILED, num_failures=1, error=missing) == missing
    assert reason(status=TaskStatus.CANCELLED, error="x") == "it was cancelled"
