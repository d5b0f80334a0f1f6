"""One Serve replica of the ingress: the ASGI app, its pools, and its listening socket.

Serve places, checks, drains and replaces it; HTTP does not pass through Serve.
"""

import ray
from ray.serve.handle import DeploymentHandle

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
from deployments.cluster_secret import load_cluster_secret
from deployments.cluster_view import ClusterView
from deployments.embedder_handle import ServeEmbedder
from deployments.http_listener import HTTPListener, bind_shared
from deployments.ingress.app import build_asgi_app
from deployments.ingress.services import BatchServices, RetrievalServices, TenantServices
from deployments.model_pools import ModelPools
from deployments.process_logs import write_to_serve_log
from deployments.retriever_handle import ServeRetriever
from deployments.serve_private import keep_replica_server_off_other_interfaces
from deployments.startup_error import StartupError


class Ingress:
    """The Serve deployment class; `app.build_application` sets its options."""

    async def __init__(  # type: ignore[misc]  # Serve awaits the constructor
        self,
        config: ShoalConfig,
        models: dict[str, DeploymentHandle],
        embedders: dict[str, DeploymentHandle],
        retrieval: DeploymentHandle | None,
        task_worker: DeploymentHandle | None,
        cluster: ClusterView,
    ) -> None:
        """Wait for a replica of every model, then listen.

        Args:
            models, embedders: by the model's name.
            retrieval, task_worker: None without embedders. Task workers are called by nobody: they
                take their work from Redis, and are here to be deployed.
            cluster: for who asks what runs.

        Raises:
            StartupError: in one readable message, why this process cannot serve.
        """
        write_to_serve_log(config.log_settings)
        keep_replica_server_off_other_interfaces(ray.util.get_node_ip_address())
        self._redis: RedisClient | None = None
        self._services: RetrievalServices | None = None
        self._secrets: IntegrationSecrets | None = None
        self._batches: BatchServices | None = None
        try:
            if config.redis.url is not None:
                self._redis = connect(config.redis)
                box = SecretBox(SecretKeys.load(shoal_home()))
                self._secrets = IntegrationSecrets(self._redis, box)
            secret = load_cluster_secret(shoal_home())
            listening_socket = bind_shared(config.http.host, config.http.port)
            if retrieval is not None:
                assert self._redis is not None, "the launcher fills the URL in"
                self._services = self._open_services(config, embedders, retrieval)
                self._batches = _open_batches(config, self._redis)
        except ValueError as error:
            raise StartupError(str(error)) from error
        self._pools = ModelPools(config, models, secret=secret)
        served = await self._pools.start()
        try:
            app = build_asgi_app(
                config,
                served,
                TenantServices.of(config, self._redis),
                Telemetry(),
                retrieval=self._services,
                secrets=self._secrets,
                batches=self._batches,
                read_cluster=cluster.read,
            )
        except ValueError as error:
            raise StartupError(str(error)) from error
        self._listener = HTTPListener(app, listening_socket)
        self._listener.start()

    def _open_services(
        self,
        config: ShoalConfig,
        embedders: dict[str, DeploymentHandle],
        retrieval: DeploymentHandle,
    ) -> RetrievalServices:
        timeout_s = config.retrieval.search_timeout_s
        assert self._redis is not None, "where retrieval is on there is a Redis"
        return RetrievalServices(
            embedders={
                name: ServeEmbedder(handle, model_name=name, timeout_s=timeout_s)
                for name, handle in embedders.items()
            },
            retriever=ServeRetriever(retrieval, timeout_s=timeout_s),
            chunks=ChunkStore(self._redis),
            tasks=BucketTasks(TaskQueue(self._redis)),
            objects=open_object_store(config.storage, shoal_home()),
        )

    # Called by Serve.

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: nothing listens any more; Serve replaces the replica.
        """
        self._listener.check_health()

    async def __del__(self) -> None:
        """Serve awaits this before it ends the process: finish the running responses."""
        if not hasattr(self, "_listener"):
            return  # the constructor failed
        await self._listener.drain()
        await self._pools.stop()
        if self._services is not None:
            await self._services.objects.close()
        if self._batches is not None:
            await self._batches.files.objects.close()
        if self._redis is not None:
            await self._redis.close()


def _open_batches(config: ShoalConfig, redis: RedisClient) -> BatchServices:
    files = FileStore(
        redis,
        open_file_objects(config.storage, config.batches, shoal_home()),
        max_bytes=config.batches.max_file_bytes,
    )
    return BatchServices(files=files, tasks=BatchTasks(redis, files, config.batches))
