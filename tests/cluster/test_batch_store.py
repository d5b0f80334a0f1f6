"""What is known of batches: one server and a cluster, moves in one direction, tenants apart."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import pytest

from cluster.batch_config import BatchConfig
from cluster.batch_results import TokenCounts
from cluster.batch_store import BatchState, BatchStore, LineError
from cluster.batch_tasks import BatchTasks, RunBatch
from cluster.config import StorageConfig
from cluster.errors import BadRequestError, NotFoundError
from cluster.file_store import FileStore, open_file_objects
from cluster.openai_schema.batches import BatchRequest
from cluster.redis_client import Argument, RedisClient
from cluster.tenants.records import ApiKey

RUNNING: Mapping[str, Argument] = {"num_total": 3, "model": "m"}


@pytest.fixture
def store(redis_client: RedisClient) -> BatchStore:
    return BatchStore(redis_client, retention_s=3600)


async def make(store: BatchStore, batch_id: str = "batch_a", **fields: Argument) -> None:
    known: dict[str, Argument] = {"task_id": "t", "endpoint": "/v1/x", "input_file_id": "file-1"}
    await store.create("acme", batch_id, created_at=time.time(), fields=known | fields)


async def test_a_batch_has_the_time_of_each_state_it_was_in(store: BatchStore) -> None:
    await make(store, expires_ms=7000, metadata='{"k": "v"}')
    steps = [BatchState.IN_PROGRESS, BatchState.FINALIZING, BatchState.COMPLETED]
    before = BatchState.VALIDATING
    for step in steps:
        assert await store.move("acme", "batch_a", [before], step, RUNNING) is step
        before = step
    batch = await store.get("acme", "batch_a")
    assert set(batch.reached_at) == set(steps)
    assert batch.status.is_final
    assert (batch.num_total, batch.model, batch.expires_at) == (3, "m", 7.0)
    assert batch.metadata == {"k": "v"}


async def test_a_move_from_where_a_batch_is_not_changes_nothing(store: BatchStore) -> None:
    await make(store)
    unfinished = [BatchState.IN_PROGRESS, BatchState.CANCELLING]
    state = await store.move("acme", "batch_a", unfinished, BatchState.CANCELLED, RUNNING)
    assert state is BatchState.VALIDATING
    assert (await store.get("acme", "batch_a")).num_total == 0


async def test_of_many_who_end_a_batch_one_is_first(store: BatchStore) -> None:
    await make(store)
    final = [BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED] * 5
    seen = await asyncio.gather(
        *(store.move("acme", "batch_a", [BatchState.VALIDATING], state) for state in final)
    )
    assert len(set(seen)) == 1
    assert len((await store.get("acme", "batch_a")).reached_at) == 1


async def test_making_a_batch_again_changes_nothing(store: BatchStore) -> None:
    await make(store)
    await store.move("acme", "batch_a", [BatchState.VALIDATING], BatchState.FAILED)
    await make(store)
    assert (await store.get("acme", "batch_a")).status is BatchState.FAILED
    assert len((await store.find("acme", after="", limit=5)).batches) == 1


async def test_results_and_errors_are_read_as_they_were_written(store: BatchStore) -> None:
    await make(store)
    errors = [LineError(code="c", line=4, message="m", param="p")]
    tokens = TokenCounts(input_tokens=5, output_tokens=6)
    fields = {"errors": msgspec.json.encode(errors), "tokens": msgspec.json.encode(tokens)}
    await store.move("acme", "batch_a", [BatchState.VALIDATING], BatchState.FAILED, fields)
    assert await store.count("acme", "batch_a", num_completed=2, num_failed=1) is BatchState.FAILED
    batch = await store.get("acme", "batch_a")
    assert (batch.errors, batch.tokens) == (errors, tokens)
    assert (batch.num_completed, batch.num_failed) == (2, 1)


async def test_tenants_do_not_share_batches(store: BatchStore) -> None:
    await make(store)
    for call in (
        store.get("other", "batch_a"),
        store.move("other", "batch_a", [BatchState.VALIDATING], BatchState.FAILED),
        store.count("other", "batch_a", num_completed=1, num_failed=0),
    ):
        with pytest.raises(NotFoundError, match="batch_a"):
            await call
    assert (await store.find("other", after="", limit=5)).batches == []
    with pytest.raises(BadRequestError):
        await store.find("other", after="batch_a", limit=5)


async def test_a_page_begins_behind_its_cursor_also_when_batches_are_made_meanwhile(
    store: BatchStore,
) -> None:
    for number in range(5):
        await make(store, f"batch_{number}")
    first = await store.find("acme", after="", limit=2)
    await make(store, "batch_new")
    second = await store.find("acme", after=first.batches[-1].batch_id, limit=10)
    names = [batch.batch_id for batch in first.batches + second.batches]
    assert sorted(names) == [f"batch_{number}" for number in range(5)]
    assert (first.has_more, second.has_more) == (True, False)


async def test_a_batch_is_forgotten_when_its_time_is_over(redis_client: RedisClient) -> None:
    store = BatchStore(redis_client, retention_s=0.2)
    await make(store)
    await asyncio.sleep(0.25)  # its time
    with pytest.raises(NotFoundError):
        await store.get("acme", "batch_a")
    await make(store, "batch_b")
    assert [b.batch_id for b in (await store.find("acme", after="", limit=5)).batches] == [
        "batch_b"
    ]


async def test_who_claims_a_task_makes_the_batch_when_its_maker_died(
    redis_client: RedisClient, tmp_path: Path
) -> None:
    """The process died between the task and the batch."""
    objects = open_file_objects(StorageConfig(), BatchConfig(), tmp_path)
    files = FileStore(redis_client, objects, max_bytes=1000)

    async def content() -> AsyncIterator[bytes]:
        yield b"{}"

    written = await files.write("acme", content())
    await files.add("acme", written, filename="f", purpose="batch", expires_after_s=None)
    tasks = BatchTasks(redis_client, files, BatchConfig())
    made = await tasks.request(
        ApiKey.nobody("acme"),
        BatchRequest(
            input_file_id=written.file_id,
            endpoint="/v1/completions",
            completion_window="24h",
            metadata={"k": "v"},
        ),
    )
    await redis_client.execute(
        "DEL", redis_client.key("batches", "{acme}") + f":batch:{made.batch_id}"
    )
    record = await tasks.queue.get("acme", made.task_id)
    again = await tasks.open(record, record.decode_body(RunBatch))
    assert again == made
    await objects.close()
