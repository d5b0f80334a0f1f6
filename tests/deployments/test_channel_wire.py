"""The frames: what goes in comes out, and hostile bytes are refused without harm."""

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.types import FinishReason, Request, SamplingParams, TokenDelta, TokenLogprobs
from deployments import channel_wire as wire
from deployments.cluster_secret import new_nonce

TOKEN_IDS = st.lists(st.integers(0, 2**31), max_size=5)
LOGPROBS = st.builds(
    TokenLogprobs,
    st.floats(-50, 0),
    TOKEN_IDS,
    st.lists(st.floats(-50, 0), max_size=5),
    st.integers(0, 10),
)
DELTAS = st.builds(
    TokenDelta,
    st.just("r"),
    st.integers(0, 7),
    TOKEN_IDS,
    st.sampled_from([None, *FinishReason]),
    st.none(),
    st.none() | st.lists(LOGPROBS, min_size=1, max_size=3),
    st.integers(0, 100),
    st.none() | st.lists(LOGPROBS, max_size=3),
)


def payloads_of(data: bytes, *, max_frame_bytes: int = 2**20) -> list[bytes]:
    reader = wire.FrameReader(max_frame_bytes=max_frame_bytes)
    reader.feed(data)
    payloads = []
    while (payload := reader.next_payload()) is not None:
        payloads.append(payload)
    return payloads


@given(
    st.lists(st.tuples(st.integers(1, 2**32), DELTAS), max_size=5),
    st.lists(st.tuples(st.integers(1, 2**32), st.integers(0, 7), st.integers(0, 2**31))),
)
def test_deltas_come_out_of_a_frame_as_they_went_in(
    deltas: list[tuple[int, TokenDelta]], tokens: list[tuple[int, int, int]]
) -> None:
    step = wire.Step(
        [stream_id for stream_id, _, _ in tokens],
        [index for _, index, _ in tokens],
        [token_id for _, _, token_id in tokens],
        [wire.to_stream_delta(stream_id, delta) for stream_id, delta in deltas],
    )
    [payload] = payloads_of(wire.encode_frame(step))
    decoded = wire.decode_server_message(payload)
    assert isinstance(decoded, wire.Step)
    columns = zip(decoded.stream_ids, decoded.indices, decoded.token_ids, strict=True)
    assert list(columns) == tokens
    received = [(item.stream_id, wire.to_token_delta("r", item)) for item in decoded.deltas]
    assert received == deltas


def test_a_request_comes_out_of_a_frame_as_it_went_in() -> None:
    request = Request(
        request_id="r",
        prompt_token_ids=[1, 2, 70_000],
        sampling_params=SamplingParams(
            temperature=0.5, logit_bias={5: -100.0}, stop_token_ids=(9,)
        ),
        cache_salt="tenant",
    )
    [payload] = payloads_of(wire.encode_frame(wire.Submit(7, request)))
    assert wire.decode_client_message(payload) == wire.Submit(7, request)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.integers(1, 20))
def test_frames_are_found_however_the_bytes_are_cut(contents: list[bytes], size: int) -> None:
    data = b"".join(struct.pack("<I", len(content)) + content for content in contents)
    reader = wire.FrameReader(max_frame_bytes=50)
    found = []
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
        while (payload := reader.next_payload()) is not None:
            found.append(payload)
    assert found == contents


@pytest.mark.parametrize("num_bytes", [0, 51, 2**32 - 1])
def test_a_frame_of_an_impossible_length_is_refused_before_it_has_arrived(num_bytes: int) -> None:
    with pytest.raises(wire.ChannelProtocolError, match=f"a frame of {num_bytes} bytes"):
        payloads_of(struct.pack("<I", num_bytes), max_frame_bytes=50)


@pytest.mark.parametrize("columns", [([1], [], []), ([1, 2], [0, 0], [5]), ([], [0], [])])
def test_columns_of_different_lengths_are_a_protocol_error(columns: tuple[list[int], ...]) -> None:
    [payload] = payloads_of(wire.encode_frame(wire.Step(*columns)))
    with pytest.raises(wire.ChannelProtocolError, match="differ in length"):
        wire.decode_server_message(payload)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(payload: bytes) -> None:
    for decode in (wire.decode_client_message, wire.decode_server_message):
        try:
            decode(payload)
        except wire.ChannelProtocolError:
            continue


@given(st.recursive(st.none() | st.integers() | st.text() | st.binary(), st.lists, max_leaves=8))
def test_well_formed_msgpack_that_is_no_message_is_a_protocol_error(value: object) -> None:
    try:
        payload = msgspec.msgpack.encode(["not a tag", value])
    except OverflowError:  # an integer that msgpack cannot hold
        return
    with pytest.raises(wire.ChannelProtocolError):
        wire.decode_client_message(payload)


def test_the_two_proofs_differ_and_depend_on_everything() -> None:
    a, b = new_nonce(), new_nonce()
    proofs = {
        wire.server_proof(b"secret", a, b),
        wire.client_proof(b"secret", a, b),
        wire.client_proof(b"other", a, b),
        wire.client_proof(b"secret", b, a),
    }
    assert len(proofs) == 4


def test_merged_deltas_say_what_the_single_ones_said() -> None:
    logprob = TokenLogprobs(-1.0, [1], [-1.0], 1)
    deltas = [
        TokenDelta("r", 0, [1], None, None, [logprob], 16, [logprob]),
        TokenDelta("r", 0, [2, 3], None, None, [logprob, logprob]),
        TokenDelta("r", 0, [4], FinishReason.STOP, 4, [logprob]),
    ]
    assert wire.merge_token_deltas(deltas) == TokenDelta(
        "r", 0, [1, 2, 3, 4], FinishReason.STOP, 4, [logprob] * 4, 16, [logprob]
    )
