"""Limits and usage as clients meet them, on real servers and a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from cluster.api_keys import hash_key
from cluster.config import RedisConfig, parse_config
from cluster.redis_client import connect
from cluster.types import FinishReason, Request, TokenDelta
from deployments.ingress.services import TenantServices
from tests.deployments.ingress.scripted_server import KEY, MODEL, Server, deltas, serving

USER: list[Any] = [{"role": "user", "content": "hi"}]
OTHER_KEY = "shoal-other-key"


@asynccontextmanager
async def limited(
    checkpoint: Path, redis: RedisConfig, *, num_servers: int = 1, **limits: Any
) -> AsyncIterator[list[Server]]:
    """Ingresses with a connection each; limits of every tenant."""
    config = parse_config(
        {
            "models": [{"name": MODEL, "source": "unused"}],
            "auth": {
                "api_keys": [
                    {"name": "test", "sha256": hash_key(KEY)},
                    {"name": "other", "sha256": hash_key(OTHER_KEY), "tenant": "other"},
                ]
            },
            "tenants": {"default_limits": limits},
        }
    )
    patient = redis.model_copy(update={"timeout_s": 60.0})  # on a machine under load
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(num_servers):
            client = await stack.enter_async_context(connect(patient))
            tenants = TenantServices.of(config, client)
            servers.append(
                await stack.enter_async_context(serving(checkpoint, config, tenants=tenants))
            )
        yield servers


async def usage_of(server: Server, key: str = KEY, **query: str) -> Any:
    """Read until what has ended is written: nothing tells clients when it is."""
    async with server.http(key) as client:
        answer = await client.get("/v1/usage", params={"group_by": "model,key", **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def until_used(server: Server, num_requests: int, key: str = KEY) -> Any:
    async with asyncio.timeout(120):
        while True:
            usage = await usage_of(server, key)
            if usage["total"]["num_requests"] == num_requests:
                return usage
            await asyncio.sleep(0.02)


async def test_two_hundred_clients_of_three_ingresses_get_exactly_the_limit(
    checkpoint: Path, redis_config: RedisConfig
) -> None:
    limit = 50
    async with (
        limited(checkpoint, redis_config, num_servers=3, requests_per_minute=limit) as servers,
        AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(server.http()) for server in servers]

        async def ask(number: int) -> int:
            body = {"messages": USER, "max_tokens": 2}
            answer = await clients[number % 3].post("/v1/chat/completions", json=body)
            return answer.status_code

        statuses = await asyncio.gather(*(ask(number) for number in range(200)))
        assert statuses.count(200) == limit
        assert statuses.count(429) == 200 - limit
        usage = await until_used(servers[0], limit)
        assert usage["data"][0]["model"] == MODEL


async def test_a_refusal_is_the_sdks_rate_limit_error_with_headers(
    checkpoint: Path, redis_config: RedisConfig
) -> None:
    async with limited(
        checkpoint, redis_config, requests_per_minute=2, tokens_per_minute=10_000
    ) as (server,):
        async with server.openai() as client:
            raw = await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=USER, max_tokens=10
            )
            assert raw.headers["x-ratelimit-limit"] == "2"
            assert raw.headers["x-ratelimit-remaining"] == "1"
            assert 0 < int(raw.headers["x-ratelimit-reset"]) <= 61
            assert raw.headers["x-ratelimit-limit-requests"] == "2"
            assert raw.headers["x-ratelimit-remaining-requests"] == "1"
            assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
            assert raw.headers["x-ratelimit-limit-tokens"] == "10000"
            assert 9_900 < int(raw.headers["x-ratelimit-remaining-tokens"]) < 10_000
            stream = await client.chat.completions.with_raw_response.create(
                model=MODEL, messages=USER, stream=True
            )
            assert stream.headers["x-ratelimit-remaining-requests"] == "0"
            async for _ in stream.parse():
                pass
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model=MODEL, messages=USER)
            assert caught.value.code == "rate_limit_exceeded"
            assert 1 <= int(caught.value.response.headers["retry-after"]) <= 61
            assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
            assert caught.value.response.json()["errors"][0]["code"] == "10011"
            await client.models.list()  # costs nothing
        async with anthropic.AsyncAnthropic(
            base_url=server.url, api_key=KEY, max_retries=0
        ) as messages:
            with pytest.raises(anthropic.RateLimitError) as refused:
                await messages.messages.create(model=MODEL, messages=USER, max_tokens=4)
            limit = refused.value.response.headers["anthropic-ratelimit-requests-limit"]
            assert limit == "2"
        async with server.openai(key=OTHER_KEY) as other:  # another tenant
            await other.chat.completions.create(model=MODEL, messages=USER)


async def test_too_many_tokens_at_once_are_refused_and_unused_ones_given_back(
    checkpoint: Path, redis_config: RedisConfig
) -> None:
    async with (
        limited(checkpoint, redis_config, tokens_per_minute=130) as (server,),
        server.openai() as client,
    ):

        async def ask(max_tokens: int) -> Any:
            return await client.completions.create(model=MODEL, prompt="hi", max_tokens=max_tokens)

        for _ in range(5):  # 100 are reserved each time, and only few used
            async with asyncio.timeout(120):
                while True:
                    try:
                        await ask(100)
                        break
                    except openai.RateLimitError:  # the last settlement is on its way
                        await asyncio.sleep(0.02)
        with pytest.raises(openai.RateLimitError, match="130 tokens per minute"):
            await ask(200)


async def test_streams_at_the_same_time_are_limited(
    checkpoint: Path, redis_config: RedisConfig
) -> None:
    go_on = asyncio.Event()
    async with limited(checkpoint, redis_config, concurrent_requests=1) as (server,):
        first, last = [server.encode(text) for text in ("hello", "world")]

        def script(request: Request) -> Any:
            yield from deltas(request, first, finish=None)
            yield go_on
            yield from deltas(request, last)

        server.pool.script = script
        async with server.openai() as client:
            stream = await client.chat.completions.create(model=MODEL, messages=USER, stream=True)
            with pytest.raises(openai.RateLimitError, match="at the same time") as caught:
                await client.chat.completions.create(model=MODEL, messages=USER)
            assert caught.value.response.headers["retry-after"] == "1"
            await stream.close()  # the client leaves: its place is free
            await server.pool.all_closed.wait()
            server.says("ok")
            async with asyncio.timeout(120):
                while True:
                    try:
                        await client.chat.completions.create(model=MODEL, messages=USER)
                        break
                    except openai.RateLimitError:  # it is on its way
                        await asyncio.sleep(0.02)


async def test_other_models_are_not_there_for_a_tenant(
    checkpoint: Path, redis_config: RedisConfig
) -> None:
    async with limited(checkpoint, redis_config, models=["else/*"]) as (server,):
        async with server.openai() as client:
            assert [model.id async for model in client.models.list()] == []
            for call in (
                client.models.retrieve(MODEL),
                client.chat.completions.create(model=MODEL, messages=USER),
                client.completions.create(model=MODEL, prompt="hi"),
                client.responses.create(model=MODEL, input="hi"),
                client.chat.completions.create(model="openai/gpt-4o", messages=USER),
            ):
                with pytest.raises(openai.NotFoundError) as caught:
                    await call
                assert caught.value.code == "model_not_found"
                known = str(caught.value).split("there is:")[1]
                assert MODEL not in known
        async with server.http() as http:  # the default model is none of its either
            answer = await http.post("/v1/chat/completions", json={"messages": USER})
            assert answer.status_code == 404


async def test_usage_is_exact_for_every_way_to_end(
    checkpoint: Path, redis_config: RedisConfig
) -> None:
    go_on = asyncio.Event()
    async with limited(checkpoint, redis_config) as (server,):
        ids = server.encode("hello world")
        async with server.openai() as client:
            server.says("hello world")
            whole = await client.chat.completions.create(model=MODEL, messages=USER)
            assert whole.usage is not None
            await client.responses.create(model=MODEL, input="hi")
            text = await client.completions.create(model=MODEL, prompt=["a", "b"])
            assert text.usage is not None

            def cut(request: Request) -> Any:
                yield from deltas(request, ids, finish=None)
                yield go_on

            server.pool.script = cut
            stream = await client.chat.completions.create(model=MODEL, messages=USER, stream=True)
            said = ""
            async for chunk in stream:
                said += chunk.choices[0].delta.content or ""
                if said == "hello world":
                    break
            await stream.close()
            await server.pool.all_closed.wait()

            def failing(request: Request) -> Any:
                yield from deltas(request, ids, finish=None)
                yield TokenDelta(
                    request_id=request.request_id,
                    index=0,
                    token_ids=[],
                    finish_reason=FinishReason.ERROR,
                )

            server.pool.script = failing
            failed = await client.chat.completions.create(model=MODEL, messages=USER, stream=True)
            with pytest.raises(openai.APIError):
                async for _ in failed:
                    pass
        usage = await until_used(server, 5)
        (row,) = usage["data"]
        assert row["key"] == "config/test"
        chat_prompt, chat_answer = whole.usage.prompt_tokens, len(ids) + 1
        assert row["prompt_tokens"] == 4 * chat_prompt + text.usage.prompt_tokens
        assert row["completion_tokens"] == 4 * chat_answer + 2 * len(ids)
        assert row["cached_tokens"] == 3 * 6  # as the pool says for each prompt
        assert row["total_tokens"] == row["prompt_tokens"] + row["completion_tokens"]


async def test_usage_is_shown_to_its_tenant_and_to_administrators(
    checkpoint: Path, redis_config: RedisConfig
) -> None:
    async with limited(checkpoint, redis_config) as (server,):
        async with server.openai() as client:
            await client.chat.completions.create(model=MODEL, messages=USER)
        await until_used(server, 1)
        assert (await usage_of(server, OTHER_KEY))["data"] == []
        async with server.http() as admin:
            everything = (await admin.get("/v1/admin/usage?group_by=tenant")).json()
            assert [row["tenant"] for row in everything["data"]] == ["default"]
            assert everything["data"][0]["day"] is None
            one = (await admin.get("/v1/admin/usage?tenant=other")).json()
            assert one["data"] == []
            backwards = "start_date=2026-01-02&end_date=2026-01-01"
            for query in ("start_date=yesterday", "group_by=hour", backwards):
                assert (await admin.get(f"/v1/admin/usage?{query}")).status_code == 422
        async with server.http(OTHER_KEY) as other:
            assert (await other.get("/v1/admin/usage")).status_code == 403


async def test_without_limits_a_request_asks_redis_for_nothing(
    checkpoint: Path, redis_config: RedisConfig
) -> None:
    async with limited(checkpoint, redis_config) as (server,), connect(redis_config) as redis:
        async with server.openai() as client:
            raw = await client.chat.completions.with_raw_response.create(model=MODEL, messages=USER)
        assert not [name for name in raw.headers if name.startswith("x-ratelimit")]
        await until_used(server, 1)
        names = {key.decode().rsplit("}:", 1)[-1] for key in await redis.execute("KEYS", "*")}
        assert not {"rates", "running"} & names
