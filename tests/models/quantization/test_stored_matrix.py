"""Checkpoints that are stored quantized mean the floats that their formats' definitions give."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import CheckpointError, read_decoder_config
from models.decoder import Decoder
from models.parallel.group import TPGroup
from models.quantization.scheme import choose_quantization
from models.weights import load_weights
from tests.models.quantization.packed_checkpoints import (
    Packer,
    awq,
    compressed_section,
    gptq,
    packed,
    plain_fp8,
    plain_int8,
    write_checkpoint,
)

AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "version": "GEMM", "zero_point": True}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "sym": False}
INT4: dict[str, Any] = {"num_bits": 4, "type": "int", "symmetric": True}
INT8: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
FP8: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
GROUP_32 = {"strategy": "group", "group_size": 32}
TOKEN = {"dynamic": True, "strategy": "token", "symmetric": True, "num_bits": 8}
INT8_TOKEN, FP8_TOKEN = {**TOKEN, "type": "int"}, {**TOKEN, "type": "float"}

VARIANTS: dict[str, tuple[dict[str, Any], Packer]] = {
    "awq": ({**AWQ, "group_size": 32}, awq(32)),
    "awq per channel": ({**AWQ, "group_size": -1}, awq(-1)),
    "gptq": ({**GPTQ, "group_size": 32, "desc_act": False}, gptq(32)),
    "gptq 8 bits": ({**GPTQ, "bits": 8, "group_size": 64}, gptq(64, 8)),
    "gptq v2": ({**GPTQ, "group_size": 32, "checkpoint_format": "gptq_v2"}, gptq(32, is_v2=True)),
    "gptq desc_act": ({**GPTQ, "group_size": 32, "desc_act": True}, gptq(32, has_order=True)),
    "gptq per channel": ({**GPTQ, "group_size": -1}, gptq(-1)),
    "packed": (compressed_section("pack-quantized", {**INT4, **GROUP_32}), packed(32)),
    "packed with zeros": (
        compressed_section("pack-quantized", {**INT4, **GROUP_32, "symmetric": False}),
        packed(32, is_symmetric=False),
    ),
    "packed with order": (
        compressed_section("pack-quantized", {**INT4, **GROUP_32, "actorder": "group"}),
        packed(32, has_order=True),
    ),
    "packed per channel": (
        compressed_section("pack-quantized", {**INT4, "strategy": "channel"}),
        packed(None),
    ),
    "packed 8 bits": (compressed_section("pack-quantized", INT8), packed(None, 8)),
    "packed 8 bits with zeros": (
        compressed_section("pack-quantized", {**INT8, **GROUP_32, "symmetric": False}),
        packed(32, 8, is_symmetric=False),
    ),
    "int8": (compressed_section("int-quantized", INT8), plain_int8()),
    "int8 per tensor": (
        compressed_section("int-quantized", {**INT8, "strategy": "tensor"}),
        plain_int8(per_tensor=True),
    ),
    "int8 dynamic": (compressed_section("int-quantized", INT8, INT8_TOKEN), plain_int8()),
    "fp8 dynamic": (compressed_section("float-quantized", FP8, FP8_TOKEN), plain_fp8()),
    "fp8 per tensor": (
        compressed_section("float-quantized", {**FP8, "strategy": "tensor"}),
        plain_fp8(per_tensor=True),
    ),
}


def load(folder: Path, rank: int = 0, size: int = 1, *, quantization: str = "auto") -> Decoder:
    group = TPGroup()  # of ranks that exchange nothing
    group.rank, group.size = rank, size
    config = read_decoder_config(folder)
    chosen = choose_quantization(quantization, config.quantization)
    config = replace(config, quantization=chosen)
    model = Decoder(config, num_positions=16, dtype=torch.float32, device="cpu", group=group)
    load_weights(model, folder)
    return model


def check_products(model: Decoder, floats: dict[str, torch.Tensor], tolerance: float) -> None:
    """Every linear computes with this rank's part of the floats."""
    generator = torch.Generator().manual_seed(1)
    for fused in model.layers[0].linears:
        parts = []
        for name in fused.names:
            part, weight_OI = model.shards.part(f"{name}.weight"), floats[name]
            if part is not None:
                weight_OI = weight_OI.narrow(part.dim, part.start, part.stop - part.start)
            parts.append(weight_OI)
        weight_OI = torch.cat(parts)
        x_TI = torch.randn(3, weight_OI.shape[1], generator=generator)
        expected_TO = x_TI @ weight_OI.t()
        difference = (fused.linear(x_TI) - expected_TO).abs().max()
        assert difference <= tolerance * expected_TO.abs().max(), fused.names


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_stored_format_means_its_floats_on_every_rank(
    tmp_path: Path, name: str, size: int
) -> None:
    section, pack = VARIANTS[name]
    made = write_checkpoint(tmp_path, section, pack)
    tolerance = {"int8 dynamic": 0.02, "fp8 dynamic": 0.08}.get(name, 1e-5)
    for rank in range(size):
        check_products(load(tmp_path, rank, size), made.floats, tolerance)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("int8", 0.02), ("int8_dynamic", 0.03), ("int4_g32", 0.2), ("fp8", 0.1)]
)
def test_ranks_quantize_their_parts_of_floats(tmp_path: Path, name: str, tolerance: float) -> None:
    def floats(
        num_outputs: int, num_inputs: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        weight_OI = torch.randn(num_outputs, num_inputs, generator=generator)
        return {"weight": weight_OI}, weight_OI

    made = write_checkpoint(tmp_path, None, floats)
    for rank in range(2):
        model = load(tmp_path, rank, 2, quantization=name)
        assert all(fused.slots for fused in model.layers[0].linears)
        check_products(model, made.floats, tolerance)


def test_modules_that_are_left_out_are_floats(tmp_path: Path) -> None:
    section, pack = VARIANTS["packed"]

    def pack_all_but_o(
        num_outputs: int, num_inputs: int, generator: torch.Generator
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        if (num_outputs, num_inputs) != (64, 128):
            return pack(num_outputs, num_inputs, generator)
        weight = torch.randn(num_outputs, num_inputs, generator=generator)
        return {"weight": weight}, weight

    left_out = {**section, "ignore": ["lm_head", "re:.*down_proj"]}
    made = write_checkpoint(tmp_path, left_out, pack_all_but_o)
    model = load(tmp_path)
    assert not model.layers[0].linears[-1].slots
    check_products(model, made.floats, 1e-5)


def edit(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    """Replace or remove a tensor, wherever it is."""
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            del tensors[name]
            if tensor is not None:
                tensors[name] = tensor
            save_file(tensors, path)


@pytest.mark.parametrize(
    ("suffix", "tensor", "message"),
    [
        ("qzeros", None, r"missing model\.layers\.0\.mlp\.up_proj\.qzeros"),
        ("qzeros", torch.zeros(3, 16, dtype=torch.int32), r"up_proj\.qzeros has shape \(3, 16\)"),
        ("qweight", torch.zeros(64, 16), r"up_proj\.qweight is stored as F32; supported: I32"),
        ("scales", torch.zeros(2, 128).double(), r"up_proj\.scales is stored as F64"),
    ],
)
def test_what_is_wrong_with_a_stored_matrix_is_named(
    tmp_path: Path, suffix: str, tensor: torch.Tensor | None, message: str
) -> None:
    write_checkpoint(tmp_path, *VARIANTS["awq"])
    edit(tmp_path, f"model.layers.0.mlp.up_proj.{suffix}", tensor)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_tensor_of_another_format_is_refused(tmp_path: Path) -> None:
    section, pack = VARIANTS["gptq"]
    made = write_checkpoint(tmp_path, {**AWQ, "group_size": 32}, pack)
    assert made.floats
    assert section != AWQ
    with pytest.raises(CheckpointError, match=r"no place in the model for .*g_idx"):
        load(tmp_path)


def test_groups_beyond_those_there_are_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, *VARIANTS["gptq desc_act"])
    edit(tmp_path, "model.layers.0.mlp.up_proj.g_idx", torch.full((64,), 2, dtype=torch.int32))
    with pytest.raises(CheckpointError, match="names groups beyond the 2"):
        load(tmp_path)
