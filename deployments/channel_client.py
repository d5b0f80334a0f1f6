"""The ingress's end of the token channel: one connection to a replica, many streams on it.

A stream buffers what its reader has not taken yet, up to a bound in tokens; a reader that stays
behind loses its stream and nobody else's. A connection that is lost ends its streams with
`ReplicaGoneError`; what to do about that is decided in `channel_pool`.
"""

import asyncio
import hmac
import logging
from typing import cast

from cluster.errors import ClientTooSlowError, ServingError
from cluster.types import Request, TokenDelta
from deployments import channel_wire as wire
from deployments.channel_errors import to_serving_error
from deployments.channel_server import set_low_latency
from deployments.cluster_secret import NONCE_BYTES, new_nonce
from deployments.replica_endpoint import ReplicaEndpoint

CONNECT_TIMEOUT_S = 5.0
# A replica that was asked for an adapter is taken to load it for so long, whatever it reports.
ASKED_ADAPTER_LIFETIME_S = 5.0

logger = logging.getLogger(__name__)


class ReplicaGoneError(Exception):
    """The replica does not finish the stream: its connection broke, its engine failed, or it is
    draining and has not begun it (`is_refusal`).
    """

    def __init__(self, message: str, *, is_refusal: bool = False) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal


class DeltaStream:
    """The deltas of one request. Closing it aborts the request."""

    def __init__(
        self,
        connection: "ReplicaConnection",
        stream_id: int,
        request: Request,
        *,
        max_buffered_tokens: int,
    ) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self._request_id = request.request_id
        self._open_indices = set(request.indices)
        self._max_buffered_tokens = max_buffered_tokens
        self._waiting: list[TokenDelta] = []
        self._num_waiting_tokens = 0
        self._error: Exception | None = None
        self._wakeup: asyncio.Future[None] | None = None

    async def next_deltas(self) -> list[TokenDelta]:
        """Wait for more; what had to wait comes merged, one delta per sequence. Empty: the end.

        Raises:
            ServingError: the replica refused or failed the request, or the reader is too slow.
            ReplicaGoneError: the replica cannot finish it.
        """
        while not self._waiting:
            if self._error is not None:
                raise self._error
            if not self._open_indices:
                return []
            self._wakeup = asyncio.get_running_loop().create_future()
            await self._wakeup
        return self._take()

    def close(self) -> None:
        """Abort the request unless it has ended; idempotent."""
        self._connection.forget(self._stream_id)

    def end(self, index: int) -> None:
        """Abort one of the request's sequences; nothing more comes of it."""
        if index not in self._open_indices:
            return
        self._open_indices.remove(index)
        self._waiting = [delta for delta in self._waiting if delta.index != index]
        self._num_waiting_tokens = sum(len(delta.token_ids) or 1 for delta in self._waiting)
        if self._open_indices:
            self._connection.abort_sequence(self._stream_id, index)
        else:
            self.close()

    def feed_token(self, index: int, token_id: int) -> None:
        """Take from the connection a token of which there is nothing more to say."""
        if index in self._open_indices:
            self._take_in(TokenDelta(self._request_id, index, [token_id]), 1)

    def feed(self, delta: wire.StreamDelta) -> bool:
        """Take a delta from the connection; True when it was the stream's last."""
        if delta.index in self._open_indices:
            if delta.extras is not None and delta.extras.finish_reason is not None:
                self._open_indices.remove(delta.index)
            token_delta = wire.to_token_delta(self._request_id, delta)
            self._take_in(token_delta, len(token_delta.token_ids) or 1)
        return not self._open_indices

    def _take_in(self, delta: TokenDelta, num_tokens: int) -> None:
        self._waiting.append(delta)
        self._num_waiting_tokens += num_tokens
        if self._num_waiting_tokens > self._max_buffered_tokens:
            self._waiting.clear()
            self.close()
            self.fail(
                ClientTooSlowError(
                    f"The client reads too slowly: more than {self._max_buffered_tokens} tokens"
                    " were waiting for it."
                )
            )
        else:
            self._wake()

    def fail(self, error: Exception) -> None:
        """End the stream with an error, after what already waits."""
        self._error = error
        self._wake()

    def _take(self) -> list[TokenDelta]:
        waiting, self._waiting, self._num_waiting_tokens = self._waiting, [], 0
        if len(waiting) == 1:
            return waiting
        by_index: dict[int, list[TokenDelta]] = {}
        for delta in waiting:
            by_index.setdefault(delta.index, []).append(delta)
        return [wire.merge_token_deltas(deltas) for deltas in by_index.values()]

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


