"""The embedded server as it is used: real processes, killed, stopped, started twice."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, BusyLoadingError, ConnectionError

from deployments import embedded_redis
from deployments.embedded_redis import Door, EmbeddedRedisError
from deployments.local_ray import CLUSTER_ID_VARIABLE
from deployments.redis_supervisor import State, read_state

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, CLUSTER_ID_VARIABLE: "test"}


@pytest.fixture
def home() -> Iterator[Path]:
    # A short path, and one that must be quoted.
    with TemporaryDirectory(prefix='shoal "home" ') as folder:
        home = Path(folder)
        (home / "run").mkdir()
        yield home
        embedded_redis.stop(home)


def start(home: Path, run: str = "run") -> str:
    return embedded_redis.start(home, home / run, environment=ENVIRONMENT)


def state_of(home: Path) -> State:
    state = read_state(home / "redis")
    assert state is not None
    return state


def log_of(home: Path) -> str:
    return (home / "logs" / "redis.log").read_text()


def wait_for(is_so: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline_s, "it does not happen"
        time.sleep(0.02)  # processes of their own, which tell nothing


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def answers(url: str) -> bool:
    try:
        with Redis.from_url(url) as client:
            return bool(client.ping())
    except (ConnectionError, BusyLoadingError):
        return False


def test_data_outlives_a_stop_and_a_start(home: Path) -> None:
    with Redis.from_url(start(home)) as client:
        client.set("name", "value")
    assert embedded_redis.stop(home)
    assert not embedded_redis.stop(home)
    assert "ended as told" in log_of(home)
    with Redis.from_url(start(home)) as client:
        assert client.get("name") == b"value"


def test_only_the_owner_can_reach_it_and_only_by_its_socket(home: Path) -> None:
    start(home)
    server = psutil.Process(state_of(home).server_pid)
    assert [c.laddr for c in server.net_connections("inet")] == []
    assert (home / "redis").stat().st_mode & 0o777 == 0o700
    assert (home / "run" / "redis.sock").stat().st_mode & 0o777 == 0o700
    files = [path for path in (home / "redis").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


def test_nothing_that_was_acknowledged_is_lost_when_the_server_is_killed(home: Path) -> None:
    url = start(home)
    killed = state_of(home).server_pid
    written = 0
    with Redis.from_url(url) as client:
        for number in range(500):
            client.rpush("numbers", number)
            written += 1
        os.kill(killed, signal.SIGKILL)
    wait_for(lambda: state_of(home).server_pid not in (0, killed) and answers(url))
    with Redis.from_url(url) as client:
        assert client.llen("numbers") == written
    assert "ended by itself (signal 9)" in log_of(home)


def test_both_processes_carry_the_mark_and_end_with_sigterm_to_the_supervisor(home: Path) -> None:
    start(home)
    state = state_of(home)
    processes = [psutil.Process(pid) for pid in (state.supervisor_pid, state.server_pid)]
    assert [p.environ()[CLUSTER_ID_VARIABLE] for p in processes] == ["test", "test"]
    processes[0].terminate()
    wait_for(lambda: not any(is_alive(process.pid) for process in processes))
    assert "ready to exit" in log_of(home)


def test_sigterm_to_both_at_once_ends_both(home: Path) -> None:
    start(home)
    state = state_of(home)
    processes = [psutil.Process(pid) for pid in (state.server_pid, state.supervisor_pid)]
    for process in processes:
        process.terminate()
    wait_for(lambda: not any(is_alive(process.pid) for process in processes))


def test_two_starters_at_once_share_one_server(home: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        urls = list(pool.map(lambda _: start(home), range(4)))
    assert len(set(urls)) == 1
    with Redis.from_url(urls[0]) as client:
        assert client.ping()
    servers = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(home / "redis")]
    assert [p.pid for p in servers] == [state_of(home).server_pid]


@pytest.mark.slow  # it waits a while for the other one to end
def test_no_second_server_on_the_same_data(home: Path) -> None:
    url = start(home)
    (home / "other").mkdir()
    with pytest.raises(EmbeddedRedisError, match="is in use by another server"):
        start(home, "other")
    assert answers(url)


def test_a_server_without_its_supervisor_still_has_its_data_to_itself_and_can_be_stopped(
    home: Path,
) -> None:
    url = start(home)
    before = state_of(home)
    os.kill(before.supervisor_pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(before.supervisor_pid))
    assert start(home) == url
    assert state_of(home).server_pid == before.server_pid
    assert embedded_redis.stop(home)
    assert not is_alive(before.server_pid)


def test_a_half_written_end_of_the_data_is_cut_off(home: Path) -> None:
    with Redis.from_url(start(home)) as client:
        client.set("a", "1")
        client.set("b", "2")
    embedded_redis.stop(home)
    increments = next((home / "redis" / "appendonlydir").glob("*.incr.aof"))
    with increments.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$1\r\nc\r\n$100\r\nhalf")
    with Redis.from_url(start(home)) as client:
        assert sorted(client.keys()) == [b"a", b"b"]


def test_damaged_data_stop_the_start_with_a_message_and_are_left_as_they_are(home: Path) -> None:
    with Redis.from_url(start(home)) as client:
        client.set("a", "1")
        client.set("b", "2")
    embedded_redis.stop(home)
    increments = next((home / "redis" / "appendonlydir").glob("*.incr.aof"))
    damaged = b"damage" * 10 + increments.read_bytes()
    increments.write_bytes(damaged)
    with pytest.raises(EmbeddedRedisError, match="ended 3 times in a row") as caught:
        start(home)
    assert "Bad file format reading the append only file" in str(caught.value)
    assert "CRASH LOOP" in log_of(home)
    assert increments.read_bytes() == damaged
    assert not embedded_redis.stop(home)


def test_too_long_a_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedRedisError, match="at most 107 bytes"):
        embedded_redis.start(tmp_path, tmp_path / ("x" * 100), environment=ENVIRONMENT)


def test_neither_torch_nor_ray_is_loaded() -> None:
    code = (
        "import sys, deployments.embedded_redis, deployments.redis_supervisor;"
        "sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_door_is_an_address_with_a_password_and_a_server_without_one_is_started_anew(
    home: Path,
) -> None:
    start(home)
    before = state_of(home).server_pid
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        door = Door(host="127.0.0.1", port=probe.getsockname()[1], password="correct")
    url = embedded_redis.start(home, home / "run", environment=ENVIRONMENT, door=door)
    assert state_of(home).server_pid != before
    assert "correct" not in repr(door)
    with Redis.from_url(url) as redis:
        assert redis.ping()
    with (
        Redis(host=door.host, port=door.port) as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.ping()
    again = embedded_redis.start(home, home / "run", environment=ENVIRONMENT, door=door)
    assert again == url
