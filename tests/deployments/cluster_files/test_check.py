"""Every shipped file is right, and every planted mistake is named."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import ConfigError, load_config
from deployments.cluster_files.check import check_cluster_file
from deployments.cluster_files.keys import make_keys
from deployments.local_ray import SERVE_ENVIRONMENT
from tests.deployments.cluster_files.conftest import ROOT, SHIPPED, Change, load

NAMES = ("hosts", "aws", "gcp", "azure")
CHAT = ["meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-70B-Instruct"]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_file_is_right(name: str, changed: Callable[[str, Change], Path]) -> None:
    checked = check_cluster_file(changed(name, lambda _: None))
    assert checked.problems == []
    assert any("GPUs" in fact for fact in checked.facts)


def test_every_file_that_ships_is_tested() -> None:
    assert {path.parent.name for path in SHIPPED.glob("*/cluster.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_files_serve_the_same_models(name: str) -> None:
    config = load_config(SHIPPED / name / "shoal.yaml")
    assert [model.name for model in config.models] == CHAT
    assert config.default_model_name == CHAT[0]
    assert [(m.tensor_parallel_size, m.num_gpus) for m in config.models] == [(1, 1), (4, 4)]
    assert [one.name for one in config.embedders] == ["thenlper/gte-large"]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_key_is_named_with_what_makes_it(name: str, in_repository: None) -> None:
    path = SHIPPED / name / "cluster.yaml"
    problems = check_cluster_file(path).problems
    assert len(problems) == 4
    assert all("`shoal cluster keys` makes it" in line for line in problems)
    made = make_keys(load(name))
    assert len(made) == 4
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in made)
    assert check_cluster_file(path).problems == []
    assert make_keys(load(name)) == []


def test_the_shipped_environment_is_that_of_one_machine() -> None:
    text = (SHIPPED / "ray.env").read_text()
    for name, value in {"RAY_AUTH_MODE": "token", **SERVE_ENVIRONMENT}.items():
        assert f"export {name}={value}\n" in text


def put(path: str, value: Any) -> Change:
    """Set what the path names, parts separated by `|`; numbers are places in a list."""

    def change(cluster: dict[str, Any]) -> None:
        *parents, last = path.split("|")
        node: Any = cluster
        for part in parents:
            node = node[int(part)] if part.isdigit() else node[part]
        node[int(last) if last.isdigit() else last] = value

    return change


def drop(path: str) -> Change:
    def change(cluster: dict[str, Any]) -> None:
        *parents, last = path.split("|")
        node: Any = cluster
        for part in parents:
            node = node[part]
        del node[last]

    return change


def replaced(path: str, old: str, new: str) -> Change:
    """In every command of the list."""

    def change(cluster: dict[str, Any]) -> None:
        cluster[path] = [command.replace(old, new) for command in cluster[path]]

    return change


NODE = "available_node_types"
PLANTED: list[tuple[str, Change, str]] = [
    # Ray's schema
    ("aws", put("max_worker", 3), "top level: .*'max_worker' was unexpected.*Ray's schema"),
    ("aws", put("max_workers", "3"), r"max_workers: '3' is not of type 'integer'"),
    ("aws", put("head_node_type", "hed"), r"`head_node_type` must be one of .*\(Ray\)"),
    ("gcp", drop("provider|type"), "provider: 'type' is a required property"),
    ("aws", put("provider|type", "awss"), "provider.type: must be one of external, aws"),
    # what the schema does not look at
    (
        "aws",
        put(f"{NODE}|gpu|node_config|InstanceTyp", "g6.2xlarge"),
        "available_node_types.gpu.node_config.InstanceTyp: unknown key; did you mean InstanceType?",
    ),
    (
        "aws",
        put(f"{NODE}|gpu|node_config|InstanceType", "g6.2xlrge"),
        "gpu.node_config.InstanceType: 'g6.2xlrge' is not known here",
    ),
    (
        "aws",
        put(f"{NODE}|gpu_spot|node_config|InstanceMarketOptions", {"MarketType": "Spot"}),
        "gpu_spot.node_config.InstanceMarketOptions.MarketType: must be 'spot', not 'Spot'",
    ),
    (
        "aws",
        put(f"{NODE}|head|node_config|InstanceMarketOptions", {"MarketType": "spot"}),
        "available_node_types.head: the head must not be a spot machine",
    ),
    ("aws", drop(f"{NODE}|cpu|node_config|ImageId"), "cpu.node_config.ImageId: is missing"),
    (
        "gcp",
        put(f"{NODE}|gpu|node_config|machinetype", "g2-standard-8"),
        "gpu.node_config.machinetype: unknown key; did you mean machineType?",
    ),
    (
        "gcp",
        put(f"{NODE}|gpu|node_config|scheduling", [{"preemtible": True}]),
        "gpu.node_config.scheduling.preemtible: unknown key; did you mean preemptible?",
    ),
    (
        "gcp",
        put(f"{NODE}|gpu|node_config|scheduling", []),
        "gpu.node_config.scheduling.onHostMaintenance: must be TERMINATE",
    ),
    (
        "azure",
        put(f"{NODE}|gpu|node_config|azure_arm_parameters|vmsize", "x"),
        "gpu.node_config.azure_arm_parameters.vmsize: unknown key; did you mean vmSize?",
    ),
    (
        "azure",
        put(f"{NODE}|gpu_spot|node_config|azure_arm_parameters|priority", "spot"),
        "priority: must be Regular or Spot, not 'spot'",
    ),
    ("hosts", put("provider|worker_ips", []), "provider.worker_ips: unknown key"),
    ("hosts", put("provider|hosts|tpu", ["10.0.0.9"]), "provider.hosts.tpu: there is no such"),
    ("hosts", drop("provider|hosts|gpu"), "provider.hosts.gpu: is missing"),
    (
        "hosts",
        put(f"{NODE}|gpu|max_workers", 3),
        "available_node_types.gpu.max_workers: is 3, but provider.hosts.gpu has 2",
    ),
    ("hosts", put("provider|module", "sshpool.Pool"), "provider.module: must be deployments"),
    ("hosts", drop("worker_setup_commands"), "worker_setup_commands: is missing"),
    # machines against what is served
    (
        "aws",
        put(f"{NODE}|gpu|resources|GPU", 2),
        "available_node_types.gpu.resources.GPU: is 2, but g6.2xlarge has 1",
    ),
    (
        "aws",
        put(f"{NODE}|gpu|resources|CPU", 64),
        "available_node_types.gpu.resources.CPU: is 64, but g6.2xlarge has 8",
    ),
    (
        "aws",
        put(f"{NODE}|gpu_group|node_config|InstanceType", "g6.12xlarge"),
        r"70B-Instruct: each of 4 ranks needs 33\.6 GiB .* a L4 of 'gpu_group', .* has 20\.2 GiB",
    ),
    (
        "gcp",
        put(f"{NODE}|gpu_group|max_workers", 0),
        "70B-Instruct: a replica needs 16 CPUs and 4 GPUs on one node; too few",
    ),
    (
        "aws",
        put(f"{NODE}|gpu_group|resources|CPU", 8),
        "70B-Instruct: a replica needs 16 CPUs and 4 GPUs on one node; none has that",
    ),
    # commands
    ("aws", replaced("head_start_ray_commands", "shoal deploy", "echo"), "must be `shoal deploy`"),
    (
        "aws",
        replaced("head_start_ray_commands", "--autoscaling-config", "--x"),
        "--autoscaling-config=~/ray_bootstrap_config.yaml is missing",
    ),
    (
        "aws",
        replaced("worker_start_ray_commands", "$RAY_HEAD_IP:6379", "$RAY_HEAD_IP:6380"),
        r"--address is '\$RAY_HEAD_IP:6380'; the head is at '\$RAY_HEAD_IP:6379'",
    ),
    ("gcp", put("worker_start_ray_commands", []), "worker_start_ray_commands: no command starts"),
    ("gcp", put("setup_commands", []), "setup_commands: scripts/host_setup is missing"),
    # security
    (
        "gcp",
        replaced(
            "head_start_ray_commands", "--include-dashboard=false", "--dashboard-host=0.0.0.0"
        ),
        "--dashboard-host is '0.0.0.0'; it must be 127.0.0.1",
    ),
    ("aws", drop("file_mounts|~/.shoal/ray_token"), "~/.shoal/ray_token is missing"),
    ("aws", drop("file_mounts|~/.shoal/ray.env"), "Ray would ask for no token"),
    (
        "aws",
        put(
            "provider|security_group|IpPermissions|0",
            {"FromPort": 0, "ToPort": 65535, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]},
        ),
        "ports 0 to 65535 are open to everybody; only 22, 443, 8000 may be",
    ),
    ("aws", put("provider|security_group|IpPermissions", []), "no rule opens the API's port 8000"),
    ("aws", drop("provider|security_group"), "provider.security_group: is missing"),
    (
        "hosts",
        replaced("setup_commands", "10.0.0.5,", ""),
        r"host_firewall --cluster leaves out 10\.0\.0\.5",
    ),
    (
        "hosts",
        replaced("setup_commands", "--open 8000", "--open 8000,6379"),
        "host_firewall --open has 6379; only the API's port 8000",
    ),
    (
        "hosts",
        replaced("setup_commands", "host_firewall", "host_fire"),
        "setup_commands: scripts/host_firewall is missing",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), PLANTED)
def test_a_planted_mistake_is_named(
    name: str, change: Change, message: str, changed: Callable[[str, Change], Path]
) -> None:
    problems = "\n".join(check_cluster_file(changed(name, change)).problems)
    assert re.search(message, problems), problems


def test_an_environment_without_the_token_is_named(
    changed: Callable[[str, Change], Path], tmp_path: Path
) -> None:
    text = (SHIPPED / "ray.env").read_text().replace("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=off")
    (tmp_path / "ray.env").write_text(text)
    change = put("file_mounts|~/.shoal/ray.env", str(tmp_path / "ray.env"))
    (problem,) = check_cluster_file(changed("aws", change)).problems
    assert "RAY_AUTH_MODE is 'off'; it must be 'token' on every host" in problem


def test_a_configuration_that_opens_the_api_without_keys_is_named(
    changed: Callable[[str, Change], Path], tmp_path: Path
) -> None:
    served = yaml.safe_load((SHIPPED / "aws" / "shoal.yaml").read_text())
    served["auth"] = {"required": False}
    (tmp_path / "open.yaml").write_text(yaml.safe_dump(served))

    def change(cluster: dict[str, Any]) -> None:
        cluster["file_mounts"]["~/.shoal/shoal.yaml"] = str(tmp_path / "open.yaml")

    (problem,) = check_cluster_file(changed("aws", change)).problems
    assert "auth.required is false" in problem


def test_behind_a_front_only_https_is_opened(
    changed: Callable[[str, Change], Path], tmp_path: Path
) -> None:
    served = yaml.safe_load((SHIPPED / "aws" / "shoal.yaml").read_text())
    served["http"] = {"host": "127.0.0.1"}
    (tmp_path / "behind.yaml").write_text(yaml.safe_dump(served))

    def change(cluster: dict[str, Any]) -> None:
        cluster["file_mounts"]["~/.shoal/shoal.yaml"] = str(tmp_path / "behind.yaml")

    checked = check_cluster_file(changed("aws", change))
    assert "no rule opens the API's port 443" in checked.problems[-1]
    assert "only a front on the head reaches the API" in checked.notes[0]

    def change_both(cluster: dict[str, Any]) -> None:
        change(cluster)
        cluster["provider"]["security_group"]["IpPermissions"][0] |= {
            "FromPort": 443,
            "ToPort": 443,
        }

    assert check_cluster_file(changed("aws", change_both)).problems == []


@pytest.mark.parametrize("text", ["", "- a\n", "a: [\n"])
def test_what_is_no_cluster_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"cluster\.yaml"):
        check_cluster_file(path)
    with pytest.raises(ConfigError, match="No such file"):
        check_cluster_file(ROOT / "absent.yaml")


def test_a_host_that_only_the_firewall_knows_is_noted(
    changed: Callable[[str, Change], Path],
) -> None:
    change = replaced("setup_commands", "10.0.0.7 ", "10.0.0.7,10.0.0.9,10.1.0.0/16 ")
    checked = check_cluster_file(changed("hosts", change))
    assert checked.problems == []
    assert any("lets 10.0.0.9 reach Ray's ports" in note for note in checked.notes)
