"""Checks a Kubernetes manifest with KubeRay's RayService, offline.

The operator refuses unknown fields only where the definitions are installed strictly; here the
fields that the manifest may use are listed, and the pods are compared with what is to be served.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from cluster.config import ConfigError, ShoalConfig, load_config
from deployments.cluster_files.pool_fit import NodeType, check_fit
from deployments.cluster_files.report import Checked
from deployments.cluster_files.security import check_environment

ENTRY = "deployments.serve_entry:build"
SECRET_ENVIRONMENT = (
    "SHOAL_API_KEY",
    "SHOAL_CLUSTER_SECRET",
    "SHOAL_SECRETS_KEY",
    "SHOAL_REDIS_URL",
)
GPU_RESOURCE = "nvidia.com/gpu"
GPU_LABEL = "nvidia.com/gpu.product"
# What NVIDIA's feature discovery calls them -> a key of GPU_MEMORY_GIB.
GPU_PRODUCTS = {
    "NVIDIA-A10": "A10",
    "NVIDIA-A10G": "A10G",
    "NVIDIA-A100-SXM4-40GB": "A100-40GB",
    "NVIDIA-A100-SXM4-80GB": "A100-80GB",
    "NVIDIA-A100-80GB-PCIe": "A100-80GB",
    "NVIDIA-H100-80GB-HBM3": "H100",
    "NVIDIA-H100-NVL": "H100-94GB",
    "NVIDIA-H200": "H200",
    "NVIDIA-L4": "L4",
    "NVIDIA-L40S": "L40S",
    "Tesla-T4": "T4",
}
_KEYS = {
    "spec": "excludeHeadPodFromServeSvc rayClusterConfig rayClusterDeletionDelaySeconds "
    "serveConfigV2 serveService suspend upgradeStrategy",
    "rayClusterConfig": "authOptions autoscalerOptions enableInTreeAutoscaling "
    "gcsFaultToleranceOptions headGroupSpec rayVersion upgradeStrategy workerGroupSpecs",
    "headGroupSpec": "enableIngress headService labels rayStartParams resources serviceType "
    "template",
    "workerGroupSpecs": "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts "
    "rayStartParams replicas resources scaleStrategy suspend template",
}


def is_manifest(documents: Sequence[Any]) -> bool:
    """Whether these are Kubernetes objects."""
    return any(isinstance(one, Mapping) and "apiVersion" in one for one in documents)


def check_manifest(documents: Sequence[Any]) -> Checked:
    """Everything that is wrong with it."""
    checked = Checked()
    objects = [one for one in documents if isinstance(one, Mapping)]
    services = [one for one in objects if one.get("kind") == "RayService"]
    if len(services) != 1:
        checked.problems.append(f"kind: there must be one RayService, not {len(services)}")
        return checked
    spec = _mapping(services[0], "spec")
    cluster = _mapping(spec, "rayClusterConfig")
    checked.problems.extend(_unknown_keys(spec, cluster))
    if _mapping(cluster, "authOptions").get("mode") != "token":
        checked.problems.append(
            "spec.rayClusterConfig.authOptions.mode: must be token: Ray runs programs for whoever "
            "reaches it"
        )
    for place, group in _groups(cluster):
        checked.problems.extend(_check_pod(place, group))
    config = _check_serve_config(spec, objects, checked)
    if config is not None:
        checked.problems.extend(_check_network(objects, config.http.port))
        node_types = [_node_type(place, group) for place, group in _groups(cluster)]
        fit = check_fit(config, node_types)
        checked.problems.extend(fit.problems)
        checked.notes.extend(fit.notes)
        checked.facts.extend(
            f"{kind.name}: {'the head' if kind.is_head else f'up to {kind.max_nodes} pods'}, "
            f"{kind.cpus:g} CPUs, {kind.gpus:g} GPUs{f' ({kind.gpu})' if kind.gpu else ''}"
            for kind in node_types
        )
    return checked


def _unknown_keys(spec: Mapping[str, Any], cluster: Mapping[str, Any]) -> list[str]:
    places = [
        ("spec", "spec", spec),
        ("spec.rayClusterConfig", "rayClusterConfig", cluster),
        *(
            (place, "headGroupSpec" if place.endswith("headGroupSpec") else "workerGroupSpecs", g)
            for place, g in _groups(cluster)
        ),
    ]
    return [
        f"{place}.{key}: unknown key"
        for place, kind, mapping in places
        for key in mapping
        if key not in _KEYS[kind].split()
    ]


def _check_pod(place: str, group: Mapping[str, Any]) -> list[str]:
    container = _container(group)
    if not container:
        return [f"{place}.template.spec.containers: is missing"]
    where = f"{place}.template.spec.containers.0"
    lines = []
    if not container.get("image"):
        lines.append(f"{where}.image: is missing")
    if "cpu" not in _mapping(_mapping(container, "resources"), "limits"):
        lines.append(f"{where}.resources.limits.cpu: is missing; Ray takes its CPUs from there")
    variables = {one.get("name"): one for one in container.get("env") or []}
    plain = {str(name): str(one.get("value")) for name, one in variables.items()}
    # KubeRay sets this one itself, by authOptions.
    lines += check_environment({"RAY_AUTH_MODE": "token", **plain}, f"{where}.env")
    for name in SECRET_ENVIRONMENT:
        one = variables.get(name)
        if one is None:
            lines.append(f"{where}.env: {name} is missing")
        elif "secretKeyRef" not in _mapping(one, "valueFrom"):
            lines.append(f"{where}.env.{name}: must come from a Secret (valueFrom.secretKeyRef)")
    if "readinessProbe" not in container and not place.endswith("headGroupSpec"):
        lines.append(
            f"{where}.readinessProbe: is missing; KubeRay's own asks for Serve's proxy, which does "
            "not run here: the pod would never be ready"
        )
    return lines


def _check_serve_config(
    spec: Mapping[str, Any], objects: Sequence[Mapping[str, Any]], checked: Checked
) -> ShoalConfig | None:
    place = "spec.serveConfigV2"
    try:
        serve = ServeDeploySchema.model_validate(yaml.safe_load(str(spec.get("serveConfigV2"))))
    except (ValidationError, yaml.YAMLError) as error:
        checked.problems.append(f"{place}: {' '.join(str(error).split())[:300]}")
        return None
    if str(serve.proxy_location.value) != "Disabled":
        checked.problems.append(
            f"{place}.proxy_location: must be Disabled: the ingress listens by itself"
        )
    found = [one for one in serve.applications if one.import_path == ENTRY]
    if len(found) != 1:
        checked.problems.append(f"{place}.applications: one must have `import_path: {ENTRY}`")
        return None
    if found[0].route_prefix is not None:
        checked.problems.append(f"{place}.applications.route_prefix: must be null")
    name = Path(str(found[0].args.get("config", ""))).name
    for one in objects:
        text = _mapping(one, "data").get(name)
        if one.get("kind") == "ConfigMap" and isinstance(text, str):
            return _parse_config(text, f"ConfigMap {name}", checked)
    checked.problems.append(f"kind: no ConfigMap has {name!r}, which serveConfigV2 names")
    return None


def _parse_config(text: str, origin: str, checked: Checked) -> ShoalConfig | None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "shoal.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            return load_config(path)
        except ConfigError as error:
            lines = str(error).replace(str(path), origin).splitlines()
            checked.problems.extend(lines)
            return None


def _check_network(objects: Sequence[Mapping[str, Any]], api_port: int) -> list[str]:
    policies = [one for one in objects if one.get("kind") == "NetworkPolicy"]
    if not policies:
        return ["kind: there is no NetworkPolicy: every pod could reach Ray's ports"]
    lines = []
    for policy in policies:
        for rule in _mapping(policy, "spec").get("ingress") or []:
            ports = {port.get("port") for port in rule.get("ports") or []}
            if not rule.get("from") and ports != {api_port}:
                shown = ", ".join(map(str, sorted(ports, key=str))) or "all ports"
                lines.append(
                    f"NetworkPolicy {_mapping(policy, 'metadata').get('name')}: opens {shown} to "
                    f"everybody; only the API's port {api_port} may be"
                )
    return lines


def _node_type(place: str, group: Mapping[str, Any]) -> NodeType:
    limits = _mapping(_mapping(_container(group), "resources"), "limits")
    selector = _mapping(_mapping(_mapping(group, "template"), "spec"), "nodeSelector")
    is_head = place.endswith("headGroupSpec")
    return NodeType(
        name="head" if is_head else str(group.get("groupName")),
        cpus=_cpus(limits.get("cpu", 0)),
        gpus=float(limits.get(GPU_RESOURCE, 0)),
        max_nodes=1 if is_head else int(group.get("maxReplicas", 0)),
        gpu=GPU_PRODUCTS.get(str(selector.get(GPU_LABEL)), ""),
        is_head=is_head,
    )


def _cpus(quantity: object) -> float:
    text = str(quantity)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def _groups(cluster: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The head's first, each with its place in the file."""
    yield "spec.rayClusterConfig.headGroupSpec", _mapping(cluster, "headGroupSpec")
    for group in cluster.get("workerGroupSpecs") or []:
        if isinstance(group, Mapping):
            yield f"spec.rayClusterConfig.workerGroupSpecs.{group.get('groupName')}", group


def _container(group: Mapping[str, Any]) -> Mapping[str, Any]:
    containers = _mapping(_mapping(group, "template"), "spec").get("containers") or []
    return containers[0] if containers and isinstance(containers[0], Mapping) else {}


def _mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    return value if isinstance(value, Mapping) else {}
