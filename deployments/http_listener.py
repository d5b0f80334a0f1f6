"""The API's own listening socket inside an ingress process: uvicorn, without Serve's HTTP front.

Several ingress processes of one node share the port; the kernel spreads the connections.
"""

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn

BACKLOG = 2048
KEEP_ALIVE_S = 65  # longer than the usual 60 s of a load balancer in front

ASGIApp = Callable[..., Awaitable[Any]]


class _Server(uvicorn.Server):
    """Leaves the process's signals to their owner."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HTTPListener:
    """Serves an ASGI app on a socket until it is drained."""

    def __init__(self, app: ASGIApp, listening_socket: socket.socket) -> None:
        self._socket = listening_socket
        self._server = _Server(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._serving = asyncio.create_task(
            self._server.serve(sockets=[self._socket]), name="http-listener"
        )

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: nothing listens any more.
        """
        if self._serving is None or self._serving.done():
            raise RuntimeError("the HTTP listener has stopped")

    async def drain(self) -> None:
        """Accept no more connections, and return when the running responses have ended."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving


def bind_shared(host: str, port: int) -> socket.socket:
    """A socket on the port that processes of this user may share with each other.

    Raises:
        ValueError: someone else has the port, or the address is not this machine's.
    """
    listening = _tcp_socket(host)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return _bound(listening, host, port)


def check_port_is_free(host: str, port: int) -> None:
    """Nobody listens there, not even someone who would share.

    Raises:
        ValueError: somebody does, or the address is not this machine's.
    """
    _bound(_tcp_socket(host), host, port).close()


def _tcp_socket(host: str) -> socket.socket:
    try:
        is_ipv6 = ipaddress.ip_address(host).version == 6
    except ValueError:
        is_ipv6 = False
    tcp_socket = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
    # A port whose last connections linger in TIME_WAIT is free.
    tcp_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return tcp_socket


def _bound(tcp_socket: socket.socket, host: str, port: int) -> socket.socket:
    try:
        tcp_socket.bind((host, port))
    except OSError as error:
        tcp_socket.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} on {host} is in use by another program") from error
        raise ValueError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return tcp_socket
