"""Batches while their workers and Redis die, and in flat memory."""

import asyncio
import datetime
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from moto.server import ThreadedMotoServer

from cluster.batch_config import BatchConfig
from cluster.errors import ServiceUnavailableError
from cluster.redis_client import RedisClient
from cluster.tenant_config import KeyScope
from cluster.tenants.limits import OwnLimits, TenantLimits
from cluster.tenants.records import ApiKey
from cluster.tenants.tenant_store import TenantStore
from cluster.tenants.usage import UsageCounts, UsageStore
from tests.cluster.task_queue.tasks import end_leases
from tests.deployments.batch_process import ANSWERED_KEY
from tests.deployments.batch_rig import (
    CHAT_URL,
    OTHER_KEY,
    BatchServer,
    EchoPool,
    chat_line,
    content_of,
    echo_calls,
    serving_batches,
    working,
)
from tests.deployments.ingress.scripted_server import KEY, MODEL
from tests.redis_server import RedisServer


@asynccontextmanager
async def process(*arguments: object) -> AsyncIterator[Process]:
    """A process of `batch_process`, once it says that it runs."""
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.deployments.batch_process", *map(str, arguments)),
        stdout=PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


async def first_line(running: Process) -> str:
    assert running.stdout is not None
    return (await running.stdout.readline()).decode().strip()


async def wait_for_answers(redis: RedisClient, num: int) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                if int(await redis.execute("GET", ANSWERED_KEY) or 0) >= num:
                    return
            except ServiceUnavailableError:
                pass  # Redis was killed just now
            await asyncio.sleep(0.01)


async def check(server: BatchServer, batch_id: str, num: int) -> None:
    """As `check_lines`, of the only batch: its lines are what the tenant has used."""
    lines = await check_lines(server, batch_id, num)
    usages = [line["response"]["body"]["usage"] for line in lines]
    counts = await used(server.redis)
    assert counts.num_requests == num
    assert counts.prompt_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert counts.completion_tokens == sum(usage["completion_tokens"] for usage in usages)


async def check_lines(server: BatchServer, batch_id: str, num: int) -> list[dict[str, Any]]:
    """Every line once, in order, with the answer of an undisturbed run."""
    batch = await server.end_of(batch_id)
    assert batch.status == "completed", batch
    assert batch.request_counts.completed == batch.request_counts.total == num
    lines = await server.lines_of(batch.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"c{n}" for n in range(num)]
    assert [content_of(line) for line in lines] == [f"hello {n}" for n in range(num)]
    return lines


async def used(redis: RedisClient) -> UsageCounts:
    """By the default tenant, through the key of the tests."""
    today = datetime.datetime.now(datetime.UTC).date()
    yesterday = today - datetime.timedelta(days=1)  # a test may run at midnight
    rows = await UsageStore(redis).find(["default"], first=yesterday, last=today)
    total = UsageCounts()
    for row in rows:
        assert (row.model, row.key_id) == (MODEL, "config/test")
        total = total.plus(row.counts)
    return total


@pytest.mark.parametrize("num_kills", [2, pytest.param(8, marks=pytest.mark.slow)])
async def test_a_killed_worker_loses_and_doubles_no_line(
    breakable_redis_server: RedisServer, tmp_path: Path, checkpoint: Path, num_kills: int
) -> None:
    url, num = breakable_redis_server.url, 200 * num_kills
    async with serving_batches(url, tmp_path) as server:
        started = await server.start([chat_line(f"c{n}", f"hello {n}") for n in range(num)])
        for kill in range(num_kills):
            async with process("work", url, tmp_path, checkpoint, 0.05):
                await wait_for_answers(server.redis, 100 * (kill + 1))
            await end_leases(server.tasks.queue)
        async with process("work", url, tmp_path, checkpoint, 0.005):
            await check(server, started.id, num)
        num_answered = int(await server.redis.execute("GET", ANSWERED_KEY))
        # A kill costs what was not saved: a moment's answers.
        assert num <= num_answered <= num + num_kills * 150


