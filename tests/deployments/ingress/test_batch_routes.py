"""Files and batches through OpenAI's SDK: real Redis, folder, sockets and worker."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from cluster import batch_tasks
from cluster.batch_config import BatchConfig
from cluster.errors import (
    BadRequestError,
    ClientTooSlowError,
    InternalError,
    ServiceUnavailableError,
    TooManyRequestsError,
)
from cluster.retrieval import InputKind
from cluster.task_queue.retry_policy import RetryPolicy
from cluster.types import PRIORITY_BATCH
from deployments import line_run
from tests.deployments.batch_rig import (
    CHAT_URL,
    EMBED_MODEL,
    OTHER_KEY,
    BatchServer,
    EchoPool,
    LengthEmbedder,
    chat_line,
    content_of,
    echo_calls,
    fails_once,
    serving_batches,
    working,
)
from tests.deployments.ingress.scripted_server import MODEL
from tests.redis_server import RedisServer


@pytest.fixture
async def served(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[BatchServer]:
    async with serving_batches(redis_server.url, tmp_path) as server:
        yield server


@pytest.fixture
def pool() -> EchoPool:
    return EchoPool()


@pytest.fixture
def embedder() -> LengthEmbedder:
    return LengthEmbedder()


@pytest.fixture
async def server(
    served: BatchServer,
    checkpoint: Path,
    tmp_path: Path,
    pool: EchoPool,
    embedder: LengthEmbedder,
) -> AsyncIterator[BatchServer]:
    """With a worker."""
    calls = echo_calls(served.config, checkpoint, pool, embedder)
    async with working(served.config, served.batches, tmp_path, calls):
        yield served


async def test_a_batch_is_run_and_its_results_are_in_the_inputs_order(
    server: BatchServer, pool: EchoPool
) -> None:
    started = await server.start(
        [chat_line(f"c{n}", f"hello {n}") for n in range(40)], metadata={"night": "7"}
    )
    assert started.status in ("validating", "in_progress")
    assert started.expires_at - started.created_at == 24 * 3600
    batch = await server.end_of(started.id)
    assert batch.status == "completed"
    assert batch.metadata == {"night": "7"}
    assert batch.model == MODEL
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (40, 40, 0)
    assert batch.error_file_id is None
    assert batch.errors is None
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    lines = await server.lines_of(batch.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"c{n}" for n in range(40)]
    assert [content_of(line) for line in lines] == [f"hello {n}" for n in range(40)]
    assert len({line["id"] for line in lines}) == 40
    assert all(line["error"] is None for line in lines)
    assert all(line["response"]["status_code"] == 200 for line in lines)
    assert lines[0]["response"]["request_id"] == lines[0]["response"]["body"]["id"]
    assert batch.usage.output_tokens == sum(
        line["response"]["body"]["usage"]["completion_tokens"] for line in lines
    )
    assert {request.priority for request in pool.requests} == {PRIORITY_BATCH}
    async with server.openai() as client:
        output = await client.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output"
    assert output.filename == f"{batch.id}_output.jsonl"
    assert output.expires_at is not None


async def test_completions_and_embeddings_are_targets_too(
    server: BatchServer, embedder: LengthEmbedder
) -> None:
    prompt = {"model": MODEL, "prompt": "<user>once more\n", "max_tokens": 50}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": prompt}
    started = await server.start([line], endpoint="/v1/completions")
    (answer,) = await server.lines_of((await server.end_of(started.id)).output_file_id)
    assert answer["response"]["body"]["choices"][0]["text"] == "once more"
    texts = {"model": EMBED_MODEL, "input": ["four", "seven  "]}
    line = {"custom_id": "b", "method": "POST", "url": "/v1/embeddings", "body": texts}
    started = await server.start([line], endpoint="/v1/embeddings")
    (answer,) = await server.lines_of((await server.end_of(started.id)).output_file_id)
    vectors = [item["embedding"] for item in answer["response"]["body"]["data"]]
    assert vectors == [[4, 1], [7, 1]]
    assert embedder.kinds == [InputKind.BULK], "behind everything that somebody waits for"


async def test_lines_that_are_refused_are_results_in_the_error_file(
    server: BatchServer, pool: EchoPool
) -> None:
    def trouble(text: str) -> None:
        if text == "bad":
            raise BadRequestError("not this one")

    pool.trouble = trouble
    started = await server.start([chat_line("a", "good"), chat_line("b", "bad")])
    batch = await server.end_of(started.id)
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
    (good,) = await server.lines_of(batch.output_file_id)
    (bad,) = await server.lines_of(batch.error_file_id)
    assert good["custom_id"] == "a"
    assert bad["custom_id"] == "b"
    assert bad["response"]["status_code"] == 400
    assert bad["response"]["body"]["error"]["message"] == "not this one"
    assert bad["error"] is None


@pytest.mark.parametrize(
    "error",
    [
        TooManyRequestsError("full", retry_after_s=0.1),
        ServiceUnavailableError("lost", retry_after_s=0.1),
        InternalError("oh"),
        ClientTooSlowError("the worker reads too slowly"),
    ],
)
async def test_lines_that_meet_a_full_or_a_lost_replica_are_tried_again(
    server: BatchServer, pool: EchoPool, error: Any
) -> None:
    pool.trouble = fails_once(error)
    started = await server.start([chat_line(f"c{n}", f"hello {n}") for n in range(5)])
    batch = await server.end_of(started.id)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (5, 0)
    assert len(pool.requests) == 10


async def test_a_line_that_fails_again_and_again_by_an_error_of_the_server_is_given_up(
    server: BatchServer, pool: EchoPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_run, "_RETRIES", RetryPolicy(first_delay_s=0.01, max_delay_s=0.01))

    def trouble(text: str) -> None:
        raise InternalError("oh")

    pool.trouble = trouble
    batch = await server.end_of((await server.start([chat_line("a", "x")])).id)
    assert batch.status == "completed"
    (line,) = await server.lines_of(batch.error_file_id)
    assert line["response"]["status_code"] == 500
    assert len(pool.requests) == 4


async def test_cancel_keeps_what_is_done(server: BatchServer, pool: EchoPool) -> None:
    gate = asyncio.Event()

    async def trouble(text: str) -> None:
        if int(text) >= 10:
            await gate.wait()

    pool.trouble = trouble
    started = await server.start([chat_line(f"c{n}", str(n)) for n in range(600)])
    await server.until(started.id, lambda batch: batch.request_counts.completed == 10)
    async with server.openai() as client:
        cancelling = await client.batches.cancel(started.id)
        assert cancelling.status == "cancelling"
        assert cancelling.cancelling_at is not None
    batch = await server.end_of(started.id)
    assert batch.status == "cancelled"
    assert batch.cancelled_at >= batch.cancelling_at
    assert batch.request_counts.total == 600
    assert batch.request_counts.completed == 10
    lines = await server.lines_of(batch.output_file_id)
    assert [line["custom_id"] for line in lines] == [f"c{n}" for n in range(10)]
    assert batch.error_file_id is None
    assert pool.most_running == server.batches.max_lines_at_once
    assert pool.num_running == 0


async def test_a_batch_that_has_ended_is_not_cancelled(server: BatchServer) -> None:
    batch = await server.end_of((await server.start([chat_line("a", "x")])).id)
    async with server.openai() as client:
        with pytest.raises(openai.BadRequestError, match="is completed and cannot be cancelled"):
            await client.batches.cancel(batch.id)


async def test_a_batch_that_nobody_has_begun_is_cancelled_at_once(served: BatchServer) -> None:
    started = await served.start([chat_line("a", "x")])
    async with served.openai() as client:
        batch = await client.batches.cancel(started.id)
        assert batch.status == "cancelled"
        again = await client.batches.cancel(started.id)
        assert again.cancelled_at == batch.cancelled_at


async def test_a_batch_whose_window_ends_has_expired_and_says_so_line_by_line(
    redis_server: RedisServer, tmp_path: Path, checkpoint: Path, pool: EchoPool
) -> None:
    async def trouble(text: str) -> None:
        if int(text) % 2:
            await asyncio.Event().wait()

    pool.trouble = trouble
    batches = BatchConfig(completion_window_s=2.0)
    async with serving_batches(redis_server.url, tmp_path, batches=batches) as server:
        calls = echo_calls(server.config, checkpoint, pool)
        async with working(server.config, batches, tmp_path, calls):
            started = await server.start([chat_line(f"c{n}", str(n)) for n in range(10)])
            batch = await server.end_of(started.id)
            assert batch.status == "expired"
            assert batch.expired_at >= batch.expires_at
            assert (batch.request_counts.completed, batch.request_counts.failed) == (5, 5)
            outputs = await server.lines_of(batch.output_file_id)
            errors = await server.lines_of(batch.error_file_id)
            assert [line["custom_id"] for line in outputs] == ["c0", "c2", "c4", "c6", "c8"]
            assert [line["custom_id"] for line in errors] == ["c1", "c3", "c5", "c7", "c9"]
            assert {line["error"]["code"] for line in errors} == {"batch_expired"}
            assert errors[0]["response"] is None
            assert pool.num_running == 0


async def test_a_batch_that_expires_before_anyone_runs_it_has_no_files(
    redis_server: RedisServer, tmp_path: Path, checkpoint: Path, pool: EchoPool
) -> None:
    batches = BatchConfig(completion_window_s=0.1)
    async with serving_batches(redis_server.url, tmp_path, batches=batches) as server:
        started = await server.start([chat_line("a", "x")])
        await asyncio.sleep(max(0.0, started.created_at + 1.2 - time.time()))  # the window's end
        calls = echo_calls(server.config, checkpoint, pool)
        async with working(server.config, batches, tmp_path, calls):
            batch = await server.end_of(started.id)
        assert batch.status == "expired"
        assert batch.output_file_id is None
        assert pool.requests == []


async def test_a_batch_without_its_input_file_fails(
    served: BatchServer, checkpoint: Path, tmp_path: Path, pool: EchoPool
) -> None:
    started = await served.start([chat_line("a", "x")])
    async with served.openai() as client:
        await client.files.delete(started.input_file_id)
    async with working(
        served.config, served.batches, tmp_path, echo_calls(served.config, checkpoint, pool)
    ):
        (error,) = (await served.end_of(started.id)).errors.data
    assert (error.code, error.param) == ("input_file_not_found", "input_file_id")


async def test_more_requests_than_allowed_fail(
    redis_server: RedisServer, tmp_path: Path, checkpoint: Path, pool: EchoPool
) -> None:
    batches = BatchConfig(max_requests=3)
    async with serving_batches(redis_server.url, tmp_path, batches=batches) as server:
        calls = echo_calls(server.config, checkpoint, pool)
        async with working(server.config, batches, tmp_path, calls):
            started = await server.start([chat_line(str(n), "x") for n in range(4)])
            (error,) = (await server.end_of(started.id)).errors.data
            assert error.code == "too_many_requests"
            started = await server.start([chat_line(str(n), "x") for n in range(3)])
            assert (await server.end_of(started.id)).status == "completed"


async def test_lists_are_paged_by_the_sdk(served: BatchServer) -> None:
    file_id = await served.upload([chat_line("a", "x")])
    async with served.openai() as client:
        made = [
            (
                await client.batches.create(
                    input_file_id=file_id, endpoint=CHAT_URL, completion_window="24h"
                )
            ).id
            for _ in range(7)
        ]
        page = await client.batches.list(limit=3)
        assert page.has_more
        listed = [batch.id async for batch in client.batches.list(limit=3)]
        assert sorted(listed) == sorted(made)
        assert len(page.data) == 3
        with pytest.raises(openai.BadRequestError, match="no 'batch_no' in this list"):
            await client.batches.list(after="batch_no")
        with pytest.raises(openai.UnprocessableEntityError, match="limit"):
            await client.batches.list(limit=101)


async def test_a_tenant_has_no_more_unfinished_batches_than_are_kept(
    served: BatchServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_tasks, "MAX_UNFINISHED", 2)
    for _ in range(2):
        await served.start([chat_line("a", "x")])
    with pytest.raises(openai.RateLimitError, match="2 of your batches wait or run") as caught:
        await served.start([chat_line("a", "x")])
    assert int(caught.value.response.headers["retry-after"]) > 0
    await served.start([chat_line("a", "x")], key=OTHER_KEY)


async def test_an_idempotency_key_makes_one_batch(served: BatchServer) -> None:
    file_id = await served.upload([chat_line("a", "x")])
    async with served.openai() as client:

        async def make(**more: Any) -> str:
            batch = await client.batches.create(
                input_file_id=file_id,
                endpoint=CHAT_URL,
                completion_window="24h",
                extra_headers={"Idempotency-Key": "once"},
                **more,
            )
            return batch.id

        assert await make() == await make()
        with pytest.raises(openai.UnprocessableEntityError, match="used before"):
            await make(metadata={"other": "body"})
        assert len((await client.batches.list()).data) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endpoint": "/v1/responses"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"k": 7}}, "metadata.k"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 10}}, "seconds"),
        ({"extra": 1}, "extra"),
    ],
)
async def test_a_batch_request_is_checked(
    served: BatchServer, change: dict[str, Any], message: str
) -> None:
    file_id = await served.upload([chat_line("a", "x")])
    body = {"input_file_id": file_id, "endpoint": CHAT_URL, "completion_window": "24h"}
    async with served.http() as client:
        answer = await client.post("/v1/batches", json=body | change)
    assert answer.status_code == 422, answer.text
    assert message in answer.json()["error"]["message"]


async def test_only_files_for_batches_are_taken(served: BatchServer) -> None:
    async with served.openai() as client:
        file = await client.files.create(file=("a.jsonl", b"{}"), purpose="user_data")
        with pytest.raises(openai.BadRequestError, match="purpose must be 'batch'"):
            await client.batches.create(
                input_file_id=file.id, endpoint=CHAT_URL, completion_window="24h"
            )
        with pytest.raises(openai.NotFoundError):
            await client.batches.create(
                input_file_id="file-none", endpoint=CHAT_URL, completion_window="24h"
            )


async def test_tenants_see_nothing_of_each_other(server: BatchServer) -> None:
    started = await server.start([chat_line("a", "mine")])
    batch = await server.end_of(started.id)
    async with server.openai(OTHER_KEY) as other:
        calls: list[Callable[[], Any]] = [
            lambda: other.batches.retrieve(batch.id),
            lambda: other.batches.cancel(batch.id),
            lambda: other.files.retrieve(batch.input_file_id),
            lambda: other.files.content(batch.output_file_id),
            lambda: other.files.delete(batch.output_file_id),
            lambda: other.batches.create(
                input_file_id=batch.input_file_id, endpoint=CHAT_URL, completion_window="24h"
            ),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError):
                await call()
        assert (await other.batches.list()).data == []
        assert (await other.files.list()).data == []
        with pytest.raises(openai.BadRequestError):
            await other.batches.list(after=batch.id)
    theirs = await server.start([chat_line("a", "theirs")], key=OTHER_KEY)
    ended = await server.end_of(theirs.id, key=OTHER_KEY)
    (line,) = await server.lines_of(ended.output_file_id, key=OTHER_KEY)
    assert content_of(line) == "theirs"
    (line,) = await server.lines_of(batch.output_file_id)
    assert content_of(line) == "mine"


async def test_telnyx_paths_serve_the_same(server: BatchServer) -> None:
    started = await server.start([chat_line("a", "x")])
    for path in ("/v2/ai", "/v2/ai/openai"):
        async with server.openai(path=path) as client:
            assert (await client.batches.retrieve(started.id)).id == started.id
            assert (await client.files.retrieve(started.input_file_id)).purpose == "batch"


async def test_nothing_but_the_files_is_left_when_a_batch_has_ended(server: BatchServer) -> None:
    batch = await server.end_of((await server.start([chat_line("a", "x")])).id)
    bucket = await server.files.bucket("default")

    async def objects() -> list[str]:
        return [info.key async for info in server.files.objects.list_objects(bucket)]

    async with asyncio.timeout(120):
        while True:  # the worker deletes the rest after it has said the end
            if len(await objects()) == 2:
                break
            await asyncio.sleep(0.02)
    kept = {f"files/{batch.input_file_id}", f"files/{batch.output_file_id}"}
    assert set(await objects()) == kept


async def test_a_line_has_the_shape_that_openai_documents(server: BatchServer) -> None:
    batch = await server.end_of((await server.start([chat_line("a\u2028\n", "x")])).id)
    async with server.openai() as client:
        text = (await client.files.content(batch.output_file_id)).text
    assert text.count("\n") == 1
    line = json.loads(text)
    assert list(line) == ["id", "custom_id", "response", "error"]
    assert list(line["response"]) == ["status_code", "request_id", "body"]
    assert line["custom_id"] == "a\u2028\n"
    assert line["response"]["body"]["object"] == "chat.completion"
