"""OpenAI's `/files` through its SDK and by hand: forms in all their shapes, lists, isolation."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cluster.batch_config import BatchConfig
from cluster.types import BucketRef
from tests.deployments.batch_rig import OTHER_KEY, BatchServer, serving_batches
from tests.deployments.ingress.scripted_server import KEY
from tests.redis_server import RedisServer


@pytest.fixture
async def server(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[BatchServer]:
    batches = BatchConfig(max_file_bytes=100_000)
    async with serving_batches(redis_server.url, tmp_path, batches=batches) as running:
        yield running


async def objects_of(server: BatchServer, tenant: str = "default") -> list[str]:
    bucket = await server.files.bucket(tenant)
    return [info.key async for info in server.files.objects.list_objects(bucket)]


async def test_a_file_comes_back_as_it_was_sent(server: BatchServer) -> None:
    data = random.Random(1).randbytes(70_000)
    async with server.openai() as client:
        made = await client.files.create(file=("näme 1.jsonl", data), purpose="batch")
        assert made.id.startswith("file-")
        assert made.object == "file"
        assert made.bytes == len(data)
        assert made.filename == "näme 1.jsonl"
        assert made.status == "processed"
        assert made.expires_at is not None
        assert made.expires_at - made.created_at == 30 * 24 * 3600
        assert await client.files.retrieve(made.id) == made
        content = await client.files.content(made.id)
        assert content.content == data
        assert content.response.headers["content-length"] == str(len(data))
        stored = await server.files.get("default", made.id)
        assert stored.sha256 == hashlib.sha256(data).hexdigest()
        assert await server.files.total_bytes("default") == len(data)
        deleted = await client.files.delete(made.id)
        assert (deleted.id, deleted.deleted) == (made.id, True)
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError, match="There is no file"):
                await call(made.id)
    assert await objects_of(server) == []
    assert await server.files.total_bytes("default") == 0


async def test_an_empty_file_is_one(server: BatchServer) -> None:
    async with server.openai() as client:
        made = await client.files.create(file=("empty", b""), purpose="user_data")
        assert made.bytes == 0
        assert made.expires_at is None
        assert (await client.files.content(made.id)).content == b""


async def test_a_client_says_how_long_a_file_is_kept(server: BatchServer) -> None:
    async with server.openai() as client:
        made = await client.files.create(
            file=("a", b"x"),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 7200},
        )
        assert made.expires_at is not None
        assert made.expires_at - made.created_at == 7200
        with pytest.raises(openai.UnprocessableEntityError, match="3600, 2592000"):
            await client.files.create(
                file=("a", b"x"),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": 60},
            )
    assert len(await objects_of(server)) == 1


async def test_a_file_whose_time_is_over_is_gone_and_is_swept(server: BatchServer) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"x"

    written = await server.files.write("default", content())
    await server.files.add("default", written, filename="a", purpose="batch", expires_after_s=3600)
    key = server.redis.key("files", "{default}")
    await server.redis.execute("HSET", f"{key}:file:{written.file_id}", "expires_ms", 1)
    await server.redis.execute("ZADD", f"{key}:expiry", 1, written.file_id)
    async with server.openai() as client:
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(written.file_id)
        assert (await client.files.list()).data == []
    assert await server.files.sweep() == 1
    assert await objects_of(server) == []
    assert await server.redis.execute("KEYS", f"{key}*") in ([], [f"{key}:bytes".encode()])


async def test_lists_are_paged_ordered_and_filtered(server: BatchServer) -> None:
    async with server.openai() as client:
        purposes = ["batch", "user_data"] * 4
        made = [
            (await client.files.create(file=(f"{n}", b"x"), purpose=purpose)).id  # type: ignore[arg-type]
            for n, purpose in enumerate(purposes)
        ]
        newest = [file.id async for file in client.files.list(limit=3)]
        oldest = [file.id async for file in client.files.list(limit=3, order="asc")]
        assert newest == oldest[::-1]
        assert sorted(newest) == sorted(made)
        batch_files = [file.id async for file in client.files.list(limit=1, purpose="batch")]
        assert sorted(batch_files) == sorted(made[::2])
        page = await client.files.list(limit=8)
        assert page.has_more is False
        with pytest.raises(openai.BadRequestError, match="after"):
            await client.files.list(after="file-none")
        for wrong in ({"limit": 0}, {"limit": "x"}, {"order": "up"}, {"purpose": "x"}):
            with pytest.raises(openai.UnprocessableEntityError):
                await client.files.list(extra_query=wrong)


async def test_files_are_of_their_tenant(server: BatchServer) -> None:
    async with server.openai() as mine, server.openai(OTHER_KEY) as other:
        made = await mine.files.create(file=("a", b"x"), purpose="batch")
        for call in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                await call(made.id)
        assert (await other.files.list()).data == []
        assert (await mine.files.content(made.id)).content == b"x"


async def test_a_file_that_is_too_large_leaves_nothing(server: BatchServer) -> None:
    async with server.openai() as client:
        with pytest.raises(openai.APIStatusError, match="limit is 100000") as refused:
            await client.files.create(file=("a", b"x" * 100_001), purpose="batch")
        assert refused.value.status_code == 413
        await client.files.create(file=("a", b"x" * 100_000), purpose="batch")
    assert len(await objects_of(server)) == 1


async def test_a_form_that_is_too_large_is_refused(server: BatchServer) -> None:
    """Whatever it is made of, also where nothing says in the beginning how long it is."""

    async def many(data: bytes) -> AsyncIterator[bytes]:
        for _ in range(300):
            yield data

    for data in (form(PURPOSE)[:-8] * 10, b"a preamble" * 100):
        answer = await post(server, many(data))
        assert answer.status_code == 413, answer.text
        assert "the limit is 116384" in answer.text
    answer = await post(server, b"\r\n" * 60_000)
    assert answer.status_code == 413


def form(*parts: tuple[str, bytes], boundary: str = "b0") -> bytes:
    """Parts as their dispositions and contents."""
    written = b"".join(
        b"--%b\r\ncontent-disposition: form-data; %b\r\n\r\n%b\r\n"
        % (boundary.encode(), head.encode(), content)
        for head, content in parts
    )
    return written + b"--%b--\r\n" % boundary.encode()


PURPOSE = ('name="purpose"', b"batch")
FILE = ('name="file"; filename="a"', b"hello")


async def post(server: BatchServer, body: Any, boundary: str = "b0") -> httpx.Response:
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    async with server.http() as client:
        return await client.post("/v1/files", content=body, headers=headers)


@pytest.mark.parametrize(
    "body",
    [
        form(PURPOSE, FILE),
        form(FILE, PURPOSE),  # the file first
        b"a preamble\r\n" + form(PURPOSE, FILE) + b"an epilogue",
        form(PURPOSE, FILE).replace(b"--b0\r\n", b"--b0  \r\n"),  # padding
        form(PURPOSE, FILE).replace(b"content-disp", b"Content-Type: x/y\r\nCONTENT-DISP"),
    ],
)
async def test_forms_are_read_as_the_rfc_has_them(server: BatchServer, body: bytes) -> None:
    answer = await post(server, body)
    assert answer.status_code == 200, answer.text
    async with server.http() as client:
        content = await client.get(f"/v1/files/{answer.json()['id']}/content")
    assert content.content == b"hello"


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 64])
async def test_a_form_may_come_in_any_pieces(server: BatchServer, piece_bytes: int) -> None:
    data = b"\r\n--b\r\n--b1\r\n--\r--b0\n\r\n-" * 7  # almost the boundary, again and again
    body = form(PURPOSE, ('name="file"; filename="a"', data))

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), piece_bytes):
            yield body[start : start + piece_bytes]

    answer = await post(server, pieces())
    assert answer.status_code == 200, answer.text
    assert (await server.files.get("default", answer.json()["id"])).num_bytes == len(data)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (form(PURPOSE), 422, "file: is required"),
        (form(FILE), 422, "purpose: is required"),
        (form(FILE, ('name="purpose"', b"dreams")), 422, "purpose: must be 'batch'"),
        (form(PURPOSE, FILE, FILE), 422, "file: must be one file"),
        (form(PURPOSE, ('name="file"', b"x")), 422, "file: must be one file"),
        (form(PURPOSE, FILE, ('name="more"', b"x")), 422, "more: is not a field"),
        (form(PURPOSE, FILE, ("no-name", b"x")), 400, "a part has no name"),
        (form(FILE, ('name="purpose"', b"x" * 2000)), 400, "at most 1024 bytes"),
        (form(FILE, ('name="purpose"', b"\xff")), 400, "must be UTF-8"),
        (form(PURPOSE, FILE)[:-8], 400, "ends before its last boundary"),
        (b"", 400, "ends before its last boundary"),
        (form(FILE, (f'name="{"x" * 9000}"', b"")), 400, "too long"),
        (form(FILE, ('name="expires_after[anchor]"', b"now"), PURPOSE), 422, "created_at"),
    ],
)
async def test_what_is_no_upload_is_refused_and_leaves_nothing(
    server: BatchServer, body: bytes, status: int, said: str
) -> None:
    answer = await post(server, body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]["message"]
    assert await objects_of(server) == []


async def test_a_body_that_is_no_form_is_refused(server: BatchServer) -> None:
    async with server.http() as client:
        answer = await client.post("/v1/files", json={"purpose": "batch"})
        assert answer.status_code == 415
        assert "multipart/form-data" in answer.text
        answer = await client.post(
            "/v1/files", content=b"x", headers={"content-type": "multipart/form-data"}
        )
        assert answer.status_code == 415


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(server: BatchServer) -> None:
    body = form(FILE, PURPOSE)
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: multipart/form-data; boundary=b0\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head.encode() + body[:-30])
    await writer.drain()
    async with asyncio.timeout(120):
        while True:  # until the file is stored
            if await objects_of(server):
                break
            await asyncio.sleep(0.01)
    writer.close()
    async with asyncio.timeout(120):
        while True:
            if not await objects_of(server):
                break
            await asyncio.sleep(0.01)
    async with server.openai() as client:
        assert (await client.files.list()).data == []


async def test_files_are_in_no_bucket_that_has_a_name(server: BatchServer, tmp_path: Path) -> None:
    async with server.openai() as client:
        made = await client.files.create(file=("a", b"x"), purpose="batch")
    path = tmp_path / "storage" / ".files" / "default" / "files" / "files" / made.id
    assert path.read_bytes() == b"x"
    assert not await server.files.objects.bucket_exists(BucketRef("default", ".files"))
