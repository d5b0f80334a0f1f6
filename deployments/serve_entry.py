"""The application as a Serve configuration names it: `import_path: deployments.serve_entry:build`.

For whoever deploys by Serve's own files, such as KubeRay's RayService. What `shoal deploy` takes
from files in SHOAL_HOME comes from the environment here, the same in every pod: SHOAL_API_KEY,
SHOAL_CLUSTER_SECRET, SHOAL_SECRETS_KEY, SHOAL_REDIS_URL.
"""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from cluster.api_keys import FirstKey, KeySource, with_first_key
from cluster.config import ConfigError, load_config, shoal_home
from deployments.app import build_application
from deployments.cluster_secret import load_cluster_secret
from deployments.readiness import needs_own_redis


class EntryArguments(BaseModel):
    """`args` of the application in Serve's configuration."""

    model_config = ConfigDict(extra="forbid")

    config: Path  # a shoal.yaml, on the head


def build(args: EntryArguments) -> Application:
    """
    Raises:
        ConfigError: the file or the environment cannot be used; says what is missing.
    """
    config = load_config(args.config)
    if needs_own_redis(config):
        raise ConfigError(
            "no Redis: set SHOAL_REDIS_URL (or redis.url); only `shoal up` and `shoal deploy` "
            "start one of their own"
        )
    key = os.environ.get("SHOAL_API_KEY")
    if config.auth.required and key:
        config = with_first_key(config, FirstKey(text=key, source=KeySource.ENVIRONMENT))
    if config.auth.required and not config.auth.api_keys:
        raise ConfigError("no API key: set SHOAL_API_KEY, or auth.api_keys in the configuration")
    try:
        secret = load_cluster_secret(shoal_home())
    except ValueError as error:
        raise ConfigError(f"no cluster secret: set SHOAL_CLUSTER_SECRET ({error})") from error
    return build_application(config, secret=secret)
