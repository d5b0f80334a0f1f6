"""The replica's end of the token channel: streams in, one frame per engine step out.

It knows the engine only as `ChannelEngine`, and nothing of Ray. Everything runs in one asyncio
loop. A connection that breaks, breaks the protocol, falls silent or does not read loses its own
streams (their sequences are aborted, so their blocks are free) and touches nobody else's.
"""

import asyncio
import hmac
import itertools
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, cast

import msgspec

from cluster.errors import EngineGoneError, ServingError
from cluster.log_context import tagged
from cluster.types import Request, TokenDelta
from deployments import channel_wire as wire
from deployments.channel_errors import to_failed
from deployments.cluster_secret import NONCE_BYTES, new_nonce
from models.engine.outlet import Outlet, TokenColumns

HANDSHAKE_TIMEOUT_S = 5.0
STATS_PERIOD_S = 1.0
SILENCE_LIMIT_S = 15.0  # clients ping every second
MAX_UNSENT_BYTES = 8 * 2**20  # waiting for an ingress that does not read; beyond it, goodbye

logger = logging.getLogger(__name__)

OnDelta = Callable[[TokenDelta | ServingError], None]


class ChannelEngine(Protocol):
    """What the channel needs of an engine; `AsyncEngine` is one."""

    def submit(
        self, request: Request, on_delta: OnDelta, *, outlet: Outlet, key: object
    ) -> None: ...
    def abort(self, request_id: str, index: int | None = None) -> None: ...
    def add_step_listener(self, listener: Callable[[], None]) -> None: ...


@dataclass(slots=True, kw_only=True)
class _ServerStream:
    stream_id: int
    engine_request_id: str
    open_indices: set[int]  # of its sequences: neither finished nor aborted


class ChannelServer:
    """Listens for ingress processes and passes their requests to one engine."""

    def __init__(
        self,
        engine: ChannelEngine,
        *,
        secret: bytes,
        read_stats: Callable[[], wire.ReplicaStats],
        max_unsent_bytes: int = MAX_UNSENT_BYTES,
    ) -> None:
        self._engine = engine
        self._secret = secret
        self._read_stats = read_stats
        self._max_unsent_bytes = max_unsent_bytes
        self._connections: set[_ServerConnection] = set()
        self._connection_numbers = itertools.count()
        self._listeners: list[asyncio.Server] = []
        self._heartbeat: asyncio.Task[None] | None = None
        self._is_draining = False
        self._requests_total = 0
        self._idle = asyncio.Event()
        self._idle.set()
        engine.add_step_listener(self._flush)

    async def start(self, *, unix_path: Path, tcp_host: str, tcp_port: int = 0) -> int:
        """Listen on both; return the TCP port. The socket file is readable by its owner alone."""
        loop = asyncio.get_running_loop()
        unix_socket = _bind_private_socket(unix_path)
        make_connection = partial(_ServerConnection, self)
        self._listeners = [
            await loop.create_unix_server(make_connection, sock=unix_socket),
            await loop.create_server(make_connection, tcp_host, tcp_port),
        ]
        self._heartbeat = asyncio.create_task(self._beat(), name="channel-heartbeat")
        port: int = self._listeners[1].sockets[0].getsockname()[1]
        return port

    @property
    def requests_total(self) -> int:
        """Requests that were taken since the start."""
        return self._requests_total

    @property
    def num_streams(self) -> int:
        """Streams that have not ended."""
        return sum(len(connection.streams) for connection in self._connections)

    def report(self, stats: wire.ReplicaStats) -> None:
        """Tell every client how busy the engine is."""
        self._notify(stats)

    async def drain(self) -> None:
        """Refuse new streams, tell every client, and return when the running ones have ended."""
        self._is_draining = True
        self._notify(wire.Draining())
        await self._idle.wait()

    async def stop(self) -> None:
        """Close everything; running streams are aborted."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            await asyncio.gather(self._heartbeat, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        for connection in tuple(self._connections):
            connection.close()

    # What the connections call.

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def secret(self) -> bytes:
        return self._secret

    @property
    def max_unsent_bytes(self) -> int:
        return self._max_unsent_bytes

    def add(self, connection: "_ServerConnection") -> int:
        """Register a connection; return its number."""
        self._connections.add(connection)
        return next(self._connection_numbers)

    def remove(self, connection: "_ServerConnection") -> None:
        """Forget a connection that is gone, and free what its streams hold."""
        self._connections.discard(connection)
        for stream in connection.streams.values():
            self._engine.abort(stream.engine_request_id)
        connection.streams.clear()
        self.note_stream_ended()

    def submit(self, request: Request, on_delta: OnDelta, *, outlet: Outlet, key: object) -> None:
        self._engine.submit(request, on_delta, outlet=outlet, key=key)
        self._requests_total += 1
        self._idle.clear()

    def abort(self, stream: _ServerStream) -> None:
        self._engine.abort(stream.engine_request_id)
        self.note_stream_ended()

    def abort_sequence(self, stream: _ServerStream, index: int) -> None:
        self._engine.abort(stream.engine_request_id, index)

    def note_stream_ended(self) -> None:
        if self.num_streams == 0:
            self._idle.set()

    def _flush(self) -> None:
        """The engine's step is over: one frame, in one write, per connection that got tokens."""
        for connection in tuple(self._connections):
            connection.flush()

    def _notify(self, message: wire.ReplicaStats | wire.Draining) -> None:
        frame = wire.encode_frame(message)
        for connection in tuple(self._connections):
            connection.notify(frame)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.report(self._read_stats())
            silent_before_s = loop.time() - SILENCE_LIMIT_S
            for connection in tuple(self._connections):
                if connection.last_heard_s < silent_before_s:
                    connection.give_up(f"silent for {SILENCE_LIMIT_S:g} s")
            await asyncio.sleep(STATS_PERIOD_S)


