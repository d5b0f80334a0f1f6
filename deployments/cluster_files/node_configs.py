"""`node_config` of the clouds' node types: which keys there are, and what machine they ask for.

Ray hands the section on to the provider's API, which sees a wrong key when `ray up` runs, or never.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from deployments.cluster_files.instance_types import AWS, AZURE, GCP, InstanceType

# Of EC2's RunInstances; SubnetIds is Ray's own, which takes one of them.
AWS_KEYS = frozenset(
    [
        "BlockDeviceMappings",
        "CapacityReservationSpecification",
        "CpuOptions",
        "CreditSpecification",
        "DisableApiStop",
        "DisableApiTermination",
        "EbsOptimized",
        "EnclaveOptions",
        "IamInstanceProfile",
        "ImageId",
        "InstanceInitiatedShutdownBehavior",
        "InstanceMarketOptions",
        "InstanceType",
        "KeyName",
        "LaunchTemplate",
        "MaintenanceOptions",
        "MetadataOptions",
        "Monitoring",
        "NetworkInterfaces",
        "NetworkPerformanceOptions",
        "Placement",
        "PrivateDnsNameOptions",
        "SecurityGroupIds",
        "SubnetId",
        "SubnetIds",
        "TagSpecifications",
        "UserData",
    ]
)
# Of a Compute Engine instance, as `instances.insert` takes it.
GCP_KEYS = frozenset(
    [
        "advancedMachineFeatures",
        "canIpForward",
        "confidentialInstanceConfig",
        "deletionProtection",
        "description",
        "disks",
        "displayDevice",
        "guestAccelerators",
        "hostname",
        "labels",
        "machineType",
        "metadata",
        "minCpuPlatform",
        "networkInterfaces",
        "networkPerformanceConfig",
        "params",
        "privateIpv6GoogleAccess",
        "reservationAffinity",
        "resourcePolicies",
        "scheduling",
        "serviceAccounts",
        "shieldedInstanceConfig",
        "sourceInstanceTemplate",
        "sourceMachineImage",
        "tags",
    ]
)
GCP_SCHEDULING_KEYS = frozenset(
    [
        "automaticRestart",
        "instanceTerminationAction",
        "localSsdRecoveryTimeout",
        "maxRunDuration",
        "minNodeCpus",
        "nodeAffinities",
        "onHostMaintenance",
        "preemptible",
        "provisioningModel",
        "terminationTime",
    ]
)
# The parameters of Ray's template for a virtual machine, and a key of Ray's own.
AZURE_KEYS = frozenset(
    [
        "adminUsername",
        "availability_zone",
        "billingProfile",
        "enableAcceleratedNetworking",
        "evictionPolicy",
        "imageId",
        "imageOffer",
        "imagePublisher",
        "imageSku",
        "imageVersion",
        "msi",
        "nsg",
        "osDiskSize",
        "priority",
        "provisionPublicIp",
        "publicKey",
        "subnet",
        "vmCount",
        "vmName",
        "vmSize",
        "vmTags",
        "zones",
    ]
)
_ARM = "azure_arm_parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What one `node_config` comes to."""

    instance_type: str = ""
    machine: InstanceType | None = None  # None: not known here
    is_spot: bool = False
    problems: tuple[str, ...] = ()  # each begins with the key below `node_config`


def read_node_config(provider_type: str, config: Mapping[str, Any]) -> NodeConfig:
    """Of a provider that is not known here nothing is said."""
    match provider_type:
        case "aws":
            return _aws(config)
        case "gcp":
            return _gcp(config)
        case "azure":
            return _azure(config)
        case _:
            return NodeConfig()


def _aws(config: Mapping[str, Any]) -> NodeConfig:
    market = config.get("InstanceMarketOptions") or {}
    instance_type, machine, problems = _machine(config, "InstanceType", AWS)
    if "ImageId" not in config:
        problems.append("ImageId: is missing; Ray's own default is an old image without a driver")
    is_spot = market.get("MarketType") == "spot"
    if market and not is_spot:
        problems.append(
            f"InstanceMarketOptions.MarketType: must be 'spot', not {market.get('MarketType')!r}"
        )
    return NodeConfig(
        instance_type=instance_type,
        machine=machine,
        is_spot=is_spot,
        problems=(*_unknown(config, AWS_KEYS), *problems),
    )


def _gcp(config: Mapping[str, Any]) -> NodeConfig:
    instance_type, machine, problems = _machine(config, "machineType", GCP)
    # A list of one-key mappings is what Ray's own examples have; the API wants a mapping.
    scheduling = config.get("scheduling") or {}
    if isinstance(scheduling, list):
        scheduling = {key: value for item in scheduling for key, value in item.items()}
    problems += [f"scheduling.{line}" for line in _unknown(scheduling, GCP_SCHEDULING_KEYS)]
    if machine is not None and machine.num_gpus:
        if scheduling.get("onHostMaintenance") != "TERMINATE":
            problems.append(
                "scheduling.onHostMaintenance: must be TERMINATE for a machine with GPUs, which "
                "cannot move"
            )
        if config.get("guestAccelerators"):
            problems.append(f"guestAccelerators: {instance_type} has its GPUs already")
    if not config.get("disks"):
        problems.append("disks: is missing; a machine needs one to boot from")
    return NodeConfig(
        instance_type=instance_type,
        machine=machine,
        is_spot=bool(
            scheduling.get("preemptible") or scheduling.get("provisioningModel") == "SPOT"
        ),
        problems=(*_unknown(config, GCP_KEYS), *problems),
    )


def _azure(config: Mapping[str, Any]) -> NodeConfig:
    unknown = _unknown(config, frozenset({_ARM, "azure_arm_tags"}))
    parameters = config.get(_ARM) or {}
    instance_type, machine, problems = _machine(parameters, "vmSize", AZURE)
    priority = parameters.get("priority", "Regular")
    if priority not in ("Regular", "Spot", "Low"):
        problems.append(f"priority: must be Regular or Spot, not {priority!r}")
    below = [*_unknown(parameters, AZURE_KEYS), *problems]
    return NodeConfig(
        instance_type=instance_type,
        machine=machine,
        is_spot=priority == "Spot",
        problems=(*unknown, *(f"{_ARM}.{line}" for line in below)),
    )


def _machine(
    config: Mapping[str, Any], key: str, known: Mapping[str, InstanceType]
) -> tuple[str, InstanceType | None, list[str]]:
    name = str(config.get(key, ""))
    if not name:
        return "", None, [f"{key}: is missing"]
    machine = known.get(name)
    if machine is None:
        return (
            name,
            None,
            [
                f"{key}: {name!r} is not known here (instance_types.py), so nothing "
                "can be said about its GPUs; known are " + ", ".join(sorted(known))
            ],
        )
    return name, machine, []


def _unknown(config: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    lines = []
    for key in config:
        if key not in known:
            lines.append(f"{key}: unknown key{_close_to(key, known)}")
    return lines


def _close_to(key: str, known: frozenset[str]) -> str:
    close = get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
