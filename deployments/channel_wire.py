"""The token channel's frames: what travels between an ingress process and a replica, and how.

A frame is a length (unsigned 32 bits, little endian) and one msgpack message. Both directions are
tagged unions of msgspec structs, so that decoding checks every type and never runs code. Before
the handshake is over only `MAX_HANDSHAKE_BYTES` are accepted.

Handshake: the two sides prove to each other that they hold the cluster secret, without sending it.

    client  ClientHello(nonce)
    server  ServerHello(nonce, proof over both nonces)
    client  ClientProof(proof over both nonces)
    server  Ready

It authenticates the ends and does not encrypt: TCP between nodes belongs on a private network.
Field order is the wire format: append new fields at the end, with a default.
"""

import struct

import msgspec

from cluster.types import FinishReason, Request, TokenDelta, TokenLogprobs
from deployments.cluster_secret import proof

PROTOCOL_VERSION = 2
MAX_HANDSHAKE_BYTES = 512
MAX_CLIENT_FRAME_BYTES = 32 * 2**20  # a request: at most five bytes per prompt token
MAX_SERVER_FRAME_BYTES = 64 * 2**20  # one step: prompt logprobs are its largest content

_LENGTH = struct.Struct("<I")


class ChannelProtocolError(Exception):
    """The other side broke the protocol; its connection is closed."""


class ClientHello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    version: int
    nonce: bytes


class ClientProof(msgspec.Struct, frozen=True, array_like=True, tag=2):
    proof: bytes


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Start a stream. The client chooses `stream_id`, unused so far on this connection."""

    stream_id: int
    request: Request


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The client wants no more of this stream, or of one of its sequences. Naming one that has
    ended is not an error.
    """

    stream_id: int
    index: int | None = None  # None: all of them


