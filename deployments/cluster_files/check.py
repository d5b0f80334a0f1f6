"""Checks a file for `ray up` before anything is started, offline: Ray's own schema, and the rest.

Ray's schema does not look into `node_config` and knows nothing of what is to be served: a wrong key
or a GPU that is too small is found out by `ray up` after minutes, or never. Here the file and the
`shoal.yaml` that it mounts are looked at together. Paths in it count from the current folder, as
for `ray up`.
"""

import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import ray.autoscaler
import yaml
from jsonschema import Draft7Validator
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.config import ConfigError, ShoalConfig, load_config
from deployments.cluster_files.launcher import check_launcher
from deployments.cluster_files.manifest import check_manifest, is_manifest
from deployments.cluster_files.node_configs import NodeConfig, read_node_config
from deployments.cluster_files.pool_fit import NodeType, check_fit
from deployments.cluster_files.report import Checked
from deployments.cluster_files.security import (
    LOOPBACK,
    check_insiders,
    check_mounts,
    check_ports,
    check_start_commands,
)
from deployments.ssh_pool.pool_config import MODULE, PoolConfig, PoolConfigError

SHOAL_YAML_ON_HOSTS = "~/.shoal/shoal.yaml"
PROVIDERS = ("external", "aws", "gcp", "azure")
# Ray has defaults for these with its own providers, and fails on an external one without them.
_NEEDED_BY_EXTERNAL = (
    "cluster_synced_files",
    "docker",
    "file_mounts_sync_continuously",
    "head_setup_commands",
    "idle_timeout_minutes",
    "initialization_commands",
    "max_workers",
    "rsync_exclude",
    "rsync_filter",
    "setup_commands",
    "upscaling_speed",
    "worker_setup_commands",
)


def check_cluster_file(path: Path) -> Checked:
    """Everything that is wrong with a cluster file or a Kubernetes manifest.

    Raises:
        ConfigError: it cannot be read as YAML.
    """
    documents = read_documents(path)
    if is_manifest(documents):
        return check_manifest(documents)
    cluster = documents[0]
    if not isinstance(cluster, dict):
        raise ConfigError(f"{path}: the top level must be a mapping")
    checked = Checked()
    checked.problems.extend(_check_schema(cluster))
    kind = str(_mapping(cluster, "provider").get("type", ""))
    if kind not in PROVIDERS:
        checked.problems.append(
            f"provider.type: must be one of {', '.join(PROVIDERS)}, not {kind!r}"
        )
        return checked
    if kind == "external":
        checked.problems.extend(_check_pool(cluster))
        checked.notes.extend(check_launcher(cluster))
        checked.notes.extend(check_insiders(cluster))
    configs = {
        name: read_node_config(kind, _mapping(node_type, "node_config"))
        for name, node_type in _node_types(cluster).items()
    }
    checked.problems.extend(_check_node_types(cluster, configs))
    checked.problems.extend(check_start_commands(cluster))
    checked.problems.extend(_check_setup(cluster))
    checked.problems.extend(check_mounts(cluster))
    config = _served(cluster, checked)
    if config is not None:
        checked.problems.extend(check_ports(cluster, config.http))
        fit = check_fit(config, _fit_types(cluster, configs))
        checked.problems.extend(fit.problems)
        checked.notes.extend(fit.notes)
    checked.facts.extend(_facts(cluster, configs))
    return checked


