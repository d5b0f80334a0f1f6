"""`/v2/integration_secrets` through Telnyx' SDK, and what must never be seen of a secret."""

import base64
import io
import logging
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import telnyx

from cluster.config import RedisConfig
from cluster.provider_config import ProviderConfig
from cluster.redis_client import connect
from deployments.ingress import operations
from deployments.ingress.openapi import openapi_document
from tests.deployments.ingress.door_server import OTHER_KEY, DoorServer, serving_doors
from tests.deployments.ingress.providers.fake_provider import (
    FakeProvider,
    fails,
    running_provider,
    says,
)
from tests.redis_server import RedisServer

PATH = "/v2/integration_secrets"
MARK = "d00rmark"  # in every planted word, and in no other test's
TOKEN = f"sk-{MARK}-token"
PASSWORD = f"{MARK}-password"
USERNAME = f"{MARK}-user"


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with running_provider() as running:
        yield running


@pytest.fixture
async def doors(
    checkpoint: Path, tmp_path: Path, redis_config: RedisConfig, provider: FakeProvider
) -> AsyncIterator[DoorServer]:
    far = ProviderConfig.model_validate({"name": "far", "base_url": provider.base_url})
    async with (
        connect(redis_config) as redis,
        serving_doors(checkpoint, tmp_path, redis, [far]) as running,
    ):
        yield running


async def test_a_secret_is_made_listed_and_deleted(doors: DoorServer) -> None:
    async with doors.telnyx() as client:
        made = await client.integration_secrets.create(
            identifier="openai", type="bearer", token=TOKEN
        )
        assert made.data.identifier == "openai"
        assert made.data.record_type == "integration_secret"
        uuid.UUID(made.data.id)
        assert made.data.created_at.tzinfo is not None
        (listed,) = [item async for item in client.integration_secrets.list()]
        assert listed == made.data
        await client.integration_secrets.delete(made.data.id)
        assert [item async for item in client.integration_secrets.list()] == []


async def test_statuses_and_bodies_are_telnyx(doors: DoorServer) -> None:
    async with doors.http() as client:
        body = {"identifier": "x", "type": "basic", "username": USERNAME, "password": PASSWORD}
        made = await client.post(PATH, json=body)
        assert made.status_code == 201
        assert set(made.json()) == {"data"}
        assert set(made.json()["data"]) == {
            *("record_type", "id", "identifier", "created_at", "updated_at"),
        }
        listed = await client.get(PATH)
        assert listed.json()["meta"] == {
            "page_number": 1,
            "page_size": 1000,
            "total_pages": 1,
            "total_results": 1,
        }
        gone = await client.delete(f"{PATH}/{made.json()['data']['id']}")
        assert (gone.status_code, gone.content) == (204, b"")
        assert "content-length" not in gone.headers
        again = await client.delete(f"{PATH}/{made.json()['data']['id']}")
        assert again.status_code == 404
        assert again.json()["errors"][0]["code"] == "10005"
        assert (await client.delete(f"{PATH}/nonsense")).status_code == 404


async def test_an_identifier_is_taken_once_per_tenant(doors: DoorServer) -> None:
    async with doors.telnyx() as client, doors.telnyx(OTHER_KEY) as other:
        await client.integration_secrets.create(identifier="openai", type="bearer", token=TOKEN)
        with pytest.raises(telnyx.ConflictError) as raised:
            await client.integration_secrets.create(
                identifier="openai", type="basic", username=USERNAME, password=PASSWORD
            )
        body: Any = raised.value.body
        assert body["errors"][0]["code"] == "10012"
        assert body["errors"][0]["source"] == {"pointer": "/identifier"}
        made = await other.integration_secrets.create(
            identifier="openai", type="bearer", token="sk-theirs"
        )
        assert len([item async for item in client.integration_secrets.list()]) == 1
        with pytest.raises(telnyx.NotFoundError):
            await client.integration_secrets.delete(made.data.id)


