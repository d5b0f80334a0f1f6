"""`quantization_config`: understood, or refused by name with what is supported."""

from typing import Any

import pytest

from models.quantization.scheme import MatrixScheme
from models.quantization.stored_config import read_stored_quantization

AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
WEIGHTS: dict[str, Any] = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": 128,
}
ACTIVATIONS: dict[str, Any] = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}


def compressed(**changes: Any) -> dict[str, Any]:
    group = {
        "targets": changes.pop("targets", ["Linear"]),
        "weights": {**WEIGHTS, **changes.pop("weights", {})},
        "input_activations": changes.pop("input_activations", None),
        "output_activations": changes.pop("output_activations", None),
    }
    section = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    return {**section, **changes}


def test_awq_and_gptq_are_four_bits_in_groups_with_zeros() -> None:
    scheme = MatrixScheme(weights="int4", group_size=128, has_zeros=True)
    for section in (AWQ, GPTQ):
        read = read_stored_quantization(section)
        assert read.layers == scheme
        assert read.of("lm_head") is None
        assert read.of("model.layers.3.mlp.up_proj") == scheme


def test_compressed_tensors_leaves_out_what_it_ignores() -> None:
    read = read_stored_quantization(
        compressed(ignore=["re:.*o_proj", "model.layers.1.mlp.up_proj"])
    )
    assert read.of("lm_head") is not None
    assert read.of("model.layers.0.self_attn.o_proj") is None
    assert read.of("model.layers.1.mlp.up_proj") is None
    assert read.of("model.layers.11.mlp.up_proj") is not None


def test_gptq_leaves_out_what_its_rules_exclude() -> None:
    rules = {r"-:.*\.mlp\.gate$": {}, r"-:model\.layers\.1\.self_attn": {}, "-:layers": {}}
    read = read_stored_quantization({**GPTQ, "dynamic": rules})
    assert read.of("model.layers.0.mlp.gate") is None
    assert read.of("model.layers.1.self_attn.q_proj") is None
    assert read.of("model.layers.11.self_attn.q_proj") == read.layers
    assert read.of("model.layers.0.mlp.experts.3.gate_proj") == read.layers
    assert read_stored_quantization({**GPTQ, "dynamic": None}).of("a") is not None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method .*bitsandbytes.*awq.*gptq.*compressed"),
        ({}, "quant_method null"),
        ({**AWQ, "version": "gemv"}, "version .*gemv.*gemm"),
        ({**AWQ, "bits": 8}, "bits 8 is not supported; supported: 4"),
        ({**AWQ, "zero_point": False}, "zero_point false"),
        ({**AWQ, "group_size": 48}, "group_size 48 .*multiples of 32"),
        ({**AWQ, "modules_to_not_convert": "lm_head"}, "modules_to_not_convert must be a list"),
        ({**GPTQ, "bits": 3}, "bits 3 is not supported; supported: 4, 8"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format .*marlin"),
        ({**GPTQ, "dynamic": {"-:a": {}, "+:b": {"bits": 8}}}, r'dynamic "\+:b" .*"-:"'),
        ({**GPTQ, "dynamic": {"b": {"bits": 8}}}, 'dynamic "b" is not supported'),
        ({**GPTQ, "dynamic": {"-:(": {}}}, r"dynamic: '\(' is not a regular expression"),
        ({**GPTQ, "dynamic": ["-:a"]}, "dynamic must be an object"),
        ({**GPTQ, "modules_in_block_to_quantize": ["a"]}, "modules_in_block_to_quantize is not"),
        (compressed(config_groups={}), "config_groups has 0 groups"),
        (compressed(targets=["re:.*q_proj"]), "targets .*Linear"),
        (compressed(format="marlin-24"), "format 'marlin-24' of int4 weights"),
        (compressed(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme is not supported"),
        (compressed(transform_config={"a": 1}), "transform_config"),
        (compressed(sparsity_config={"format": "sparse-24"}), "sparsity_config.format"),
        (compressed(weights={"num_bits": 2}), "num_bits 2"),
        (compressed(weights={"strategy": "block"}), "strategy .*block"),
        (compressed(weights={"type": "float"}), "num_bits 4 is not supported; supported: 8"),
        (compressed(input_activations=ACTIVATIONS), "input_activations with num_bits 8"),
        (
            compressed(
                format="int-quantized",
                weights={"num_bits": 8, "strategy": "channel"},
                input_activations={**ACTIVATIONS, "dynamic": False},
            ),
            "input_activations with dynamic false",
        ),
        (compressed(output_activations={"num_bits": 8}), "output_activations"),
        (compressed(ignore=["re:("]), "not a regular expression"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_stored_quantization(section)
