"""A tenant at its limit of stored bytes, through the S3 face and `/files`."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import openai
import pytest
from starlette.routing import Route, Router

from cluster.api_keys import ApiKeys, hash_key
from cluster.batch_config import BatchConfig
from cluster.config import ApiKeyConfig, RedisConfig, StorageConfig
from cluster.file_store import FileStore, open_file_objects
from cluster.redis_client import connect
from cluster.storage.folder_store import FolderStore
from cluster.telemetry import Telemetry
from cluster.tenant_config import TenantsConfig
from cluster.tenants.key_directory import KeyDirectory
from cluster.tenants.storage_quota import StorageQuota
from cluster.types import BucketRef
from deployments.ingress import operations
from deployments.ingress.app import Authentication, ErrorBoundary, StorageFront
from deployments.ingress.file_routes import file_endpoints
from deployments.ingress.s3.face import S3Face
from tests.deployments.ingress.scripted_server import KEY, listening

LIMIT = 1000
BUCKET = "/v2/storage/s3/docs"


@pytest.fixture
async def url(redis_config: RedisConfig, tmp_path: Path) -> AsyncIterator[str]:
    keys = KeyDirectory(ApiKeys([ApiKeyConfig(name="test", sha256=hash_key(KEY))]), TenantsConfig())
    buckets = FolderStore(tmp_path / "storage")
    objects = open_file_objects(StorageConfig(), BatchConfig(), tmp_path)

    async def on_change(ref: BucketRef) -> None:
        pass

    async with connect(redis_config) as redis:
        files = FileStore(redis, objects, max_bytes=10**6)

        async def measure(tenant: str) -> int:
            return await files.total_bytes(tenant) + await buckets.stored_bytes(tenant)

        quota = StorageQuota(redis, limit_of=lambda _: LIMIT, measure=measure)
        endpoints = file_endpoints(files, batch_retention_s=3600, quota=quota)
        routes = [
            Route(path, endpoint, methods=[operation.method])
            for operation, endpoint in endpoints.items()
            for path in operation.paths
            if operation in (operations.UPLOAD_FILE, operations.DELETE_FILE)
        ]
        face = S3Face(buckets, keys, on_change=on_change, quota=quota)
        app = StorageFront(Authentication(Router(routes), keys), face)
        async with listening(ErrorBoundary(app, Telemetry())) as port:
            yield f"http://127.0.0.1:{port}"
    await buckets.close()
    await objects.close()


async def test_buckets_and_files_share_the_limit(url: str) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    async with (
        httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as s3,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        await s3.put(BUCKET)
        assert (await s3.put(f"{BUCKET}/a", content=bytes(600))).status_code == 200
        refused = await s3.put(f"{BUCKET}/b", content=bytes(500))
        assert refused.status_code == 403
        assert "<Code>QuotaExceeded</Code>" in refused.text
        # Its bytes come without a length, in a form.
        with pytest.raises(openai.PermissionDeniedError, match="at most 1000 bytes") as caught:
            await client.files.create(file=("f", bytes(401)), purpose="user_data")
        assert caught.value.code == "storage_limit_exceeded"
        file = await client.files.create(file=("f", bytes(400)), purpose="user_data")
        assert (await s3.put(f"{BUCKET}/c", content=b"x")).status_code == 403
        assert (await s3.put(f"{BUCKET}/a", content=bytes(600))).status_code == 403
        assert (await s3.delete(f"{BUCKET}/a")).status_code == 204
        assert (await s3.put(f"{BUCKET}/c", content=bytes(600))).status_code == 200
        await client.files.delete(file.id)
        begun = await s3.post(f"{BUCKET}/d?uploads")
        upload_id = begun.text.split("<UploadId>")[1].split("<")[0]
        part = f"{BUCKET}/d?partNumber=1&uploadId={upload_id}"
        assert (await s3.put(part, content=bytes(300))).status_code == 200  # beside its facts
        assert (await s3.put(f"{BUCKET}/e", content=bytes(200))).status_code == 403
        await s3.delete(f"{BUCKET}/d?uploadId={upload_id}")
        assert (await s3.put(f"{BUCKET}/e", content=bytes(400))).status_code == 200
