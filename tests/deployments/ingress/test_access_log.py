import logging
from typing import Any

import pytest

from deployments.ingress import access_log
from tests.deployments.ingress.scripted_server import KEY, MODEL, Server, events_of

USER: list[Any] = [{"role": "user", "content": "the planted prompt"}]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, access_log.__name__)
    return caplog


def only_line(lines: pytest.LogCaptureFixture) -> dict[str, Any]:
    (record,) = [one for one in lines.records if one.name == access_log.__name__]
    fields: dict[str, Any] = record.__dict__["fields"]
    return fields


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_request_has_one_line_when_it_is_over(
    server: Server, lines: pytest.LogCaptureFixture, is_streamed: bool
) -> None:
    server.says("hello")
    body = {"model": MODEL, "messages": USER, "stream": is_streamed}
    async with (
        server.http() as client,
        client.stream("POST", "/v2/ai/chat/completions", json=body) as response,
    ):
        if is_streamed:
            await events_of(response)
        else:
            await response.aread()
    fields = only_line(lines)
    assert fields.pop("duration_ms") > 0
    assert fields.pop("answer_id").startswith("chatcmpl-")
    assert fields == {
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "key_name": "test",
        "model": MODEL,
        "prompt_tokens": len(server.pool.requests[-1].prompt_token_ids),
        "completion_tokens": len(server.encode("hello")) + 1,
        "finish_reason": "stop",
    }
    assert KEY not in lines.text
    assert "planted" not in lines.text


async def test_a_path_that_a_client_made_up_is_not_in_its_line(
    server: Server, lines: pytest.LogCaptureFixture
) -> None:
    async with server.http(key=None) as client:
        await client.get("/made-up?with=values")
    fields = only_line(lines)
    assert (fields["status"], fields["route"]) == (401, "")
    assert "made-up" not in lines.text


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/v1/none", "/v1/models/none"])
@pytest.mark.parametrize("given", ["mine-1.2:3_4", "x" * 128])
async def test_a_clients_id_is_taken_and_returned(server: Server, path: str, given: str) -> None:
    async with server.http() as client:
        response = await client.get(path, headers={"x-request-id": given})
    assert response.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'q"', "ü".encode()])
async def test_an_id_that_is_no_token_is_replaced(server: Server, given: str | bytes) -> None:
    async with server.http() as client:
        response = await client.get("/v1/models", headers=[(b"x-request-id", given)])  # type: ignore[list-item]
    assert response.headers["x-request-id"].startswith("req_")


async def test_an_engine_learns_the_id_and_its_own_stays_ours(server: Server) -> None:
    async with server.http() as client:
        for _ in range(2):
            await client.post(
                "/v1/chat/completions",
                json={"model": MODEL, "messages": USER},
                headers={"x-request-id": "mine"},
            )
    first, second = server.pool.requests[-2:]
    assert first.http_request_id == second.http_request_id == "mine"
    assert first.request_id != second.request_id
