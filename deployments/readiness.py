"""When a deployed application counts as there: its API says that it is ready, and Redis will do."""

import asyncio
import time
from collections.abc import Callable

import httpx

from cluster.config import ConfigError, ShoalConfig
from cluster.errors import ServingError
from cluster.redis_client import connect
from cluster.redis_connections import address_of
from cluster.redis_server_check import check_server, durability_warning
from deployments.local_ray import LaunchError

READY_TIMEOUT_S = 60.0


def local_url(host: str, port: int) -> str:
    """Where a process of this host reaches what listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{reachable}:{port}"


def is_ready(url: str) -> bool:
    """Whether the API at this URL says so now."""
    try:
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def wait_until_ready(url: str) -> None:
    """
    Raises:
        LaunchError: it does not become ready.
    """
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while not is_ready(url):
        if time.monotonic() > deadline_s:
            raise LaunchError(f"{url}/ready does not say so within {READY_TIMEOUT_S:g} s")
        time.sleep(0.1)


def needs_own_redis(config: ShoalConfig) -> bool:
    """Whether a server of ours has to run because the configuration names none."""
    return bool(config.embedders) and config.redis.url is None


def with_redis_url(config: ShoalConfig, url: str) -> ShoalConfig:
    """The configuration, with this server in it."""
    return config.model_copy(update={"redis": config.redis.model_copy(update={"url": url})})


def check_redis(config: ShoalConfig, say: Callable[[str], None]) -> None:
    """Ask the configured server whether Shoal can use it; `say` gets what a crash would lose.

    Raises:
        LaunchError: it does not answer, or is too old.
    """
    if not config.embedders:
        return
    try:
        warning = asyncio.run(_redis_warning(config))
    except ServingError as error:
        address = address_of(config.redis.url or "")
        raise LaunchError(f"{error} (redis.url: {address}): {error.__cause__}") from error
    except ConfigError as error:
        raise LaunchError(str(error)) from error
    if warning is not None:
        say(f"WARNING: {warning}")


async def _redis_warning(config: ShoalConfig) -> str | None:
    async with connect(config.redis) as redis:
        return durability_warning(await check_server(redis))
