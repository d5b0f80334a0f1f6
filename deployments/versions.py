"""When the replicas of a deployment are replaced: when its version is another one.

A version is a digest of our code and of what the configuration says of the deployment, without what
Serve or the ingress change in place: numbers of replicas, names for clients. A deployment whose
version is the same keeps its replicas, whatever else `shoal deploy` changes.
"""

import hashlib
from functools import cache
from pathlib import Path

from cluster.config import EmbedderConfig, LogSettings, ModelConfig, Section, ShoalConfig

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("cluster", "models", "deployments")
# What is changed while replicas run: by Serve, or in the ingress.
_IN_PLACE = {
    "num_replicas",
    "min_replicas",
    "max_replicas",
    "autoscaling",
    "aliases",
    "chat_template",
    "retrieval_template",
    "tool_parser",
    "reasoning_parser",
    "defaults",
}


def model_version(model: ModelConfig, log: LogSettings) -> str:
    """Of a model's replicas."""
    return _digest(_text_of(model), str(log))


def embedder_version(embedder: EmbedderConfig, log: LogSettings) -> str:
    """Of an embedding model's replicas."""
    return _digest(_text_of(embedder), str(log))


def retrieval_version(config: ShoalConfig) -> str:
    """Of the retrieval replicas, which call the embedders by name."""
    names = ",".join(embedder.name for embedder in config.embedders)
    return _digest(
        _text_of(config.retrieval), _text_of(config.redis), names, str(config.log_settings)
    )


def task_worker_version(config: ShoalConfig) -> str:
    """Of the task workers, which run whole requests: all of the configuration is theirs."""
    return _digest(_text_of(config.model_copy(update={"http": type(config.http)()})))


def ingress_version(config: ShoalConfig) -> str:
    """Of the ingresses, which take all in place but where they listen."""
    return _digest(config.http.host, str(config.http.port), str(config.log_settings))


def _text_of(section: Section) -> str:
    return section.model_dump_json(exclude=_IN_PLACE & type(section).model_fields.keys())


def _digest(*parts: str) -> str:
    text = "\n".join((_code_digest(), *parts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _code_digest() -> str:
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(_ROOT)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
