"""A real server on a free port, with a real tokenizer and a pool whose answers are written down."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import uvicorn
from openai import AsyncOpenAI
from starlette.types import ASGIApp

from cluster.api_keys import ApiKeys, hash_key
from cluster.config import ShoalConfig, parse_config
from cluster.telemetry import ReplicaLoad, Telemetry
from cluster.types import FinishReason, Request, TokenDelta, TokenLogprobs
from deployments.ingress.app import build_asgi_app
from deployments.ingress.cluster_routes import ReadCluster
from deployments.ingress.served_model import ServedModel, load_served_model
from deployments.ingress.services import RetrievalServices, TenantServices
from models.tokenizer import Tokenizer

KEY = "shoal-test-key"
MODEL = "shoal/scripted"
EOS = 1
CONTEXT = 256

TEMPLATE = """{{ bos_token }}{% for message in messages %}
{% if message.content == 'refuse me' %}{{ raise_exception('not this one') }}{% endif %}
<{{ message.role }}>{{ message.content }}{{ eos_token }}
{% endfor %}{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""

ScriptItem = TokenDelta | Exception | asyncio.Event
Script = Callable[[Request], Iterator[ScriptItem]]


@dataclass
class ScriptedPool:
    """Yields what its script says for a request, and remembers who came and how it ended."""

    script: Script
    requests: list[Request] = field(default_factory=list)
    num_open: int = 0
    has_opened: asyncio.Event = field(default_factory=asyncio.Event)
    all_closed: asyncio.Event = field(default_factory=asyncio.Event)
    num_yielded: int = 0
    ended_sequences: list[int] = field(default_factory=list)
    ready: bool = True

    async def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        self.requests.append(request)
        self.num_open += 1
        self.has_opened.set()
        self.all_closed.clear()
        try:
            for item in self.script(request):
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, asyncio.Event):
                    await item.wait()
                else:
                    self.num_yielded += 1
                    yield item
        finally:
            self.num_open -= 1
            if self.num_open == 0:
                self.all_closed.set()

    def end_sequence(self, request_id: str, index: int) -> None:
        self.ended_sequences.append(index)

    def is_ready(self) -> bool:
        return self.ready

    @property
    def num_held(self) -> int:
        return 4

    def stats(self) -> Mapping[str, ReplicaLoad]:
        load = SimpleNamespace(
            num_requests_running=2,
            num_requests_waiting=3,
            num_waiting_prefill_tokens=40,
            kv_cache_usage=0.25,
            spec_decode_drafts_total=5,
            spec_decode_draft_tokens_total=40,
            spec_decode_accepted_tokens_total=30,
        )
        return {"replica-a": load}


def logprobs_of(token_id: int, num_top: int) -> TokenLogprobs:
    """Of token 65: -0.065; the most likely ones are 2, 3, 4, … at -1, -2, -3, …"""
    return TokenLogprobs(
        logprob=-token_id / 1000,
        top_token_ids=[2 + rank for rank in range(num_top)],
        top_logprobs=[-1.0 - rank for rank in range(num_top)],
        rank=7,
    )


def deltas(
    request: Request,
    token_ids: list[int],
    *,
    group: int = 1,
    finish: FinishReason | None = FinishReason.STOP,
    index: int = 0,
) -> list[TokenDelta]:
    """One sequence's tokens in groups; STOP adds the end-of-sequence token, as the engine does."""
    params = request.sampling_params
    ids = [*token_ids, EOS] if finish is FinishReason.STOP else token_ids
    groups = [ids[start : start + group] for start in range(0, len(ids), group)] or [[]]
    result = []
    for position, part in enumerate(groups):
        is_last = position == len(groups) - 1
        top = params.logprobs
        of_prompt = params.prompt_logprobs
        has_prompt = position == 0 and index == 0 and of_prompt is not None
        result.append(
            TokenDelta(
                request_id=request.request_id,
                index=index,
                token_ids=part,
                finish_reason=finish if is_last else None,
                stop_token_id=EOS if is_last and finish is FinishReason.STOP else None,
                logprobs=None if top is None else [logprobs_of(i, top) for i in part],
                num_cached_tokens=3,
                prompt_logprobs=[
                    logprobs_of(i, of_prompt or 0) for i in request.prompt_token_ids[1:]
                ]
                if has_prompt
                else None,
            )
        )
    return result


@dataclass
class Server:
    """A running ingress and what a test needs of it."""

    port: int
    pool: ScriptedPool
    tokenizer: Tokenizer
    telemetry: Telemetry

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, path: str = "/v1", key: str = KEY) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url + path, api_key=key, max_retries=0, timeout=120)

    def http(self, key: str | None = KEY) -> httpx.AsyncClient:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=120)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def says(self, text: str, **how: Any) -> None:
        """From now on every choice of every request answers this."""
        ids = self.encode(text)

        def script(request: Request) -> Iterator[ScriptItem]:
            rows = [
                deltas(request, ids, index=index, **how)
                for index in range(request.sampling_params.n)
            ]
            for step in zip(*rows, strict=True):
                yield from step

        self.pool.script = script


def configuration(**http: Any) -> ShoalConfig:
    raw: dict[str, Any] = {
        "models": [{"name": MODEL, "source": "unused"}],
        "auth": {"api_keys": [{"name": "test", "sha256": hash_key(KEY)}]},
        "http": http,
    }
    return parse_config(raw)


@asynccontextmanager
async def serving(
    checkpoint: Path,
    config: ShoalConfig,
    keys: ApiKeys | None = None,
    *,
    retrieval: RetrievalServices | None = None,
    tenants: TenantServices | None = None,
    context: int = CONTEXT,
    read_cluster: ReadCluster | None = None,
) -> AsyncIterator[Server]:
    pool = ScriptedPool(lambda request: iter(deltas(request, [])))
    model: ServedModel = load_served_model(
        config.models[0], checkpoint, pool, max_model_len=context
    )
    telemetry = Telemetry()
    tenants = tenants or TenantServices.of(config, keys=keys)
    app = build_asgi_app(
        config,
        {model.name: model},
        tenants,
        telemetry,
        retrieval=retrieval,
        read_cluster=read_cluster,
    )
    async with listening(app) as port:
        started = Server(port=port, pool=pool, tokenizer=model.tokenizer, telemetry=telemetry)
        started.says("ok")
        yield started


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[int]:
    """Serve an app on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    uvicorn_config = uvicorn.Config(
        app, log_level="warning", http="httptools", lifespan="on", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(uvicorn_config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await running


async def events_of(response: httpx.Response) -> list[Any]:
    """The stream's events; the last is "[DONE]" if it was sent."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line async for line in response.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    datas = [line.removeprefix("data: ") for line in lines]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


async def stream(server: Server, path: str, **body: Any) -> list[Any]:
    async with (
        server.http() as client,
        client.stream("POST", path, json={"stream": True, **body}) as response,
    ):
        assert response.status_code == 200, await response.aread()
        return await events_of(response)
