"""Tiny checkpoints in the formats of AWQ, GPTQ and compressed-tensors, packed by hand.

Each format is written out here as its definition says, level by level, beside the plain floats that
it stands for.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from models.quantization.matrix import quantize
from models.quantization.scheme import MADE_HERE
from models.weights import SINGLE_FILE

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "dtype": "float32",
}
MATRICES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
AWQ_PLACES = {0: 0, 1: 4, 2: 1, 3: 5, 4: 2, 5: 6, 6: 3, 7: 7}  # output in a word -> its nibble

Tensors = dict[str, torch.Tensor]
#: From (outputs, inputs) to the stored tensors and the floats [O, I] that they mean.
Packer = Callable[[int, int, torch.Generator], tuple[Tensors, torch.Tensor]]


@dataclass
class PackedCheckpoint:
    folder: Path
    floats: Tensors = field(default_factory=dict)  # by the names of modules


def write_checkpoint(
    folder: Path, section: dict[str, Any] | None, pack: Packer
) -> PackedCheckpoint:
    """Two files, so that a matrix's tensors are not all in one."""
    generator = torch.Generator().manual_seed(5)
    made = PackedCheckpoint(folder)
    tensors: Tensors = {
        "model.embed_tokens.weight": torch.randn(64, 64, generator=generator),
        "model.norm.weight": torch.ones(64),
        "lm_head.weight": torch.randn(64, 64, generator=generator),
        "model.layers.0.input_layernorm.weight": torch.ones(64),
        "model.layers.0.post_attention_layernorm.weight": torch.ones(64),
    }
    for name, (num_outputs, num_inputs) in MATRICES.items():
        module = f"model.layers.0.{name}"
        stored, floats_OI = pack(num_outputs, num_inputs, generator)
        tensors |= {f"{module}.{suffix}": tensor for suffix, tensor in stored.items()}
        made.floats[module] = floats_OI
    names = sorted(tensors)
    files = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, part in files.items():
        save_file({n: tensors[n].contiguous() for n in part}, folder / file_name)
    weight_map = {n: file_name for file_name, part in files.items() for n in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    config = {**SHAPE, "quantization_config": section}
    (folder / "config.json").write_text(json.dumps(config))
    return made


def write_twins(
    folder: Path, section: dict[str, Any], pack: Packer, to: Path, *, left_out: str = "$"
) -> tuple[Path, Path]:
    """A checkpoint of any family with other matrices in its layers, but for those that `left_out`
    fits: stored quantized, and as the floats that they mean."""
    generator = torch.Generator().manual_seed(5)
    stored: Tensors = {}
    floats: Tensors = {}
    for name, tensor in load_file(folder / SINGLE_FILE).items():
        stored[name] = floats[name] = tensor
        if is_layer_matrix(name) and not re.match(left_out, name):
            packed_tensors, floats[name] = pack(*tensor.shape, generator)
            del stored[name]
            module = name.removesuffix(".weight")
            stored |= {f"{module}.{suffix}": t for suffix, t in packed_tensors.items()}
    config = json.loads((folder / "config.json").read_text())
    for twin, tensors in (("stored", stored), ("floats", floats)):
        (to / twin).mkdir()
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, to / twin / SINGLE_FILE, metadata={"format": "pt"})
        extra = {"quantization_config": section} if twin == "stored" else {}
        (to / twin / "config.json").write_text(json.dumps(config | extra))
    return to / "stored", to / "floats"


