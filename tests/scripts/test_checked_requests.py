"""The checker sees what is not whole: refused, cut, short; and asks without a pause."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from cluster.errors import ServiceUnavailableError
from cluster.types import FinishReason, Request
from scripts.checked_requests import MixedLoad, ask
from tests.deployments.ingress.conftest import checkpoint
from tests.deployments.ingress.scripted_server import (
    MODEL,
    ScriptItem,
    Server,
    configuration,
    deltas,
    serving,
)

__all__ = ["checkpoint"]


@pytest.fixture
async def server(checkpoint: Path) -> AsyncIterator[Server]:
    async with serving(checkpoint, configuration()) as started:
        yield started


def says_all(request: Request) -> Iterator[ScriptItem]:
    num_tokens = request.sampling_params.max_tokens or 0
    yield from deltas(request, [65] * num_tokens, finish=FinishReason.LENGTH)


def says_half(request: Request) -> Iterator[ScriptItem]:
    yield deltas(request, [65], finish=None)[0]
    raise ServiceUnavailableError("the replica is gone")


def refuses(request: Request) -> Iterator[ScriptItem]:
    raise ServiceUnavailableError("no replica")
    yield


def ends_early(request: Request) -> Iterator[ScriptItem]:
    yield from deltas(request, [65, 66])


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("number", [0, 1])  # a completion, a chat
async def test_what_is_whole_is_whole(server: Server, *, is_streamed: bool, number: int) -> None:
    server.pool.script = says_all
    async with server.http() as client:
        ending = await ask(client, MODEL, max_tokens=5, is_streamed=is_streamed, number=number)
    assert ending.problem is None
    assert ending.num_tokens == 5
    assert ending.has_begun


async def test_a_cut_stream_a_refusal_and_a_short_answer_are_problems(server: Server) -> None:
    async with server.http() as client:
        server.pool.script = says_half
        cut = await ask(client, MODEL, max_tokens=5, is_streamed=True)
        assert cut.has_begun
        assert "the replica is gone" in (cut.problem or "")
        server.pool.script = refuses
        for is_streamed in (True, False):
            refused = await ask(client, MODEL, max_tokens=5, is_streamed=is_streamed)
            assert not refused.has_begun
            assert (refused.problem or "").startswith("status 503")
        server.pool.script = ends_early
        short = await ask(client, MODEL, max_tokens=5, is_streamed=False)
        assert "of 5" in (short.problem or "")


async def test_a_server_that_is_not_there_is_a_problem() -> None:
    async with httpx.AsyncClient(base_url="http://127.0.0.1:1") as client:
        ending = await ask(client, MODEL, max_tokens=5, is_streamed=True)
    assert "ConnectError" in (ending.problem or "")


async def test_a_mixed_load_asks_until_it_is_stopped(server: Server) -> None:
    server.pool.script = says_all
    async with server.http() as client:
        load = MixedLoad(client, max_tokens=6)
        load.start([MODEL], clients_each=2)
        await load.until_each_has_ended(8)
        await load.stop()
    assert len(load.endings) >= 8
    assert {ending.is_streamed for ending in load.endings} == {True, False}
    assert {ending.num_tokens for ending in load.endings} == {2, 6}
    assert all(ending.problem is None for ending in load.endings)
