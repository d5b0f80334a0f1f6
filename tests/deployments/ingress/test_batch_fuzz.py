"""Requests about files and batches made up from the published description, where Redis is."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from schemathesis import GenerationMode

from deployments.ingress import operations
from tests.deployments.batch_rig import BatchServer, serving_batches
from tests.deployments.ingress.test_openapi_fuzz import MODES, fuzz
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, shared_redis_server: RedisServer
) -> Iterator[BatchServer]:
    """The server, on a loop of its own: schemathesis calls it from ordinary functions."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    home: Path = tmp_path_factory.mktemp("home")
    context = serving_batches(shared_redis_server.url, home)
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
    for operation in (*operations.FILE_OPERATIONS, *operations.BATCH_OPERATIONS)
    for mode in MODES
    if operation.requests or mode is not GenerationMode.NEGATIVE
]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_made_up_requests_are_answered_as_documented(
    running: BatchServer, name: str, mode: GenerationMode
) -> None:
    assert fuzz(running, name, mode, 12) > 0
