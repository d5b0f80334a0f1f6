"""The KubeRay manifest, and mistakes planted in it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import parse_config
from deployments.cluster_files.check import check_cluster_file
from tests.deployments.cluster_files.conftest import SHIPPED

MANIFEST = SHIPPED / "kuberay" / "rayservice.yaml"
Objects = dict[str, Any]


def objects() -> Objects:
    """By their kinds."""
    return {one["kind"]: one for one in yaml.safe_load_all(MANIFEST.read_text())}


def test_the_shipped_manifest_is_right() -> None:
    checked = check_cluster_file(MANIFEST)
    assert checked.problems == []
    assert "gpu-group: up to 1 pods, 32 CPUs, 4 GPUs (A100-80GB)" in checked.facts


def test_it_serves_what_the_other_clusters_serve() -> None:
    served = parse_config(yaml.safe_load(objects()["ConfigMap"]["data"]["shoal.yaml"]))
    hosts = parse_config(yaml.safe_load((SHIPPED / "hosts" / "shoal.yaml").read_text()))
    assert (served.models, served.embedders) == (hosts.models, hosts.embedders)


def cluster(found: Objects) -> dict[str, Any]:
    spec: dict[str, Any] = found["RayService"]["spec"]["rayClusterConfig"]
    return spec


def worker(found: Objects, name: str) -> dict[str, Any]:
    groups = {one["groupName"]: one for one in cluster(found)["workerGroupSpecs"]}
    group: dict[str, Any] = groups[name]
    return group


def container(group: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return first


def without_auth(found: Objects) -> None:
    del cluster(found)["authOptions"]


def with_misspelt_key(found: Objects) -> None:
    worker(found, "gpu")["maxReplica"] = 3


def without_probe(found: Objects) -> None:
    del container(worker(found, "gpu"))["readinessProbe"]


def with_plain_secret(found: Objects) -> None:
    variables = [dict(one) for one in container(worker(found, "cpu"))["env"]]
    variables[3] = {"name": "SHOAL_API_KEY", "value": "in the open"}
    container(worker(found, "cpu"))["env"] = variables


def without_serve_setting(found: Objects) -> None:
    container(worker(found, "cpu"))["env"] = container(worker(found, "cpu"))["env"][1:]


def without_large_nodes(found: Objects) -> None:
    worker(found, "gpu-group")["maxReplicas"] = 0


def with_small_gpus(found: Objects) -> None:
    selector = worker(found, "gpu-group")["template"]["spec"]
    selector["nodeSelector"] = {"nvidia.com/gpu.product": "NVIDIA-L4"}


def without_network_policy(found: Objects) -> None:
    del found["NetworkPolicy"]


def with_open_ports(found: Objects) -> None:
    found["NetworkPolicy"]["spec"]["ingress"].append({"ports": [{"port": 8265}]})


def with_proxy(found: Objects) -> None:
    spec = found["RayService"]["spec"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace("Disabled", "EveryNode")


def with_another_application(found: Objects) -> None:
    spec = found["RayService"]["spec"]
    spec["serveConfigV2"] = spec["serveConfigV2"].replace("serve_entry", "serve_entrance")


def without_config_map(found: Objects) -> None:
    del found["ConfigMap"]


def with_wrong_config(found: Objects) -> None:
    text = found["ConfigMap"]["data"]["shoal.yaml"]
    found["ConfigMap"]["data"]["shoal.yaml"] = text.replace("bfloat16", "bfloat17")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_auth, r"authOptions\.mode: must be token"),
        (with_misspelt_key, r"workerGroupSpecs\.gpu\.maxReplica: unknown key"),
        (without_probe, r"gpu\.template.*readinessProbe: is missing; KubeRay's own"),
        (with_plain_secret, r"cpu\.template.*SHOAL_API_KEY: must come from a Secret"),
        (without_serve_setting, "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD is missing"),
        (without_large_nodes, "70B-Instruct: a replica needs 16 CPUs and 4 GPUs on one node"),
        (with_small_gpus, "each of 4 ranks needs .* a L4 of 'gpu-group'"),
        (without_network_policy, "there is no NetworkPolicy"),
        (with_open_ports, "NetworkPolicy shoal: opens 8265 to everybody"),
        (with_proxy, "proxy_location: must be Disabled"),
        (with_another_application, "one must have `import_path: deployments.serve_entry:build`"),
        (without_config_map, "no ConfigMap has 'shoal.yaml'"),
        (with_wrong_config, r"ConfigMap shoal\.yaml: models\.0\.dtype"),
    ],
)
def test_a_planted_mistake_is_named(
    change: Callable[[Objects], None], message: str, tmp_path: Path
) -> None:
    found = objects()
    change(found)
    path = tmp_path / "rayservice.yaml"
    path.write_text(yaml.safe_dump_all(found.values()))
    problems = "\n".join(check_cluster_file(path).problems)
    assert re.search(message, problems), problems
