"""Start, stop and look at the cluster of this machine: the one door to `deployments`.

`deployments.launch` is imported by name, and only when one of these commands runs, so that
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

from cluster.api_keys import FirstKey, load_or_create_key
from cluster.cli_error import CommandError
from cluster.cli_target import deployed_file, deployed_or_found_config
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
    config = load_config(config_path)
    first_key = load_or_create_key(shoal_home()) if config.auth.required else None
    if first_key is not None:
        config = _with_key(config, first_key)
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
def _launch() -> Iterator[Any]:
    launch = importlib.import_module("deployments.launch")
    try:
        yield launch
    except launch.LaunchError as error:
        raise CommandError(str(error)) from error


def _with_key(config: ShoalConfig, key: FirstKey) -> ShoalConfig:
    api_keys = (*config.auth.api_keys, key.stored)
    return config.model_copy(update={"auth": config.auth.model_copy(update={"api_keys": api_keys})})


def _write_down(config: ShoalConfig) -> None:
    partial = deployed_file().with_suffix(".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)  # there may be passwords in it
    partial.write_text(config.model_dump_json(), encoding="utf-8")
    partial.replace(deployed_file())
