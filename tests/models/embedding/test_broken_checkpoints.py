"""Checkpoints that cannot be used: one readable error each, which names the file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.config import EmbedderConfig
from models.checkpoint import CheckpointError
from models.embedding.text_embedder import TextEmbedder
from tests.models.embedding.checkpoints import add_layout, edit_json, write_json

Plain = Callable[..., Path]
Spoil = Callable[[Path], object]


def weights_without(*names: str) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if name not in names}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def cut_file(name: str, num_bytes: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:num_bytes])


def config(**values: object) -> Spoil:
    return lambda folder: edit_json(folder / "config.json", lambda c: c.update(values))


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def dense_of_another_shape(folder: Path) -> None:
    edit_json(folder / "2_Dense" / "config.json", lambda c: c.update(out_features=9))


SPOILT: list[tuple[Spoil, str]] = [
    (lambda folder: (folder / "config.json").unlink(), r"config\.json: no such file"),
    (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not JSON"),
    (config(model_type="mystery"), r"config\.json: .*mystery"),
    (config(quantization_config={"bits": 4}), r"config\.json: quantization_config is not supp"),
    (config(auto_map={"AutoModel": "m.M"}), r"config\.json: auto_map: .* own code"),
    (config(hidden_size="wide"), r"config\.json: "),
    (config(hidden_act="mystery"), r"bert: .*mystery"),
    (lambda folder: (folder / "model.safetensors").unlink(), r"bert: no weights; expected model"),
    (pickled_weights, r"bert: no weights; expected model\.safetensors"),
    (cut_file("model.safetensors", 5000), r"model\.safetensors: damaged"),
    (cut_file("model.safetensors", 3), r"model\.safetensors: damaged"),
    (
        weights_without("encoder.layer.1.output.dense.weight"),
        r"bert: its weights lack encoder\.layer\.1\.output\.dense\.weight$",
    ),
    (config(vocab_size=500), r"bert: "),
    (config(num_hidden_layers=3), r"its weights lack encoder\.layer\.2.* and \d+ more"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"tokenizer\.json: not a tok"),
    (cut_file("tokenizer.json", 100), r"tokenizer\.json: not a tokenizer"),
    (lambda folder: (folder / "tokenizer.json").unlink(), r"bert: not a tokenizer"),
    (
        lambda folder: (folder / "2_Dense" / "model.safetensors").unlink(),
        r"2_Dense/model\.safetensors: no such file",
    ),
    (cut_file("2_Dense/model.safetensors", 50), r"2_Dense/model\.safetensors: damaged"),
    (dense_of_another_shape, r"2_Dense/model\.safetensors: has .* asks for .*\(9, 32\)"),
    (
        lambda folder: edit_json(
            folder / "2_Dense" / "config.json", lambda c: c.update(in_features=31)
        ),
        r"2_Dense/",
    ),
    (
        lambda folder: edit_json(
            folder / "1_Pooling" / "config.json", lambda c: c.update(word_embedding_dimension=31)
        ),
        r"the pooling expects vectors of 31 numbers, but .* 32",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_a_checkpoint_that_cannot_be_used_is_refused_in_one_line(
    plain: Plain, spoil: Spoil, message: str
) -> None:
    folder = add_layout(plain(), dense=[(8, "torch.nn.modules.linear.Identity")])
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        TextEmbedder(EmbedderConfig(name="x", source="x", device="cpu"), folder)
    assert "\n" not in str(caught.value)


def test_a_pooling_head_that_nobody_reads_may_be_missing(plain: Plain) -> None:
    folder = add_layout(plain())
    weights_without("pooler.dense.weight", "pooler.dense.bias")(folder)
    TextEmbedder(EmbedderConfig(name="x", source="x", device="cpu"), folder)


def test_a_prefix_that_is_not_pooled_is_refused_only_where_there_is_one(plain: Plain) -> None:
    folder = add_layout(plain())
    edit_json(folder / "1_Pooling" / "config.json", lambda c: c.update(include_prompt=False))
    TextEmbedder(EmbedderConfig(name="x", source="x", device="cpu"), folder)
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "q: "}})
    with pytest.raises(CheckpointError, match="include_prompt: false is not supported with a pre"):
        TextEmbedder(EmbedderConfig(name="x", source="x", device="cpu"), folder)


def test_a_gpu_that_is_not_there_is_said(plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda' was asked for, but torch finds no GPU"):
        TextEmbedder(EmbedderConfig(name="x", source="x", device="cuda"), plain())


def test_shards_are_read_and_a_missing_one_is_named(plain: Plain) -> None:
    folder = plain()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2]}
    shards["model-00002-of-00002.safetensors"] = names[1::2]
    for file_name, part in shards.items():
        save_file({name: tensors[name] for name in part}, folder / file_name, {"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": {name: file for file, part in shards.items() for name in part},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    embedder = TextEmbedder(EmbedderConfig(name="x", source="x", device="cpu"), folder)
    assert embedder.embed_tokens([[5, 6]]).shape == (1, 32)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors"):
        TextEmbedder(EmbedderConfig(name="x", source="x", device="cpu"), folder)
