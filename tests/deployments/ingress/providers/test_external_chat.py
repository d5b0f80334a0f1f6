"""Chat requests for models of providers: what is sent, what comes back, and who pays attention."""

import asyncio
from typing import Any

import openai
import pytest

from tests.deployments.ingress.door_server import DoorServer
from tests.deployments.ingress.providers.conftest import REF, TOKEN
from tests.deployments.ingress.providers.fake_provider import (
    Connection,
    FakeProvider,
    Received,
    Script,
    answers,
    piece,
    says,
)
from tests.deployments.ingress.scripted_server import KEY, MODEL

USER: list[Any] = [{"role": "user", "content": "hi"}]


async def ask(doors: DoorServer, model: str = "far/big", **more: Any) -> Any:
    body = {"api_key_ref": REF, **more.pop("extra_body", {})}
    client = doors.openai()  # not closed here: a stream is still to be read
    return await client.chat.completions.create(
        model=model, messages=more.pop("messages", USER), extra_body=body, **more
    )


async def test_a_whole_answer_comes_back_under_the_name_that_the_client_wrote(
    doors: DoorServer, provider: FakeProvider
) -> None:
    provider.script = says("Hello", " there")
    answer = await ask(doors)
    assert answer.choices[0].message.content == "Hello there"
    assert answer.model == "far/big"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens == 7
    (request,) = provider.requests
    assert request.line == "POST /v1/chat/completions HTTP/1.1"
    assert request.body == {"model": "big", "messages": USER}
    assert request.headers["authorization"] == f"Bearer {TOKEN}"


async def test_the_provider_hears_nothing_of_who_asked(
    doors: DoorServer, provider: FakeProvider
) -> None:
    await ask(doors)
    headers = provider.requests[0].headers
    assert set(headers) == {
        *("host", "content-type", "accept", "accept-encoding", "user-agent"),
        *("authorization", "content-length"),
    }
    assert headers["host"] == f"127.0.0.1:{provider.port}"
    assert KEY not in repr(provider.requests)
    assert REF not in repr(provider.requests)


async def test_a_stream_arrives_piece_by_piece(doors: DoorServer, provider: FakeProvider) -> None:
    goes_on = asyncio.Event()

    async def script(request: Received, connection: Connection) -> None:
        await connection.head()
        await connection.event(piece(request, {"role": "assistant", "content": ""}))
        await connection.event(piece(request, {"content": "first"}))
        await goes_on.wait()
        await connection.event(piece(request, {"content": " second"}))
        await connection.event(piece(request, {}, "stop"))
        await connection.chunk(b"data: [DONE]\n\n")
        await connection.end()

    provider.script = script
    texts: list[str] = []
    chunks: list[Any] = []
    async for chunk in await ask(doors, stream=True):
        chunks.append(chunk)
        texts.append(chunk.choices[0].delta.content or "")
        if texts[-1] == "first":
            goes_on.set()
    assert "".join(texts) == "first second"
    assert {chunk.model for chunk in chunks} == {"far/big"}
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_is_always_asked_for_and_passed_on_where_it_is_wanted(
    doors: DoorServer, provider: FakeProvider
) -> None:
    provider.script = says("a", "b", "c")
    chunks = [chunk async for chunk in await ask(doors, stream=True)]
    assert all(chunk.choices for chunk in chunks)
    assert provider.requests[0].body["stream_options"] == {"include_usage": True}
    wanted = await ask(doors, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in wanted]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 3
    metrics = doors.telemetry.model("far/*")
    assert (metrics.prompt_tokens, metrics.generation_tokens) == (14, 6)


async def test_a_client_that_leaves_ends_the_providers_stream(
    doors: DoorServer, provider: FakeProvider
) -> None:
    async def script(request: Received, connection: Connection) -> None:
        await connection.head()
        await connection.event(piece(request, {"content": "first"}))
        await asyncio.Event().wait()

    provider.script = script
    stream = await ask(doors, stream=True)
    await anext(aiter(stream))
    await stream.close()
    async with asyncio.timeout(120):
        await provider.client_left.wait()


