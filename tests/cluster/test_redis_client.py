"""The client against servers that are killed, frozen, full, old and secret."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.exceptions import ResponseError

from cluster.config import ConfigError, RedisConfig
from cluster.errors import ServiceUnavailableError
from cluster.redis_client import (
    RedisClient,
    RedisFullError,
    RedisRefusedError,
    Script,
    connect,
)
from cluster.redis_connections import MAX_CONNECTIONS
from tests.redis_server import RedisServer, impatient, patient_config, running_cluster
from tests.stopped_clock import StoppedClock

SECRET = "s3cret-of-ours"
GUARD_S = 60  # far more than any deadline of the client


@pytest.fixture
async def breakable(breakable_redis_server: RedisServer) -> AsyncIterator[RedisClient]:
    async with connect(patient_config(breakable_redis_server.url)) as client:
        yield client


async def unavailable(command: Awaitable[object]) -> ServiceUnavailableError:
    """The error of a command; one that has no deadline ends with the guard's `TimeoutError`."""
    async with asyncio.timeout(GUARD_S):
        with pytest.raises(ServiceUnavailableError) as caught:
            await command
    assert caught.value.retry_after_s is not None
    return caught.value


async def test_a_killed_server_is_unavailable_and_comes_back_by_itself(
    breakable: RedisClient, breakable_redis_server: RedisServer
) -> None:
    await asyncio.gather(*(breakable.execute("SET", f"k{i}", i) for i in range(20)))
    breakable_redis_server.kill()
    for _ in range(3):
        await unavailable(breakable.execute("GET", "k1"))
    await unavailable(breakable.execute_many([("GET", "k1"), ("GET", "k2")]))
    breakable_redis_server.start()
    answers = await asyncio.gather(*(breakable.execute("GET", f"k{i}") for i in range(20)))
    assert answers == [str(i).encode() for i in range(20)]


async def test_connections_that_died_with_the_server_cost_no_error_after_its_restart(
    breakable: RedisClient, breakable_redis_server: RedisServer
) -> None:
    await asyncio.gather(*(breakable.execute("SET", f"k{i}", i) for i in range(20)))
    breakable_redis_server.kill()
    await asyncio.to_thread(breakable_redis_server.start)
    assert len(await asyncio.gather(*(breakable.execute("GET", f"k{i}") for i in range(20)))) == 20


async def test_a_frozen_server_is_unavailable_within_two_seconds_for_everybody(
    breakable: RedisClient, breakable_redis_server: RedisServer
) -> None:
    await breakable.execute("SET", "name", "value")
    breakable_redis_server.freeze()
    try:
        with impatient(breakable), StoppedClock() as clock:
            assert breakable.timeout_s < 2
            # More than there are connections: some wait for a place, and have no more time for it.
            commands = [breakable.execute("GET", "name") for _ in range(3 * MAX_CONNECTIONS)]
            errors = [asyncio.create_task(unavailable(command)) for command in commands]
            await asyncio.sleep(0)  # all have begun
            clock.move_on(breakable.timeout_s)
            await asyncio.wait(errors)
            assert {(await error).detail for error in errors} == {
                "Redis does not answer within 1.5 s"
            }
        with impatient(breakable):
            await unavailable(breakable.execute("GET", "name"))
    finally:
        breakable_redis_server.thaw()
    answers = await asyncio.gather(*(breakable.execute("GET", "name") for _ in range(100)))
    assert set(answers) == {b"value"}


async def test_a_server_that_is_not_there_at_the_start_is_found_later(
    breakable_redis_server: RedisServer,
) -> None:
    breakable_redis_server.stop()
    async with connect(patient_config(breakable_redis_server.url)) as client:
        await unavailable(client.execute("PING"))
        breakable_redis_server.start()
        assert await client.execute("PING")


async def test_a_cancelled_command_leaves_no_answer_for_the_next_one(
    redis_config: RedisConfig,
) -> None:
    async with connect(redis_config) as client:
        await client.execute("SET", "name", "value")
        for _ in range(50):
            command = asyncio.create_task(client.execute("SET", "other", "x"))
            await asyncio.sleep(0)
            command.cancel()
            assert await client.execute("GET", "name") == b"value"