def dequantized_checkpoint(folder: Path, name: str, to: Path, *, size: int = 1) -> Path:
    """The checkpoint with every matrix rounded to its levels, the head's too.

    `size`: of the ranks that each round their own part of a matrix.
    """
    shutil.copytree(folder, to)
    made = MADE_HERE[name]
    tensors = load_file(folder / SINGLE_FILE)
    for tensor_name, tensor in list(tensors.items()):
        scheme = made.of(tensor_name.removesuffix(".weight"))
        if scheme is not None and (is_layer_matrix(tensor_name) or "lm_head" in tensor_name):
            dim = (
                1 if tensor_name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight")) else 0
            )
            parts = [quantize(part, scheme).dequantized() for part in tensor.chunk(size, dim)]
            tensors[tensor_name] = torch.cat(parts, dim)
    if made.head is not None and "lm_head.weight" not in tensors:
        embedding = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = quantize(embedding, made.head).dequantized()
        config = json.loads((to / "config.json").read_text())
        (to / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    save_file(tensors, to / SINGLE_FILE, metadata={"format": "pt"})
    return to


def is_layer_matrix(name: str) -> bool:
    """Of attention, a feed-forward or an expert; not of a router, which is never quantized."""
    return name.endswith(("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight"))


def pack_words(levels: torch.Tensor, bits: int) -> torch.Tensor:
    """Along the last dimension, the first level in the lowest bits; filled up with zeros."""
    per_word = 32 // bits
    rows = []
    filling = [0] * (-levels.shape[1] % per_word)
    for given in levels.tolist():
        row = given + filling
        words = []
        for first in range(0, len(row), per_word):
            word = sum(level << (bits * i) for i, level in enumerate(row[first : first + per_word]))
            words.append(word - 2**32 if word >= 2**31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def random_levels(
    num_outputs: int, num_inputs: int, size: int, bits: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels [O, I], scales [O, G] that float16 holds, zeros [O, G]."""
    groups = num_inputs // size
    levels = torch.randint(0, 2**bits, (num_outputs, num_inputs), generator=generator)
    scales = (torch.rand(num_outputs, groups, generator=generator) * 0.02 + 0.01).half().float()
    zeros = torch.randint(0, 2**bits, (num_outputs, groups), generator=generator)
    return levels, scales, zeros


def meaning(
    levels: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, group_of_input: torch.Tensor
) -> torch.Tensor:
    return (levels - zeros[:, group_of_input]).float() * scales[:, group_of_input]


def awq(size: int) -> Packer:
    def pack(
        num_outputs: int, num_inputs: int, generator: torch.Generator
    ) -> tuple[Tensors, torch.Tensor]:
        actual = num_inputs if size == -1 else size
        levels, scales, zeros = random_levels(num_outputs, num_inputs, actual, 4, generator)

        def words(by_output: torch.Tensor) -> torch.Tensor:  # [rows, O]
            in_places = by_output.clone()
            for output in range(by_output.shape[1]):
                place = output // 8 * 8 + AWQ_PLACES[output % 8]
                in_places[:, place] = by_output[:, output]
            return pack_words(in_places, 4)

        stored = {
            "qweight": words(levels.t()),
            "qzeros": words(zeros.t()),
            "scales": scales.t().half(),
        }
        return stored, meaning(levels, scales, zeros, torch.arange(num_inputs) // actual)

    return pack


def gptq(size: int, bits: int = 4, *, is_v2: bool = False, has_order: bool = False) -> Packer:
    def pack(
        num_outputs: int, num_inputs: int, generator: torch.Generator
    ) -> tuple[Tensors, torch.Tensor]:
        actual = num_inputs if size == -1 else size
        levels, scales, zeros = random_levels(num_outputs, num_inputs, actual, bits, generator)
        group_of_input = torch.arange(num_inputs) // actual
        if has_order:
            group_of_input = group_of_input[torch.randperm(num_inputs, generator=generator)]
        stored_zeros = zeros if is_v2 else (zeros - 1) % 2**bits
        stored = {
            "qweight": pack_words(levels, bits).t(),
            "qzeros": pack_words(stored_zeros.t(), bits),
            "scales": scales.t().half(),
            "g_idx": group_of_input.int(),
        }
        return stored, meaning(levels, scales, zeros, group_of_input)

    return pack


def packed(
    size: int | None, bits: int = 4, *, is_symmetric: bool = True, has_order: bool = False
) -> Packer:
    """compressed-tensors' pack-quantized; `size` None: per channel."""

    def pack(
        num_outputs: int, num_inputs: int, generator: torch.Generator
    ) -> tuple[Tensors, torch.Tensor]:
        actual = size or num_inputs
        levels, scales, zeros = random_levels(num_outputs, num_inputs, actual, bits, generator)
        group_of_input = torch.arange(num_inputs) // actual
        if has_order:
            group_of_input = group_of_input[torch.randperm(num_inputs, generator=generator)]
        stored = {
            "weight_packed": pack_words(levels, bits),
            "weight_scale": scales,
            "weight_shape": torch.tensor([num_outputs, num_inputs]),
        }
        if is_symmetric:
            zeros = torch.full_like(zeros, 2 ** (bits - 1))
        else:
            stored["weight_zero_point"] = pack_words(zeros.t(), bits).t()
        if has_order:
            stored["weight_g_idx"] = group_of_input.int()
        return stored, meaning(levels, scales, zeros, group_of_input)

    return pack


def plain_int8(*, per_tensor: bool = False) -> Packer:
    def pack(
        num_outputs: int, num_inputs: int, generator: torch.Generator
    ) -> tuple[Tensors, torch.Tensor]:
        levels = torch.randint(-127, 128, (num_outputs, num_inputs), generator=generator)
        scales = torch.rand(1 if per_tensor else num_outputs, 1, generator=generator) * 1e-3 + 1e-3
        stored_scales = scales.reshape(1) if per_tensor else scales
        return (
            {"weight": levels.to(torch.int8), "weight_scale": stored_scales},
            levels.float() * scales,
        )

    return pack


def plain_fp8(*, per_tensor: bool = False) -> Packer:
    def pack(
        num_outputs: int, num_inputs: int, generator: torch.Generator
    ) -> tuple[Tensors, torch.Tensor]:
        values = torch.randn(num_outputs, num_inputs, generator=generator) * 100
        levels = values.to(torch.float8_e4m3fn)
        scales = torch.rand(1 if per_tensor else num_outputs, 1, generator=generator) * 1e-3 + 1e-3
        stored_scales = scales.reshape(()) if per_tensor else scales
        return {"weight": levels, "weight_scale": stored_scales}, levels.float() * scales

    return pack


def compressed_section(
    stored_format: str, weights: dict[str, Any], activations: dict[str, Any] | None = None
) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": stored_format,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }
