"""What batches need, with real Redis and folder, and a pool that answers what it was told."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from openai import AsyncOpenAI
from starlette.routing import Route, Router

from cluster.api_keys import hash_key
from cluster.batch_config import BatchConfig
from cluster.batch_tasks import BatchTasks
from cluster.config import ShoalConfig, parse_config
from cluster.errors import ServingError
from cluster.file_store import FileStore, open_file_objects
from cluster.redis_client import RedisClient, connect
from cluster.retrieval import EmbedderFacts, Embeddings, InputKind
from cluster.telemetry import ReplicaLoad, Telemetry
from cluster.types import Request, TokenDelta
from deployments.batch_worker import BatchWorker
from deployments.ingress import operations
from deployments.ingress.app import Authentication, ErrorBoundary
from deployments.ingress.batch_routes import batch_endpoints
from deployments.ingress.file_routes import file_endpoints
from deployments.ingress.line_calls import LineCalls, line_calls
from deployments.ingress.served_model import ServedModel, load_served_model
from deployments.ingress.services import TenantServices
from models.tokenizer import Tokenizer
from tests.cluster.task_queue.tasks import BEAT_S, LEASE_S
from tests.deployments.ingress.scripted_server import CONTEXT, KEY, MODEL, deltas, listening
from tests.redis_server import PATIENCE_S

EMBED_MODEL = "shoal/lengths"
OTHER_KEY = "shoal-other-key"  # of the tenant "other"
CHAT_URL = "/v1/chat/completions"


@dataclass
class EchoPool:
    """Answers the last user's message. `trouble` raises, or waits, before it does."""

    tokenizer: Tokenizer | None = None
    trouble: Callable[[str], Any] | None = None  # may be a coroutine function
    requests: list[Request] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0

    async def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        assert self.tokenizer is not None
        self.requests.append(request)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            text = said(self.tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False))
            if self.trouble is not None and asyncio.iscoroutine(made := self.trouble(text)):
                await made
            await asyncio.sleep(0)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            for delta in deltas(request, ids, group=64):
                yield delta
        finally:
            self.num_running -= 1

    def end_sequence(self, request_id: str, index: int) -> None:
        raise AssertionError("nobody asks for several choices")

    def is_ready(self) -> bool:
        return True

    def stats(self) -> Mapping[str, ReplicaLoad]:
        return {}


class LengthEmbedder:
    """The vector of a text says how long it is."""

    def __init__(self) -> None:
        self.kinds: list[InputKind] = []

    async def facts(self) -> EmbedderFacts:
        return EmbedderFacts(model_name=EMBED_MODEL, revision="1", width=2, max_input_tokens=512)

    async def embed(self, inputs: Any, *, kind: InputKind) -> Embeddings:
        self.kinds.append(kind)
        vectors = np.array([[len(item), 1] for item in inputs], dtype=np.float32)
        return Embeddings(vectors_ND=vectors, num_tokens=sum(map(len, inputs)))


def said(prompt: str) -> str:
    """What the user says in a prompt."""
    found = re.findall(r"<user>(.*?)(?:<\|eos\|>)?\n", prompt, re.DOTALL)
    return found[-1] if found else prompt


def configuration(redis_url: str, **storage: object) -> ShoalConfig:
    keys = [
        {"name": "test", "sha256": hash_key(KEY)},
        {"name": "other", "sha256": hash_key(OTHER_KEY), "tenant": "other"},
    ]
    return parse_config(
        {
            "models": [{"name": MODEL, "source": "unused"}],
            "embedders": [{"name": EMBED_MODEL, "source": "demo"}],
            "redis": {"url": redis_url, "timeout_s": PATIENCE_S},
            "storage": storage,
            "auth": {"api_keys": keys},
        }
    )


def echo_calls(
    config: ShoalConfig,
    checkpoint: Path,
    pool: EchoPool,
    embedder: LengthEmbedder | None = None,
) -> LineCalls:
    model: ServedModel = load_served_model(
        config.models[0], checkpoint, pool, max_model_len=CONTEXT
    )
    pool.tokenizer = model.tokenizer
    return line_calls(config, {MODEL: model}, {EMBED_MODEL: embedder or LengthEmbedder()}, None)


