"""Random LoRA adapters in PEFT's format, and base checkpoints with one of them merged by hand."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ALL_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX = "base_model.model."


def make_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int,
    rank: int = 4,
    alpha: float = 8,
    modules: Sequence[str] = ALL_MODULES,
    **config: object,
) -> Path:
    """An adapter of a strength that changes what is generated."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if weight.dim() == 2 and module.rpartition(".")[2] in modules:
            num_outputs, num_inputs = weight.shape
            a = torch.randn(rank, num_inputs, generator=generator) / math.sqrt(num_inputs)
            b = torch.randn(num_outputs, rank, generator=generator) / math.sqrt(rank) * 0.5
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = b
    save_file(tensors, folder / "adapter_model.safetensors")
    write_config(folder, r=rank, lora_alpha=alpha, target_modules=list(modules), **config)
    return folder


def write_config(folder: Path, **config: object) -> None:
    """What PEFT writes for a plain LoRA, but for what is given."""
    plain = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))


def merged_checkpoint(folder: Path, base: Path, adapter: Path) -> Path:
    """The base with `weight + scaling · B A` for every module of the adapter."""
    shutil.copytree(base, folder)
    config = json.loads((adapter / "adapter_config.json").read_text())
    root = math.sqrt(config["r"]) if config["use_rslora"] else config["r"]
    weights = load_file(base / "model.safetensors")
    matrices = load_file(adapter / "adapter_model.safetensors")
    for name, a in matrices.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            b = matrices[f"{module}.lora_B.weight"]
            weight = weights[f"{module.removeprefix(_PREFIX)}.weight"]
            weight += (config["lora_alpha"] / root) * (b.double() @ a.double()).float()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
