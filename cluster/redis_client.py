"""One Redis, or a cluster of them: commands with a deadline, and errors that a client may see.

A connection that is refused, broken or silent becomes `ServiceUnavailableError` within
`RedisConfig.timeout_s`. No command is sent twice: who retries must know that the first try may
have been carried out. Connections come back by themselves. The URL's password is in no message.
"""

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
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
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cluster.config import ConfigError, RedisConfig
from cluster.errors import ServiceUnavailableError

SCHEMA_VERSION = 1  # of all that is stored; part of every key
MAX_CONNECTIONS = 64  # commands under way at once, to each node; more wait within their deadline
_MAX_BLOCKING_CONNECTIONS = 64  # besides
RETRY_AFTER_S = 1.0
_RETRY_AFTER_FULL_S = 30.0
_KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}

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

Argument = str | bytes | int | float


class RedisFullError(ServiceUnavailableError):
    """Redis is at its `maxmemory` and takes no more writes."""


class Script(msgspec.Struct, frozen=True, dict=True):
    """A Lua script. All of its keys are in KEYS and share a hash tag, for a cluster's sake."""

    source: str

    @cached_property
    def digest(self) -> str:
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class RedisClient:
    """Made by `connect`; belongs to the event loop that uses it first."""

    def __init__(self, config: RedisConfig, redis: "Redis | RedisCluster", address: str) -> None:
        self._config = config
        self._redis = redis
        self.address = address  # for messages: without user and password
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def is_cluster(self) -> bool:
        return isinstance(self._redis, RedisCluster)

    def key(self, *parts: str) -> str:
        """`shoal:1:part:part`. Braces around a part of it name the slot on a cluster."""
        return ":".join((self._config.key_prefix, str(SCHEMA_VERSION), *parts))

    async def execute(self, *command: Argument) -> Any:
        """One command; strings come back as bytes.

        Raises:
            ServiceUnavailableError: the server does not answer in time, or not now.
            RedisFullError: it has no memory left.
            ResponseError: the command is wrong.
        """
        async with self._places_within(self._config.timeout_s):
            return await self._redis.execute_command(*command)

    async def execute_many(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Commands in one round trip (to each node), in order, not as a transaction.

        Raises:
            as `execute`; the first error of any of them, after all were sent.
        """
        if not commands:
            return []
        async with self._places_within(self._config.timeout_s):
            pipeline = self._redis.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return list(await pipeline.execute())

    async def run(
        self, script: Script, *, keys: Sequence[str], args: Sequence[Argument] = ()
    ) -> Any:
        """Run a script, atomically.

        Raises:
            as `execute`.
        """
        tail = (len(keys), *keys, *args)
        try:
            return await self.execute("EVALSHA", script.digest, *tail)
        except NoScriptError:
            return await self.execute("EVAL", script.source, *tail)

    async def wait(self, *command: Argument, block_s: float) -> Any:
        """A command that blocks for at most `block_s` (say so in the command too), on a connection
        that no other command waits for.

        Raises:
            as `execute`; a silent server is noticed after `block_s` and the timeout.
        """
        async with self._errors_translated(), asyncio.timeout(block_s + self._config.timeout_s):
            return await self._redis.execute_command(*command)

    async def ask_servers(self, *command: Argument) -> list[Any]:
        """The answers of the server, or of every master of the cluster.

        Raises:
            as `execute`.
        """
        if not isinstance(self._redis, RedisCluster):
            return [await self.execute(*command)]
        async with self._places_within(self._config.timeout_s):
            await self._redis.initialize()
            return [
                await self._redis.execute_command(*command, target_nodes=node)
                for node in self._redis.get_primaries()
            ]

    async def close(self) -> None:
        await self._redis.aclose()

    @asynccontextmanager
    async def _places_within(self, timeout_s: float) -> AsyncIterator[None]:
        async with self._errors_translated(), asyncio.timeout(timeout_s), self._places:
            yield

    @asynccontextmanager
    async def _errors_translated(self) -> AsyncIterator[None]:
        try:
            yield
        except OutOfMemoryError as error:
            raise RedisFullError(
                f"Redis at {self.address} is full (maxmemory): nothing can be stored until it has "
                "more memory or buckets are deleted",
                retry_after_s=_RETRY_AFTER_FULL_S,
            ) from error
        except (AuthenticationError, NoPermissionError) as error:
            raise self._unavailable(f"refuses our user or password: {error}") from error
        except NoScriptError:
            raise
        except _NOT_NOW as error:
            raise self._unavailable(f"cannot serve now: {error}") from error
        except TimeoutError as error:
            await self._drop_idle_connections()
            timeout_s = self._config.timeout_s
            raise self._unavailable(f"does not answer within {timeout_s:g} s") from error
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise self._unavailable(f"cannot be reached: {error}") from error
        except ResponseError as error:
            if str(error).startswith(_NOT_NOW_CODES):
                raise self._unavailable(f"cannot serve now: {error}") from error
            raise

    def _unavailable(self, what: str) -> ServiceUnavailableError:
        return ServiceUnavailableError(
            f"Redis at {self.address} {what}", retry_after_s=RETRY_AFTER_S
        )

    async def _drop_idle_connections(self) -> None:
        """They may lead nowhere as well; the next command makes a new one."""
        if isinstance(self._redis, Redis):
            await self._redis.connection_pool.disconnect(inuse_connections=False)


def connect(config: RedisConfig) -> RedisClient:
    """A client that connects with its first command.

    Raises:
        ConfigError: the URL cannot be used; the message does not show it.
    """
    assert config.url is not None, "the launcher fills the URL in"
    address = address_of(config.url)
    options: dict[str, Any] = {
        # Deadlines are ours: they hold for the whole command, connecting included.
        "socket_timeout": None,
        "socket_connect_timeout": config.timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
    if not config.url.startswith("unix:"):
        options |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
    num_connections = MAX_CONNECTIONS + _MAX_BLOCKING_CONNECTIONS
    try:
        if config.is_cluster:
            redis: Redis | RedisCluster = RedisCluster.from_url(
                config.url, max_connections=num_connections, **options
            )
        else:
            pool: Any = ConnectionPool.from_url(
                config.url, max_connections=num_connections, **options
            )
            redis = Redis.from_pool(pool)
    except (ValueError, TypeError, RedisError, RedisClusterException):
        # The error may quote a part of the password.
        raise ConfigError(
            f"redis.url: the URL of {address} cannot be used (it is not shown because of its "
            "password); it looks like redis://user:password@host:6379/0, rediss://… for TLS, or "
            "unix:///folder/redis.sock; a cluster has neither a socket nor a database number"
        ) from None
    return RedisClient(config, redis, address)


def address_of(url: str) -> str:
    """Where a URL leads, without user, password and options.

    Raises:
        ConfigError: it cannot be understood.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return parts.path
        if parts.scheme not in ("redis", "rediss") or parts.hostname is None:
            raise ValueError
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return f"{host}:{parts.port or 6379}"
    except ValueError:
        raise ConfigError(
            "redis.url: cannot be understood (it is not shown because of its password); it looks "
            "like redis://user:password@host:6379/0, rediss://… for TLS, or "
            "unix:///folder/redis.sock; special characters of the password are percent-encoded"
        ) from None