async def test_a_blocked_read_does_not_hold_up_commands_and_hears_what_comes(
    redis_config: RedisConfig,
) -> None:
    async with connect(redis_config) as client:
        read = ("XREAD", "BLOCK", 0, "STREAMS", "stream", "$")
        waiting = [asyncio.create_task(client.wait(*read, block_s=20)) for _ in range(30)]
        await asyncio.gather(*(client.execute("PING") for _ in range(100)))
        while b"blocked_clients:30" not in await _info(client):
            pass
        await client.execute("XADD", "stream", "*", "name", "value")
        for answer in await asyncio.gather(*waiting):
            assert answer[0][1][0][1] == {b"name": b"value"}
        assert await client.wait(*read, block_s=0.05) is None


async def _info(client: RedisClient) -> bytes:
    script = Script("return redis.call('INFO', 'clients')")
    return bytes(await client.run(script, keys=[]))


async def test_a_blocked_read_notices_a_frozen_server(
    breakable: RedisClient, breakable_redis_server: RedisServer
) -> None:
    await breakable.execute("PING")
    breakable_redis_server.freeze()
    try:
        read = ("XREAD", "BLOCK", 0, "STREAMS", "stream", "$")
        with impatient(breakable, 0.5):
            await unavailable(breakable.wait(*read, block_s=0.5))
    finally:
        breakable_redis_server.thaw()


async def test_a_full_server_says_so_and_reads_go_on(
    breakable: RedisClient, breakable_redis_server: RedisServer
) -> None:
    await breakable.execute("SET", "name", "value")
    await breakable.execute("CONFIG", "SET", "maxmemory", "1mb")
    write = Script("return redis.call('SET', KEYS[1], ARGV[1])")
    for command in (
        breakable.execute("SET", "big", "x" * 2**20),
        breakable.execute_many([("GET", "name"), ("SET", "big", "x" * 2**20)]),
        breakable.run(write, keys=["big"], args=["x" * 2**20]),
    ):
        with pytest.raises(RedisFullError, match=r"is full \(maxmemory\)") as caught:
            await command
        assert caught.value.retry_after_s
        assert "xxx" not in caught.value.detail
    assert await breakable.execute("GET", "name") == b"value"


async def test_a_loading_server_and_a_replica_are_unavailable(
    breakable: RedisClient, breakable_redis_server: RedisServer
) -> None:
    with breakable_redis_server.connect() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
    error = await unavailable(breakable.execute("SET", "name", "value"))
    assert "cannot serve now" in error.detail


async def test_a_wrong_command_is_our_defect_and_no_outage(redis_config: RedisConfig) -> None:
    async with connect(redis_config) as client:
        await client.execute("SET", "name", "value")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await client.execute("HGET", "name", "field")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await client.execute_many([("GET", "name"), ("HGET", "name", "field")])
        create = ("XGROUP", "CREATE", "stream", "group", "$", "MKSTREAM")
        await client.execute(*create)
        with pytest.raises(ResponseError, match="BUSYGROUP") as caught:
            await client.execute(*create)
        assert caught.value.__cause__ is not caught.value


async def test_scripts_are_sent_once_and_run_again_after_the_server_has_lost_them(
    redis_config: RedisConfig,
) -> None:
    script = Script("return {KEYS[1], ARGV[1]}")
    async with connect(redis_config) as client:
        for _ in range(2):
            assert await client.run(script, keys=["k"], args=[1]) == [b"k", b"1"]
        await client.execute("SCRIPT", "FLUSH")
        assert await client.run(script, keys=["k"], args=[1]) == [b"k", b"1"]


