"""Adapters' files: what is read of them, and every way in which they can be wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.adapters.checkpoint import LoadedAdapter, adapter_version, read_adapter
from models.adapters.peft_config import AdapterError
from models.checkpoint import DecoderConfig, read_decoder_config
from models.parallel.sharding import Shards
from tests.models.adapters.adapter_samples import make_adapter, write_config
from tests.models.conftest import MakeCheckpoint

Tensors = dict[str, torch.Tensor]
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def base(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("llama")


@pytest.fixture(scope="module")
def config(base: Path) -> DecoderConfig:
    return read_decoder_config(base)


def read(folder: Path, config: DecoderConfig) -> LoadedAdapter:
    return read_adapter(folder, config, max_rank=8, dtype=torch.float32)


def test_matrices_come_by_layer_and_module_with_the_scaling_in_the_second(
    base: Path, config: DecoderConfig, tmp_path: Path
) -> None:
    make_adapter(tmp_path, base, seed=1, rank=4, alpha=12, modules=("q_proj", "down_proj"))
    adapter = read(tmp_path, config)
    assert [set(layer) for layer in adapter.layers] == [{"self_attn.q_proj", "mlp.down_proj"}] * 2
    stored = load_file(tmp_path / "adapter_model.safetensors")
    pair = adapter.layers[0]["self_attn.q_proj"]
    assert torch.equal(pair.a_RI, stored[f"{PREFIX}.lora_A.weight"])
    assert torch.equal(pair.b_RO, 3 * stored[f"{PREFIX}.lora_B.weight"].T)


def test_a_rank_gets_its_outputs_of_the_first_layers_and_its_inputs_of_the_second(
    base: Path, config: DecoderConfig, tmp_path: Path
) -> None:
    make_adapter(tmp_path, base, seed=1)
    pairs = read(tmp_path, config).layers[1]
    for module, pair in pairs.items():
        parts = [pair.part(module, Shards(config, rank=rank, size=2)) for rank in range(2)]
        if module.endswith(("o_proj", "down_proj")):
            assert torch.equal(torch.cat([part.a_RI for part in parts], dim=1), pair.a_RI)
            assert all(torch.equal(part.b_RO, pair.b_RO) for part in parts)
        else:
            assert torch.equal(torch.cat([part.b_RO for part in parts], dim=1), pair.b_RO)
            assert all(torch.equal(part.a_RI, pair.a_RI) for part in parts)


def test_the_version_changes_with_the_files(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path, base, seed=1)
    first = adapter_version(tmp_path)
    assert adapter_version(tmp_path) == first
    make_adapter(tmp_path, base, seed=2)
    assert adapter_version(tmp_path) != first


def without_half_a_pair(tensors: Tensors) -> None:
    del tensors[f"{PREFIX}.lora_B.weight"]


def without_a_layer(tensors: Tensors) -> None:
    for name in [name for name in tensors if ".layers.1." in name]:
        del tensors[name]


def with_a_magnitude(tensors: Tensors) -> None:
    tensors[f"{PREFIX}.lora_magnitude_vector"] = torch.ones(64)


def with_another_layer(tensors: Tensors) -> None:
    tensors[f"{PREFIX}.lora_A.weight".replace("layers.0", "layers.7")] = torch.ones(4, 64)


def with_an_embedding(tensors: Tensors) -> None:
    tensors["base_model.model.model.embed_tokens.weight"] = torch.ones(2, 64)


def of_another_width(tensors: Tensors) -> None:
    tensors[f"{PREFIX}.lora_A.weight"] = torch.ones(4, 32)


def of_another_rank(tensors: Tensors) -> None:
    tensors[f"{PREFIX}.lora_B.weight"] = torch.ones(64, 2)


def not_a_number(tensors: Tensors) -> None:
    tensors[f"{PREFIX}.lora_A.weight"][0, 0] = torch.nan


def of_integers(tensors: Tensors) -> None:
    tensors[f"{PREFIX}.lora_A.weight"] = torch.ones(4, 64, dtype=torch.int32)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (without_half_a_pair, r"missing .*layers\.0\.self_attn\.q_proj\.lora_B\.weight$"),
        (without_a_layer, r"missing .* and 9 more"),
        (with_a_magnitude, r"no place in the model for .*lora_magnitude_vector"),
        (with_another_layer, r"no place in the model for .*layers\.7"),
        (with_an_embedding, r"no place in the model for .*embed_tokens"),
        (of_another_width, r"lora_A\.weight has shape \(4, 32\), but .* ask for \(4, 64\)"),
        (of_another_rank, r"lora_B\.weight has shape \(64, 2\), but .* ask for \(64, 4\)"),
        (not_a_number, r"self_attn\.q_proj has numbers that are not finite"),
        (of_integers, r"self_attn\.q_proj is stored as torch\.int32"),
        (Tensors.clear, r"missing"),
    ],
)
def test_what_does_not_fit_is_named(
    break_it: Callable[[Tensors], None],
    message: str,
    base: Path,
    config: DecoderConfig,
    tmp_path: Path,
) -> None:
    make_adapter(tmp_path, base, seed=1)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    break_it(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=message) as caught:
        read(tmp_path, config)
    assert str(tmp_path) not in str(caught.value)


def test_a_rank_above_the_limit_names_the_limits_key(
    base: Path, config: DecoderConfig, tmp_path: Path
) -> None:
    make_adapter(tmp_path, base, seed=1, rank=16)
    with pytest.raises(AdapterError, match=r"rank is 16 .* engine\.max_lora_rank \(8\)"):
        read(tmp_path, config)


def test_files_that_are_missing_pickled_or_cut_off_are_named(
    base: Path, config: DecoderConfig, tmp_path: Path
) -> None:
    make_adapter(tmp_path, base, seed=1)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(AdapterError, match="damaged or not safetensors"):
        read(tmp_path, config)
    path.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickles are never read"):
        read(tmp_path, config)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(AdapterError, match=r"^adapter_model\.safetensors: No such file"):
        read(tmp_path, config)


def test_a_regular_expression_for_targets_takes_the_pairs_that_are_there(
    base: Path, config: DecoderConfig, tmp_path: Path
) -> None:
    make_adapter(tmp_path, base, seed=1, modules=("v_proj",))
    write_config(tmp_path, r=4, lora_alpha=8, target_modules=r".*\.v_proj")
    assert set(read(tmp_path, config).layers[1]) == {"self_attn.v_proj"}
