"""What the ingress reaches beside the models' pools: retrieval, batches, tenants."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from cluster.api_keys import ApiKeys
from cluster.batch_tasks import BatchTasks
from cluster.bucket_tasks import BucketTasks
from cluster.chunk_store import ChunkStore
from cluster.config import DEFAULT_TENANT, ShoalConfig
from cluster.file_store import FileStore
from cluster.object_store import ObjectStore
from cluster.redis_client import RedisClient
from cluster.retrieval import Embedder, Retriever
from cluster.storage.folder_store import FolderStore
from cluster.tenants.key_directory import KeyDirectory
from cluster.tenants.limiter import TenantLimiter
from cluster.tenants.storage_quota import StorageQuota
from cluster.tenants.tenant_store import TenantStore
from cluster.tenants.usage import UsageRecorder, UsageStore
from deployments.ingress.metering import Metering


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalServices:
    """Where retrieval is switched on, all of it is there."""

    embedders: Mapping[str, Embedder]  # by model name, the default one first
    retriever: Retriever
    chunks: ChunkStore
    tasks: BucketTasks
    objects: ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchServices:
    """Files, and the batches that are made of them."""

    files: FileStore
    tasks: BatchTasks


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantServices:
    """Who may come in, for what, and what of it was used."""

    keys: KeyDirectory
    metering: Metering
    store: TenantStore | None = None  # None: there is no Redis
    usage: UsageStore | None = None  # the same
    redis: RedisClient | None = None  # the same

    @classmethod
    def of(
        cls, config: ShoalConfig, redis: RedisClient | None = None, *, keys: ApiKeys | None = None
    ) -> Self:
        """`keys`: those of the configuration, where nothing else is said.

        Raises:
            ConfigError: a key is required and there is none.
        """
        configured = keys or ApiKeys.from_config(config.auth)
        if redis is None:
            keys_alone = KeyDirectory(configured, config.tenants)
            return cls(keys=keys_alone, metering=Metering(keys_alone, None, None))
        names = [DEFAULT_TENANT, *(key.tenant for key in config.auth.api_keys)]
        store = TenantStore(redis, configured=names)
        directory = KeyDirectory(configured, config.tenants, store)
        limiter = TenantLimiter(redis, grace_s=config.tenants.redis_grace_s)
        recorder = UsageRecorder(redis, retention_days=config.tenants.usage_retention_days)
        return cls(
            keys=directory,
            metering=Metering(directory, limiter, recorder),
            store=store,
            usage=UsageStore(redis),
            redis=redis,
        )


def storage_quota(
    tenants: TenantServices, retrieval: RetrievalServices | None, batches: BatchServices | None
) -> StorageQuota:
    """Of buckets in our folder and of files; buckets at an S3 endpoint are not ours to count."""

    async def measure(tenant: str) -> int:
        num_bytes = 0 if batches is None else await batches.files.total_bytes(tenant)
        if retrieval is not None and isinstance(retrieval.objects, FolderStore):
            num_bytes += await retrieval.objects.stored_bytes(tenant)
        return num_bytes

    return StorageQuota(
        tenants.redis,
        limit_of=lambda tenant: tenants.keys.limits(tenant).stored_bytes,
        measure=measure,
    )
