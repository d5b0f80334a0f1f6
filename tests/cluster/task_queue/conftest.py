"""A queue on a real server, and the tasks that tests put in."""

from collections.abc import AsyncIterator

import pytest

from cluster.config import RedisConfig
from cluster.redis_client import connect
from cluster.task_queue.queue import TaskQueue


@pytest.fixture
async def queue(redis_config: RedisConfig) -> AsyncIterator[TaskQueue]:
    async with connect(redis_config) as redis:
        yield TaskQueue(redis)
