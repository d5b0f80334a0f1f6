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
from cluster.tenants.key_directory import KeyDirectory
from cluster.tenants.tenant_store import TenantStore


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
    """Who may come in, and for what."""

    keys: KeyDirectory
    store: TenantStore | None = None  # None: there is no Redis

    @classmethod
    def of(
        cls, config: ShoalConfig, redis: RedisClient | None = None, *, keys: ApiKeys | None = None
    ) -> Self:
        """`keys`: those of the configuration, where nothing else is said.

        Raises:
            ConfigError: a key is required and there is none.
        """
        configured = keys or ApiKeys.from_config(config.auth)
        store = None
        if redis is not None:
            names = [DEFAULT_TENANT, *(key.tenant for key in config.auth.api_keys)]
            store = TenantStore(redis, configured=names)
        return cls(keys=KeyDirectory(configured, config.tenants, store), store=store)