async def test_a_client_that_leaves_before_the_first_byte_ends_the_providers_work(
    doors: DoorServer, provider: FakeProvider
) -> None:
    is_asked = asyncio.Event()

    async def script(request: Received, connection: Connection) -> None:
        is_asked.set()
        await asyncio.Event().wait()

    provider.script = script
    for is_stream in (True, False):
        is_asked.clear()
        provider.client_left.clear()
        asking = asyncio.create_task(ask(doors, stream=is_stream))
        await is_asked.wait()
        asking.cancel()
        async with asyncio.timeout(120):
            await provider.client_left.wait()


async def test_a_client_that_reads_slowly_slows_the_provider_down(
    doors: DoorServer, provider: FakeProvider
) -> None:
    num_sent = 0
    text = "x" * 10_000

    async def script(request: Received, connection: Connection) -> None:
        nonlocal num_sent
        await connection.head()
        while True:
            await connection.event(piece(request, {"content": text}))
            num_sent += 1

    provider.script = script
    body = {"model": "far/big", "messages": USER, "api_key_ref": REF, "stream": True}
    async with (
        doors.http() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        before = -1
        while before != num_sent:  # until nothing moves any more
            before = num_sent
            await asyncio.sleep(0.3)
        assert num_sent < 3000, "30 MB would be somewhere in our memory"
        for _ in range(4 * num_sent):
            await anext(lines)
        assert num_sent > before


async def test_connections_are_used_again(
    doors: DoorServer, provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("_DRAIN_S", "IDLE_CONNECTION_S"):  # a busy machine may take its time
        monkeypatch.setattr(f"deployments.ingress.providers.provider_client.{limit}", 120.0)
    for _ in range(3):
        await ask(doors)
        async for _ in await ask(doors, stream=True):
            pass
    assert provider.num_connections == 1
    assert len(provider.requests) == 6


async def test_a_served_model_is_no_providers_and_takes_no_key(doors: DoorServer) -> None:
    answer = await doors.chat(model=MODEL, api_key_ref="sk-in-the-wrong-place")
    assert answer.status_code == 422
    assert "only for models of external providers" in answer.text
    assert "sk-in-the-wrong-place" not in answer.text
    assert (await doors.chat(model=MODEL)).status_code == 200


async def test_a_model_of_no_provider_is_not_found(doors: DoorServer) -> None:
    for name in ("near/big", "far/", "far", "xfar/big"):
        assert (await doors.chat(model=name, api_key_ref=REF)).status_code == 404


async def test_a_prefix_counts_in_any_case_and_the_answer_has_the_clients(
    doors: DoorServer, provider: FakeProvider
) -> None:
    answer = await ask(doors, "Far/Big/er")
    assert answer.model == "Far/Big/er"
    assert provider.requests[0].body["model"] == "Big/er"


@pytest.mark.parametrize("reference", [None, "", "no such", "their key", "x" * 255, TOKEN])
async def test_without_a_secret_of_the_tenants_own_nothing_is_asked(
    doors: DoorServer, provider: FakeProvider, reference: str | None
) -> None:
    answer = await doors.chat(model="far/big", api_key_ref=reference)
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert (error["code"], error["source"]) == ("10015", {"pointer": "/api_key_ref"})
    assert provider.requests == []
    assert not reference or reference not in answer.text


@pytest.mark.parametrize("reference", [17, ["sk-planted"], {"sk-planted": 1}, "sk-planted" * 30])
async def test_a_reference_that_is_none_is_refused_and_not_repeated(
    doors: DoorServer, reference: object
) -> None:
    answer = await doors.chat(model="far/big", api_key_ref=reference)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "api_key_ref"]
    assert "planted" not in answer.text


@pytest.mark.parametrize(
    ("model", "reference"), [("far/big", "a login"), ("header/big", "a login"), ("login/big", REF)]
)
async def test_a_secret_of_the_other_type_is_refused(
    doors: DoorServer, provider: FakeProvider, model: str, reference: str
) -> None:
    answer = await doors.chat(model=model, api_key_ref=reference)
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["source"] == {"pointer": "/api_key_ref"}
    assert provider.requests == []


async def test_keys_go_where_the_configuration_says(
    doors: DoorServer, provider: FakeProvider
) -> None:
    assert (await doors.chat(model="header/big", api_key_ref=REF)).status_code == 200
    assert provider.requests[-1].headers["x-api-key"] == TOKEN
    assert "authorization" not in provider.requests[-1].headers
    assert (await doors.chat(model="login/big", api_key_ref="a login")).status_code == 200
    assert provider.requests[-1].headers["authorization"] == "Basic bWU6cGxhbnRlZC1wYXNzd29yZA=="
    assert (await doors.chat(model="open/big")).status_code == 200
    assert "authorization" not in provider.requests[-1].headers
    assert provider.requests[-1].headers["x-team"] == "blue"


async def test_tool_calls_and_unknown_fields_of_a_provider_pass(
    doors: DoorServer, provider: FakeProvider
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "extra": {"a": 1}}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    provider.script = answers({"choices": [choice], "x_theirs": [1]})
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    answer = await ask(doors, tools=[tool])
    assert answer.choices[0].message.tool_calls[0].function.name == "f"
    assert answer.model_extra["x_theirs"] == [1]
    assert answer.choices[0].message.model_extra["extra"] == {"a": 1}


async def test_metrics_have_the_providers_name_and_none_that_clients_make_up(
    doors: DoorServer, provider: FakeProvider
) -> None:
    await ask(doors, "far/known")
    for number in range(3):
        await ask(doors, f"far/invented-{number}")
    async with doors.http(None) as client:
        page = (await client.get("/metrics")).text
    assert 'model_name="far/known"' in page
    assert 'model_name="far/*"' in page
    assert "invented" not in page


async def test_the_sdk_raises_its_own_errors(doors: DoorServer) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await ask(doors, extra_body={"api_key_ref": "no such"})
    assert raised.value.param == "api_key_ref"


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams begin without their first event after a moment."""
    monkeypatch.setattr("deployments.ingress.providers.external_chat.START_AFTER_S", 0.05)
    monkeypatch.setattr("deployments.ingress.providers.external_chat.KEEP_ALIVE_S", 0.05)


@pytest.mark.usefixtures("impatience")
@pytest.mark.parametrize(
    ("script", "last"),
    [(says("late"), "data: [DONE]"), (answers({}, 500), 'data: {"error":')],
)
async def test_a_stream_that_begins_late_is_kept_alive_until_it_does(
    doors: DoorServer, provider: FakeProvider, script: Script, last: str
) -> None:
    may_begin = asyncio.Event()

    async def late(request: Received, connection: Connection) -> None:
        await may_begin.wait()
        await script(request, connection)

    provider.script = late
    body = {"model": "far/big", "messages": USER, "api_key_ref": REF, "stream": True}
    async with (
        doors.http() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        assert response.status_code == 200
        lines = response.aiter_lines()
        assert await anext(lines) == ": keep-alive"
        may_begin.set()
        rest = [line async for line in lines if line and not line.startswith(":")]
    assert rest[-1].startswith(last)


@pytest.mark.usefixtures("impatience")
async def test_a_client_that_leaves_while_it_is_kept_alive_ends_the_providers_work(
    doors: DoorServer, provider: FakeProvider
) -> None:
    async def silent(request: Received, connection: Connection) -> None:
        await asyncio.Event().wait()

    provider.script = silent
    body = {"model": "far/big", "messages": USER, "api_key_ref": REF, "stream": True}
    async with (
        doors.http() as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == ": keep-alive"
    async with asyncio.timeout(120):
        await provider.client_left.wait()


async def test_many_streams_at_once_do_not_mix(doors: DoorServer, provider: FakeProvider) -> None:
    async def echo(request: Received, connection: Connection) -> None:
        await connection.head()
        text = request.body["messages"][0]["content"]
        for letter in text * 5:
            await connection.event(piece(request, {"content": letter}))
            await asyncio.sleep(0)
        await connection.event(piece(request, {}, "stop"))
        await connection.chunk(b"data: [DONE]\n\n")
        await connection.end()

    provider.script = echo

    async def one(number: int) -> str:
        messages = [{"role": "user", "content": f"<{number}>"}]
        stream = await ask(doors, f"far/{number}", messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    texts = await asyncio.gather(*(one(number) for number in range(40)))
    assert texts == [f"<{number}>" * 5 for number in range(40)]
