"""A model that cannot be served is found before anything is started."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models

from cluster.config import EngineConfig, ModelConfig
from deployments.preflight import check_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 1,
        "vocab_size": 4,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
        "eos_token_id": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    save_file({"w": np.zeros((4, 4), np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def check(folder: Path, *, engine: EngineConfig | None = None) -> None:
    check_model(ModelConfig(name="m", source=str(folder), engine=engine or EngineConfig()))


def test_a_sound_checkpoint_passes(checkpoint: Path) -> None:
    check(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        check(checkpoint)


def test_truncated_weights_are_named(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        check(checkpoint)


def test_no_weights_at_all_are_noticed_unless_none_are_needed(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \*\.safetensors files"):
        check(checkpoint)
    check(checkpoint, engine=EngineConfig(synthetic_step_ms=1))


def test_other_architectures_are_left_to_the_engine_but_must_be_named(checkpoint: Path) -> None:
    path = checkpoint / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["architectures"] = ["GPT2LMHeadModel"]
    path.write_text(json.dumps(raw), encoding="utf-8")
    check(checkpoint)
    raw["architectures"] = []
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ValueError, match="architectures must be a list of one name"):
        check(checkpoint)


def test_a_source_that_is_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="neither an existing folder"):
        check_model(ModelConfig(name="m", source="/no/such/folder"))


def test_a_folder_of_adapters_must_be_there(checkpoint: Path, tmp_path: Path) -> None:
    source = str(checkpoint)
    check_model(ModelConfig(name="m", source=source, adapter_folder=str(tmp_path)))
    with pytest.raises(ValueError, match="adapter_folder: /no/such/folder is no folder"):
        check_model(ModelConfig(name="m", source=source, adapter_folder="/no/such/folder"))
