"""Connections to one Redis server, or to the nodes of a cluster: made when needed, given up when
they fail. Deadlines are the client's; here is only what makes redis-py leave a dead end by itself.
"""

import socket
import time
from typing import Any, Protocol
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from cluster.config import ConfigError, RedisConfig

MAX_CONNECTIONS = 64  # commands under way at once, to each node; more wait within their deadline
_MAX_BLOCKING_CONNECTIONS = 64  # besides
_KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
_RELOAD_INTERVAL_S = 1.0


class Connections(Protocol):
    """How a server or a cluster is reached."""

    @property
    def redis(self) -> Redis | RedisCluster: ...

    @property
    def max_block_s(self) -> float | None:
        """A read that blocks for longer is taken for a dead node."""
        ...

    async def be_ready(self) -> None:
        """Before each command."""
        ...

    async def doubt(self, error: Exception) -> None:
        """A connection has failed: the others may lead nowhere as well."""
        ...


class ServerConnections:
    """To one server."""

    max_block_s = None

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    async def be_ready(self) -> None:
        return

    async def doubt(self, error: Exception) -> None:
        await self.redis.connection_pool.disconnect(inuse_connections=False)


class ClusterConnections:
    """To all nodes of a cluster, whose slots are asked for again after a failure."""

    def __init__(self, redis: RedisCluster, max_block_s: float) -> None:
        self.redis = redis
        self.max_block_s = max_block_s
        self._failed_node: str | None = None
        self._is_in_doubt = False
        self._reload_at_s = 0.0

    async def be_ready(self) -> None:
        # Without this, redis-py sends the first commands to any node and then closes all
        # connections, because so many of them were sent elsewhere.
        await self.redis.initialize()
        if self._is_in_doubt and time.monotonic() >= self._reload_at_s:
            self._is_in_doubt = False
            self._reload_at_s = time.monotonic() + _RELOAD_INTERVAL_S
            # Idle connections are replaced by it, those in use are left alone.
            await self.redis.nodes_manager.initialize(last_failed_node_name=self._failed_node)

    async def doubt(self, error: Exception) -> None:
        self._is_in_doubt = True
        self._failed_node = getattr(error, "last_failed_node_name", self._failed_node)


def open_connections(config: RedisConfig) -> Connections:
    """Nothing is connected yet.

    Raises:
        ConfigError: the URL cannot be used; the message does not show it.
    """
    assert config.url is not None, "the launcher fills the URL in"
    address = address_of(config.url)
    node_timeout_s = 0.6 * config.timeout_s  # leaves time to ask another node for the slots
    options: dict[str, Any] = {
        # Deadlines are ours: they hold for the whole command, connecting included. But the client
        # of a cluster has to notice that a node is silent, to ask another one for the slots.
        "socket_timeout": node_timeout_s if config.is_cluster else None,
        "socket_connect_timeout": config.timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "max_connections": MAX_CONNECTIONS + _MAX_BLOCKING_CONNECTIONS,
    }
    if not config.url.startswith("unix:"):
        options |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
    try:
        if config.is_cluster:
            # 0: a slot that has moved is no reason to close the connections of all others.
            cluster = RedisCluster.from_url(config.url, reinitialize_steps=0, **options)
            return ClusterConnections(cluster, node_timeout_s / 2)
        pool: Any = ConnectionPool.from_url(config.url, **options)
        return ServerConnections(Redis.from_pool(pool))
    except (ValueError, TypeError, RedisError, RedisClusterException):
        # The error may quote a part of the password.
        raise ConfigError(
            f"redis.url: the URL of {address} cannot be used (it is not shown because of its "
            "password); it looks like redis://user:password@host:6379/0, rediss://… for TLS, or "
            "unix:///folder/redis.sock; a cluster has neither a socket nor a database number"
        ) from None


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