class _ServerConnection(asyncio.Protocol):
    """One ingress process: its handshake, its streams, its unsent deltas."""

    def __init__(self, server: ChannelServer) -> None:
        self._server = server
        self._frames = wire.FrameReader(max_frame_bytes=wire.MAX_HANDSHAKE_BYTES)
        self._expected_proof: bytes | None = None
        self._is_ready = False
        self._outlet = Outlet(self._take_tokens)  # keys are the streams' numbers
        self._tokens = TokenColumns()
        self._deltas: list[wire.StreamDelta] = []
        self._last_stream_id = 0
        self.streams: dict[int, _ServerStream] = {}
        self.last_heard_s = 0.0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        set_low_latency(transport)
        self._loop = asyncio.get_running_loop()
        self.last_heard_s = self._loop.time()
        self._number = self._server.add(self)
        self._handshake_timer = self._loop.call_later(
            HANDSHAKE_TIMEOUT_S, self.give_up, f"no handshake within {HANDSHAKE_TIMEOUT_S:g} s"
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._handshake_timer.cancel()
        self._server.remove(self)

    def data_received(self, data: bytes) -> None:
        self.last_heard_s = self._loop.time()
        try:
            self._frames.feed(data)
            while (payload := self._frames.next_payload()) is not None:
                self._handle(wire.decode_client_message(payload))
        except wire.ChannelProtocolError as error:
            self.give_up(str(error))

    # What the server calls.

    def notify(self, frame: bytes) -> None:
        """Send something that is not part of a stream, once the client is known."""
        if self._is_ready:
            self._write(frame)

    def flush(self) -> None:
        """Send what the step brought."""
        tokens, deltas = self._tokens, self._deltas
        if tokens.token_ids or deltas:
            self._tokens, self._deltas = TokenColumns(), []
            step = wire.Step(tokens.keys, tokens.indices, tokens.token_ids, deltas)
            self._write(wire.encode_frame(step))

    def give_up(self, reason: str) -> None:
        """Drop the connection at once; its streams end."""
        logger.warning("channel connection %d closed: %s", self._number, reason)
        self._transport.abort()

    def close(self) -> None:
        """Close once everything written has left."""
        self.flush()
        self._transport.close()

    # Messages.

    def _handle(self, message: wire.ClientMessage) -> None:
        if not self._is_ready:
            self._shake_hands(message)
            return
        match message:
            case wire.Submit():
                self._submit(message)
            case wire.Abort():
                self._abort(message)
            case wire.Ping():
                pass  # it was heard, which is all it says
            case _:
                raise wire.ChannelProtocolError("a second handshake")

    def _shake_hands(self, message: wire.ClientMessage) -> None:
        match message:
            case wire.ClientHello() if self._expected_proof is None:
                if message.version != wire.PROTOCOL_VERSION:
                    raise wire.ChannelProtocolError(
                        f"protocol version {message.version}; this is {wire.PROTOCOL_VERSION}"
                    )
                if len(message.nonce) != NONCE_BYTES:
                    raise wire.ChannelProtocolError("a nonce of the wrong length")
                nonce, secret = new_nonce(), self._server.secret
                self._expected_proof = wire.client_proof(secret, message.nonce, nonce)
                proof = wire.server_proof(secret, message.nonce, nonce)
                self._write(wire.encode_frame(wire.ServerHello(nonce, proof)))
            case wire.ClientProof() if self._expected_proof is not None:
                if not hmac.compare_digest(message.proof, self._expected_proof):
                    raise wire.ChannelProtocolError("the client does not hold the cluster secret")
                self._handshake_timer.cancel()
                self._is_ready = True
                self._frames.max_frame_bytes = wire.MAX_CLIENT_FRAME_BYTES
                self._write(wire.encode_frame(wire.Ready()))
                if self._server.is_draining:
                    self._write(wire.encode_frame(wire.Draining()))
            case _:
                raise wire.ChannelProtocolError("a message before the handshake was over")

    def _submit(self, message: wire.Submit) -> None:
        if message.stream_id <= self._last_stream_id:
            raise wire.ChannelProtocolError(f"stream {message.stream_id} was used before")
        self._last_stream_id = message.stream_id
        if self._server.is_draining:
            self._write(wire.encode_frame(wire.Refused(message.stream_id)))
            return
        # The engine's ids are ours: two connections may carry the same request after a retry.
        engine_request_id = f"{message.request.request_id}@{self._number}.{message.stream_id}"
        request = msgspec.structs.replace(message.request, request_id=engine_request_id)
        stream = _ServerStream(
            stream_id=message.stream_id,
            engine_request_id=engine_request_id,
            open_indices=set(request.indices),
        )
        self.streams[message.stream_id] = stream
        try:
            # What is started for it, as compiling its grammar, logs whose it is.
            with tagged(request_id=request.http_request_id, tenant=request.tenant):
                self._server.submit(
                    request,
                    partial(self._on_delta, stream),
                    outlet=self._outlet,
                    key=message.stream_id,
                )
        except ServingError as error:
            self._fail(stream, error)

    def _abort(self, message: wire.Abort) -> None:
        stream = self.streams.get(message.stream_id)
        if stream is None:
            return
        if message.index is not None:
            stream.open_indices.discard(message.index)
        if message.index is None or not stream.open_indices:
            del self.streams[message.stream_id]
            self._server.abort(stream)
        else:
            self._server.abort_sequence(stream, message.index)

    def _take_tokens(self, columns: TokenColumns) -> None:
        """A step's tokens, some maybe of streams that were aborted: the client knows which."""
        self.flush()
        self._tokens = columns

    def _on_delta(self, stream: _ServerStream, delta: TokenDelta | ServingError) -> None:
        if isinstance(delta, ServingError):
            self._fail(stream, delta)
            return
        self._deltas.append(wire.to_stream_delta(stream.stream_id, delta))
        if delta.finish_reason is not None:
            stream.open_indices.discard(delta.index)
            if not stream.open_indices:
                self.streams.pop(stream.stream_id, None)
                self._server.note_stream_ended()

    def _fail(self, stream: _ServerStream, error: ServingError) -> None:
        self.flush()  # the tokens before the error come before it
        self.streams.pop(stream.stream_id, None)
        if isinstance(error, EngineGoneError):
            self._write(wire.encode_frame(wire.Refused(stream.stream_id, has_failed=True)))
        else:
            self._write(wire.encode_frame(to_failed(stream.stream_id, error)))
        self._server.note_stream_ended()

    def _write(self, frame: bytes) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(frame)
        if self._transport.get_write_buffer_size() > self._server.max_unsent_bytes:
            self.give_up(f"{self._server.max_unsent_bytes} bytes wait for it to read")


def _bind_private_socket(path: Path) -> socket.socket:
    unix_socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix_socket.bind(str(path))
    path.chmod(0o600)  # before listen(): nobody can connect earlier
    return unix_socket


def set_low_latency(transport: asyncio.BaseTransport) -> None:
    """TCP: no batching of small writes, and a vanished host is noticed."""
    sock: socket.socket = transport.get_extra_info("socket")
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