def read_documents(path: Path) -> list[Any]:
    """The YAML documents of a file, at least one.

    Raises:
        ConfigError: it is missing, empty, or no YAML.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not any(documents):
        raise ConfigError(f"{path}: is empty")
    return documents


def _check_schema(cluster: Mapping[str, Any]) -> list[str]:
    schema_path = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    validator = Draft7Validator(json.loads(schema_path.read_text(encoding="utf-8")))
    lines = []
    for error in sorted(validator.iter_errors(cluster), key=lambda e: list(map(str, e.path))):
        place = ".".join(map(str, error.absolute_path)) or "top level"
        lines.append(f"{place}: {error.message[:300]} (Ray's schema)")
    if lines:
        return lines
    try:
        with _ray_says_nothing():
            validate_config(prepare_config(deepcopy(dict(cluster))))
    except KeyError as error:
        lines.append(f"{error.args[0]}: is missing, and Ray has no default for it")
    except (ValueError, RuntimeError, AssertionError) as error:
        lines.append(f"{' '.join(str(error).split())[:300]} (Ray)")
    return lines


@contextmanager
def _ray_says_nothing() -> Iterator[None]:
    """Ray warns of fields that it has put in itself, on the terminal."""
    ray_logger = logging.getLogger("ray")
    level = ray_logger.level
    ray_logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        ray_logger.setLevel(level)


def _check_pool(cluster: Mapping[str, Any]) -> list[str]:
    provider = _mapping(cluster, "provider")
    lines = [
        f"{key}: is missing; with `provider.type: external` Ray has no default for it"
        for key in _NEEDED_BY_EXTERNAL
        if key not in cluster
    ]
    if provider.get("module") != MODULE:
        return [*lines, f"provider.module: must be {MODULE}, not {provider.get('module')!r}"]
    try:
        pool = PoolConfig.parse(provider)
    except PoolConfigError as error:
        return [*lines, str(error)]
    node_types = _node_types(cluster)
    head_type = cluster.get("head_node_type")
    for name, node_type in node_types.items():
        if name == head_type:
            continue
        num_hosts = len(pool.hosts.get(name, ()))
        if not num_hosts:
            lines.append(f"provider.hosts.{name}: is missing; this worker type has no hosts")
        elif node_type.get("max_workers", 0) > num_hosts:
            lines.append(
                f"available_node_types.{name}.max_workers: is {node_type['max_workers']}, but "
                f"provider.hosts.{name} has {num_hosts}"
            )
    lines += [
        f"provider.hosts.{name}: there is no such worker type in available_node_types"
        for name in pool.hosts
        if name not in node_types or name == head_type
    ]
    return lines


def _check_node_types(cluster: Mapping[str, Any], configs: Mapping[str, NodeConfig]) -> list[str]:
    lines = []
    head_type = cluster.get("head_node_type")
    for name, node_type in _node_types(cluster).items():
        place, config = f"available_node_types.{name}", configs[name]
        lines += [f"{place}.node_config.{problem}" for problem in config.problems]
        resources = _mapping(node_type, "resources")
        if "CPU" not in resources:
            lines.append(f"{place}.resources.CPU: is missing; Ray would never start one for work")
        if name == head_type and config.is_spot:
            lines.append(f"{place}: the head must not be a spot machine: all would end with it")
        machine = config.machine
        if machine is None:
            continue
        if resources.get("CPU", 0) > machine.cpus:
            lines.append(
                f"{place}.resources.CPU: is {resources['CPU']}, but {config.instance_type} has "
                f"{machine.cpus}"
            )
        if resources.get("GPU", 0) != machine.num_gpus:
            lines.append(
                f"{place}.resources.GPU: is {resources.get('GPU', 0)}, but "
                f"{config.instance_type} has {machine.num_gpus}"
            )
    return lines


def _check_setup(cluster: Mapping[str, Any]) -> list[str]:
    has_image = bool(_mapping(cluster, "docker").get("image"))
    commands = " ".join(map(str, cluster.get("setup_commands") or []))
    if has_image or "host_setup" in commands:
        return []
    return [
        "setup_commands: scripts/host_setup is missing, and so is docker.image: the hosts "
        "would have no Shoal"
    ]


def _served(cluster: Mapping[str, Any], checked: Checked) -> ShoalConfig | None:
    local = _mapping(cluster, "file_mounts").get(SHOAL_YAML_ON_HOSTS)
    if local is None:
        checked.problems.append(f"file_mounts: {SHOAL_YAML_ON_HOSTS} is missing")
        return None
    try:
        config = load_config(Path(str(local)).expanduser())
    except ConfigError as error:
        checked.problems.extend(str(error).splitlines())
        return None
    if config.http.host in LOOPBACK:
        checked.notes.append(
            f"{local}: http.host is {config.http.host}: only a front on the head reaches the API"
        )
    if not config.auth.required:
        checked.problems.append(f"{local}: auth.required is false: anybody could use the models")
    return config


def _fit_types(cluster: Mapping[str, Any], configs: Mapping[str, NodeConfig]) -> list[NodeType]:
    head_type = cluster.get("head_node_type")
    node_types = []
    for name, node_type in _node_types(cluster).items():
        resources, machine = _mapping(node_type, "resources"), configs[name].machine
        is_head = name == head_type
        most = node_type.get("max_workers", cluster.get("max_workers", 0))
        node_types.append(
            NodeType(
                name=name,
                cpus=resources.get("CPU", 0),
                gpus=resources.get("GPU", 0),
                max_nodes=1 if is_head else most,
                gpu="" if machine is None else machine.gpu,
                is_head=is_head,
            )
        )
    return node_types


def _facts(cluster: Mapping[str, Any], configs: Mapping[str, NodeConfig]) -> list[str]:
    lines = []
    for name, node_type in _node_types(cluster).items():
        resources, config = _mapping(node_type, "resources"), configs[name]
        is_head = name == cluster.get("head_node_type")
        most = node_type.get("max_workers", cluster.get("max_workers", 0))
        number = "the head" if is_head else f"{node_type.get('min_workers', 0)} to {most}"
        gpus = f", {resources['GPU']} GPUs" if resources.get("GPU") else ""
        if config.machine is not None and config.machine.gpu:
            gpus += f" ({config.machine.gpu})"
        machine = f" {config.instance_type}{', spot' if config.is_spot else ''}:"
        lines.append(
            f"{name}: {number},{machine if config.instance_type else ''} "
            f"{resources.get('CPU', 0)} CPUs{gpus}"
        )
    return lines


def _node_types(cluster: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    types = _mapping(cluster, "available_node_types")
    return {name: value for name, value in types.items() if isinstance(value, Mapping)}


def _mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}