class ReplicaConnection(asyncio.Protocol):
    """An authenticated connection to one replica; made by `connect`."""

    def __init__(self, endpoint: ReplicaEndpoint, *, secret: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.endpoint = endpoint
        self.stats = wire.ReplicaStats()
        self.last_heard_s = loop.time()
        self._loop = loop
        self._secret = secret
        self._nonce = new_nonce()
        self._frames = wire.FrameReader(max_frame_bytes=wire.MAX_HANDSHAKE_BYTES)
        self._is_server_proven = False
        self._draining_since_s: float | None = None
        self._is_lost = False
        self._ready: asyncio.Future[None] = loop.create_future()
        self._streams: dict[int, DeltaStream] = {}
        self._next_stream_id = 1
        self._asked_adapters: dict[str, float] = {}  # when each was last asked for

    @property
    def is_usable(self) -> bool:
        """New streams may be opened."""
        return not (self._is_lost or self._draining_since_s is not None)

    @property
    def is_lost(self) -> bool:
        return self._is_lost

    @property
    def draining_for_s(self) -> float:
        """How long ago the replica said that it is going to end; 0: it has not."""
        since_s = self._draining_since_s
        return 0.0 if since_s is None else self._loop.time() - since_s

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def has_adapter(self, adapter: str) -> bool:
        """Whether the replica has loaded it, as it last said, or has been asked to since."""
        return adapter in self.stats.loaded_adapters or adapter in self._asked_adapters

    def open(self, request: Request, *, max_buffered_tokens: int) -> DeltaStream:
        """Send the request. The caller reads the stream and closes it.

        Raises:
            ReplicaGoneError: the connection is not usable.
        """
        if not self.is_usable:
            raise ReplicaGoneError(f"replica {self.endpoint.replica_id} is gone", is_refusal=True)
        stream_id, self._next_stream_id = self._next_stream_id, self._next_stream_id + 1
        stream = DeltaStream(self, stream_id, request, max_buffered_tokens=max_buffered_tokens)
        self._streams[stream_id] = stream
        if request.adapter:
            self._asked_adapters[request.adapter] = self._loop.time()
        self._transport.write(wire.encode_frame(wire.Submit(stream_id, request)))
        return stream

    def forget(self, stream_id: int) -> None:
        """Abort the stream if it has not ended."""
        if self._streams.pop(stream_id, None) is not None and not self._is_lost:
            self._transport.write(wire.encode_frame(wire.Abort(stream_id)))

    def abort_sequence(self, stream_id: int, index: int) -> None:
        """Abort one sequence of a stream that goes on."""
        if stream_id in self._streams and not self._is_lost:
            self._transport.write(wire.encode_frame(wire.Abort(stream_id, index)))

    def ping(self) -> None:
        self._transport.write(wire.encode_frame(wire.Ping()))

    def give_up(self, reason: str) -> None:
        """Drop the connection at once; its streams end with `ReplicaGoneError`."""
        logger.warning("connection to replica %s dropped: %s", self.endpoint.replica_id, reason)
        self._transport.abort()

    def hand_over(self) -> None:
        """Let the streams go on elsewhere: they end here, with `ReplicaGoneError`."""
        name = f"replica {self.endpoint.replica_id}"
        for stream_id in tuple(self._streams):
            self._transport.write(wire.encode_frame(wire.Abort(stream_id)))
            self._fail(stream_id, ReplicaGoneError(f"{name} is draining", is_refusal=True))

    async def wait_until_ready(self) -> None:
        """Return when the handshake is over.

        Raises:
            ChannelProtocolError, ReplicaGoneError: it failed.
        """
        await self._ready

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        set_low_latency(transport)
        hello = wire.ClientHello(wire.PROTOCOL_VERSION, self._nonce)
        self._transport.write(wire.encode_frame(hello))

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        gone = ReplicaGoneError(f"replica {self.endpoint.replica_id}: the connection broke")
        if not self._ready.done():
            self._ready.set_exception(gone)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(gone)

    def data_received(self, data: bytes) -> None:
        self.last_heard_s = self._loop.time()
        try:
            self._frames.feed(data)
            while (payload := self._frames.next_payload()) is not None:
                self._handle(wire.decode_server_message(payload))
        except wire.ChannelProtocolError as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            self.give_up(str(error))

    # Messages.

    def _handle(self, message: wire.ServerMessage) -> None:
        if not self._ready.done():
            self._shake_hands(message)
            return
        match message:
            case wire.Step():
                self._feed(message)
            case wire.Failed():
                self._fail(message.stream_id, to_serving_error(message))
            case wire.Refused():
                self._note_draining()
                self._fail(message.stream_id, self._refusal(message))
            case wire.ReplicaStats():
                self._take_stats(message)
            case wire.Draining():
                self._note_draining()
            case _:
                raise wire.ChannelProtocolError("a second handshake")

    def _take_stats(self, stats: wire.ReplicaStats) -> None:
        self.stats = stats
        remembered_since_s = self._loop.time() - ASKED_ADAPTER_LIFETIME_S
        self._asked_adapters = {
            name: at_s for name, at_s in self._asked_adapters.items() if at_s > remembered_since_s
        }

    def _shake_hands(self, message: wire.ServerMessage) -> None:
        match message:
            case wire.ServerHello() if not self._is_server_proven:
                if len(message.nonce) != NONCE_BYTES:
                    raise wire.ChannelProtocolError("a nonce of the wrong length")
                expected = wire.server_proof(self._secret, self._nonce, message.nonce)
                if not hmac.compare_digest(message.proof, expected):
                    raise wire.ChannelProtocolError("the server does not hold the cluster secret")
                self._is_server_proven = True
                proof = wire.client_proof(self._secret, self._nonce, message.nonce)
                self._transport.write(wire.encode_frame(wire.ClientProof(proof)))
            case wire.Ready() if self._is_server_proven:
                self._frames.max_frame_bytes = wire.MAX_SERVER_FRAME_BYTES
                self._ready.set_result(None)
            case _:
                raise wire.ChannelProtocolError("a message before the handshake was over")

    def _feed(self, step: wire.Step) -> None:
        """Hand a step's tokens to their streams, those not aborted here while it was on its way."""
        streams = self._streams
        for stream_id, index, token_id in zip(
            step.stream_ids, step.indices, step.token_ids, strict=True
        ):
            stream = streams.get(stream_id)
            if stream is not None:
                stream.feed_token(index, token_id)
        for delta in step.deltas:
            stream = streams.get(delta.stream_id)
            if stream is not None and stream.feed(delta):
                streams.pop(delta.stream_id, None)

    def _note_draining(self) -> None:
        if self._draining_since_s is None:
            self._draining_since_s = self._loop.time()

    def _refusal(self, message: wire.Refused) -> ReplicaGoneError:
        name = f"replica {self.endpoint.replica_id}"
        if message.has_failed:
            return ReplicaGoneError(f"{name}: its engine has failed")
        return ReplicaGoneError(f"{name} is draining", is_refusal=True)

    def _fail(self, stream_id: int, error: ServingError | ReplicaGoneError) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            stream.fail(error)


async def connect(
    endpoint: ReplicaEndpoint, *, secret: bytes, own_node_id: str
) -> ReplicaConnection:
    """Connect to a replica: through its Unix socket on this node, through TCP elsewhere.

    Raises:
        OSError, TimeoutError, ChannelProtocolError, ReplicaGoneError: it could not be done.
    """
    loop = asyncio.get_running_loop()
    connection = ReplicaConnection(endpoint, secret=secret)
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        if endpoint.node_id == own_node_id:
            transport, _ = await loop.create_unix_connection(lambda: connection, endpoint.unix_path)
        else:
            transport, _ = await loop.create_connection(
                lambda: connection, endpoint.tcp_host, endpoint.tcp_port
            )
        try:
            await connection.wait_until_ready()
        except BaseException:
            transport.abort()
            raise
    return connection
