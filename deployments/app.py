"""The composition root: a `ShoalConfig` becomes one Serve application.

One pool of `ModelReplica` per model, and the `Ingress` that holds a handle to each pool. Serve
places, checks, replaces and rolls them out; its own HTTP front is not used (`http_listener`).
"""

import hashlib
import re

from ray import serve
from ray.serve import Application

from cluster.config import ModelConfig, ShoalConfig
from deployments.ingress_deployment import Ingress
from deployments.model_replica import ModelReplica

APPLICATION_NAME = "shoal"
INGRESS_NAME = "Ingress"

# A rollout or a scale-down ends a replica when its streams have ended, however long they are;
# what is still running after this is cut.
GRACEFUL_SHUTDOWN_TIMEOUT_S = 3600.0
HEALTH_CHECK_PERIOD_S = 1.0
HEALTH_CHECK_TIMEOUT_S = 10.0
INGRESS_CPUS = 0.1  # places on Ray, not a limit
# Serve counts calls through handles only, of which there are few.
MAX_ONGOING_REQUESTS = 10_000


def build_application(config: ShoalConfig) -> Application:
    """Everything that `shoal up` runs, as Serve deploys it."""
    pools = {model.name: _pool(model, config.log_level) for model in config.models}
    ingress = serve.deployment(
        Ingress,
        name=INGRESS_NAME,
        num_replicas=config.http.num_ingress_replicas,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=1,
        # A rollout starts the new ones first: the port is never without a listener.
        max_surge_percent=100,
    )
    return ingress.bind(config, pools)


def deployment_name(model_name: str) -> str:
    """The Serve deployment of a model's pool. Serve's log files are named after it too."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model_name)
    digest = hashlib.sha256(model_name.encode()).hexdigest()[:6]  # two names may share a slug
    return f"ModelReplica-{slug}-{digest}"


def _pool(model: ModelConfig, log_level: str) -> Application:
    deployment = serve.deployment(
        ModelReplica,
        name=deployment_name(model.name),
        num_replicas=model.num_replicas,
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=GRACEFUL_SHUTDOWN_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=1,
    )
    return deployment.bind(model, log_level=log_level)
