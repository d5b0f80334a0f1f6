"""The composition root: a `ShoalConfig` becomes one Serve application.

Deployments whose version (`versions`) stays the same keep their replicas when it is deployed again;
the ingress takes a changed configuration over in place (`ingress_deployment`).

One pool of `ModelReplica` per model, one of `EmbedderReplica` per embedding model, the pools of
`RetrievalReplica` and `TaskWorker`, and the `Ingress` that holds a handle to each. Serve places,
checks, replaces and rolls them out; its own HTTP front is not used (`http_listener`).
"""

from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.serve import Application

from cluster.config import EmbedderConfig, LogSettings, ModelConfig, ShoalConfig, StorageConfig
from deployments.autoscaling_policy import (
    embedder_options,
    ingress_options,
    retrieval_options,
    task_worker_options,
)
from deployments.deployment_names import (
    INGRESS_NAME,
    RETRIEVAL_NAME,
    TASK_WORKER_NAME,
    deployment_name,
    embedder_deployment_name,
)
from deployments.embedder_replica import EmbedderReplica
from deployments.ingress_deployment import Ingress
from deployments.local_ray import TASK_WORKER_CPUS
from deployments.model_replica import ModelReplica
from deployments.rank_actors import rank_resources
from deployments.retrieval_replica import RetrievalReplica
from deployments.sealed_config import IngressOrder, seal
from deployments.serve_private import ON_HEAD, with_version
from deployments.task_worker import TaskWorker
from deployments.versions import (
    embedder_version,
    ingress_version,
    model_version,
    retrieval_version,
    task_worker_version,
)
from deployments.work_policy import model_options

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


def build_application(
    config: ShoalConfig,
    *,
    secret: bytes,
    with_room: frozenset[str] = frozenset(),
    leaving: Sequence[ModelConfig] = (),
) -> Application:
    """Everything that `shoal up` runs, as Serve deploys it.

    Args:
        secret: the cluster's.
        with_room: models for which one more replica has room in the cluster. A rollout starts
            theirs first; that of the others ends a replica first, and requests wait meanwhile.
        leaving: models whose pools stay until the ingress does not serve them any more.
    """
    pools = {
        model.name: _pool(model, config.log_settings, has_room=model.name in with_room)
        for model in config.models
    }
    order = seal(ingress_order(config), secret)
    embedders = {one.name: _embedder(one, config.log_settings) for one in config.embedders}
    retrieval = _retrieval(config, embedders) if embedders else None
    task_worker = _task_worker(config, pools, embedders, retrieval) if embedders else None
    ingress = serve.deployment(
        Ingress,
        name=INGRESS_NAME,
        **ingress_options(config.http),
        # On the head, whose address the clients know.
        ray_actor_options={"num_cpus": INGRESS_CPUS, "resources": ON_HEAD},
        user_config={"order": order},
        **_CARE,
        # A rollout starts the new ones first: the port is never without a listener.
        max_surge_percent=100,
    )
    deployed_with_it = {f"pool of {name}": pool for name, pool in pools.items()}
    deployed_with_it |= {
        f"pool of {model.name}, leaving": _pool(model, config.log_settings, has_room=False)
        for model in leaving
    }
    deployed_with_it |= {f"embedder {name}": embedder for name, embedder in embedders.items()}
    if retrieval is not None and task_worker is not None:
        deployed_with_it |= {"retrieval": retrieval, "task workers": task_worker}
    return with_version(ingress, ingress_version(config)).bind(
        config.http, deployed_with_it, log_settings=config.log_settings
    )


def ingress_order(config: ShoalConfig) -> IngressOrder:
    """What the ingresses are told to serve."""
    versions = {model.name: model_version(model, config.log_settings) for model in config.models}
    return IngressOrder(config=config, model_versions=versions)


def _pool(model: ModelConfig, log_settings: LogSettings, *, has_room: bool) -> Application:
    deployment = serve.deployment(
        ModelReplica,
        name=deployment_name(model.name),
        ray_actor_options=rank_resources(model),
        **model_options(model, deployment_name(model.name)),
        **_placement(model),
        **_CARE,
        max_surge_percent=100 if has_room else 0,
    )
    version = model_version(model, log_settings)
    return with_version(deployment, version).bind(model, version=version, log_settings=log_settings)


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
    version = embedder_version(config, log_settings)
    return with_version(deployment, version).bind(config, log_settings=log_settings)


def _retrieval(config: ShoalConfig, embedders: dict[str, Application]) -> Application:
    deployment = serve.deployment(
        RetrievalReplica,
        name=RETRIEVAL_NAME,
        ray_actor_options={"num_cpus": config.retrieval.num_cpus},
        **retrieval_options(config.retrieval),
        **_CARE,
    )
    return with_version(deployment, retrieval_version(config)).bind(
        config, embedders, log_settings=config.log_settings
    )


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
        **task_worker_options(config.retrieval),
        ray_actor_options={"num_cpus": TASK_WORKER_CPUS, **_near_objects(config.storage)},
        **_CARE,
    )
    return with_version(deployment, task_worker_version(config)).bind(
        config, pools, embedders, retrieval, log_settings=config.log_settings
    )
