"""`x-request-timeout`: in the queue, midway, and where it is not a number of seconds."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest

from cluster.types import Request
from tests.deployments.ingress.scripted_server import (
    ScriptItem,
    Server,
    configuration,
    deltas,
    events_of,
    serving,
)

USER = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


@pytest.fixture
async def server(checkpoint: Path) -> AsyncIterator[Server]:
    async with serving(checkpoint, configuration()) as started:
        yield started


def hang_after(server: Server, num_tokens: int) -> None:
    """From now on an answer stops after so many tokens and goes on never."""

    def script(request: Request) -> Iterator[ScriptItem]:
        yield from deltas(request, server.encode("one two three"), finish=None)[:num_tokens]
        yield asyncio.Event()

    server.pool.script = script


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_request_that_waits_too_long_ends_with_408(server: Server, is_stream: bool) -> None:
    hang_after(server, 0)
    async with server.http() as client:
        body = {"messages": USER, "stream": is_stream}
        answer = await client.post(CHAT, json=body, headers={"x-request-timeout": "0.2"})
    assert answer.status_code == 408
    assert answer.json()["errors"][0]["code"] == "10008"
    assert "0.2 seconds that x-request-timeout allows" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"
    await asyncio.wait_for(server.pool.all_closed.wait(), 120)


async def test_a_stream_ends_midway_with_an_error_event(server: Server) -> None:
    hang_after(server, 2)
    async with (
        server.http() as client,
        client.stream(
            "POST",
            CHAT,
            json={"messages": USER, "stream": True},
            headers={"x-request-timeout": "0.5"},
        ) as response,
    ):
        assert response.status_code == 200
        events = await events_of(response)
    assert any(event.get("choices") for event in events if isinstance(event, dict))
    errors = [event["error"] for event in events if isinstance(event, dict) and "error" in event]
    assert len(errors) == 1
    assert "x-request-timeout" in errors[0]["message"]
    await asyncio.wait_for(server.pool.all_closed.wait(), 120)


async def test_an_answer_in_time_is_not_touched(server: Server) -> None:
    async with server.http() as client:
        answer = await client.post(
            CHAT, json={"messages": USER}, headers={"x-request-timeout": "20"}
        )
    assert answer.json()["choices"][0]["message"]["content"] == "ok"


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", "86401", ""])
async def test_what_is_no_number_of_seconds_is_refused_by_name(server: Server, given: str) -> None:
    async with server.http() as client:
        answer = await client.post(
            CHAT, json={"messages": USER}, headers={"x-request-timeout": given}
        )
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert problem["loc"] == ["header", "x-request-timeout"]
    assert not server.pool.requests


async def test_the_sdk_is_told_once(server: Server) -> None:
    hang_after(server, 0)
    client = server.openai().with_options(max_retries=3)
    with pytest.raises(openai.APIStatusError) as caught:
        await client.chat.completions.create(
            model="shoal/scripted",
            messages=[{"role": "user", "content": "hi"}],
            extra_headers={"x-request-timeout": "0.2"},
        )
    assert caught.value.status_code == 408
    assert len(server.pool.requests) == 1, "not asked again"