async def test_lists_have_types_and_pages(doors: DoorServer) -> None:
    async with doors.telnyx() as client:
        for number in range(5):
            await client.integration_secrets.create(
                identifier=f"bearer {number}", type="bearer", token=TOKEN
            )
        await client.integration_secrets.create(
            identifier="basic", type="basic", username=USERNAME, password=PASSWORD
        )
        page = await client.integration_secrets.list(page_size=2, filter={"type": "bearer"})
        assert page.meta is not None
        assert page.meta.total_pages == 3
        names = [item.identifier async for item in page]
        assert sorted(names) == [f"bearer {number}" for number in range(5)]
        basic = client.integration_secrets.list(filter={"type": "basic"})
        assert [item.identifier async for item in basic] == ["basic"]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("filter[type]=nonsense", "filter[type]"),
        ("page[number]=-1", "page[number]"),
        ("page[size]=0", "page[size]"),
        ("page[size]=x", "page[size]"),
    ],
)
async def test_wrong_queries_are_400_and_named(
    doors: DoorServer, query: str, parameter: str
) -> None:
    async with doors.http() as client:
        answer = await client.get(f"{PATH}?{query}")
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert error["source"] == {"parameter": parameter}


FULL = {"identifier": "x", "type": "bearer", "token": TOKEN}


@pytest.mark.parametrize(
    ("change", "code", "pointer"),
    [
        ({"token": None}, "10004", "/token"),
        ({"type": "basic", "password": PASSWORD}, "10004", "/username"),
        ({"type": TOKEN}, "10032", "/type"),
        ({"type": [TOKEN]}, "10032", "/type"),
        ({"identifier": None}, "10026", "/identifier"),
        ({"identifier": [TOKEN]}, "10026", "/identifier"),
        ({"identifier": TOKEN * 99}, "10033", "/identifier"),
        ({"identifier": ""}, "10033", "/identifier"),
        ({"token": ""}, "10033", "/token"),
        ({"token": f"{TOKEN}\r\nhost: evil"}, "10033", "/token"),
        ({"token": f"{TOKEN} {TOKEN}"}, "10033", "/token"),
        ({"token": f"{TOKEN}\n"}, "10033", "/token"),
        ({"token": f"{TOKEN}é"}, "10033", "/token"),
        ({"token": f"{TOKEN}\x00"}, "10033", "/token"),
        ({"token": TOKEN * 999}, "10033", "/token"),
        ({"token": {"value": TOKEN}}, "10026", "/token"),
        ({"value": TOKEN}, "10027", None),
        ({TOKEN: TOKEN}, "10027", None),
        ({"type": "basic", "username": "a:b", "password": "c"}, "10033", "/username"),
    ],
)
async def test_wrong_fields_are_named_and_never_repeated(
    doors: DoorServer, change: dict[str, Any], code: str, pointer: str | None
) -> None:
    async with doors.http() as client:
        answer = await client.post(PATH, json={**FULL, **change})
    assert answer.status_code == 422
    body = answer.json()
    assert "detail" not in body
    assert body["errors"][0]["code"] == code
    assert body["errors"][0].get("source", {}).get("pointer") == pointer
    assert MARK not in answer.text


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (f'{{"token": "{TOKEN}', 400),
        (f'{{"token": "{TOKEN}\\ud800"}}', 422),
        (f'{{"{TOKEN}\\ud800": 1}}', 422),
        (f'["{TOKEN}"]', 422),
        (f'"{TOKEN}"', 422),
        (f'{{"identifier": NaN, "token": "{TOKEN}"}}', 422),
        (TOKEN, 400),
    ],
)
async def test_bodies_that_are_none_are_not_repeated(
    doors: DoorServer, content: str, status: int
) -> None:
    async with doors.http() as client:
        headers = {"content-type": "application/json"}
        answer = await client.post(PATH, content=content, headers=headers)
    assert answer.status_code == status
    assert "errors" in answer.json()
    assert MARK not in answer.text


async def test_what_the_other_type_needs_is_ignored(doors: DoorServer) -> None:
    async with doors.http() as client:
        body = {**FULL, "username": 17, "password": ["nonsense"]}
        assert (await client.post(PATH, json=body)).status_code == 201


async def test_without_a_key_nothing_is_told(doors: DoorServer) -> None:
    async with doors.http(None) as client:
        assert (await client.get(PATH)).status_code == 401
        assert (await client.post(PATH, json=FULL)).status_code == 401


