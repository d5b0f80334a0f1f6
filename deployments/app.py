"""The composition root: a `ShoalConfig` becomes one Serve application.

One pool of `ModelReplica` per model, one of `EmbedderReplica` per embedding model, the pools of
`RetrievalReplica` and `TaskWorker`, and the `Ingress` that holds a handle to each. Serve places,
checks, replaces and rolls them out; its own HTTP front is not used (`http_listener`).
"""

import hashlib
import re
from typing import Any

from ray import serve
from ray.serve import Application

from cluster.config import EmbedderConfig, LogSettings, ModelConfig, ShoalConfig, StorageConfig
from deployments.autoscaling_policy import embedder_options, retrieval_options
from deployments.cluster_view import ClusterView, PoolKind
from deployments.embedder_replica import EmbedderReplica
from deployments.ingress_deployment import Ingress
from deployments.local_ray import TASK_WORKER_CPUS
from deployments.model_replica import ModelReplica
from deployments.rank_actors import rank_resources
from deployments.retrieval_replica import RetrievalReplica
from deployments.serve_private import ON_HEAD
from deployments.task_worker import TaskWorker
from deployments.work_policy import model_options

APPLICATION_NAME = "shoal"
INGRESS_NAME = "Ingress"
RETRIEVAL_NAME = "Retrieval"
TASK_WORKER_NAME = "TaskWorker"

# A rollout or a scale-down ends a replica when its streams have ended, however long they are;
# what is still running after this is cut.
GRACEFUL_SHUTDOWN_TIMEOUT_S = 3600.0
HEALTH_CHECK_PERIOD_S = 1.0
HEALTH_CHECK_TIMEOUT_S = 10.0
INGRESS_CPUS = 0.1  # places on Ray, not a limit
# Serve counts calls through handles only, of which there are few.
MAX_ONGOING_REQUESTS = 10_000

# How Serve looks after every deployment.
_CARE: dict[str, Any] = {
    "max_ongoing_requests": MAX_ONGOING_REQUESTS,
    "health_check_period_s": HEALTH_CHECK_PERIOD_S,
    "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
    "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_TIMEOUT_S,
    "graceful_shutdown_wait_loop_s": 0.1,
    "max_constructor_retry_count": 1,
}


def build_application(config: ShoalConfig) -> Application:
    """Everything that `shoal up` runs, as Serve deploys it."""
    pools = {model.name: _pool(model, config.log_settings) for model in config.models}
    embedders = {one.name: _embedder(one, config.log_settings) for one in config.embedders}
    retrieval = _retrieval(config, embedders) if embedders else None
    task_worker = _task_worker(config, pools, embedders, retrieval) if embedders else None
    ingress = serve.deployment(
        Ingress,
        name=INGRESS_NAME,
        num_replicas=config.http.num_ingress_replicas,
        # On the head, whose address the clients know.
        ray_actor_options={"num_cpus": INGRESS_CPUS, "resources": ON_HEAD},
        **_CARE,
        # A rollout starts the new ones first: the port is never without a listener.
        max_surge_percent=100,
    )
    return ingress.bind(config, pools, embedders, retrieval, task_worker, cluster_view(config))


def cluster_view(config: ShoalConfig) -> ClusterView:
    """A look at everything of this configuration."""
    deployments: list[tuple[str, PoolKind, str]] = [
        *((model.name, "model", deployment_name(model.name)) for model in config.models),
        *((one.name, "embedder", embedder_deployment_name(one.name)) for one in config.embedders),
        ("retrieval", "retrieval", RETRIEVAL_NAME),
        ("task workers", "task_worker", TASK_WORKER_NAME),
        ("ingress", "ingress", INGRESS_NAME),
    ]
    return ClusterView(APPLICATION_NAME, deployments)


def deployment_name(model_name: str) -> str:
    """The Serve deployment of a model's pool. Serve's log files are named after it too."""
    return f"ModelReplica-{_slug(model_name)}"


def embedder_deployment_name(model_name: str) -> str:
    """The same of an embedding model."""
    return f"EmbedderReplica-{_slug(model_name)}"


def _slug(model_name: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model_name)
    digest = hashlib.sha256(model_name.encode()).hexdigest()[:6]  # two names may share a slug
    return f"{slug}-{digest}"


def _pool(model: ModelConfig, log_settings: LogSettings) -> Application:
    deployment = serve.deployment(
        ModelReplica,
        name=deployment_name(model.name),
        ray_actor_options=rank_resources(model),
        **model_options(model, deployment_name(model.name)),
        **_placement(model),
        **_CARE,
    )
    return deployment.bind(model, log_settings=log_settings)


def _placement(model: ModelConfig) -> dict[str, Any]:
    """One placement group for all ranks of a replica: its resources come, and go, together."""
    if model.tensor_parallel_size == 1:
        return {}
    resources = rank_resources(model)
    bundle = {"CPU": resources["num_cpus"], "GPU": resources["num_gpus"]}
    bundle = {name: amount for name, amount in bundle.items() if amount}
    return {
        "placement_group_bundles": [bundle] * model.tensor_parallel_size,
        "placement_group_strategy": model.rank_placement.upper(),
    }


def _embedder(config: EmbedderConfig, log_settings: LogSettings) -> Application:
    deployment = serve.deployment(
        EmbedderReplica,
        name=embedder_deployment_name(config.name),
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        **embedder_options(config),
        **_CARE,
    )
    return deployment.bind(config, log_settings=log_settings)


def _retrieval(config: ShoalConfig, embedders: dict[str, Application]) -> Application:
    deployment = serve.deployment(
        RetrievalReplica,
        name=RETRIEVAL_NAME,
        ray_actor_options={"num_cpus": config.retrieval.num_cpus},
        **retrieval_options(config.retrieval),
        **_CARE,
    )
    return deployment.bind(config, embedders, log_settings=config.log_settings)


def _near_objects(storage: StorageConfig) -> dict[str, Any]:
    """Objects in the default folder are on the host of the ingress; a named one may be shared."""
    is_on_head = storage.s3_endpoint is None and storage.folder is None
    return {"resources": ON_HEAD} if is_on_head else {}


def _task_worker(
    config: ShoalConfig,
    pools: dict[str, Application],
    embedders: dict[str, Application],
    retrieval: Application | None,
) -> Application:
    deployment = serve.deployment(
        TaskWorker,
        name=TASK_WORKER_NAME,
        num_replicas=config.retrieval.num_task_workers,
        ray_actor_options={"num_cpus": TASK_WORKER_CPUS, **_near_objects(config.storage)},
        **_CARE,
    )
    return deployment.bind(config, pools, embedders, retrieval, log_settings=config.log_settings)
