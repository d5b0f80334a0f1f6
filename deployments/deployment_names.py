"""What Serve calls our deployments. Its log files and processes are named after them too."""

import hashlib
import re

APPLICATION_NAME = "shoal"
INGRESS_NAME = "Ingress"
RETRIEVAL_NAME = "Retrieval"
TASK_WORKER_NAME = "TaskWorker"


def deployment_name(model_name: str) -> str:
    """The deployment of a model's pool."""
    return f"ModelReplica-{_slug(model_name)}"


def embedder_deployment_name(model_name: str) -> str:
    """The same of an embedding model."""
    return f"EmbedderReplica-{_slug(model_name)}"


def _slug(model_name: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model_name)
    digest = hashlib.sha256(model_name.encode()).hexdigest()[:6]  # two names may share a slug
    return f"{slug}-{digest}"
