"""The replica's end seen from a raw socket: handshake, steps, hostile and lazy clients."""

import asyncio
import logging
import stat
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deployments import channel_wire as wire
from deployments.channel_pool import HoldLimits
from deployments.cluster_secret import new_nonce
from tests.deployments.channel_fakes import SECRET, FakePicker, Replica, pool, replica, request


class RawClient:
    """Speaks frames and nothing more."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, message: wire.ClientMessage) -> None:
        self.writer.write(wire.encode_frame(message))

    async def receive(self) -> wire.ServerMessage:
        async with asyncio.timeout(120):
            (num_bytes,) = struct.unpack("<I", await self.reader.readexactly(4))
            return wire.decode_server_message(await self.reader.readexactly(num_bytes))

    async def receive_other_than_stats(self) -> wire.ServerMessage:
        while isinstance(message := await self.receive(), wire.ReplicaStats):
            pass
        return message

    async def is_closed(self) -> bool:
        async with asyncio.timeout(120):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionResetError:
                pass
        return True

    async def shake_hands(self, secret: bytes = SECRET) -> None:
        nonce = new_nonce()
        self.send(wire.ClientHello(wire.PROTOCOL_VERSION, nonce))
        hello = await self.receive()
        assert isinstance(hello, wire.ServerHello)
        assert hello.proof == wire.server_proof(SECRET, nonce, hello.nonce)
        self.send(wire.ClientProof(wire.client_proof(secret, nonce, hello.nonce)))


@asynccontextmanager
async def client_of(only: Replica) -> AsyncIterator[RawClient]:
    reader, writer = await asyncio.open_connection("127.0.0.1", only.endpoint.tcp_port)
    try:
        yield RawClient(reader, writer)
    finally:
        writer.close()


@asynccontextmanager
async def known_client_of(only: Replica) -> AsyncIterator[RawClient]:
    async with client_of(only) as client:
        await client.shake_hands()
        assert isinstance(await client.receive(), wire.Ready)
        yield client


async def test_the_unix_socket_is_readable_by_its_owner_alone() -> None:
    async with replica() as only:
        mode = stat.S_IMODE(Path(only.endpoint.unix_path).stat().st_mode)  # noqa: ASYNC240
        assert mode == 0o600


async def test_a_client_without_the_secret_is_turned_away() -> None:
    async with replica() as only, client_of(only) as client:
        await client.shake_hands(b"another secret, as long as this.")
        assert await client.is_closed()


async def test_a_pool_does_not_talk_to_a_server_without_the_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        replica(secret=b"x" * 32) as only,
        pool(FakePicker(only.endpoint), hold=HoldLimits(max_s=0.2)) as channel_pool,
    ):
        with pytest.raises(Exception, match="No replica"):
            await anext(channel_pool.generate(request()))
        assert only.engine.submitted == []
    assert "does not hold the cluster secret" in caplog.text


async def test_nothing_is_submitted_before_the_handshake_is_over() -> None:
    async with replica() as only, client_of(only) as client:
        client.send(wire.Submit(1, request()))
        assert await client.is_closed()
        assert only.engine.submitted == []


async def test_another_protocol_version_is_refused() -> None:
    async with replica() as only, client_of(only) as client:
        client.send(wire.ClientHello(wire.PROTOCOL_VERSION + 1, new_nonce()))
        assert await client.is_closed()


async def test_a_large_frame_before_the_handshake_is_refused_by_its_length() -> None:
    async with replica() as only, client_of(only) as client:
        client.writer.write(struct.pack("<I", wire.MAX_HANDSHAKE_BYTES + 1))
        assert await client.is_closed()


async def test_a_recorded_handshake_cannot_be_played_again() -> None:
    async with replica() as only, client_of(only) as client, client_of(only) as thief:
        nonce = new_nonce()
        client.send(wire.ClientHello(wire.PROTOCOL_VERSION, nonce))
        hello = await client.receive()
        assert isinstance(hello, wire.ServerHello)
        proof = wire.ClientProof(wire.client_proof(SECRET, nonce, hello.nonce))
        thief.send(wire.ClientHello(wire.PROTOCOL_VERSION, nonce))
        await thief.receive()
        thief.send(proof)
        assert await thief.is_closed()


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x05\x00\x00\x00hello", b"\x01\x00\x00\x00\xc1"],
)
async def test_garbage_costs_its_sender_the_connection_and_nobody_else(garbage: bytes) -> None:
    async with replica() as only, known_client_of(only) as good, known_client_of(only) as bad:
        good.send(wire.Submit(1, request(max_tokens=2)))
        bad.send(wire.Submit(1, request(max_tokens=2)))
        await only.engine.until_num_running(2)
        bad.writer.write(garbage)
        assert await bad.is_closed()
        await only.engine.until_num_running(1)
        only.engine.step()
        assert isinstance(await good.receive_other_than_stats(), wire.Step)


async def test_all_deltas_of_a_step_leave_in_one_frame_per_connection() -> None:
    async with replica() as only, known_client_of(only) as one, known_client_of(only) as two:
        for stream_id in range(1, 6):
            one.send(wire.Submit(stream_id, request(first=stream_id * 10)))
        two.send(wire.Submit(1, request(first=500)))
        await only.engine.until_num_running(6)
        only.engine.step()
        step = await one.receive_other_than_stats()
        assert isinstance(step, wire.Step)
        assert {d.stream_id: d.token_ids for d in step.deltas} == {
            stream_id: [stream_id * 10 + 1] for stream_id in range(1, 6)
        }
        first = wire.Step([], [], [], [wire.StreamDelta(1, 0, [501])])
        assert await two.receive_other_than_stats() == first
        only.engine.step()
        assert await one.receive_other_than_stats() == wire.Step(
            [1, 2, 3, 4, 5], [0] * 5, [12, 22, 32, 42, 52]
        )
        assert await two.receive_other_than_stats() == wire.Step([1], [0], [502])


async def test_a_broken_connection_aborts_all_its_sequences() -> None:
    async with replica() as only:
        async with known_client_of(only) as client:
            for stream_id in (1, 2, 3):
                client.send(wire.Submit(stream_id, request(max_tokens=None)))
            await only.engine.until_num_running(3)
        await only.engine.until_num_running(0)
        assert len(only.engine.aborted) == 3
        assert only.server.num_streams == 0


async def test_an_abort_of_a_stream_that_has_ended_is_no_error() -> None:
    async with replica() as only, known_client_of(only) as client:
        client.send(wire.Submit(1, request(max_tokens=1)))
        await only.engine.until_num_running(1)
        only.engine.step()
        client.send(wire.Abort(1))
        client.send(wire.Abort(99))
        client.send(wire.Submit(2, request("next", max_tokens=1)))
        await only.engine.until_num_running(1)


async def test_a_stream_number_cannot_be_used_twice() -> None:
    async with replica() as only, known_client_of(only) as client:
        client.send(wire.Submit(5, request()))
        client.send(wire.Submit(5, request()))
        assert await client.is_closed()


async def test_a_client_that_does_not_read_is_dropped_and_memory_stays_bounded() -> None:
    async with replica(max_unsent_bytes=200_000) as only, known_client_of(only) as lazy:
        lazy.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for stream_id in range(1, 201):
            lazy.send(wire.Submit(stream_id, request(max_tokens=None)))
        await only.engine.until_num_running(200)
        num_steps = 0
        while only.engine.running:
            only.engine.step()
            num_steps += 1
            await asyncio.sleep(0)
            assert num_steps < 50_000, "the connection was never dropped"
        assert only.server.num_streams == 0


async def test_a_draining_server_refuses_new_streams_and_waits_for_the_running_ones() -> None:
    async with replica() as only, known_client_of(only) as client:
        client.send(wire.Submit(1, request(max_tokens=1)))
        await only.engine.until_num_running(1)
        drained = asyncio.create_task(only.server.drain())
        assert await client.receive_other_than_stats() == wire.Draining()
        client.send(wire.Submit(2, request()))
        assert await client.receive_other_than_stats() == wire.Refused(2)
        assert not drained.done()
        only.engine.step()
        assert isinstance(await client.receive_other_than_stats(), wire.Step)
        await drained


async def test_what_happens_to_a_connection_is_logged_without_prompts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with replica() as only, known_client_of(only) as client:
        client.send(wire.Submit(1, request("secret-name", first=424242)))
        await only.engine.until_num_running(1)
        client.writer.write(b"\xff\xff\xff\xff")
        assert await client.is_closed()
    assert "a frame of 4294967295 bytes" in caplog.text
    assert "424242" not in caplog.text
