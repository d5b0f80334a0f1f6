"""Which objects of a bucket are read, kept and forgotten."""

import pytest

from cluster.chunk_records import FileRecord, FileStatus
from cluster.storage.stored_object import ObjectInfo
from deployments.embedding_plan import file_record, plan_embedding


def info(key: str, etag: str = "1") -> ObjectInfo:
    return ObjectInfo(key=key, num_bytes=3, etag=etag, modified_at=0.0)


def record(key: str, status: FileStatus, *, etag: str = "1", searchable: str = "1") -> FileRecord:
    return FileRecord(
        filename=key,
        etag=etag,
        num_bytes=3,
        status=status,
        created_at=1.0,
        updated_at=1.0,
        segments_etag=searchable,
    )


@pytest.mark.parametrize(
    ("known", "is_read"),
    [
        (None, True),
        (record("a", FileStatus.SUCCESS), False),
        (record("a", FileStatus.SUCCESS, etag="0"), True),
        (record("a", FileStatus.SUCCESS, searchable="0"), True),
        (record("a", FileStatus.PROCESSING), True),
        (record("a", FileStatus.QUEUED), True),
        (record("a", FileStatus.FAILURE, searchable=""), False),
    ],
)
def test_an_object_is_read_unless_this_version_is_done(
    known: FileRecord | None, is_read: bool
) -> None:
    files = {} if known is None else {"a": known}
    plan = plan_embedding([info("a")], files, are_settings_new=False, retries_failures=False)
    assert [item.key for item in plan.todo] == (["a"] if is_read else [])
    assert plan.num_files == 1
    assert plan.has_changes is is_read


def test_failures_are_tried_again_on_request_and_new_settings_read_everything() -> None:
    files = {
        "a": record("a", FileStatus.SUCCESS),
        "b": record("b", FileStatus.FAILURE),
        "gone": record("gone", FileStatus.SUCCESS),
    }
    objects = [info("a"), info("b")]
    again = plan_embedding(objects, files, are_settings_new=False, retries_failures=True)
    assert [item.key for item in again.todo] == ["b"]
    anew = plan_embedding(objects, files, are_settings_new=True, retries_failures=False)
    assert [item.key for item in anew.todo] == ["a", "b"]
    assert again.gone == anew.gone == ("gone",)


def test_a_record_remembers_when_the_file_came_and_was_last_embedded() -> None:
    first = file_record(info("a"), FileStatus.SUCCESS, None)
    failed = file_record(info("a", "2"), FileStatus.FAILURE, first, error_reason="no text")
    assert (failed.created_at, failed.last_embedded_at) == (first.created_at, first.updated_at)
    assert (failed.etag, failed.error_reason) == ("2", "no text")
