"""Tasks about buckets on their way into the queue."""

from collections.abc import AsyncIterator

import pytest

from cluster import bucket_tasks
from cluster.bucket_tasks import BucketTasks, EmbedBucket
from cluster.config import RedisConfig
from cluster.errors import TooManyRequestsError
from cluster.redis_client import connect
from cluster.task_queue.queue import TaskQueue
from cluster.types import BucketRef

BODY = EmbedBucket(
    bucket_name="handbook", embedding_model="m", chunk_size=64, chunk_overlap=0, loader="default"
)


@pytest.fixture
async def tasks(redis_config: RedisConfig) -> AsyncIterator[BucketTasks]:
    async with connect(redis_config) as redis:
        yield BucketTasks(TaskQueue(redis))


async def test_a_tenant_has_no_more_unfinished_tasks_than_are_kept(
    tasks: BucketTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_tasks, "MAX_UNFINISHED", 2)
    for _ in range(2):
        await tasks.request("default", BODY)
    with pytest.raises(TooManyRequestsError, match=r"2 .* wait or run") as caught:
        await tasks.request("default", BODY)
    assert caught.value.retry_after_s is not None
    await tasks.request("other", BODY)
    assert await tasks.cancel_all(BucketRef("default", "handbook")) == 2
    await tasks.request("default", BODY)
