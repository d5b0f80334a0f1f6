"""Buckets, tasks and searches through the official SDK, over a socket, with everything real."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
import telnyx
from botocore.config import Config
from telnyx import AsyncTelnyx

from cluster.bucket_tasks import EmbedBucket
from cluster.config import RedisConfig
from cluster.errors import ServiceUnavailableError
from cluster.redis_client import RedisClient
from models.embedding.text_embedder import TextEmbedder
from tests.deployments.ingress.bucket_server import (
    EMBED_MODEL,
    OTHER_KEY,
    BucketServer,
    load_demo_embedder,
    serving_buckets,
)
from tests.deployments.ingress.scripted_server import KEY
from tests.redis_server import RedisServer, impatient

HANDBOOK = {
    "warranty": "# Warranty\n\nThe Zorblax 9 has a warranty of 31 months.",
    "lunch": "# Lunch\n\nThe canteen opens at noon and serves soup on Mondays.",
    "travel": "# Travel\n\nTrain tickets are booked by the office two weeks ahead.",
}


@pytest.fixture(scope="module")
def demo_embedder() -> TextEmbedder:
    return load_demo_embedder()


@pytest.fixture
async def server(
    checkpoint: Path, tmp_path: Path, redis_server: RedisServer, demo_embedder: TextEmbedder
) -> AsyncIterator[BucketServer]:
    async with serving_buckets(checkpoint, tmp_path, redis_server.url, demo_embedder) as running:
        yield running


@pytest.fixture
async def client(server: BucketServer) -> AsyncIterator[AsyncTelnyx]:
    async with server.telnyx() as opened:
        yield opened


async def eventually(is_so: Callable[[], Awaitable[bool]]) -> None:
    """For what nobody announces."""
    async with asyncio.timeout(120):
        while True:
            if await is_so():
                return
            await asyncio.sleep(0.05)


async def test_a_bucket_is_embedded_searched_listed_and_deleted(
    server: BucketServer, client: AsyncTelnyx
) -> None:
    await server.make(**HANDBOOK)
    made = await client.ai.embeddings.create(bucket_name="handbook")
    assert made.data.status == "queued"
    assert made.data.finished_at is None
    assert uuid.UUID(made.data.task_id)
    assert uuid.UUID(made.data.user_id)
    assert datetime.fromisoformat(str(made.data.created_at))
    done = await server.end_of(str(made.data.task_id))
    assert (done.status, done.task_name) == ("success", "embed_bucket")
    assert datetime.fromisoformat(done.finished_at)
    assert done.progress == {"num_files": 3, "num_done": 3, "num_failed": 0, "message": ""}

    assert (await client.ai.embeddings.buckets.list()).data.buckets == ["handbook"]
    files = (await client.ai.embeddings.buckets.retrieve("handbook")).data
    assert [file.filename for file in files] == ["lunch.md", "travel.md", "warranty.md"]
    assert {file.status for file in files} == {"success"}
    assert all(isinstance(file.last_embedded_at, datetime) for file in files)

    found = await client.ai.embeddings.similarity_search(
        bucket_name="handbook", query="How long is the warranty of the Zorblax?"
    )
    assert len(found.data) == 3
    best = found.data[0]
    assert "31 months" in best.document_chunk
    assert best.metadata.filename == "warranty.md"
    assert best.metadata.embedding == EMBED_MODEL
    assert best.metadata.source.endswith("/handbook/warranty.md")
    assert best.metadata.certainty == pytest.approx(1 - best.distance / 2)
    assert len(best.metadata.checksum) == 32
    assert [d.distance for d in found.data] == sorted(d.distance for d in found.data)

    await client.ai.embeddings.buckets.delete("handbook")
    assert (await client.ai.embeddings.buckets.list()).data.buckets == []
    with pytest.raises(telnyx.NotFoundError):
        await client.ai.embeddings.similarity_search(bucket_name="handbook", query="warranty")


async def test_the_number_of_results_has_two_names(
    server: BucketServer, client: AsyncTelnyx
) -> None:
    await server.make(**HANDBOOK)
    await server.embed()
    search = client.ai.embeddings.similarity_search
    one = await search(bucket_name="handbook", query="soup", num_of_docs=1)
    assert [found.metadata.filename for found in one.data] == ["lunch.md"]
    two = await search(bucket_name="handbook", query="soup", extra_body={"num_docs": 2})
    assert len(two.data) == 2
    for body in ({"num_docs": 2, "num_of_docs": 3}, {"num_docs": 0}, {"num_of_docs": 101}):
        with pytest.raises(telnyx.UnprocessableEntityError):
            await search(bucket_name="handbook", query="soup", extra_body=body)


async def test_what_is_wrong_with_a_request_is_named(
    server: BucketServer, client: AsyncTelnyx
) -> None:
    await server.make(**HANDBOOK)
    create = client.ai.embeddings.create
    wrong: list[tuple[dict[str, Any], str, str]] = [
        ({"embedding_model": "thenlper/gte-large"}, "embedding_model", EMBED_MODEL),
        ({"document_chunk_size": 100, "document_chunk_overlap_size": 100},
         "document_chunk_overlap_size", "less than document_chunk_size (100); given 100"),
        ({"document_chunk_size": 8}, "document_chunk_size", "[16, 8192]; given 8"),
        ({"loader": "magic"}, "loader", "'default' or 'intercom'"),
        ({"extra_body": {"chunk": 1}}, "chunk", "not a field"),
    ]  # fmt: skip
    for fields, name, message in wrong:
        with pytest.raises(telnyx.UnprocessableEntityError) as caught:
            await create(bucket_name="handbook", **fields)
        (problem,) = caught.value.body["detail"]  # type: ignore[index]
        assert problem["loc"] == ["body", name]
        assert message in problem["msg"]
    with pytest.raises(telnyx.NotFoundError) as missing:
        await create(bucket_name="no-such-bucket")
    (item,) = missing.value.body["errors"]  # type: ignore[index]
    assert (item["code"], item["source"]["pointer"]) == ("10005", "/bucket_name")
    assert "'no-such-bucket'" in item["detail"]
    for url in ("ftp://example.com", "example.com", "http://", "http://x:99999"):
        with pytest.raises(telnyx.UnprocessableEntityError) as caught:
            await client.ai.embeddings.url(bucket_name="handbook", url=url)
        assert caught.value.body["detail"][0]["loc"] == ["body", "url"]  # type: ignore[index]


async def test_what_was_never_embedded_is_a_404_everywhere(
    server: BucketServer, client: AsyncTelnyx
) -> None:
    await server.make(**HANDBOOK)
    embeddings = client.ai.embeddings
    for ask in (
        embeddings.buckets.retrieve("handbook"),
        embeddings.similarity_search(bucket_name="handbook", query="soup"),
        embeddings.retrieve(str(uuid.uuid4())),
        embeddings.retrieve("no-uuid"),
    ):
        with pytest.raises(telnyx.NotFoundError) as caught:
            await ask
        assert caught.value.body["errors"][0]["code"] == "10005"  # type: ignore[index]
    with pytest.raises(telnyx.NotFoundError) as hybrid:
        await embeddings.buckets.delete("handbook")
    (item,) = hybrid.value.body["detail"]  # type: ignore[index]
    assert item == {
        "code": "10005",
        "title": "Resource not found",
        "detail": "The bucket 'handbook' has no embeddings.",
    }


async def test_tasks_are_listed_by_status(server: BucketServer, client: AsyncTelnyx) -> None:
    await server.make(good="text")
    await server.make("empty-files", nothing="")
    await server.make("mixed", good="text", nothing="")
    ends = [await server.embed(name) for name in ("handbook", "empty-files", "mixed")]
    assert [task.status for task in ends] == ["success", "failure", "partial_success"]
    server.embedder.gate = asyncio.Event()
    await server.make(more="text")
    running = await client.ai.embeddings.create(bucket_name="handbook")
    waiting = await client.ai.embeddings.create(bucket_name="handbook", document_chunk_size=32)

    async def listed(**query: Any) -> list[str]:
        answer = await client.ai.embeddings.list(**query)
        return [task.task_id for task in answer.data]

    async def is_running() -> bool:
        task = await client.ai.embeddings.retrieve(str(running.data.task_id))
        return task.data.status == "processing"

    await eventually(is_running)
    assert await listed() == [waiting.data.task_id, running.data.task_id]
    assert await listed(status=["queued"]) == [waiting.data.task_id]
    assert await listed(status=["processing"]) == [running.data.task_id]
    assert await listed(status=["failed"]) == [ends[1].task_id]
    assert await listed(status=["success", "partial_success"]) == [ends[2].task_id, ends[0].task_id]
    async with server.http() as http:
        path = "/v2/ai/embeddings"
        repeated = await http.get(path, params=[("status", "success"), ("status", "failure")])
        assert [t["task_id"] for t in repeated.json()["data"]] == [ends[1].task_id, ends[0].task_id]
        paged = await http.get(
            path, params={"status": "success,failure", "page[size]": 1, "page[number]": 2}
        )
        assert [t["task_id"] for t in paged.json()["data"]] == [ends[0].task_id]
        assert paged.json()["meta"] == {
            "page_number": 2,
            "page_size": 1,
            "total_pages": 2,
            "total_results": 2,
        }
        for query, name in (("status=done", "status"), ("page[size]=0", "page[size]")):
            refused = await http.get(f"{path}?{query}")
            assert refused.status_code == 422
            assert refused.json()["detail"][0]["loc"] == ["query", name]
    server.embedder.gate.set()
    for made in (running, waiting):
        assert (await server.end_of(str(made.data.task_id))).status == "success"


async def test_files_say_why_they_failed(server: BucketServer, client: AsyncTelnyx) -> None:
    await server.make(good="text", nothing="")
    task = await server.embed()
    assert task.status == "partial_success"
    assert task.error_reason.startswith("1 of 2 files could not be embedded")
    good, nothing = (await client.ai.embeddings.buckets.retrieve("handbook")).data
    assert (good.status, good.error_reason) == ("success", None)
    assert (nothing.status, nothing.last_embedded_at) == ("failure", None)
    assert nothing.error_reason


async def test_the_same_idempotency_key_is_the_same_task(
    server: BucketServer, client: AsyncTelnyx
) -> None:
    await server.make(**HANDBOOK)
    create = client.ai.embeddings.create
    first = await create(bucket_name="handbook", idempotency_key="k1")
    await server.end_of(str(first.data.task_id))
    again = await create(bucket_name="handbook", idempotency_key="k1")
    assert again.data.task_id == first.data.task_id
    assert (await create(bucket_name="handbook", idempotency_key="k2")).data.task_id != (
        first.data.task_id
    )
    with pytest.raises(telnyx.UnprocessableEntityError) as caught:
        await create(bucket_name="handbook", document_chunk_size=32, idempotency_key="k1")
    problem = caught.value.body["detail"][0]  # type: ignore[index]
    assert problem["loc"] == ["header", "Idempotency-Key"]
    with pytest.raises(telnyx.UnprocessableEntityError):
        await create(bucket_name="handbook", idempotency_key="k" * 256)


async def test_openais_client_on_telnyx_base_url_gets_embeddings(server: BucketServer) -> None:
    await server.make(**HANDBOOK)
    async with server.openai() as client:
        answer = await client.embeddings.create(model=EMBED_MODEL, input=["soup", "train"])
    assert [len(item.embedding) for item in answer.data] == [384, 384]
    async with server.http() as http:
        both = {"input": "soup", "bucket_name": "handbook"}
        refused = await http.post("/v2/ai/embeddings", json=both)
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "input"]


async def test_tenants_see_nothing_of_each_other(server: BucketServer, client: AsyncTelnyx) -> None:
    await server.make(**HANDBOOK)
    await server.make("theirs", tenant="other", secret="The vault opens with 4711.")
    ours = await server.embed()
    theirs = await server.embed("theirs", OTHER_KEY)
    async with server.telnyx(OTHER_KEY) as stranger:
        embeddings = stranger.ai.embeddings
        assert (await embeddings.buckets.list()).data.buckets == ["theirs"]
        every = ["queued", "processing", "success", "partial_success", "failure"]
        assert [t.task_id for t in (await embeddings.list(status=every)).data] == [theirs.task_id]
        for ask in (
            embeddings.create(bucket_name="handbook"),
            embeddings.url(bucket_name="handbook", url="https://example.com"),
            embeddings.retrieve(ours.task_id),
            embeddings.buckets.retrieve("handbook"),
            embeddings.buckets.delete("handbook"),
            embeddings.similarity_search(bucket_name="handbook", query="soup"),
        ):
            with pytest.raises(telnyx.NotFoundError):
                await ask
    assert (await client.ai.embeddings.buckets.list()).data.buckets == ["handbook"]
    assert (await client.ai.embeddings.retrieve(ours.task_id)).data.status == "success"


async def test_the_same_names_and_keys_of_two_tenants_do_not_meet(server: BucketServer) -> None:
    await server.make(note="The password of the sea is salt.")
    await server.make(tenant="other", note="The password of the wood is moss.")
    await server.embed(idempotency_key="k")
    await server.embed(key=OTHER_KEY, idempotency_key="k")
    for key, word in ((KEY, "salt"), (OTHER_KEY, "moss")):
        async with server.telnyx(key) as tenant:
            found = await tenant.ai.embeddings.similarity_search(
                bucket_name="handbook", query="password", num_of_docs=10
            )
        assert [word in item.document_chunk for item in found.data] == [True]


async def test_without_a_key_nothing_is_answered(server: BucketServer) -> None:
    async with server.http(None) as http:
        for method, path in (
            ("POST", ""),
            ("GET", ""),
            ("GET", f"/{uuid.uuid4()}"),
            ("POST", "/url"),
            ("POST", "/similarity-search"),
            ("GET", "/buckets"),
            ("GET", "/buckets/handbook"),
            ("DELETE", "/buckets/handbook"),
        ):
            assert (await http.request(method, f"/v2/ai/embeddings{path}")).status_code == 401


async def test_a_deletion_ends_the_tasks_of_the_bucket(
    server: BucketServer, client: AsyncTelnyx
) -> None:
    await server.make(**HANDBOOK)
    server.embedder.gate = asyncio.Event()
    running = await client.ai.embeddings.create(bucket_name="handbook")

    async def has_files() -> bool:
        async with server.http() as http:
            return (await http.get("/v2/ai/embeddings/buckets/handbook")).status_code == 200

    await eventually(has_files)
    await client.ai.embeddings.buckets.delete("handbook")
    server.embedder.gate.set()
    ended = await server.end_of(str(running.data.task_id))
    assert (ended.status, ended.error_reason) == ("failure", "it was cancelled")
    assert (await client.ai.embeddings.buckets.list()).data.buckets == []
    assert (await server.embed()).status == "success"  # the objects are still there


async def test_objects_put_and_deleted_over_s3_are_followed(
    server: BucketServer, client: AsyncTelnyx
) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=f"{server.url}/v2/storage/s3",
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=KEY,
        config=Config(s3={"addressing_style": "path"}),
    )
    await asyncio.to_thread(s3.create_bucket, Bucket="handbook")
    for name, text in HANDBOOK.items():
        await asyncio.to_thread(
            s3.put_object, Bucket="handbook", Key=f"{name}.md", Body=text.encode()
        )
    await server.embed()
    search = client.ai.embeddings.similarity_search

    async def finds(filename: str) -> bool:
        found = await search(bucket_name="handbook", query="penguins", num_of_docs=10)
        return filename in [item.metadata.filename for item in found.data]

    body = b"Penguins may be fed on Fridays."
    await asyncio.to_thread(s3.put_object, Bucket="handbook", Key="penguins.txt", Body=body)
    await eventually(lambda: finds("penguins.txt"))
    await asyncio.to_thread(s3.delete_object, Bucket="handbook", Key="penguins.txt")

    async def is_gone() -> bool:
        return not await finds("penguins.txt")

    await eventually(is_gone)
    listed = (await client.ai.embeddings.list(status=["success"])).data
    assert [task.task_name for task in listed] == ["embed_bucket"]  # not what comes by itself


async def test_redis_away_is_a_503_within_two_seconds_and_then_all_is_well(
    checkpoint: Path,
    tmp_path: Path,
    breakable_redis_server: RedisServer,
    demo_embedder: TextEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request waits for one command at most, and a command has less than two seconds."""
    assert RedisConfig().timeout_s < 2
    silences: list[object] = []
    silent = RedisClient._silent

    def noted(self: RedisClient, what: str, error: Exception) -> ServiceUnavailableError:
        silences.append(what)
        return silent(self, what, error)

    monkeypatch.setattr(RedisClient, "_silent", noted)
    redis = breakable_redis_server
    async with serving_buckets(checkpoint, tmp_path, redis.url, demo_embedder) as server:
        await server.make(**HANDBOOK)
        assert (await server.embed()).status == "success"
        requests: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", "", {"json": {"bucket_name": "handbook"}}),
            ("GET", "", {}),
            ("GET", f"/{uuid.uuid4()}", {}),
            ("GET", "/buckets", {}),
            ("GET", "/buckets/handbook", {}),
            ("DELETE", "/buckets/handbook", {}),
            ("POST", "/similarity-search", {"json": {"bucket_name": "handbook", "query": "soup"}}),
        ]
        async with server.http() as http:
            for break_it, mend_it in ((redis.freeze, redis.thaw), (redis.kill, redis.start)):
                break_it()
                with impatient(server.queue.redis, 0.5):
                    for method, path, body in requests:
                        silences.clear()
                        answer = await http.request(method, f"/v2/ai/embeddings{path}", **body)
                        assert answer.status_code == 503, (method, path)
                        assert int(answer.headers["retry-after"]) >= 1
                        assert len(silences) <= 1, (method, path)
                mend_it()
                assert (await http.get("/v2/ai/embeddings/buckets")).status_code == 200
        assert (await server.embed(document_chunk_size=64)).status == "success"


async def test_a_task_body_does_not_forget_its_settings(
    server: BucketServer, client: AsyncTelnyx
) -> None:
    await server.make(**HANDBOOK)
    made = await client.ai.embeddings.create(bucket_name="handbook", document_chunk_size=200)
    record = await server.tasks.get("default", str(made.data.task_id))
    assert record.decode_body(EmbedBucket) == EmbedBucket(
        bucket_name="handbook",
        embedding_model=EMBED_MODEL,
        chunk_size=200,
        chunk_overlap=100,
        loader="default",
    )
    await server.end_of(record.task_id)