async def test_passwords_are_in_no_message(
    breakable: RedisClient, breakable_redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await breakable.execute("ACL", "SETUSER", "app", "on", f">{SECRET}", "~*", "+@all", "-config")
    path = breakable_redis_server.url.removeprefix("unix://")
    async with connect(patient_config(f"unix://app:{SECRET}@{path}")) as client:
        assert await client.execute("PING")
        with pytest.raises(RedisRefusedError) as refused:
            await client.execute("CONFIG", "GET", "appendonly")
        breakable_redis_server.kill()
        away = await unavailable(client.execute("PING"))
        text = "".join(map(repr, (refused.value.detail, away.detail, client.address)))
        assert SECRET not in text + caplog.text
        assert path in caplog.text, "the operator reads where it is"
        assert path not in away.detail, "clients do not"


async def test_a_wrong_password_is_refused(
    breakable: RedisClient, breakable_redis_server: RedisServer
) -> None:
    path = breakable_redis_server.url.removeprefix("unix://")
    async with connect(patient_config(f"unix://default:{SECRET}@{path}")) as client:
        await breakable.execute("CONFIG", "SET", "requirepass", "another")
        with pytest.raises(RedisRefusedError) as caught:
            await client.execute("PING")
        assert SECRET not in caught.value.detail


@pytest.mark.parametrize(
    ("url", "is_cluster"),
    [
        (f"http://user:{SECRET}@host:6379", False),
        (f"redis://:{SECRET}/with/slashes@host:6379", False),
        (f"redis://user:{SECRET}@host:port", False),
        (f"redis://user:{SECRET}@host:6379/zero?max_connections=many", False),
        (f"redis://user:{SECRET}@host:6379/3", True),
        (f"{SECRET}", False),
        ("unix:///socket", True),
    ],
)
def test_an_impossible_url_is_refused_without_being_shown(url: str, is_cluster: bool) -> None:
    with pytest.raises(ConfigError, match=r"^redis\.url: ") as caught:
        connect(RedisConfig(url=url, is_cluster=is_cluster))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_address_names_the_port_that_is_meant() -> None:
    assert connect(RedisConfig(url="rediss://user:password@host")).address == "host:6379"
    assert connect(RedisConfig(url="redis://[::1]:7000/2")).address == "[::1]:7000"


async def test_tls_is_spoken_and_a_stranger_s_certificate_refused(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    certificate = _write_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    path = redis_server.url.removeprefix("unix://")

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_unix_connection(path)
        await asyncio.gather(_copy(reader, to_server[1]), _copy(to_server[0], writer))

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context) as proxy:
        url = f"rediss://localhost:{proxy.sockets[0].getsockname()[1]}"
        async with connect(patient_config(f"{url}?ssl_ca_certs={certificate}")) as client:
            await client.execute("SET", "name", "value")
            assert await client.execute("GET", "name") == b"value"
        async with connect(patient_config(url)) as client:
            error = await unavailable(client.execute("GET", "name"))
            assert "certificate" in str(error.__cause__)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


def _write_certificate(folder: Path) -> Path:
    """A self-signed certificate of `localhost` and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / "certificate.pem"
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


async def test_a_cluster_serves_a_crowd_from_the_first_command_on(
    redis_cluster_config: RedisConfig,
) -> None:
    async with connect(redis_cluster_config) as client:
        for _ in range(3):
            await asyncio.gather(*(client.execute("SET", f"k{i}", i) for i in range(200)))
        await asyncio.gather(*(client.execute_many([("GET", f"k{i}")]) for i in range(200)))


@pytest.mark.slow
async def test_a_cluster_node_that_dies_is_unavailable_and_the_others_go_on() -> None:
    with (
        TemporaryDirectory(prefix="shoal-redis-") as folder,
        running_cluster(Path(folder)) as nodes,
    ):
        await _break_a_node(nodes)


async def _break_a_node(nodes: list[RedisServer]) -> None:
    keys = [f"k{i}" for i in range(60)]
    async with connect(patient_config(nodes[0].url, is_cluster=True)) as client:
        await client.execute_many([("SET", key, key) for key in keys])
    async with connect(RedisConfig(url=nodes[0].url, is_cluster=True)) as client:
        nodes[1].freeze()
        for _ in range(2):
            for key in keys[:12]:
                with suppress(ServiceUnavailableError):
                    async with asyncio.timeout(GUARD_S):
                        assert await client.execute("GET", key) == key.encode()
        await unavailable(client.execute_many([("GET", key) for key in keys]))
        nodes[1].thaw()
        await _wait_until_whole(client, keys)
        nodes[1].kill()
        await unavailable(client.execute_many([("GET", key) for key in keys]))
        nodes[1].start()
        await _wait_until_whole(client, keys)


async def _wait_until_whole(client: RedisClient, keys: list[str]) -> None:
    deadline_s = time.monotonic() + GUARD_S
    while True:
        try:
            answers = await client.execute_many([("GET", key) for key in keys])
            assert answers == [key.encode() for key in keys]
            return
        except ServiceUnavailableError:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.05)  # the nodes have to find each other again
