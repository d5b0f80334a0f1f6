"""What a batch's input file may hold: every bad line is named before anything runs."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.deployments.batch_rig import (
    CHAT_URL,
    BatchServer,
    EchoPool,
    LengthEmbedder,
    chat_line,
    echo_calls,
    serving_batches,
    working,
)
from tests.deployments.ingress.scripted_server import MODEL
from tests.redis_server import RedisServer


@pytest.fixture
def pool() -> EchoPool:
    return EchoPool()


@pytest.fixture
async def server(
    redis_server: RedisServer, checkpoint: Path, tmp_path: Path, pool: EchoPool
) -> AsyncIterator[BatchServer]:
    async with serving_batches(redis_server.url, tmp_path) as served:
        calls = echo_calls(served.config, checkpoint, pool, LengthEmbedder())
        async with working(served.config, served.batches, tmp_path, calls):
            yield served


def broken(**changes: object) -> dict[str, object]:
    line = chat_line("broken", "hello") | changes
    return {name: value for name, value in line.items() if value is not ...}


@pytest.mark.parametrize(
    ("line", "code", "param", "said"),
    [
        (b"{", "invalid_json_line", None, "parseable"),
        (b'{"a": NaN}', "invalid_json_line", None, "parseable"),
        (b"[1]", "invalid_json_line", None, "must be a JSON object"),
        (b"\xff\xfe", "invalid_json_line", None, "parseable"),
        (broken(custom_id=...), "missing_required_parameter", "custom_id", "is required"),
        (broken(body=...), "missing_required_parameter", "body", "is required"),
        (broken(more=1), "unknown_parameter", "more", "not a field"),
        (broken(custom_id=7), "invalid_custom_id", "custom_id", "given 7"),
        (broken(custom_id=""), "invalid_custom_id", "custom_id", "1 to 512"),
        (broken(custom_id="x" * 513), "invalid_custom_id", "custom_id", "1 to 512"),
        (broken(custom_id="first"), "duplicate_custom_id", "custom_id", '"first"'),
        (broken(method="GET"), "invalid_method", "method", 'given "GET"'),
        (broken(url="/v1/completions"), "invalid_url", "url", CHAT_URL),
        (broken(body=[]), "object_type", "body", "must be a JSON object"),
        (broken(body={"messages": []}), "too_short", "body.messages", "at least 1"),
        (
            broken(body={"model": MODEL, "messages": [{"role": "king", "content": "x"}]}),
            "message_role",
            "body.messages.0.role",
            "king",
        ),
        (chat_line("s", "x", stream=True), "streaming_not_supported", "body.stream", "no streams"),
        (chat_line("s", "x", model="nobody/knows"), "model_not_found", "body.model", "nobody"),
        (chat_line("s", "x", temperature=9), "out_of_range", "body.temperature", "given 9"),
    ],
)
async def test_a_bad_line_fails_the_batch_before_anything_runs(
    server: BatchServer, pool: EchoPool, line: object, code: str, param: str | None, said: str
) -> None:
    started = await server.start([chat_line("first", "hello"), b"", line])
    batch = await server.end_of(started.id)
    assert batch.status == "failed"
    (error,) = batch.errors.data
    assert (error.code, error.line, error.param) == (code, 3, param)
    assert said in error.message
    assert batch.failed_at is not None
    assert batch.output_file_id is None
    assert pool.requests == []


async def test_all_bad_lines_are_named_up_to_a_limit(server: BatchServer) -> None:
    started = await server.start([f"no json {n}".encode() for n in range(150)])
    batch = await server.end_of(started.id)
    assert [error.line for error in batch.errors.data] == list(range(1, 101))


async def test_a_file_is_for_one_model(server: BatchServer) -> None:
    line = chat_line("b", "x")
    del line["body"]["model"]  # type: ignore[attr-defined]
    started = await server.start([chat_line("a", "x"), line])
    (error,) = (await server.end_of(started.id)).errors.data
    assert (error.code, error.line) == ("mismatched_model", 2)


async def test_an_empty_file_fails(server: BatchServer) -> None:
    started = await server.start([b"", b"  "])
    (error,) = (await server.end_of(started.id)).errors.data
    assert (error.code, error.line) == ("empty_file", None)