async def test_a_worker_that_freezes_and_thaws_changes_nothing_and_works_on(
    breakable_redis_server: RedisServer, tmp_path: Path, checkpoint: Path
) -> None:
    url = breakable_redis_server.url
    async with (
        serving_batches(url, tmp_path) as server,
        process("work", url, tmp_path, checkpoint, 0.05) as frozen,
    ):
        started = await server.start([chat_line(f"c{n}", f"hello {n}") for n in range(200)])
        await wait_for_answers(server.redis, 60)
        frozen.send_signal(signal.SIGSTOP)
        await end_leases(server.tasks.queue)
        async with process("work", url, tmp_path, checkpoint, 0.005):
            await check(server, started.id, 200)
        frozen.send_signal(signal.SIGCONT)
        another = await server.start([chat_line(f"c{n}", f"hello {n}") for n in range(50)])
        await check_lines(server, another.id, 50)  # by the one that thawed
        await check_lines(server, started.id, 200)
        assert (await used(server.redis)).num_requests == 250
        record = await server.tasks.queue.get(
            "default", (await server.tasks.get("default", started.id)).task_id
        )
        assert record.num_losses == 1


async def test_two_workers_share_batches_and_each_line_is_answered_once(
    breakable_redis_server: RedisServer, tmp_path: Path, checkpoint: Path
) -> None:
    url = breakable_redis_server.url
    async with (
        serving_batches(url, tmp_path) as server,
        process("work", url, tmp_path, checkpoint, 0.01),
        process("work", url, tmp_path, checkpoint, 0.01),
    ):
        lines = [chat_line(f"c{n}", f"hello {n}") for n in range(100)]
        started = [await server.start(lines) for _ in range(3)]
        for batch in started:
            await check_lines(server, batch.id, 100)
        assert (await used(server.redis)).num_requests == 300
        assert int(await server.redis.execute("GET", ANSWERED_KEY)) == 300


async def test_redis_killed_and_back_costs_no_line(
    breakable_redis_server: RedisServer, tmp_path: Path, checkpoint: Path
) -> None:
    url = breakable_redis_server.url
    async with (
        serving_batches(url, tmp_path) as server,
        process("work", url, tmp_path, checkpoint, 0.05),
    ):
        started = await server.start([chat_line(f"c{n}", f"hello {n}") for n in range(400)])
        for num_answers in (50, 200):
            await wait_for_answers(server.redis, num_answers)
            breakable_redis_server.kill()
            await asyncio.sleep(0.5)  # long enough that saving fails
            breakable_redis_server.start()
        await check_despite_reconnects(server, started.id, 400)


async def check_despite_reconnects(server: BatchServer, batch_id: str, num: int) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                await server.tasks.get("default", batch_id)
                break
            except ServiceUnavailableError:
                await asyncio.sleep(0.05)
    await check(server, batch_id, num)


async def test_a_worker_that_is_told_to_stop_gives_its_batch_to_another(
    breakable_redis_server: RedisServer, tmp_path: Path, checkpoint: Path
) -> None:
    url = breakable_redis_server.url
    async with serving_batches(url, tmp_path) as server:
        started = await server.start([chat_line(f"c{n}", f"hello {n}") for n in range(200)])
        async with process("work", url, tmp_path, checkpoint, 0.05) as first:
            await wait_for_answers(server.redis, 50)
            first.terminate()
            assert await first.wait() == 0
        async with process("work", url, tmp_path, checkpoint, 0.001):
            await check(server, started.id, 200)
        record = await server.tasks.queue.get(
            "default", (await server.tasks.get("default", started.id)).task_id
        )
        assert (record.num_losses, record.num_attempts) == (0, 1)


