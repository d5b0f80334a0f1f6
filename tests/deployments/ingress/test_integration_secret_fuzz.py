"""Requests about secrets made up from the published description, where there is a Redis."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from schemathesis import GenerationMode

from cluster.redis_client import connect
from deployments.ingress import operations
from tests.deployments.ingress.door_server import DoorServer, serving_doors
from tests.deployments.ingress.test_openapi_fuzz import MODES, fuzz
from tests.redis_server import RedisServer, patient_config


@asynccontextmanager
async def connected_doors(checkpoint: Path, home: Path, url: str) -> AsyncIterator[DoorServer]:
    async with (
        connect(patient_config(url)) as redis,
        serving_doors(checkpoint, home, redis, []) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def running(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, shared_redis_server: RedisServer
) -> Iterator[DoorServer]:
    """The server, on a loop of its own: schemathesis calls it from ordinary functions."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    home = tmp_path_factory.mktemp("home")
    context = connected_doors(checkpoint, home, shared_redis_server.url)
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
    finally:
        end = context.__aexit__(None, None, None)
        asyncio.run_coroutine_threadsafe(end, loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


CASES = [
    (operation.name, mode)
    for operation in operations.SECRET_OPERATIONS
    for mode in MODES
    if operation.requests or mode is not GenerationMode.NEGATIVE
]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_made_up_requests_are_answered_as_documented(
    running: DoorServer, name: str, mode: GenerationMode
) -> None:
    assert fuzz(running, name, mode, 40) > 0
