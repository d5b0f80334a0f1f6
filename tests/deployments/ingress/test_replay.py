"""Requests that begin again in the next app, because their model gets another checkpoint."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.errors import PoolReplacedError
from cluster.telemetry import Telemetry
from deployments import app_switch as app_switch_module
from deployments.app_switch import AppSwitch
from deployments.ingress.app import build_asgi_app
from deployments.ingress.replay import MAX_KEPT_BYTES, Replay
from deployments.ingress.served_model import load_served_model
from deployments.ingress.services import TenantServices
from tests.deployments.ingress.scripted_server import (
    CONTEXT,
    KEY,
    MODEL,
    ScriptedPool,
    configuration,
    deltas,
    events_of,
    listening,
)

ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/v1/responses": {"input": "hi"},
}


class Fronts:
    """Two apps of one model behind a switch; the first one's replicas are being replaced."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self.telemetry = Telemetry()
        self.switch = AppSwitch()
        gone = PoolReplacedError("another checkpoint", retry_after_s=1)
        self.old = ScriptedPool(lambda _: iter([gone]))
        self.new = ScriptedPool(lambda request: iter(deltas(request, [65, 66, 67])))

    async def switch_to(self, pool: ScriptedPool) -> None:
        config = configuration()
        model = load_served_model(config.models[0], self._checkpoint, pool, max_model_len=CONTEXT)
        app = build_asgi_app(config, {MODEL: model}, TenantServices.of(config), self.telemetry)
        await self.switch.switch_to(app, on_closed=_nothing)


async def _nothing() -> None:
    return


@asynccontextmanager
async def behind_a_switch(checkpoint: Path) -> AsyncIterator[tuple[Fronts, httpx.AsyncClient]]:
    fronts = Fronts(checkpoint)
    await fronts.switch_to(fronts.old)
    async with listening(fronts.switch) as port:
        headers = {"authorization": f"Bearer {KEY}"}
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
            yield fronts, client
    await fronts.switch.close()


@pytest.mark.parametrize("path", ASKS)
async def test_an_answer_comes_from_the_app_that_follows_and_is_counted_once(
    checkpoint: Path, path: str
) -> None:
    async with behind_a_switch(checkpoint) as (fronts, client):
        body = {"model": MODEL, **ASKS[path]}
        asking = asyncio.create_task(client.post(path, json=body))
        await fronts.old.has_opened.wait()
        await fronts.switch_to(fronts.new)
        answer = await asking
        assert answer.status_code == 200, answer.text
        assert len(fronts.old.requests) == len(fronts.new.requests) == 1
        page = (await client.get("/metrics")).text
        counted = [
            line
            for line in page.splitlines()
            if line.startswith("shoal:requests_total{") and "/metrics" not in line
        ]
        assert len(counted) == 1
        assert counted[0].endswith(" 1.0")


async def test_a_stream_that_waits_for_the_app_that_follows_comes_whole(checkpoint: Path) -> None:
    async with behind_a_switch(checkpoint) as (fronts, client):

        async def ask() -> list[Any]:
            body = {"model": MODEL, "prompt": "hi", "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as response:
                assert response.status_code == 200
                return await events_of(response)

        asking = asyncio.create_task(ask())
        await fronts.old.has_opened.wait()
        await fronts.switch_to(fronts.new)
        assert (await asking)[-1] == "[DONE]"


async def test_who_has_waited_too_long_gets_the_error(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_switch_module, "MAX_WAIT_S", 0.01)
    async with behind_a_switch(checkpoint) as (_, client):
        answer = await client.post("/v1/completions", json={"model": MODEL, "prompt": "hi"})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"


async def test_the_clients_deadline_goes_on_while_it_waits(checkpoint: Path) -> None:
    async with behind_a_switch(checkpoint) as (_, client):
        answer = await client.post(
            "/v1/completions",
            json={"model": MODEL, "prompt": "hi"},
            headers={"x-request-timeout": "0.2"},
        )
        assert answer.status_code == 408


async def test_of_a_large_body_nothing_is_kept() -> None:
    parts = [b"x" * MAX_KEPT_BYTES, b"y"]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    replay = Replay(receive)
    await replay.receive()
    assert replay.is_possible
    assert (await replay.receive())["body"] == b"y"
    assert not replay.is_possible
