"""The lists of keys, compared with where they come from."""

import json
from pathlib import Path

import botocore.session
import ray.autoscaler

from deployments.cluster_files.instance_types import AWS, AZURE, GCP, GPU_MEMORY_GIB
from deployments.cluster_files.node_configs import AWS_KEYS, AZURE_KEYS


def test_the_keys_of_aws_are_those_of_its_api() -> None:
    model = botocore.session.get_session().get_service_model("ec2")
    members = set(model.operation_model("RunInstances").input_shape.members)
    assert AWS_KEYS - {"SubnetIds"} <= members


def test_the_keys_of_azure_are_those_of_rays_template() -> None:
    folder = Path(ray.autoscaler.__file__).parent / "_private" / "_azure"
    template = json.loads((folder / "azure-vm-template.json").read_text())
    assert AZURE_KEYS - {"availability_zone"} == set(template["parameters"])


def test_every_gpu_of_an_instance_type_has_a_size() -> None:
    for machines in (AWS, GCP, AZURE):
        for name, machine in machines.items():
            assert bool(machine.num_gpus) == bool(machine.gpu), name
            assert not machine.gpu or machine.gpu in GPU_MEMORY_GIB, name
