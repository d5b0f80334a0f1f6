"""Websites that become objects of a bucket, through the official SDK, with a real site to crawl."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import telnyx

from cluster.types import BucketRef
from models.embedding.text_embedder import TextEmbedder
from tests.deployments.crawler.site_server import Answer, Site, page, running
from tests.deployments.ingress.bucket_server import (
    BucketServer,
    load_demo_embedder,
    serving_buckets,
)
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def demo_embedder() -> TextEmbedder:
    return load_demo_embedder()


@pytest.fixture
async def server(
    checkpoint: Path, tmp_path: Path, redis_server: RedisServer, demo_embedder: TextEmbedder
) -> AsyncIterator[BucketServer]:
    async with serving_buckets(checkpoint, tmp_path, redis_server.url, demo_embedder) as started:
        yield started


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running(Site()) as started:
        yield started


async def test_a_website_is_stored_embedded_and_found(server: BucketServer, site: Site) -> None:
    site.answers |= {
        "/": page("/warranty", "/lunch", "https://elsewhere.example/", text="Welcome."),
        "/warranty": page("/lunch", text="The Zorblax 9 has a warranty of 31 months."),
        "/lunch": page(text="The canteen serves soup on Mondays."),
    }
    await server.make()
    async with server.telnyx() as client:
        made = await client.ai.embeddings.url(bucket_name="handbook", url=site.url)
        assert (made.data.status, made.data.task_name) == ("queued", "embed_website")
        done = await server.end_of(str(made.data.task_id))
        assert (done.status, done.progress["num_files"]) == ("success", 3)
        found = await client.ai.embeddings.similarity_search(
            bucket_name="handbook", query="How long is the warranty?", num_of_docs=1
        )
        assert "31 months" in found.data[0].document_chunk
        assert "warranty" in found.data[0].metadata.filename
        listed = await client.ai.embeddings.list(status=["success"])
        assert [task.task_id for task in listed.data] == [made.data.task_id]
    bucket = BucketRef("default", "handbook")
    keys = [info.key async for info in server.objects.list_objects(bucket)]
    assert len(keys) == 3
    assert all(key.startswith(f"127.0.0.1-{site.port}/") for key in keys)


async def test_pages_that_fail_are_told_and_do_not_end_the_crawl(
    server: BucketServer, site: Site
) -> None:
    site.answers |= {"/": page("/good", "/gone"), "/good": page(text="Good.")}
    await server.make()
    async with server.telnyx() as client:
        made = await client.ai.embeddings.url(bucket_name="handbook", url=site.url)
    done = await server.end_of(str(made.data.task_id))
    assert done.status == "partial_success"
    assert f"{site.url}/gone" in done.error_reason
    assert "404" in done.error_reason


async def test_the_second_crawl_reads_only_what_has_changed_with_the_buckets_settings(
    server: BucketServer, site: Site
) -> None:
    site.answers |= {"/": page("/a", "/b"), "/a": page(text="One."), "/b": page(text="Two.")}
    await server.make()
    await server.embed(document_chunk_size=64)
    async with server.telnyx() as client:
        for _ in range(2):
            made = await client.ai.embeddings.url(bucket_name="handbook", url=site.url)
            assert (await server.end_of(str(made.data.task_id))).status == "success"
            site.answers["/b"] = page(text="Three.")
        found = await client.ai.embeddings.similarity_search(
            bucket_name="handbook", query="numbers", num_of_docs=10
        )
    texts = {item.document_chunk.split("\n")[0] for item in found.data}
    assert any("Three." in text for text in texts)
    assert not any("Two." in text for text in texts)
    meta = await server.chunks.meta(BucketRef("default", "handbook"))
    assert meta is not None
    assert meta.chunk_size == 64


async def test_a_site_that_cannot_be_had_is_a_failure_that_says_why(
    server: BucketServer, site: Site
) -> None:
    site.answers["/"] = Answer(b"no", 500)
    await server.make()
    async with server.telnyx() as client:
        made = await client.ai.embeddings.url(bucket_name="handbook", url=site.url)
        failed = await server.end_of(str(made.data.task_id))
        assert failed.status == "failure"
        assert "500" in failed.error_reason
        private = await client.ai.embeddings.url(bucket_name="handbook", url="http://10.0.0.1/")
        refused = await server.end_of(str(private.data.task_id))
        assert refused.status == "failure"
        assert "10.0.0.1" in refused.error_reason
        assert (await client.ai.embeddings.buckets.list()).data.buckets == []


async def test_the_bucket_must_exist(server: BucketServer) -> None:
    async with server.telnyx() as client:
        with pytest.raises(telnyx.NotFoundError, match="no-such-bucket"):
            await client.ai.embeddings.url(bucket_name="no-such-bucket", url="https://example.com")
