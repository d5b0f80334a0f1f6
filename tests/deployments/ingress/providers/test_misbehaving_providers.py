"""Providers that are slow, break off, refuse, lie, or never end."""

import asyncio
from typing import Any

import openai
import orjson
import pytest

from tests.deployments.ingress.door_server import DoorServer
from tests.deployments.ingress.providers.conftest import REF, TOKEN
from tests.deployments.ingress.providers.fake_provider import (
    EVENTS,
    Connection,
    FakeProvider,
    Received,
    Script,
    answers,
    fails,
    in_turn,
    piece,
    says,
)
from tests.deployments.ingress.scripted_server import events_of

USER = [{"role": "user", "content": "hi"}]


async def stream_of(
    doors: DoorServer, model: str = "far/big", *, has_begun: asyncio.Event | None = None
) -> list[Any]:
    """The events of a stream that has begun; the last is "[DONE]" or an error."""
    body = {"model": model, "messages": USER, "api_key_ref": REF, "stream": True}
    async with (
        doors.http() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        assert response.status_code == 200, await response.aread()
        if has_begun is None:
            return await events_of(response)
        events = []
        async for line in response.aiter_lines():
            has_begun.set()
            if line.startswith("data: "):
                events.append(orjson.loads(line.removeprefix("data: ")))
        return events


async def status_of(doors: DoorServer, model: str = "far/big", **more: Any) -> int:
    return (await doors.chat(model=model, api_key_ref=REF, **more)).status_code


@pytest.mark.parametrize(
    ("status", "ours", "code", "pointer"),
    [
        (400, 400, "10015", None),
        (401, 400, "10015", "/api_key_ref"),
        (402, 400, "10015", "/api_key_ref"),
        (403, 400, "10015", "/api_key_ref"),
        (404, 404, "10005", "/model"),
        (413, 400, "10015", None),
        (422, 400, "10015", None),
        (429, 429, "10011", None),
        (500, 503, "10037", None),
        (502, 503, "10037", None),
        (503, 503, "10037", None),
        (529, 503, "10037", None),
        (301, 502, "10007", None),
        (204, 502, "10007", None),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_providers_status_becomes_ours(
    doors: DoorServer,
    provider: FakeProvider,
    status: int,
    ours: int,
    code: str,
    pointer: str | None,
    is_stream: bool,
) -> None:
    provider.script = fails(status, f"no, because of {TOKEN}\r\nand more")
    answer = await doors.chat(model="far/big", api_key_ref=REF, stream=is_stream)
    assert answer.status_code == ours
    (error,) = answer.json()["errors"]
    assert error["code"] == code
    assert error.get("source", {}).get("pointer") == pointer
    assert "far" in error["detail"]
    assert TOKEN not in answer.text
    assert ("no, because of" in answer.text) == (status not in (401, 301, 204))
    assert len(provider.requests) == 1


async def test_our_clients_are_not_told_that_their_own_key_is_wrong(
    doors: DoorServer, provider: FakeProvider
) -> None:
    provider.script = fails(401, "Incorrect API key provided: sk-plant****oken.")
    async with doors.openai() as client:
        with pytest.raises(openai.BadRequestError) as raised:
            await client.chat.completions.create(
                model="far/big",
                messages=[{"role": "user", "content": "hi"}],
                extra_body={"api_key_ref": REF},
            )
    assert raised.value.param == "api_key_ref"
    assert "sk-plant" not in str(raised.value)


@pytest.mark.parametrize("shown", ["sk-plant****oken", "sk-proj-abcdef…wxyz", TOKEN])
async def test_what_looks_like_a_key_is_taken_out_of_a_providers_words(
    doors: DoorServer, provider: FakeProvider, shown: str
) -> None:
    provider.script = fails(400, f"Your key {shown} is nice")
    answer = await doors.chat(model="far/big", api_key_ref=REF)
    assert "Your key [removed] is nice" in answer.json()["errors"][0]["detail"]


async def test_the_field_that_a_provider_names_is_named(
    doors: DoorServer, provider: FakeProvider
) -> None:
    provider.script = fails(400, "too hot", param="temperature")
    answer = await doors.chat(model="far/big", api_key_ref=REF)
    assert answer.json()["errors"][0]["source"] == {"pointer": "/temperature"}
    provider.script = fails(400, "strange", param="</script>")
    answer = await doors.chat(model="far/big", api_key_ref=REF)
    assert "source" not in answer.json()["errors"][0]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("retry-after: 7", "7"),
        ("retry-after-ms: 12000", "12"),
        ("retry-after: 99999999", "3600"),
        ("retry-after: nonsense", None),
        ("x: y", None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_a_long_retry_after_is_handed_on(
    doors: DoorServer, provider: FakeProvider, status: int, header: str, seconds: str | None
) -> None:
    provider.script = fails(status, "later", header)
    answer = await doors.chat(model="far/big", api_key_ref=REF)
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == seconds
    assert len(provider.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_a_short_retry_after_is_waited_for(
    doors: DoorServer, provider: FakeProvider, status: int
) -> None:
    busy = fails(status, "soon", "retry-after-ms: 20")
    provider.script = in_turn(busy, busy, says("at last"))
    answer = await doors.chat(model="far/big", api_key_ref=REF)
    assert answer.json()["choices"][0]["message"]["content"] == "at last"
    assert len(provider.requests) == 3


async def test_tries_have_an_end(doors: DoorServer, provider: FakeProvider) -> None:
    provider.script = fails(429, "soon", "retry-after-ms: 20")
    assert await status_of(doors) == 429
    assert len(provider.requests) == 3


async def test_what_may_have_been_worked_on_is_not_sent_again(
    doors: DoorServer, provider: FakeProvider
) -> None:
    async def cut(request: Received, connection: Connection) -> None:
        await connection.cut()

    for script in (fails(500, "oops", "retry-after-ms: 1"), cut):
        provider.requests.clear()
        provider.script = script
        assert await status_of(doors) == 503
        assert len(provider.requests) == 1


async def test_a_provider_that_is_not_there_is_unavailable(doors: DoorServer) -> None:
    answer = await doors.chat(model="down/big", api_key_ref=REF)
    assert answer.status_code == 503
    assert "down cannot be reached" in answer.json()["errors"][0]["detail"]


async def silent_midway(request: Received, connection: Connection) -> None:
    await connection.head()
    await connection.event(piece(request, {"content": "first"}))
    await asyncio.Event().wait()


async def test_a_stream_that_is_cut_ends_with_an_error(
    doors: DoorServer, provider: FakeProvider
) -> None:
    async def cut(request: Received, connection: Connection) -> None:
        await connection.head()
        await connection.event(piece(request, {"content": "first"}))
        await connection.cut()

    async def ends_early(request: Received, connection: Connection) -> None:
        await connection.head()
        await connection.event(piece(request, {"content": "first"}))
        await connection.end()

    for script in (cut, ends_early):
        provider.script = script
        first, error = await stream_of(doors)
        assert first["choices"][0]["delta"] == {"content": "first"}
        assert error["error"]["type"] == "server_error"
        assert "[DONE]" not in error


async def test_a_stream_that_ends_well_without_done_is_complete(
    doors: DoorServer, provider: FakeProvider
) -> None:
    async def script(request: Received, connection: Connection) -> None:
        await connection.head()
        await connection.event(piece(request, {"content": "all"}, "stop"))
        await connection.end()

    provider.script = script
    assert (await stream_of(doors))[-1] == "[DONE]"


async def test_after_done_nobody_waits_for_more(doors: DoorServer, provider: FakeProvider) -> None:
    async def never_closes(request: Received, connection: Connection) -> None:
        await connection.head()
        await connection.event(piece(request, {"content": "all"}, "stop"))
        await connection.chunk(b"data: [DONE]\n\n")
        while True:
            await connection.chunk(b": still here\n\n")
            await asyncio.sleep(0.01)

    provider.script = never_closes
    assert (await stream_of(doors))[-1] == "[DONE]"
    async with asyncio.timeout(120):
        await provider.client_left.wait()


async def test_an_error_midway_is_an_error(doors: DoorServer, provider: FakeProvider) -> None:
    async def script(request: Received, connection: Connection) -> None:
        await connection.head()
        await connection.event(piece(request, {"content": "first"}))
        await connection.event({"error": {"message": f"overloaded with {TOKEN}", "code": "x"}})
        await connection.end()

    provider.script = script
    _, error = await stream_of(doors)
    assert "far failed midway: overloaded with [removed]" in error["error"]["message"]


def body_of(*parts: bytes, media_type: str = EVENTS) -> Script:
    async def script(request: Received, connection: Connection) -> None:
        await connection.head(200, media_type)
        for part in parts:
            await connection.chunk(part)
        await connection.end()

    return script


GARBAGE = {
    "not JSON": b"data: {nonsense\n\n",
    "not UTF-8": b'data: {"choices": "\xff"}\n\n',
    "a number": b"data: 17\n\n",
    "no choices": b'data: {"a": 1}\n\n',
    "choices that are none": b'data: {"choices": [1]}\n\n',
    "a choice too many": b'data: {"choices": [{"index": 1, "delta": {}}]}\n\n',
    "a choice without delta": b'data: {"choices": [{"index": 0}]}\n\n',
    "deep nesting": b'data: {"choices": ' + b"[" * 5000 + b"]" * 5000 + b"}\n\n",
    "NaN": b'data: {"choices": [{"index": 0, "delta": {"a": NaN}}]}\n\n',
    "a page": b"<html>\n\n" * 100 + b"data: <html>\n\n",
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_in_a_stream_is_a_bad_gateway(
    doors: DoorServer, provider: FakeProvider, name: str
) -> None:
    provider.script = body_of(GARBAGE[name])
    assert await status_of(doors, stream=True) == 502


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"choices": []}', b'{"choices": [{}]}', b"\x00" * 1000],
)
async def test_garbage_instead_of_an_answer_is_a_bad_gateway(
    doors: DoorServer, provider: FakeProvider, body: bytes
) -> None:
    provider.script = answers(body)
    assert await status_of(doors) == 502


@pytest.mark.parametrize("media_type", ["text/html", "application/json", "", "text/plain"])
async def test_a_stream_of_another_type_is_a_bad_gateway(
    doors: DoorServer, provider: FakeProvider, media_type: str
) -> None:
    provider.script = answers(b"<html>data: x</html>", media_type=media_type)
    assert await status_of(doors, stream=True) == 502


async def test_a_packed_answer_is_not_unpacked(doors: DoorServer, provider: FakeProvider) -> None:
    provider.script = answers(b"\x1f\x8b" * 100, 200, "content-encoding: gzip")
    assert await status_of(doors) == 502


async def test_not_http_at_all_is_unavailable(doors: DoorServer, provider: FakeProvider) -> None:
    async def speaks_something_else(request: Received, connection: Connection) -> None:
        await connection.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n" * 10)

    provider.script = speaks_something_else
    assert await status_of(doors) == 503


async def test_a_body_without_end_has_an_end(
    doors: DoorServer, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = "deployments.ingress.providers.provider_client.MAX_ANSWER_BYTES"
    monkeypatch.setattr(limit, 300_000)

    async def endless(request: Received, connection: Connection) -> None:
        media_type = EVENTS if request.body.get("stream") else "application/json"
        await connection.head(200, media_type)
        while True:
            await connection.chunk(b": comment\n" * 1000)

    provider.script = endless
    assert await status_of(doors) == 502
    assert await status_of(doors, stream=True) == 502
    async with asyncio.timeout(120):
        await provider.client_left.wait()


async def test_a_line_without_end_has_an_end(doors: DoorServer, provider: FakeProvider) -> None:
    async def endless(request: Received, connection: Connection) -> None:
        await connection.head()
        await connection.chunk(b"data: ")
        while True:
            await connection.chunk(b"x" * 65536)

    provider.script = endless
    answer = await doors.chat(model="far/big", api_key_ref=REF, stream=True)
    assert answer.status_code == 502
    assert "4194304 bytes" in answer.text


async def test_a_very_long_line_within_the_limit_passes(
    doors: DoorServer, provider: FakeProvider
) -> None:
    text = "x" * 2_000_000
    provider.script = says(text)
    events = await stream_of(doors)
    assert events[1]["choices"][0]["delta"]["content"] == text


async def test_events_arrive_whole_however_they_are_cut(
    doors: DoorServer, provider: FakeProvider
) -> None:
    async def byte_by_byte(request: Received, connection: Connection) -> None:
        await connection.head()
        chunk = orjson.dumps(piece(request, {"content": "größe"}, "stop"))
        data = (
            b"\xef\xbb\xbf: hello\r\nevent: x\r\ndata: " + chunk + b"\r\n\r\ndata: [DONE]\r\n\r\n"
        )
        for position in range(len(data)):
            await connection.chunk(data[position : position + 1])
        await connection.end()

    provider.script = byte_by_byte
    chunk, end = await stream_of(doors)
    assert chunk["choices"][0]["delta"]["content"] == "größe"
    assert end == "[DONE]"


async def test_redirects_are_not_followed(doors: DoorServer, provider: FakeProvider) -> None:
    target = f"location: http://127.0.0.1:{provider.port}/v1/chat/completions"
    for status in (301, 302, 307, 308):
        provider.requests.clear()
        provider.script = answers({}, status, target)
        assert await status_of(doors) == 502
        assert len(provider.requests) == 1


async def test_cookies_of_a_provider_do_not_come_back(
    doors: DoorServer, provider: FakeProvider
) -> None:
    answer = {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}
    provider.script = answers(answer, 200, "set-cookie: who=default")
    assert await status_of(doors) == 200
    reply = await doors.chat(model="far/big", api_key_ref=REF)
    assert "cookie" not in provider.requests[-1].headers
    assert "set-cookie" not in reply.headers


async def test_proxies_of_the_environment_are_not_used(
    doors: DoorServer, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    assert await status_of(doors) == 200


async def test_connections_are_limited_and_waiting_has_an_end(
    doors: DoorServer, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.ingress.providers.provider_client._POOL_TIMEOUT_S", 0.2)
    provider.script = silent_midway
    body = {"model": "few/big", "messages": USER, "api_key_ref": REF, "stream": True}
    async with (
        doors.http() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        refused = await doors.chat(model="few/big", api_key_ref=REF)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert len(provider.requests) == 1


@pytest.mark.parametrize(
    ("script", "status"),
    [(fails(500, "oops"), 503), (body_of(b"data: x\n\n"), 502), (answers(b"x"), 502)],
)
async def test_after_failures_in_a_row_nothing_is_sent_for_a_while(
    doors: DoorServer, provider: FakeProvider, script: Script, status: int
) -> None:
    provider.script = script
    for _ in range(5):
        assert await status_of(doors, stream=status == 502) == status
    assert len(provider.requests) == 5
    refused = await doors.chat(model="far/big", api_key_ref=REF)
    assert refused.status_code == 503
    assert 1 <= int(refused.headers["retry-after"]) <= 5
    assert len(provider.requests) == 5
    assert await status_of(doors, "header/big") in (502, 503), "another provider: it is asked"
    assert len(provider.requests) == 6


async def test_refusals_do_not_keep_others_from_a_provider(
    doors: DoorServer, provider: FakeProvider
) -> None:
    for status in (400, 401, 404, 429):
        provider.script = fails(status, "no")
        for _ in range(6):
            await status_of(doors)
    provider.script = says("fine")
    assert await status_of(doors) == 200
