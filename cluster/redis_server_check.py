"""Whether a Redis server is one that Shoal can use, and what a crash of it would lose."""

from collections.abc import Sequence
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from cluster.config import ConfigError
from cluster.redis_client import RedisClient, RedisRefusedError

MIN_REDIS = 7
MIN_VALKEY = 8


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One server, as far as it tells; None: it does not."""

    name: str  # redis or valkey
    version: str
    appendonly: str | None = None
    appendfsync: str | None = None
    maxmemory: str | None = None
    maxmemory_policy: str | None = None


async def server_facts(redis: RedisClient) -> list[ServerFacts]:
    """The server's, or those of every master of the cluster.

    Raises:
        ConfigError: it is so old that it does not tell its version.
        ServiceUnavailableError: it does not answer.
    """
    try:
        # Unlike INFO, it is allowed to every user.
        greetings = [_pairs(answer) for answer in await redis.ask_servers("HELLO")]
    except ResponseError:
        raise _too_old(redis, "older than Redis 6") from None
    settings = await _settings(redis, len(greetings))
    return [_facts(*both) for both in zip(greetings, settings, strict=True)]


async def check_server(redis: RedisClient) -> list[ServerFacts]:
    """`server_facts`, of servers that are new enough.

    Raises:
        ConfigError: one is too old; a single line.
        ServiceUnavailableError: it does not answer.
    """
    facts = await server_facts(redis)
    for server in facts:
        oldest = MIN_VALKEY if server.name == "valkey" else MIN_REDIS
        if int(server.version.partition(".")[0]) < oldest:
            raise _too_old(redis, f"{server.name} {server.version}")
    return facts


def durability_warning(facts: list[ServerFacts]) -> str | None:
    """What could be lost, in one line; None: nothing that was acknowledged."""
    for server in facts:
        warning = _warning(server)
        if warning:
            return warning
    return None


def _warning(server: ServerFacts) -> str | None:
    name = f"{server.name.capitalize()} {server.version}"
    if server.appendonly is None:
        return (
            f"{name} does not tell how it keeps data on disk (CONFIG GET is not allowed); see that "
            "it has `appendonly yes`, `appendfsync always` and `maxmemory-policy noeviction`"
        )
    if server.maxmemory not in ("0", None) and server.maxmemory_policy != "noeviction":
        return (
            f"{name} throws data away when its memory is full (maxmemory-policy "
            f"{server.maxmemory_policy}): embedded buckets and tasks would vanish; set noeviction"
        )
    if server.appendonly != "yes":
        return (
            f"{name} writes no append-only file (appendonly {server.appendonly}): a crash loses "
            "tasks and buckets; set `appendonly yes` and `appendfsync always`"
        )
    if server.appendfsync != "always":
        return (
            f"{name} has `appendfsync {server.appendfsync}`: a crash loses what was accepted in "
            "the last second or more; `appendfsync always` loses nothing"
        )
    return None


def _too_old(redis: RedisClient, what: str) -> ConfigError:
    return ConfigError(
        f"redis.url: the server at {redis.address} is {what}; "
        f"Redis {MIN_REDIS} or Valkey {MIN_VALKEY} is the oldest that can be used"
    )


async def _settings(redis: RedisClient, num_servers: int) -> list[dict[str, str]]:
    """CONFIG GET; empty where it is not allowed, as at many providers."""
    try:
        answers = await redis.ask_servers("CONFIG", "GET", "append*", "maxmemory*")
    except (RedisRefusedError, ResponseError):  # by the user's rights; renamed or switched off
        return [{} for _ in range(num_servers)]
    return [_pairs(answer) for answer in answers]


def _pairs(flat: Sequence[Any]) -> dict[str, str]:
    texts = [item.decode() if isinstance(item, bytes) else str(item) for item in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _facts(greeting: dict[str, str], settings: dict[str, str]) -> ServerFacts:
    return ServerFacts(
        name=greeting["server"],
        version=greeting["version"],
        appendonly=settings.get("appendonly"),
        appendfsync=settings.get("appendfsync"),
        maxmemory=settings.get("maxmemory"),
        maxmemory_policy=settings.get("maxmemory-policy"),
    )