async def test_a_stored_key_pays_for_a_chat_through_both_sdks(
    doors: DoorServer, provider: FakeProvider
) -> None:
    provider.script = says("Hello")
    messages: Any = [{"role": "user", "content": "hi"}]
    async with doors.telnyx() as client:
        await client.integration_secrets.create(identifier="key", type="bearer", token=TOKEN)
        answer: Any = await client.ai.openai.chat.create_completion(
            model="far/big", messages=messages, api_key_ref="key"
        )
        assert answer["choices"][0]["message"]["content"] == "Hello"
    assert provider.requests[-1].headers["authorization"] == f"Bearer {TOKEN}"
    async with doors.openai() as openai_client:
        with pytest.raises(openai.APIStatusError) as raised:
            await openai_client.chat.completions.create(
                model="far/big", messages=messages, extra_body={"api_key_ref": "no-such-secret"}
            )
    assert raised.value.status_code == 400


async def test_planted_secrets_are_found_nowhere(
    doors: DoorServer, provider: FakeProvider, redis_server: RedisServer, tmp_path: Path
) -> None:
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        bodies = await _use_secrets(doors, provider)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    assert "httpcore" in log.getvalue(), "the log has what the connection says of itself"
    places = {
        "answers": "".join(bodies),
        "log": log.getvalue(),
        "redis": _everything(redis_server),
        "redis' files": _text_of(redis_server.folder / "appendonlydir"),
        "home": _text_of(tmp_path),
    }
    for name, text in places.items():
        assert len(text) > 40, f"{name} was looked at"
        assert MARK not in text, name
        for start in range(3):  # base64 has three ways to write it
            coded = base64.b64encode(b"x" * start + MARK.encode()).decode()[4:-4]
            assert coded not in text, f"{name}, in base64"


async def _use_secrets(doors: DoorServer, provider: FakeProvider) -> list[str]:
    """All that is answered while secrets are made, used, misused, rotated and listed."""
    basic = {"identifier": "login", "type": "basic", "username": USERNAME, "password": PASSWORD}
    chat = {"model": "far/big", "messages": [{"role": "user", "content": "hi"}]}
    bodies = []
    async with doors.http() as client:

        async def post(path: str, body: Any) -> None:
            answer = await client.post(path, json=body)
            bodies.append(answer.text + repr(answer.headers))

        for secret in (FULL, FULL, basic, {**FULL, "token": f"{TOKEN} "}, {"value": TOKEN}):
            await post(PATH, secret)
        for script in (
            says("fine"),
            fails(401, f"Incorrect API key provided: {TOKEN}"),
            fails(400, f"What is {TOKEN}?"),
            fails(500, TOKEN),
        ):
            provider.script = script
            for is_stream in (False, True):
                await post(
                    "/v1/chat/completions", {**chat, "api_key_ref": "x", "stream": is_stream}
                )
        await post("/v1/chat/completions", {**chat, "api_key_ref": "login"})
        await post("/v1/chat/completions", {**chat, "api_key_ref": TOKEN})
        await post("/v1/chat/completions", {**chat, "api_key_ref": [TOKEN]})
        await doors.secrets.rotate()
        for path in (PATH, "/metrics"):
            bodies.append((await client.get(path)).text)
    return bodies


def _text_of(folder: Path) -> str:
    files = (path for path in folder.iterdir() if path.is_file())
    return "".join(path.read_bytes().decode("latin-1") for path in files)


def _everything(server: RedisServer) -> str:
    """Every key and value."""
    readers = {b"string": "GET", b"hash": "HGETALL", b"set": "SMEMBERS"}
    with server.connect() as client:
        return "".join(
            repr((key, client.execute_command(readers[client.type(key)], key)))
            for key in client.scan_iter()
        )


def test_the_endpoints_are_described() -> None:
    listed = {operation.name: operation for operation in operations.OPERATIONS}
    listed |= {operation.name: operation for operation in operations.SECRET_OPERATIONS}
    document = openapi_document(is_key_required=True, operations=list(listed.values()))
    made = document["paths"][PATH]["post"]["responses"]
    assert set(made) == {
        *("201", "400", "401", "403", "404", "409", "413", "415", "422", "500", "503")
    }
    refused = made["422"]["content"]["application/json"]["schema"]["$ref"]
    assert refused.endswith("/SecretErrorsBody")
    gone = document["paths"][PATH + "/{id}"]["delete"]["responses"]["204"]
    assert "content" not in gone
    answers = re.findall(r"schemas/(IntegrationSecret\w+Answer)", repr(document))
    fields = document["components"]["schemas"]["IntegrationSecretObject"]["properties"]
    assert answers
    assert not {"token", "username", "password", "value"} & set(fields)
