"""What is planted — keys, secrets, a prompt — is searched for wherever the server writes.

In the object store prompts are where they belong: in uploaded files and in batches' outputs.
The answer to a bad request may quote the refused value to who sent it.
"""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.api_keys import hash_key, new_key
from cluster.batch_config import BatchConfig
from cluster.batch_tasks import BatchTasks
from cluster.bucket_tasks import BucketTasks
from cluster.chunk_store import ChunkStore
from cluster.config import ShoalConfig, parse_config
from cluster.file_store import FileStore, open_file_objects
from cluster.integration_secrets import IntegrationSecrets
from cluster.log_lines import LineFormatter
from cluster.object_store import open_object_store
from cluster.redis_client import RedisClient, connect
from cluster.secret_box import SecretBox
from cluster.secret_keys import SecretKeys, ensure_keys_file
from cluster.task_queue.queue import TaskQueue
from cluster.telemetry import Telemetry
from deployments.ingress.app import build_asgi_app
from deployments.ingress.served_model import load_served_model
from deployments.ingress.services import BatchServices, RetrievalServices, TenantServices
from tests.deployments.batch_rig import (
    EMBED_MODEL,
    FINAL,
    EchoPool,
    LengthEmbedder,
    echo_calls,
    working,
)
from tests.deployments.ingress.providers.conftest import far
from tests.deployments.ingress.providers.fake_provider import (
    FakeProvider,
    fails,
    in_turn,
    running_provider,
    says,
)
from tests.deployments.ingress.scripted_server import CONTEXT, MODEL, listening
from tests.redis_server import RedisServer

KEY = new_key()
PROMPT = "zebra-planted-prompt"
PROVIDER_SECRET = "zebra-planted-provider-secret"
OTHER_SECRET = "zebra-planted-integration-secret"
MESSAGES = [{"role": "user", "content": PROMPT}]
CHAT = "/v1/chat/completions"


@dataclass
class Planted:
    """Where to look, and what was said."""

    client: httpx.AsyncClient
    provider: FakeProvider
    errors: list[str]

    async def post(self, path: str, *, status: int, **body: object) -> Any:
        response = await self.client.post(path, json=body)
        assert response.status_code == status, response.text
        if status >= 400:
            self.errors.append(response.text)
            return None
        return response.json() if body.get("stream") is None else response.text


class _NoRetriever:
    async def search(self, *_: object, **__: object) -> list[Any]:
        return []


def _configuration(redis_url: str, provider: FakeProvider) -> ShoalConfig:
    key = {"name": "planted", "sha256": hash_key(KEY), "scopes": ["admin", "buckets", "inference"]}
    return parse_config(
        {
            "models": [{"name": MODEL, "source": "unused"}],
            "embedders": [{"name": EMBED_MODEL, "source": "demo"}],
            "redis": {"url": redis_url},
            "providers": [far(provider).model_dump(mode="json")],
            "auth": {"api_keys": [key]},
        }
    )


@asynccontextmanager
async def _serving(
    config: ShoalConfig, redis: RedisClient, checkpoint: Path, home: Path
) -> AsyncIterator[int]:
    """The whole app, with everything switched on."""
    pool = EchoPool()
    model = load_served_model(config.models[0], checkpoint, pool, max_model_len=CONTEXT)
    pool.tokenizer = model.tokenizer
    ensure_keys_file(home)
    batches = BatchConfig()
    file_objects = open_file_objects(config.storage, batches, home)
    files = FileStore(redis, file_objects, max_bytes=batches.max_file_bytes)
    objects = open_object_store(config.storage, home)
    app = build_asgi_app(
        config,
        {model.name: model},
        TenantServices.of(config, redis),
        Telemetry(),
        retrieval=RetrievalServices(
            embedders={EMBED_MODEL: LengthEmbedder()},
            retriever=_NoRetriever(),
            chunks=ChunkStore(redis),
            tasks=BucketTasks(TaskQueue(redis)),
            objects=objects,
        ),
        secrets=IntegrationSecrets(redis, SecretBox(SecretKeys.load(home))),
        batches=BatchServices(files=files, tasks=BatchTasks(redis, files, batches)),
    )
    calls = echo_calls(config, checkpoint, EchoPool())
    try:
        async with working(config, batches, home, calls), listening(app) as port:
            yield port
    finally:
        await objects.close()
        await file_objects.close()


@pytest.fixture
async def planted(
    checkpoint: Path, tmp_path: Path, redis_server: RedisServer
) -> AsyncIterator[Planted]:
    async with running_provider() as provider:
        config = _configuration(redis_server.url, provider)
        headers = {"authorization": f"Bearer {KEY}"}
        async with (
            connect(config.redis) as redis,
            _serving(config, redis, checkpoint, tmp_path) as port,
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120, trust_env=False
            ) as client,
        ):
            yield Planted(client, provider, [])


async def _chat(planted: Planted) -> None:
    answer = await planted.post(CHAT, status=200, model=MODEL, messages=MESSAGES)
    assert PROMPT in answer["choices"][0]["message"]["content"], "the pool echoes"
    events = await planted.post(CHAT, status=200, model=MODEL, messages=MESSAGES, stream=True)
    assert "[DONE]" in events
    await planted.post(CHAT, status=422, model=MODEL, messages=[{"role": PROMPT, "content": 1}])
    await planted.post(CHAT, status=404, model="no/such", messages=MESSAGES)
    await planted.post("/v1/embeddings", status=200, model=EMBED_MODEL, input=PROMPT)
    broken = await planted.client.post(
        CHAT,
        content=b'{"messages": [{"content": "' + PROMPT.encode(),
        headers={"content-type": "application/json"},
    )
    assert broken.status_code == 400
    planted.errors.append(broken.text)


