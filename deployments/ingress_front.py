"""All that an ingress serves by one configuration: its pools, what it reaches, and the ASGI app.

When the configuration changes, the next front takes over what stays the same from the one before.
"""

from typing import Self

from starlette.types import ASGIApp

from cluster.batch_tasks import BatchTasks
from cluster.bucket_tasks import BucketTasks
from cluster.chunk_store import ChunkStore
from cluster.config import ShoalConfig, shoal_home
from cluster.file_store import FileStore, open_file_objects
from cluster.integration_secrets import IntegrationSecrets
from cluster.object_store import open_object_store
from cluster.redis_client import RedisClient, connect
from cluster.secret_box import SecretBox
from cluster.secret_keys import SecretKeys
from cluster.task_queue.queue import TaskQueue
from cluster.telemetry import Telemetry
from deployments.cluster_view import cluster_view
from deployments.deployment_names import (
    RETRIEVAL_NAME,
    deployment_name,
    embedder_deployment_name,
)
from deployments.embedder_handle import ServeEmbedder
from deployments.ingress.app import build_asgi_app
from deployments.ingress.services import BatchServices, RetrievalServices, TenantServices
from deployments.model_pools import ModelPools
from deployments.retriever_handle import ServeRetriever
from deployments.sealed_config import IngressOrder
from deployments.serve_private import application_name, handle_of
from deployments.startup_error import StartupError


class IngressFront:
    """Made by `open`; replaced as a whole."""

    app: ASGIApp

    def __init__(
        self, order: IngressOrder, *, secret: bytes, previous: "IngressFront | None"
    ) -> None:
        """
        Raises:
            ValueError: something of the configuration cannot be used.
        """
        config = self.config = order.config
        self.order = order
        #: What is taken over by it stays open when this one is closed.
        self.successor: IngressFront | None = None
        self._redis: RedisClient | None = None
        self._secrets: IntegrationSecrets | None = None
        self._services: RetrievalServices | None = None
        self._batches: BatchServices | None = None
        if config.redis.url is not None:
            self._redis = connect(config.redis)
            box = SecretBox(SecretKeys.load(shoal_home()))
            self._secrets = IntegrationSecrets(self._redis, box)
        if config.embedders:
            assert self._redis is not None, "the launcher fills the URL in"
            self._services = _open_services(config, self._redis)
            self._batches = _open_batches(config, self._redis)
        self._pools: ModelPools = ModelPools(
            config,
            {model.name: handle_of(deployment_name(model.name)) for model in config.models},
            secret=secret,
            versions=order.model_versions,
            previous=None if previous is None else previous._pools,
        )

    @classmethod
    async def open(
        cls,
        order: IngressOrder,
        *,
        secret: bytes,
        telemetry: Telemetry,
        previous: "IngressFront | None",
    ) -> Self:
        """Wait for a replica of every model.

        Raises:
            StartupError: in one readable message, why this configuration cannot be served.
            ServiceUnavailableError: the replicas of a model cannot be started.
        """
        try:
            front = cls(order, secret=secret, previous=previous)
        except ValueError as error:
            raise StartupError(str(error)) from error
        try:
            served = await front._pools.start()
            front._pools.watch(telemetry)
            front.app = build_asgi_app(
                order.config,
                served,
                TenantServices.of(order.config, front._redis),
                telemetry,
                retrieval=front._services,
                secrets=front._secrets,
                batches=front._batches,
                read_cluster=cluster_view(order.config, application_name()).read,
            )
        except BaseException as error:
            front.successor = previous
            await front.close()
            if isinstance(error, ValueError):
                raise StartupError(str(error)) from error
            raise
        return front

    def expect(self, order: IngressOrder) -> None:
        """See `ModelPools.expect`."""
        self._pools.expect(order.config)

    async def close(self) -> None:
        """When no request uses it any more."""
        successor = self.successor
        await self._pools.stop(successor=None if successor is None else successor._pools)
        if self._services is not None:
            await self._services.objects.close()
        if self._batches is not None:
            await self._batches.files.objects.close()
        if self._redis is not None:
            await self._redis.close()


def _open_services(config: ShoalConfig, redis: RedisClient) -> RetrievalServices:
    timeout_s = config.retrieval.search_timeout_s
    return RetrievalServices(
        embedders={
            one.name: ServeEmbedder(
                handle_of(embedder_deployment_name(one.name)),
                model_name=one.name,
                timeout_s=timeout_s,
            )
            for one in config.embedders
        },
        retriever=ServeRetriever(handle_of(RETRIEVAL_NAME), timeout_s=timeout_s),
        chunks=ChunkStore(redis),
        tasks=BucketTasks(TaskQueue(redis)),
        objects=open_object_store(config.storage, shoal_home()),
    )


def _open_batches(config: ShoalConfig, redis: RedisClient) -> BatchServices:
    files = FileStore(
        redis,
        open_file_objects(config.storage, config.batches, shoal_home()),
        max_bytes=config.batches.max_file_bytes,
    )
    return BatchServices(files=files, tasks=BatchTasks(redis, files, config.batches))
