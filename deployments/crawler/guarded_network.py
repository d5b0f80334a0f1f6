"""Connections whose addresses are checked when they are made, so that no name can lead elsewhere.

A host's name is resolved once, every address that it has is checked, and the connection goes to
one of these, not to the name. TLS and the Host header keep the name.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpcore

from deployments.crawler.errors import AddressRefusedError
from deployments.crawler.network_policy import NetworkPolicy

#: Host and port to the addresses of the host.
Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve_with_system(host: str, port: int) -> list[str]:
    """
    Raises:
        OSError: the name is unknown.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """httpcore's way to the network."""

    def __init__(self, policy: NetworkPolicy, resolve: Resolve = resolve_with_system) -> None:
        self._policy = policy
        self._resolve = resolve
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """
        Raises:
            AddressRefusedError: any of the host's addresses must not be connected to.
            httpcore.ConnectError: there is no such host, or none of its addresses answers.
        """
        addresses = await self._checked_addresses(host, port)
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue  # the next address may answer
        return await self._inner.connect_tcp(
            addresses[-1], port, timeout, local_address, socket_options
        )

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise AddressRefusedError(f"{path} is not on the network.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _checked_addresses(self, host: str, port: int) -> list[str]:
        try:
            addresses = [str(ipaddress.ip_address(host))]
        except ValueError:
            try:
                addresses = await self._resolve(host, port)
            except (OSError, UnicodeError) as error:
                raise httpcore.ConnectError(f"no such host: {host}") from error
        if not addresses:
            raise httpcore.ConnectError(f"no such host: {host}")
        for address in addresses:
            self._policy.check(address, port, host=host)
        return addresses