@asynccontextmanager
async def working(
    config: ShoalConfig, batches: BatchConfig, home: Path, calls: LineCalls, *, name: str = "w"
) -> AsyncIterator[BatchWorker]:
    """A worker with a connection and a store of its own."""
    objects = open_file_objects(config.storage, batches, home)
    async with connect(config.redis) as redis:
        files = FileStore(redis, objects, max_bytes=batches.max_file_bytes)
        worker = BatchWorker(config, batches, redis, files, calls, name=name, lease_s=LEASE_S)
        worker._loop._beat_s = BEAT_S
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            await worker.stop(grace_s=0)
            await running
            await objects.close()
            calls.close()


@dataclass
class BatchServer:
    """A running ingress with files and batches."""

    port: int
    config: ShoalConfig
    batches: BatchConfig
    redis: RedisClient
    files: FileStore
    tasks: BatchTasks

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, key: str = KEY, path: str = "/v1") -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url + path, api_key=key, max_retries=0, timeout=120)

    def http(self, key: str = KEY) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=120)

    async def upload(self, lines: Iterable[object], *, key: str = KEY) -> str:
        """The id of a batch file. Bytes are lines as they are."""
        texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        async with self.openai(key) as client:
            file = await client.files.create(file=("in.jsonl", b"\n".join(texts)), purpose="batch")
        return file.id

    async def start(
        self, lines: Iterable[object], *, key: str = KEY, endpoint: Any = CHAT_URL, **more: Any
    ) -> Any:
        file_id = await self.upload(lines, key=key)
        async with self.openai(key) as client:
            return await client.batches.create(
                input_file_id=file_id, endpoint=endpoint, completion_window="24h", **more
            )

    async def end_of(self, batch_id: str, *, key: str = KEY, timeout_s: float = 300) -> Any:
        return await self.until(batch_id, lambda b: b.status in FINAL, key=key, timeout_s=timeout_s)

    async def until(
        self,
        batch_id: str,
        condition: Callable[[Any], bool],
        *,
        key: str = KEY,
        timeout_s: float = 300,
    ) -> Any:
        async with self.openai(key) as client, asyncio.timeout(timeout_s):
            while True:
                batch = await client.batches.retrieve(batch_id)
                if condition(batch):
                    return batch
                await asyncio.sleep(0.05)

    async def lines_of(self, file_id: str | None, *, key: str = KEY) -> list[Any]:
        if file_id is None:
            return []
        async with self.openai(key) as client:
            content = await client.files.content(file_id)
        return [json.loads(line) for line in content.text.splitlines()]


FINAL = ("completed", "failed", "expired", "cancelled")


@asynccontextmanager
async def serving_batches(
    redis_url: str, home: Path, *, batches: BatchConfig | None = None, **storage: object
) -> AsyncIterator[BatchServer]:
    """`storage`: fields of that section; a folder in `home` without them."""
    config, batches = configuration(redis_url, **storage), batches or BatchConfig()
    objects = open_file_objects(config.storage, batches, home)
    async with connect(config.redis) as redis:
        files = FileStore(redis, objects, max_bytes=batches.max_file_bytes)
        tasks = BatchTasks(redis, files, batches)
        endpoints = {
            **file_endpoints(files, batch_retention_s=batches.retention_s),
            **batch_endpoints(tasks, max_body_bytes=config.http.max_body_bytes),
        }
        routes = [
            Route(path, endpoints[operation], methods=[operation.method])
            for operation in (*operations.FILE_OPERATIONS, *operations.BATCH_OPERATIONS)
            for path in operation.paths
        ]
        router = Router(routes, redirect_slashes=False)
        app = ErrorBoundary(Authentication(router, TenantServices.of(config).keys), Telemetry())
        async with listening(app) as port:
            yield BatchServer(port, config, batches, redis, files, tasks)
        await objects.close()


def chat_line(custom_id: str, text: str, **body: object) -> dict[str, object]:
    messages = [{"role": "user", "content": text}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT_URL,
        "body": {"model": MODEL, "messages": messages, **body},
    }


def content_of(line: Any) -> str:
    content = line["response"]["body"]["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


def fails_once(error: ServingError) -> Callable[[str], None]:
    """Trouble for the first request with each text."""
    seen: set[str] = set()

    def trouble(text: str) -> None:
        if text not in seen:
            seen.add(text)
            raise error

    return trouble
