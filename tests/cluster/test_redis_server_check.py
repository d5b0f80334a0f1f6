"""Which servers are taken, and what is said of those that may lose data."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from cluster.config import ConfigError
from cluster.redis_client import RedisClient, connect
from cluster.redis_server_check import check_server, durability_warning
from tests.redis_server import RedisServer, patient_config


@pytest.fixture
async def redis(breakable_redis_server: RedisServer) -> AsyncIterator[RedisClient]:
    async with connect(patient_config(breakable_redis_server.url)) as client:
        yield client


async def warning_of(redis: RedisClient) -> str:
    return durability_warning(await check_server(redis)) or ""


async def test_a_server_that_loses_nothing_needs_no_warning(redis: RedisClient) -> None:
    assert await warning_of(redis) == ""


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("appendfsync", "everysec", "`appendfsync everysec`: a crash loses"),
        ("appendonly", "no", "writes no append-only file (appendonly no)"),
    ],
)
async def test_what_a_crash_would_lose_is_said(
    redis: RedisClient, setting: str, value: str, expected: str
) -> None:
    await redis.execute("CONFIG", "SET", setting, value)
    assert expected in await warning_of(redis)


async def test_eviction_is_said_where_memory_is_limited(redis: RedisClient) -> None:
    await redis.execute("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert await warning_of(redis) == ""
    await redis.execute("CONFIG", "SET", "maxmemory", "1gb")
    assert "maxmemory-policy allkeys-lru" in await warning_of(redis)


async def test_a_user_who_may_not_ask_is_told_so(
    redis: RedisClient, breakable_redis_server: RedisServer
) -> None:
    rights = ("on", ">password", "~*", "+@all", "-@dangerous")
    await redis.execute("ACL", "SETUSER", "app", *rights)
    url = breakable_redis_server.url.replace("unix://", "unix://app:password@")
    async with connect(patient_config(url)) as client:
        assert "does not tell how it keeps data" in await warning_of(client)


async def test_every_master_of_a_cluster_is_asked(redis_cluster: list[RedisServer]) -> None:
    last = redis_cluster[-1]
    config = patient_config(redis_cluster[0].url, is_cluster=True)
    with last.connect() as direct:
        direct.config_set("appendfsync", "everysec")
        try:
            async with connect(config) as client:
                assert len(await check_server(client)) == 3
                assert "appendfsync everysec" in await warning_of(client)
        finally:
            direct.config_set("appendfsync", "always")


@pytest.mark.parametrize(
    ("name", "version", "is_too_old"),
    [
        ("redis", "5.0.14", True),
        ("redis", "6.2.14", True),
        ("redis", "7.0.15", False),
        ("redis", "10.0.0", False),
        ("valkey", "7.2.5", True),
        ("valkey", "8.0.1", False),
    ],
)
async def test_old_servers_are_refused_in_one_line(
    name: str, version: str, is_too_old: bool
) -> None:
    """The answers of old servers, since none can be started here."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while command := await reader.readline():
            parts = [await reader.readline() for _ in range(2 * int(command[1:]))]
            if parts[1].strip() == b"HELLO" and version != "5.0.14":
                writer.write(f"*4\r\n+server\r\n+{name}\r\n+version\r\n+{version}\r\n".encode())
            else:
                writer.write(b"-ERR unknown command\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(patient_config(f"redis://127.0.0.1:{port}")) as client:
            if not is_too_old:
                assert "does not tell how it keeps data" in await warning_of(client)
                return
            with pytest.raises(ConfigError) as caught:
                await check_server(client)
    message = str(caught.value)
    assert "\n" not in message
    found = "older than Redis 6" if version == "5.0.14" else f"{name} {version}"
    assert f"127.0.0.1:{port} is {found};" in message
