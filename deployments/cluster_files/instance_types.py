"""Machines of the clouds that a cluster file may name: their CPUs, memory and GPUs.

Those that make sense for serving, as the providers document them (November 2025). `GPU_MEMORY_GIB`
is what a program may count on, by `models.gpus` where the GPU is there.
"""

from dataclasses import dataclass

GPU_MEMORY_GIB = {
    "A10": 22.5,
    "A10G": 22.5,
    "A100-40GB": 40.0,
    "A100-80GB": 80.0,
    "H100": 79.6,
    "H100-94GB": 93.6,
    "H200": 140.4,
    "L4": 22.5,
    "L40S": 45.0,
    "T4": 15.0,
    "V100": 16.0,
}


@dataclass(frozen=True, slots=True)
class InstanceType:
    """One machine. `gpu` is a key of `GPU_MEMORY_GIB`."""

    cpus: int
    memory_gib: int
    num_gpus: int = 0
    gpu: str = ""


AWS = {
    "m6i.xlarge": InstanceType(4, 16),
    "m6i.2xlarge": InstanceType(8, 32),
    "m6i.4xlarge": InstanceType(16, 64),
    "m7i.xlarge": InstanceType(4, 16),
    "m7i.2xlarge": InstanceType(8, 32),
    "m7i.4xlarge": InstanceType(16, 64),
    "c7i.2xlarge": InstanceType(8, 16),
    "c7i.4xlarge": InstanceType(16, 32),
    "g4dn.xlarge": InstanceType(4, 16, 1, "T4"),
    "g4dn.12xlarge": InstanceType(48, 192, 4, "T4"),
    "g5.xlarge": InstanceType(4, 16, 1, "A10G"),
    "g5.2xlarge": InstanceType(8, 32, 1, "A10G"),
    "g5.12xlarge": InstanceType(48, 192, 4, "A10G"),
    "g5.48xlarge": InstanceType(192, 768, 8, "A10G"),
    "g6.xlarge": InstanceType(4, 16, 1, "L4"),
    "g6.2xlarge": InstanceType(8, 32, 1, "L4"),
    "g6.12xlarge": InstanceType(48, 192, 4, "L4"),
    "g6.48xlarge": InstanceType(192, 768, 8, "L4"),
    "g6e.xlarge": InstanceType(4, 32, 1, "L40S"),
    "g6e.2xlarge": InstanceType(8, 64, 1, "L40S"),
    "g6e.12xlarge": InstanceType(48, 384, 4, "L40S"),
    "g6e.48xlarge": InstanceType(192, 1536, 8, "L40S"),
    "p4d.24xlarge": InstanceType(96, 1152, 8, "A100-40GB"),
    "p4de.24xlarge": InstanceType(96, 1152, 8, "A100-80GB"),
    "p5.48xlarge": InstanceType(192, 2048, 8, "H100"),
    "p5e.48xlarge": InstanceType(192, 2048, 8, "H200"),
    "p5en.48xlarge": InstanceType(192, 2048, 8, "H200"),
}

GCP = {
    "e2-standard-4": InstanceType(4, 16),
    "e2-standard-8": InstanceType(8, 32),
    "n2-standard-4": InstanceType(4, 16),
    "n2-standard-8": InstanceType(8, 32),
    "n2-standard-16": InstanceType(16, 64),
    "g2-standard-4": InstanceType(4, 16, 1, "L4"),
    "g2-standard-8": InstanceType(8, 32, 1, "L4"),
    "g2-standard-12": InstanceType(12, 48, 1, "L4"),
    "g2-standard-24": InstanceType(24, 96, 2, "L4"),
    "g2-standard-48": InstanceType(48, 192, 4, "L4"),
    "g2-standard-96": InstanceType(96, 384, 8, "L4"),
    "a2-highgpu-1g": InstanceType(12, 85, 1, "A100-40GB"),
    "a2-highgpu-2g": InstanceType(24, 170, 2, "A100-40GB"),
    "a2-highgpu-4g": InstanceType(48, 340, 4, "A100-40GB"),
    "a2-highgpu-8g": InstanceType(96, 680, 8, "A100-40GB"),
    "a2-ultragpu-1g": InstanceType(12, 170, 1, "A100-80GB"),
    "a2-ultragpu-2g": InstanceType(24, 340, 2, "A100-80GB"),
    "a2-ultragpu-4g": InstanceType(48, 680, 4, "A100-80GB"),
    "a2-ultragpu-8g": InstanceType(96, 1360, 8, "A100-80GB"),
    "a3-highgpu-1g": InstanceType(26, 234, 1, "H100"),
    "a3-highgpu-2g": InstanceType(52, 468, 2, "H100"),
    "a3-highgpu-4g": InstanceType(104, 936, 4, "H100"),
    "a3-highgpu-8g": InstanceType(208, 1872, 8, "H100"),
}

AZURE = {
    "Standard_D4s_v5": InstanceType(4, 16),
    "Standard_D8s_v5": InstanceType(8, 32),
    "Standard_D16s_v5": InstanceType(16, 64),
    "Standard_NC4as_T4_v3": InstanceType(4, 28, 1, "T4"),
    "Standard_NC64as_T4_v3": InstanceType(64, 440, 4, "T4"),
    "Standard_NV36ads_A10_v5": InstanceType(36, 440, 1, "A10"),
    "Standard_NV72ads_A10_v5": InstanceType(72, 880, 2, "A10"),
    "Standard_NC24ads_A100_v4": InstanceType(24, 220, 1, "A100-80GB"),
    "Standard_NC48ads_A100_v4": InstanceType(48, 440, 2, "A100-80GB"),
    "Standard_NC96ads_A100_v4": InstanceType(96, 880, 4, "A100-80GB"),
    "Standard_ND96asr_v4": InstanceType(96, 900, 8, "A100-40GB"),
    "Standard_ND96amsr_A100_v4": InstanceType(96, 1900, 8, "A100-80GB"),
    "Standard_NC40ads_H100_v5": InstanceType(40, 320, 1, "H100-94GB"),
    "Standard_NC80adis_H100_v5": InstanceType(80, 640, 2, "H100-94GB"),
    "Standard_ND96isr_H100_v5": InstanceType(96, 1900, 8, "H100"),
}
