"""One Redis, or a cluster of them: commands with a deadline, and errors that a client may see.

A connection that is refused, broken or silent becomes `ServiceUnavailableError` within
`RedisConfig.timeout_s`. No command is sent twice: who retries must know that the first try may
have been carried out. Connections come back by themselves. The URL's password is in no message.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import cached_property
from typing import Any, Self

import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cluster.config import RedisConfig
from cluster.errors import ServiceUnavailableError
from cluster.redis_connections import MAX_CONNECTIONS, Connections, address_of, open_connections

SCHEMA_VERSION = 1  # of all that is stored; part of every key
RETRY_AFTER_S = 1.0
LOG_EVERY_S = 1.0
_RETRY_AFTER_FULL_S = 30.0

# Answers of a server that is there and cannot serve now.
_NOT_NOW = (
    BusyLoadingError,
    ReadOnlyError,
    ClusterDownError,
    MasterDownError,
    TryAgainError,
    RedisClusterException,
)
_NOT_NOW_CODES = ("LOADING", "BUSY", "MISCONF", "NOREPLICAS", "READONLY", "CLUSTERDOWN")

logger = logging.getLogger(__name__)

Argument = str | bytes | int | float


class RedisFullError(ServiceUnavailableError):
    """Redis is at its `maxmemory` and takes no more writes."""


class RedisRefusedError(ServiceUnavailableError):
    """Redis does not take our user and password, or does not let this user do that."""


class RedisSilentError(ServiceUnavailableError):
    """There was no answer in time: Redis is away, or we are slow ourselves."""


class Script(msgspec.Struct, frozen=True, dict=True):
    """A Lua script. All of its keys are in KEYS and share a hash tag, for a cluster's sake."""

    source: str

    @cached_property
    def digest(self) -> str:
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class RedisClient:
    """Made by `connect`; belongs to the event loop that uses it first."""

    def __init__(self, config: RedisConfig, connections: Connections, address: str) -> None:
        self._config = config
        self._connections = connections
        self._redis = connections.redis
        self.address = address  # for messages: without user and password
        self._logged_s = -LOG_EVERY_S  # when an outage was last logged
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def is_cluster(self) -> bool:
        return isinstance(self._redis, RedisCluster)

    @property
    def timeout_s(self) -> float:
        """Of a command."""
        return self._config.timeout_s

    def key(self, *parts: str) -> str:
        """`shoal:1:part:part`. Braces around a part of it name the slot on a cluster."""
        return ":".join((self._config.key_prefix, str(SCHEMA_VERSION), *parts))

    async def execute(self, *command: Argument, timeout_s: float | None = None) -> Any:
        """One command; strings come back as bytes. `timeout_s` is for one that has much to do.

        Raises:
            ServiceUnavailableError: the server does not answer in time, or not now.
            RedisFullError: it has no memory left.
            RedisRefusedError: the user or password is wrong, or may not do that.
            ResponseError: the command is wrong.
        """
        async with self._ready_within(timeout_s or self._config.timeout_s, self._places):
            return await self._redis.execute_command(*command)

    async def execute_many(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Commands in one round trip (to each node), in order, not as a transaction.

        Raises:
            as `execute`; the first error of any of them, after all were sent.
        """
        if not commands:
            return []
        async with self._ready_within(self._config.timeout_s, self._places):
            pipeline = self._redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            # Errors that the pipeline raises quote the command, with what users have written.
            answers = list(await pipeline.execute(raise_on_error=False))
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return answers

    async def run(
        self,
        script: Script,
        *,
        keys: Sequence[str],
        args: Sequence[Argument] = (),
        timeout_s: float | None = None,
    ) -> Any:
        """Run a script, atomically. `timeout_s` is for one that has much to do.

        Raises:
            as `execute`.
        """
        tail = (len(keys), *keys, *args)
        try:
            return await self.execute("EVALSHA", script.digest, *tail, timeout_s=timeout_s)
        except NoScriptError:
            return await self.execute("EVAL", script.source, *tail, timeout_s=timeout_s)

    async def wait(self, *command: Argument, block_s: float) -> Any:
        """XREAD or XREADGROUP with `BLOCK`, whose value becomes `block_s`, on a connection that no
        other command waits for. None: nothing came.

        Raises:
            as `execute`; a silent server is noticed after `block_s` and the timeout.
        """
        place = command.index("BLOCK") + 1
        left_s = block_s
        while True:
            now_s = min(left_s, self._connections.max_block_s or left_s)
            block_ms = max(1, round(now_s * 1000))  # 0 would be for ever
            blocking = (*command[:place], block_ms, *command[place + 1 :])
            async with self._ready_within(now_s + self._config.timeout_s):
                answer = await self._redis.execute_command(*blocking)
            left_s -= now_s
            if answer or left_s <= 0:
                return answer or None

    async def ask_servers(self, *command: Argument) -> list[Any]:
        """The answers of the server, or of every master of the cluster.

        Raises:
            as `execute`.
        """
        if not isinstance(self._redis, RedisCluster):
            return [await self.execute(*command)]
        async with self._ready_within(self._config.timeout_s, self._places):
            return [
                await self._redis.execute_command(*command, target_nodes=node)
                for node in self._redis.get_primaries()
            ]

    async def close(self) -> None:
        await self._redis.aclose()

    @asynccontextmanager
    async def _ready_within(
        self, timeout_s: float, place: AbstractAsyncContextManager[None] | None = None
    ) -> AsyncIterator[None]:
        async with self._errors_translated(), asyncio.timeout(timeout_s), place or nullcontext():
            await self._connections.be_ready()
            yield

    @asynccontextmanager
    async def _errors_translated(self) -> AsyncIterator[None]:
        try:
            yield
        except (RedisError, RedisClusterException, OSError) as error:
            if isinstance(error, (RedisConnectionError, RedisTimeoutError, OSError)):
                await self._connections.doubt(error)
            translated = self._translated(error)
            if translated is error:
                raise
            raise translated from error

    def _translated(self, error: Exception) -> Exception:
        """What a client may see of it; an error that is our defect stays as it is."""
        if type(error) is RedisConnectionError and isinstance(error.__cause__, RedisError):
            return self._translated(error.__cause__)  # of the greeting: a wrong password
        if isinstance(error, OutOfMemoryError):
            return RedisFullError(
                "Redis is full (maxmemory): nothing can be stored until it has more memory or "
                "buckets are deleted",
                retry_after_s=_RETRY_AFTER_FULL_S,
            )
        if isinstance(error, (AuthenticationError, NoPermissionError)):
            self._log("refuses our user", error)
            return RedisRefusedError("Redis refuses our user", retry_after_s=RETRY_AFTER_S)
        if isinstance(error, _NOT_NOW) or str(error).split(" ", 1)[0] in _NOT_NOW_CODES:
            return self._unavailable("cannot serve now", error)
        if isinstance(error, TimeoutError):  # our own
            return self._silent(f"does not answer within {self._config.timeout_s:g} s", error)
        if isinstance(error, RedisTimeoutError):  # of a connection
            return self._silent("cannot be reached", error)
        if isinstance(error, (RedisConnectionError, OSError)):
            return self._unavailable("cannot be reached", error)
        return error

    def _unavailable(self, what: str, error: Exception) -> ServiceUnavailableError:
        self._log(what, error)
        return ServiceUnavailableError(f"Redis {what}", retry_after_s=RETRY_AFTER_S)

    def _silent(self, what: str, error: Exception) -> ServiceUnavailableError:
        self._log(what, error)
        return RedisSilentError(f"Redis {what}", retry_after_s=RETRY_AFTER_S)

    def _log(self, what: str, error: Exception) -> None:
        """Where the server is and what it says are for the operator, not for clients. Once a
        second at most: everybody meets the same outage."""
        now_s = time.monotonic()
        if now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            logger.warning("Redis at %s %s: %s", self.address, what, error)


def connect(config: RedisConfig) -> RedisClient:
    """A client that connects with its first command.

    Raises:
        ConfigError: the URL cannot be used; the message does not show it.
    """
    assert config.url is not None, "the launcher fills the URL in"
    return RedisClient(config, open_connections(config), address_of(config.url))