async def test_a_batch_whose_task_is_dead_has_failed(
    redis_server: RedisServer, tmp_path: Path, checkpoint: Path
) -> None:
    async with serving_batches(redis_server.url, tmp_path) as server:
        started = await server.start([chat_line("a", "x")])
        batch = await server.tasks.get("default", started.id)
        await server.tasks.queue.cancel("default", batch.task_id)  # as an operator would
        seen = await server.end_of(started.id)
        assert seen.status == "failed"
        assert seen.errors.data[0].code == "server_error"


async def test_one_tenants_many_batches_leave_room_for_anothers(
    redis_server: RedisServer, tmp_path: Path, checkpoint: Path
) -> None:
    gate, pool = asyncio.Event(), EchoPool()

    async def trouble(text: str) -> None:
        if text == "many":
            await gate.wait()

    pool.trouble = trouble
    async with serving_batches(redis_server.url, tmp_path) as server:
        calls = echo_calls(server.config, checkpoint, pool)
        async with working(server.config, server.batches, tmp_path, calls):
            many = [await server.start([chat_line("a", "many")]) for _ in range(8)]
            single = await server.start([chat_line("a", "one")], key=OTHER_KEY)
            ended = await server.end_of(single.id, key=OTHER_KEY)
            assert ended.status == "completed"
            gate.set()
            for batch in many:
                assert (await server.end_of(batch.id)).status == "completed"


async def test_all_batches_of_a_worker_share_its_places_at_the_engines(
    redis_server: RedisServer, tmp_path: Path, checkpoint: Path
) -> None:
    """Also while lines of one of them fail and wait to be tried again."""
    is_back, pool = asyncio.Event(), EchoPool()

    async def trouble(text: str) -> None:
        await asyncio.sleep(0.005)
        if text.startswith("lost") and not is_back.is_set():
            raise ServiceUnavailableError("lost", retry_after_s=0.2)

    pool.trouble = trouble
    batches = BatchConfig(max_lines_at_once=8)
    async with serving_batches(redis_server.url, tmp_path, batches=batches) as server:
        calls = echo_calls(server.config, checkpoint, pool)
        async with working(server.config, batches, tmp_path, calls):
            lost = await server.start([chat_line(f"c{n}", f"lost {n}") for n in range(40)])
            # Another tenant's: two batches of one tenant may share a lane, and wait for each other.
            others = [
                await server.start(
                    [chat_line(f"c{n}", f"hello {n}") for n in range(80)], key=OTHER_KEY
                )
                for _ in range(2)
            ]
            for batch in others:
                ended = await server.end_of(batch.id, key=OTHER_KEY)
                assert ended.request_counts.completed == 80
            is_back.set()
            assert (await server.end_of(lost.id)).request_counts.completed == 40
    assert pool.most_running == 8