class Ping(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The client is alive; sent when it has nothing else to say. (The server sends stats.)"""


ClientMessage = ClientHello | ClientProof | Submit | Abort | Ping


class DeltaExtras(msgspec.Struct, frozen=True, array_like=True):
    """What most deltas do not have; fields as in `TokenDelta`."""

    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] | None = None


class StreamDelta(msgspec.Struct, frozen=True, array_like=True):
    """A `TokenDelta` under its stream's number."""

    stream_id: int
    index: int
    token_ids: list[int]
    extras: DeltaExtras | None = None


class ServerHello(msgspec.Struct, frozen=True, array_like=True, tag=1):
    nonce: bytes
    proof: bytes


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The handshake is over: the client may submit."""


class Step(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """What one engine step brought for one connection. Tokens of which there is nothing more to
    say (nearly all) are columns: entry i is the next token of sequence `indices[i]` of stream
    `stream_ids[i]`.
    """

    stream_ids: list[int]
    indices: list[int]
    token_ids: list[int]
    deltas: list[StreamDelta] = []


class WireProblem(msgspec.Struct, frozen=True, array_like=True):
    """One `cluster.errors.FieldProblem`."""

    loc: list[str | int]
    message: str
    kind: str


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The stream ended with a `ServingError`; see `channel_errors`."""

    stream_id: int
    error_type: str
    detail: str
    param: str | None = None
    openai_code: str | None = None
    retry_after_s: float | None = None
    problems: list[WireProblem] = []


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """The replica does not serve this stream, or not to its end: ask another replica."""

    stream_id: int
    has_failed: bool = False  # its engine has; otherwise it is draining, and has not begun


class ReplicaStats(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The engine's load, once a second. Totals count from the engine's start."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    num_waiting_prefill_tokens: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    num_steps: int = 0
    prompt_tokens_total: int = 0
    cached_prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    preemptions_total: int = 0
    spec_decode_drafts_total: int = 0
    spec_decode_draft_tokens_total: int = 0
    spec_decode_accepted_tokens_total: int = 0
    loaded_adapters: list[str] = []

    @property
    def kv_cache_usage(self) -> float:
        """Owned blocks as a share of all, 0 … 1."""
        return 1 - self.num_free_blocks / self.num_blocks if self.num_blocks else 0.0


class Draining(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The replica is about to stop: it finishes its streams and starts no new ones."""


ServerMessage = ServerHello | Ready | Step | Failed | Refused | ReplicaStats | Draining

_encoder = msgspec.msgpack.Encoder()
_client_decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
_server_decoder: msgspec.msgpack.Decoder[ServerMessage] = msgspec.msgpack.Decoder(ServerMessage)


def encode_frame(message: ClientMessage | ServerMessage) -> bytes:
    """The message as one frame, length included."""
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


def decode_client_message(payload: bytes) -> ClientMessage:
    """Raises: ChannelProtocolError: not a message that a client may send."""
    try:
        return _client_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ChannelProtocolError(f"malformed client message: {error}") from error


def decode_server_message(payload: bytes) -> ServerMessage:
    """Raises: ChannelProtocolError: not a message that a server may send."""
    try:
        message = _server_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ChannelProtocolError(f"malformed server message: {error}") from error
    if isinstance(message, Step) and not (
        len(message.stream_ids) == len(message.indices) == len(message.token_ids)
    ):
        raise ChannelProtocolError("a step whose columns differ in length")
    return message


class FrameReader:
    """Cuts a byte stream into payloads, refusing a frame larger than `max_frame_bytes`."""

    def __init__(self, *, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_payload(self) -> bytes | None:
        """The next whole payload, or None until more bytes are fed.

        Raises:
            ChannelProtocolError: the announced length is over the limit, or zero.
        """
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        (num_bytes,) = _LENGTH.unpack_from(buffer)
        if not 0 < num_bytes <= self.max_frame_bytes:
            raise ChannelProtocolError(
                f"a frame of {num_bytes} bytes; 1 to {self.max_frame_bytes} are accepted"
            )
        end = _LENGTH.size + num_bytes
        if len(buffer) < end:
            return None
        payload = bytes(memoryview(buffer)[_LENGTH.size : end])
        del buffer[:end]
        return payload


def server_proof(secret: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """What only a server that holds the secret can say about these two nonces."""
    return proof(secret, b"shoal channel 1 server", client_nonce, server_nonce)


def client_proof(secret: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """What only a client that holds the secret can say about these two nonces."""
    return proof(secret, b"shoal channel 1 client", client_nonce, server_nonce)


def to_stream_delta(stream_id: int, delta: TokenDelta) -> StreamDelta:
    """The delta as it travels."""
    if (
        delta.finish_reason is None
        and delta.logprobs is None
        and not delta.num_cached_tokens
        and delta.prompt_logprobs is None
    ):
        return StreamDelta(stream_id, delta.index, delta.token_ids)
    extras = DeltaExtras(
        delta.finish_reason,
        delta.stop_token_id,
        delta.logprobs,
        delta.num_cached_tokens,
        delta.prompt_logprobs,
    )
    return StreamDelta(stream_id, delta.index, delta.token_ids, extras)


def to_token_delta(request_id: str, delta: StreamDelta) -> TokenDelta:
    """The delta as the rest of the system knows it."""
    extras = delta.extras
    if extras is None:
        return TokenDelta(request_id, delta.index, delta.token_ids)
    return TokenDelta(
        request_id,
        delta.index,
        delta.token_ids,
        extras.finish_reason,
        extras.stop_token_id,
        extras.logprobs,
        extras.num_cached_tokens,
        extras.prompt_logprobs,
    )


def merge_token_deltas(deltas: list[TokenDelta]) -> TokenDelta:
    """One delta saying what these consecutive ones of one sequence say."""
    if len(deltas) == 1:
        return deltas[0]
    first, last = deltas[0], deltas[-1]
    logprobs = [item for delta in deltas for item in delta.logprobs or ()]
    return TokenDelta(
        first.request_id,
        first.index,
        [token_id for delta in deltas for token_id in delta.token_ids],
        last.finish_reason,
        last.stop_token_id,
        logprobs or None,
        max(delta.num_cached_tokens for delta in deltas),
        first.prompt_logprobs,
    )