async def _secrets(planted: Planted) -> None:
    path = "/v2/integration_secrets"
    for name, token in (("mine", PROVIDER_SECRET), ("other", OTHER_SECRET)):
        made = await planted.post(path, status=201, identifier=name, type="bearer", token=token)
        assert token not in json.dumps(made)
    await planted.post(path, status=422, identifier="bad", type="basic", token=OTHER_SECRET)
    await planted.post(path, status=409, identifier="mine", type="bearer", token=OTHER_SECRET)
    assert OTHER_SECRET not in (await planted.client.get(path)).text
    deleted = await planted.client.delete(f"{path}/{made['data']['id']}")
    assert deleted.status_code == 204


async def _provider(planted: Planted) -> None:
    def ask(status: int, **more: object) -> Any:
        body = {"model": "far/big", "messages": MESSAGES, "api_key_ref": "mine", **more}
        return planted.post(CHAT, status=status, **body)

    planted.provider.script = in_turn(
        says("ok"),
        says("ok"),
        fails(401, f"Incorrect API key provided: {PROVIDER_SECRET}."),
        fails(400, "You asked for too much."),
    )
    await ask(200)
    await ask(200, stream=True)
    bearer = planted.provider.requests[0].headers["authorization"]
    assert bearer == f"Bearer {PROVIDER_SECRET}", "it arrives where it belongs"
    await ask(400)
    await ask(400)


async def _batch(planted: Planted) -> None:
    def line(number: int, body: object) -> str:
        custom_id = str(number)
        call = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
        return json.dumps(call)

    async def run(*lines: str) -> tuple[str, Any]:
        """The file's id, and the batch when it is over."""
        uploaded = await planted.client.post(
            "/v1/files",
            data={"purpose": "batch"},
            files={"file": ("in.jsonl", "\n".join(lines).encode())},
        )
        assert uploaded.status_code == 200, uploaded.text
        batch = started = await planted.post(
            "/v1/batches",
            status=200,
            input_file_id=uploaded.json()["id"],
            endpoint=CHAT,
            completion_window="24h",
        )
        while batch["status"] not in FINAL:
            batch = (await planted.client.get(f"/v1/batches/{started['id']}")).json()
        return uploaded.json()["id"], batch

    _, refused = await run(line(1, {"model": MODEL, "messages": PROMPT}))
    assert refused["status"] == "failed"
    assert PROMPT not in json.dumps(refused)
    body = {"model": MODEL, "messages": MESSAGES}
    file_id, batch = await run(line(1, body), line(2, {**body, "max_tokens": 2 * CONTEXT}))
    assert batch["status"] == "completed", batch["errors"]
    output = (await planted.client.get(f"/v1/files/{batch['output_file_id']}/content")).text
    assert PROMPT in output, "here it belongs"
    deleted = await planted.client.delete(f"/v1/files/{file_id}")
    assert deleted.status_code == 200


async def _strangers(planted: Planted) -> None:
    """Keys where none are expected."""
    wrong = {"authorization": f"Bearer {KEY}x"}
    refused = await planted.client.get(f"/v1/{PROMPT}", headers=wrong)
    assert refused.status_code == 401
    lost = await planted.client.get(f"/v1/{PROMPT}?key={KEY}", headers={"x-request-id": KEY})
    assert lost.status_code == 404
    planted.errors += [refused.text, lost.text]


def _stored(redis_server: RedisServer) -> dict[str, str]:
    """All that is in Redis, by key; other types of values are dumped."""
    readers = {
        b"string": ("GET",),
        b"hash": ("HGETALL",),
        b"set": ("SMEMBERS",),
        b"zset": ("ZRANGE", 0, -1),
        b"list": ("LRANGE", 0, -1),
        b"stream": ("XRANGE", "-", "+"),
    }
    with redis_server.connect() as redis:
        found = {}
        for key in redis.scan_iter(count=1000):
            command, *arguments = readers[redis.type(key)]
            found[key.decode()] = repr((key, redis.execute_command(command, key, *arguments)))
        return found


async def test_what_is_planted_is_nowhere_in_clear(
    planted: Planted, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for part in (_chat, _secrets, _provider, _batch, _strangers):
        await part(planted)
    formatter = LineFormatter(json=True)
    shoals = ("cluster", "models", "deployments", "uvicorn", "audit")  # what `process_logs` writes
    lines = [
        formatter.format(record)
        for record in caplog.records
        if record.name.partition(".")[0] in shoals
    ]
    metrics = (await planted.client.get("/metrics")).text
    stored = _stored(redis_server)
    assert sum("access_log" in line for line in lines) > 15
    assert sum('"logger":"audit"' in line for line in lines) >= 4
    assert any("secrets" in key for key in stored), sorted(stored)
    places = {
        "log": lines,
        "error": planted.errors,
        "metrics": [metrics],
        "redis": list(stored.values()),
    }
    secret_part = KEY.removeprefix("shoal-")
    for place, texts in places.items():
        for text in texts:
            for marker in (secret_part, PROVIDER_SECRET, OTHER_SECRET, PROMPT):
                quoted = place == "error" and marker == PROMPT
                assert quoted or marker not in text, f"{marker} in {place}: {text[:2000]}"
