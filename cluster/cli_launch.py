"""Start, stop, deploy and look at clusters: the one door to `deployments`.

A module of it is imported by name, and only when one of these commands runs, so that
everything else in `cluster` stays without it. What was started is written down in
`<home>/deployed.json` (keys as digests), so that the other commands find it.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cluster.api_keys import FirstKey, load_or_create_key, with_first_key
from cluster.cli_error import CommandError
from cluster.cli_target import api_url, deployed_file, deployed_or_found_config
from cluster.config import ShoalConfig, load_config, shoal_home

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A cluster that answers."""

    config: ShoalConfig
    url: str
    was_running: bool
    facts: tuple[str, ...]  # one line for each model; none when it ran already
    first_key: FirstKey | None  # None where no key is asked for


def start(config_path: Path, *, say: Say) -> Started:
    """Bring the cluster of this SHOAL_HOME to a configuration, and wait until it is ready.

    Raises:
        CommandError: it did not come up.
        ConfigError: the configuration or the API key cannot be used.
    """
    config, first_key = _config_with_key(config_path)
    with _launch() as launch:
        result = launch.up(config, say=say)
    _write_down(config)
    return Started(
        config=config,
        url=result.url,
        was_running=result.was_running,
        facts=tuple(facts.summary for facts in result.facts),
        first_key=first_key,
    )


def deploy(config_path: Path, *, address: str, timeout_s: float, say: Say) -> Started:
    """Bring a Ray cluster that runs already, whose head this host is, to a configuration.

    Raises:
        CommandError: it did not become ready.
        ConfigError: the configuration or the API key cannot be used.
    """
    config, first_key = _config_with_key(config_path)
    with _launch("deployments.running_ray") as running_ray:
        facts = running_ray.deploy(config, address=address, timeout_s=timeout_s, say=say)
    _write_down(config)
    return Started(
        config=config,
        url=api_url(config),
        was_running=False,
        facts=tuple(model.summary for model in facts),
        first_key=first_key,
    )


def stop() -> int:
    """Stop every process of this SHOAL_HOME's cluster; how many there were.

    Raises:
        CommandError: some are still there.
    """
    with _launch() as launch:
        num_processes: int = launch.down()
    deployed_file().unlink(missing_ok=True)
    return num_processes


def look() -> dict[str, Any]:
    """How the cluster is, as plain JSON values; the fields are those of `ClusterStatus`.

    Raises:
        CommandError: it runs and does not say.
    """
    config = deployed_or_found_config()
    with _launch() as launch:
        status: dict[str, Any] = msgspec.to_builtins(launch.status(config))
    return status


@contextmanager
def _launch(module: str = "deployments.launch") -> Iterator[Any]:
    launch = importlib.import_module(module)
    try:
        yield launch
    except launch.LaunchError as error:
        raise CommandError(str(error)) from error


def _config_with_key(config_path: Path) -> tuple[ShoalConfig, FirstKey | None]:
    config = load_config(config_path)
    if not config.auth.required:
        return config, None
    key = load_or_create_key(shoal_home())
    return with_first_key(config, key), key


def _write_down(config: ShoalConfig) -> None:
    partial = deployed_file().with_suffix(".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)  # there may be passwords in it
    partial.write_text(config.model_dump_json(), encoding="utf-8")
    partial.replace(deployed_file())
