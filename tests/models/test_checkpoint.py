import json
from pathlib import Path

import pytest

from models.checkpoint import (
    CheckpointError,
    DecoderConfig,
    LinearRopeScaling,
    Llama3RopeScaling,
    RopeConfig,
    read_decoder_config,
)

LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
}
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def read(tmp_path: Path, **changes: object) -> DecoderConfig:
    """Read LLAMA with keys replaced; `...` removes one."""
    values = {k: v for k, v in (LLAMA | changes).items() if v is not ...}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return read_decoder_config(tmp_path)


def refusal(tmp_path: Path, **changes: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, **changes)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: ")
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path / 'config.json'}: ")


def test_transformers_4_and_5_files_mean_the_same(tmp_path: Path) -> None:
    old = read(
        tmp_path,
        rope_theta=500000.0,
        rope_scaling={"rope_type": "llama3", **LLAMA3_SCALING},
        torch_dtype="bfloat16",
    )
    new = read(
        tmp_path,
        rope_parameters={"rope_theta": 500000.0, "rope_type": "llama3", **LLAMA3_SCALING},
        dtype="bfloat16",
    )
    assert old == new
    assert new.dtype == "bfloat16"
    assert new.rope == RopeConfig(
        theta=500000.0,
        scaling=Llama3RopeScaling(
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    )


def test_the_oldest_name_of_a_rope_type_is_read(tmp_path: Path) -> None:
    config = read(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})
    assert config.rope == RopeConfig(theta=10000.0, scaling=LinearRopeScaling(factor=2.0))


def test_silence_means_transformers_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, num_key_value_heads=..., max_position_embeddings=...)
    assert config.num_kv_heads == 4
    assert config.head_dim == 16
    assert config.max_position_embeddings == 2048
    assert config.rope == RopeConfig(theta=10000.0)
    assert config.rms_norm_eps == 1e-6
    assert config.dtype == "float32"
    assert not config.tie_word_embeddings
    assert config.layer_windows == (None, None, None)


def test_biases_and_norms_follow_the_family(tmp_path: Path) -> None:
    llama = read(tmp_path, attention_bias=True, mlp_bias=True)
    assert (llama.has_qkv_bias, llama.has_output_bias, llama.has_mlp_bias) == (True, True, True)
    qwen2 = read(tmp_path, architectures=["Qwen2ForCausalLM"])
    assert (qwen2.has_qkv_bias, qwen2.has_output_bias, qwen2.has_mlp_bias) == (True, False, False)
    qwen3 = read(tmp_path, architectures=["Qwen3ForCausalLM"])
    assert (qwen3.has_qkv_bias, qwen3.has_qk_norm, qwen3.head_dim) == (False, True, 128)


def test_mistral_windows_every_layer_unless_null(tmp_path: Path) -> None:
    mistral = ["MistralForCausalLM"]
    assert read(tmp_path, architectures=mistral, sliding_window=8).layer_windows == (8, 8, 8)
    assert read(tmp_path, architectures=mistral).layer_windows == (4096,) * 3
    config = read(tmp_path, architectures=mistral, sliding_window=None)
    assert config.layer_windows == (None,) * 3


def test_qwen_windows_the_layers_that_say_so(tmp_path: Path) -> None:
    qwen: dict[str, object] = {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 8}
    assert read(tmp_path, **qwen).layer_windows == (None,) * 3
    on = qwen | {"use_sliding_window": True}
    assert read(tmp_path, **on, max_window_layers=1).layer_windows == (None, 8, 8)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read(tmp_path, **on, layer_types=kinds).layer_windows == (8, None, 8)


def test_end_of_sequence_tokens_of_both_files_count(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 5]}')
    assert read(tmp_path).eos_token_ids == (2, 5, 7)
    assert read(tmp_path, eos_token_id=None).eos_token_ids == (5, 7)