async def test_a_batch_runs_with_its_files_at_an_s3_endpoint(
    redis_server: RedisServer, tmp_path: Path, checkpoint: Path
) -> None:
    endpoint = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    endpoint.start()
    try:
        host, port = endpoint.get_host_and_port()
        at_endpoint = {
            "s3_endpoint": f"http://{host}:{port}",
            "s3_access_key_id": "key",
            "s3_secret_access_key": "secret",
            "s3_bucket_name": "{tenant}-{bucket}",
        }
        async with serving_batches(redis_server.url, tmp_path, **at_endpoint) as server:
            calls = echo_calls(server.config, checkpoint, EchoPool())
            async with working(server.config, server.batches, tmp_path, calls):
                lines = [chat_line(f"c{n}", f"hello {n}") for n in range(300)]
                await check(server, (await server.start(lines)).id, 300)
            bucket = await server.files.bucket("default")
            assert server.files.objects.url(bucket, "x").endswith("/default-shoal-files/x")
    finally:
        endpoint.stop()


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize(
    ("num_lines", "line_bytes", "growth_bytes"),
    [(5000, 4000, 48 * 2**20), pytest.param(50_000, 4100, 96 * 2**20, marks=pytest.mark.slow)],
)
async def test_a_large_file_passes_through_in_flat_memory(
    breakable_redis_server: RedisServer,
    tmp_path: Path,
    checkpoint: Path,
    num_lines: int,
    line_bytes: int,
    growth_bytes: int,
) -> None:
    """Both ways: as long as what it says is what it is asked, twice."""
    url, path = breakable_redis_server.url, tmp_path / "in.jsonl"
    with path.open("wb") as file:
        for n in range(num_lines):
            line = chat_line(f"c{n}", f"hello {n}")
            line["body"]["user"] = "x" * (line_bytes - 200)  # type: ignore[index]
            file.write(json.dumps(line).encode() + b"\n")
    async with (
        process("serve", url, tmp_path) as ingress,
        process("work", url, tmp_path, checkpoint, 0) as worker,
        httpx.AsyncClient(timeout=300, headers={"authorization": f"Bearer {KEY}"}) as client,
    ):
        base = f"http://127.0.0.1:{await first_line(ingress)}/v1"
        await first_line(worker)
        before = {one.pid: psutil.Process(one.pid).memory_info().rss for one in (ingress, worker)}
        with path.open("rb") as file:
            uploaded = await client.post(
                f"{base}/files", data={"purpose": "batch"}, files={"file": file}
            )
        assert uploaded.json()["bytes"] == path.stat().st_size
        body = {
            "input_file_id": uploaded.json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        batch = (await client.post(f"{base}/batches", json=body)).json()
        async with asyncio.timeout(600):
            while True:
                batch = (await client.get(f"{base}/batches/{batch['id']}")).json()
                if batch["status"] == "completed":
                    break
                await asyncio.sleep(0.2)
        assert batch["request_counts"]["completed"] == num_lines
        async with client.stream("GET", f"{base}/files/{batch['output_file_id']}/content") as out:
            ids = [json.loads(line)["custom_id"] async for line in out.aiter_lines()]
        assert ids == [f"c{n}" for n in range(num_lines)]
        async with client.stream("GET", f"{base}/files/{batch['input_file_id']}/content") as out:
            assert sum([len(data) async for data in out.aiter_bytes()]) == path.stat().st_size
        for one in (ingress, worker):
            growth = peak_bytes(one.pid) - before[one.pid]
            assert growth < growth_bytes, f"{growth / 2**20:.0f} MiB"
    path.unlink()


async def test_lines_may_use_what_the_key_and_its_tenant_may(
    redis_server: RedisServer, checkpoint: Path, tmp_path: Path
) -> None:
    tools = [{"type": "retrieval", "retrieval": {"bucket_ids": ["docs"]}}]
    async with serving_batches(redis_server.url, tmp_path) as server:
        store = TenantStore(server.redis, configured=["default", "other"])
        await store.change_limits("other", lambda _: OwnLimits(models=("else",)))
        pool = EchoPool()
        calls = echo_calls(server.config, checkpoint, pool)
        async with working(server.config, server.batches, tmp_path, calls):
            refused = await server.start([chat_line("a", "hello")], key=OTHER_KEY)
            refused = await server.end_of(refused.id, key=OTHER_KEY)
            assert refused.status == "failed"
            assert "model" in refused.errors.data[0].message
            begun = await server.start([chat_line("a", "hello", tools=tools)])
            batch = await server.end_of(begun.id)
            (line,) = await server.lines_of(batch.error_file_id)
            # Its key is for buckets; there is only nothing that searches them here.
            assert line["response"]["status_code"] != 403
            narrow = ApiKey(
                key_id="k", name="", tenant="default", scopes=frozenset({KeyScope.INFERENCE})
            )
            body = json.dumps(chat_line("a", "hello", tools=tools)["body"]).encode()
            answer = await calls.call(narrow, CHAT_URL, body, limits=TenantLimits())
            assert answer.status == 403
    assert not pool.requests
