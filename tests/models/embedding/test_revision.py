"""The revision changes with whatever stored vectors depend on, and with nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cluster.config import EmbedderConfig
from models.embedding.text_embedder import TextEmbedder
from tests.models.embedding.checkpoints import add_layout, edit_json

Plain = Callable[..., Path]


def revision(folder: Path, **config: Any) -> str:
    raw = {"name": "x", "source": "x", "device": "cpu"} | config
    return TextEmbedder(EmbedderConfig.model_validate(raw), folder).revision


@pytest.fixture
def folder(plain: Plain) -> Path:
    return add_layout(plain(), "mean", dense=[(8, "torch.nn.modules.activation.Tanh")])


def change_a_weight(path: Path, name: str) -> None:
    tensors = load_file(path)
    tensors[name] = tensors[name] + 1e-3
    num_bytes = path.stat().st_size
    save_file(tensors, path, metadata={"format": "pt"})
    assert path.stat().st_size == num_bytes


def test_it_stays_the_same_for_the_same_vectors(folder: Path) -> None:
    first = revision(folder)
    assert len(first) == 16
    edit_json(folder / "config.json", lambda c: c.update(transformers_version="9", dtype="float16"))
    (folder / "README.md").write_text("changed")
    other = revision(folder, name="y", dtype="bfloat16", query_prefix="q: ", max_batch_tokens=64)
    assert other == first


def test_it_changes_with_weights_of_the_same_size(folder: Path) -> None:
    first = revision(folder)
    change_a_weight(folder / "model.safetensors", "encoder.layer.1.output.dense.weight")
    second = revision(folder)
    change_a_weight(folder / "2_Dense" / "model.safetensors", "linear.weight")
    assert len({first, second, revision(folder)}) == 3


@pytest.mark.parametrize("config", [{"passage_prefix": "p: "}, {"max_input_tokens": 64}])
def test_it_changes_with_the_configuration_of_passages(
    folder: Path, config: dict[str, Any]
) -> None:
    assert revision(folder, **config) != revision(folder)


def test_it_changes_with_the_pooling_the_layers_and_the_tokenizer(folder: Path) -> None:
    found = {revision(folder)}
    edit_json(
        folder / "1_Pooling" / "config.json",
        lambda c: c.update(pooling_mode_max_tokens=True, pooling_mode_mean_tokens=False),
    )
    found.add(revision(folder))
    activation = "torch.nn.modules.linear.Identity"
    edit_json(
        folder / "2_Dense" / "config.json", lambda c: c.update(activation_function=activation)
    )
    found.add(revision(folder))
    edit_json(folder / "tokenizer.json", lambda t: t["normalizer"].update(lowercase=False))
    found.add(revision(folder))
    edit_json(folder / "config.json", lambda c: c.update(layer_norm_eps=1e-3))
    found.add(revision(folder))
    assert len(found) == 5