def test_a_corrupt_generation_config_is_named(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json: not JSON"):
        read(tmp_path)


def test_a_missing_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint folder"):
        read_decoder_config(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        read_decoder_config(tmp_path)


@pytest.mark.parametrize("content", ["{", "\xff\xfe", ""])
def test_a_corrupt_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON"):
        read_decoder_config(tmp_path)


def test_another_shape_of_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="the top level must be an object"):
        read_decoder_config(tmp_path)


def test_an_unknown_architecture_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    assert refusal(tmp_path, architectures=["MambaForCausalLM"]) == (
        "architecture MambaForCausalLM is not supported; supported: LlamaForCausalLM, "
        "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, MixtralForCausalLM, "
        "Qwen3MoeForCausalLM"
    )
    assert "architectures must be a list of one name" in refusal(tmp_path, architectures=...)


@pytest.mark.parametrize("kind", ["yarn", "dynamic", "longrope"])
def test_an_unknown_rope_type_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    expected = f"rope type {kind!r} is not supported; supported: default, linear, llama3"
    assert refusal(tmp_path, rope_scaling={"type": kind, "factor": 2.0}) == expected
    assert refusal(tmp_path, rope_parameters={"rope_type": kind, "rope_theta": 1e4}) == expected


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_size": 62}, "hidden_size (62) is not a multiple of num_attention_heads (4)"),
        ({"num_key_value_heads": 3}, "(4) is not a multiple of num_key_value_heads (3)"),
        ({"head_dim": 15}, "head_dim must be a positive even integer, not 15"),
        ({"vocab_size": ...}, "vocab_size must be a positive integer, not missing"),
        ({"hidden_size": "64"}, 'hidden_size must be a positive integer, not "64"'),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, not 0"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be a positive number, not -1"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, not 1"),
        ({"eos_token_id": "x"}, "eos_token_id must be a token id or a list of them"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; supported: 'silu'"),
        ({"dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, 'quant_method "fp8" is not supported'),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor other than 1"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor must be a positive"),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3_SCALING, "high_freq_factor": 1.0}},
            "high_freq_factor (1.0) must exceed low_freq_factor (1.0)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], part: str
) -> None:
    assert part in refusal(tmp_path, **changes)


def test_unknown_layer_types_are_refused(tmp_path: Path) -> None:
    qwen: dict[str, object] = {
        "architectures": ["Qwen3ForCausalLM"],
        "sliding_window": 8,
        "use_sliding_window": True,
    }
    assert "layer type 'linear_attention' is not supported" in refusal(
        tmp_path, **qwen, layer_types=["linear_attention"] * 3
    )
    assert "layer_types must be a list of num_hidden_layers (3) names" in refusal(
        tmp_path, **qwen, layer_types=["full_attention"]
    )


def test_experts_are_read_by_the_names_of_both_transformers(tmp_path: Path) -> None:
    qwen: dict[str, object] = {"architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 4}
    for key in ("num_experts", "num_local_experts"):
        experts = read(tmp_path, **qwen, **{key: 16}, mlp_only_layers=[1]).experts
        assert experts is not None
        assert (experts.num_experts, experts.num_chosen, experts.expert_size) == (16, 8, 768)
        assert experts.is_in_layer == (True, False, True, True)
        assert not experts.has_normalized_weights
    every_other = read(tmp_path, **qwen, decoder_sparse_step=2).experts
    assert every_other is not None
    assert every_other.is_in_layer == (False, True, False, True)
    mixtral = read(tmp_path, architectures=["MixtralForCausalLM"], intermediate_size=96)
    assert mixtral.experts is not None
    assert mixtral.experts.expert_size == 96
    assert mixtral.layer_windows == (None,) * 3, "unlike Mistral's"


def test_experts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    qwen: dict[str, object] = {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4}
    assert "num_experts_per_tok (8) exceeds the number of experts (4)" in refusal(tmp_path, **qwen)
    assert "mlp_only_layers must be a list of layers' numbers" in refusal(
        tmp_path, **qwen, num_experts_per_tok=2, mlp_only_layers=3
    )
