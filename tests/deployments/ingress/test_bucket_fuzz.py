"""Requests about buckets made up from the published description, where retrieval is on."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from schemathesis import GenerationMode

from deployments.ingress import operations
from tests.deployments.ingress.bucket_server import (
    BucketServer,
    load_demo_embedder,
    serving_buckets,
)
from tests.deployments.ingress.test_openapi_fuzz import MODES, fuzz
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def running(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, shared_redis_server: RedisServer
) -> Iterator[BucketServer]:
    """The server, on a loop of its own: schemathesis calls it from ordinary functions."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    home = tmp_path_factory.mktemp("home")
    context = serving_buckets(checkpoint, home, shared_redis_server.url, load_demo_embedder())
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
    for operation in operations.BUCKET_OPERATIONS
    for mode in MODES
    if operation.requests or mode is not GenerationMode.NEGATIVE
]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_made_up_requests_are_answered_as_documented(
    running: BucketServer, name: str, mode: GenerationMode
) -> None:
    assert fuzz(running, name, mode, 12) > 0
