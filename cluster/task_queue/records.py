"""From a task's hash in Redis to a `TaskRecord`."""

from collections.abc import Mapping, Sequence

import msgspec

from cluster.task_queue.task import Progress, TaskPriority, TaskRecord, TaskStatus


def fields_of(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash as scripts return it: names and values in turn."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def record_of(fields: Mapping[bytes, bytes]) -> TaskRecord | None:
    """None when there is no such task."""
    if b"status" not in fields:
        return None
    return TaskRecord(
        task_id=_text(fields, b"id"),
        task_type=_text(fields, b"type"),
        body=fields[b"body"],
        tenant=_text(fields, b"tenant"),
        priority=TaskPriority(_count(fields, b"priority")),
        status=TaskStatus(_text(fields, b"status")),
        created_at=_count(fields, b"created_ms") / 1000,
        lane=_text(fields, b"lane"),
        started_at=_time(fields, b"started_ms"),
        finished_at=_time(fields, b"finished_ms"),
        num_attempts=_count(fields, b"attempts"),
        num_failures=_count(fields, b"failures"),
        num_losses=_count(fields, b"losses"),
        num_postponed=_count(fields, b"postponed"),
        progress=_progress(fields),
        result=fields.get(b"result", b""),
        error=_text(fields, b"error"),
        is_dead=b"dead" in fields,
        is_cancel_requested=b"cancel" in fields,
        worker=_text(fields, b"worker"),
    )


def token_of(fields: Mapping[bytes, bytes]) -> int:
    """The fencing token of a task that was claimed."""
    return _count(fields, b"token")


def _text(fields: Mapping[bytes, bytes], name: bytes) -> str:
    return fields.get(name, b"").decode()


def _count(fields: Mapping[bytes, bytes], name: bytes) -> int:
    return int(fields.get(name, b"0"))


def _time(fields: Mapping[bytes, bytes], name: bytes) -> float | None:
    return int(fields[name]) / 1000 if name in fields else None


def _progress(fields: Mapping[bytes, bytes]) -> Progress:
    raw = fields.get(b"progress")
    return Progress() if raw is None else msgspec.json.decode(raw, type=Progress)
