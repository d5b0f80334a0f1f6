"""Providers that are silent, or drip: time goes by on a clock of the test's."""

import asyncio
from typing import Any

from tests.deployments.ingress.door_server import DoorServer
from tests.deployments.ingress.providers.fake_provider import (
    Connection,
    FakeProvider,
    Received,
    piece,
)
from tests.deployments.ingress.providers.test_misbehaving_providers import (
    silent_midway,
    status_of,
    stream_of,
)
from tests.stopped_clock import StoppedClock


async def stream_that_takes_too_long(doors: DoorServer, model: str) -> list[Any]:
    """The events of a stream; time goes by only after its first."""
    has_begun = asyncio.Event()
    with StoppedClock() as clock:
        reading = asyncio.create_task(stream_of(doors, model, has_begun=has_begun))
        await has_begun.wait()
        await clock.pass_until(reading.done)
        return await reading


async def silent(request: Received, connection: Connection) -> None:
    await asyncio.Event().wait()


async def test_silence_has_an_end(doors: DoorServer, provider: FakeProvider) -> None:
    provider.script = silent
    for is_stream in (False, True):
        provider.requests.clear()
        with StoppedClock() as clock:
            asking = asyncio.create_task(status_of(doors, "impatient/big", stream=is_stream))
            while not provider.requests:  # noqa: ASYNC110 - it comes while time stands still
                await asyncio.sleep(0)
            await clock.pass_until(asking.done)
            assert await asking == 504
        assert len(provider.requests) == 1


async def test_silence_midway_ends_the_stream_with_an_error(
    doors: DoorServer, provider: FakeProvider
) -> None:
    provider.script = silent_midway
    first, error = await stream_that_takes_too_long(doors, "impatient/big")
    assert first["choices"][0]["delta"] == {"content": "first"}
    assert "does not answer in time" in error["error"]["message"]


async def test_an_answer_that_drips_has_an_end(doors: DoorServer, provider: FakeProvider) -> None:
    async def drips(request: Received, connection: Connection) -> None:
        await connection.head()
        while True:
            await connection.event(piece(request, {"content": "drop"}))
            await asyncio.sleep(0.02)

    provider.script = drips
    *_, error = await stream_that_takes_too_long(doors, "hasty/big")
    assert "does not answer in time" in error["error"]["message"]


async def test_a_head_that_drips_has_an_end(doors: DoorServer, provider: FakeProvider) -> None:
    async def drips(request: Received, connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            await connection.send(b"x")
            await asyncio.sleep(0.02)

    provider.script = drips
    assert await status_of(doors, "hasty/big") == 504
