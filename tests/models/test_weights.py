import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import CheckpointError, read_decoder_config
from models.decoder import Decoder
from models.weights import INDEX_FILE, SINGLE_FILE, init_random_weights, load_weights
from tests.models.conftest import MakeCheckpoint


def empty_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    return Decoder(read_decoder_config(folder), num_positions=16, dtype=dtype, device="cpu")


def load(folder: Path) -> Decoder:
    model = empty_decoder(folder)
    load_weights(model, folder)
    return model


@pytest.fixture
def folder(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    """A checkpoint that the test may damage."""
    return shutil.copytree(make_checkpoint("llama"), tmp_path / "checkpoint")


@pytest.fixture
def sharded(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> Path:
    return shutil.copytree(make_checkpoint("llama", max_shard_size="100KB"), tmp_path / "sharded")


def edit(folder: Path, **changes: torch.Tensor | None) -> None:
    """Rewrite the only weight file with tensors replaced, added, or (None) removed."""
    tensors = load_file(folder / SINGLE_FILE)
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_tensor_lands_in_its_slice(folder: Path) -> None:
    model = load(folder)
    stored = load_file(folder / SINGLE_FILE)
    weights = model.weights()
    assert weights.keys() == stored.keys()
    for name, weight in weights.items():
        assert torch.equal(weight, stored[name]), name


def test_shards_load_like_one_file(folder: Path, sharded: Path) -> None:
    assert len(list(sharded.glob("*.safetensors"))) > 1
    whole, parts = load(folder).weights(), load(sharded).weights()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_tensors_are_cast_to_the_models_dtype(folder: Path) -> None:
    model = empty_decoder(folder, torch.bfloat16)
    load_weights(model, folder)
    stored = load_file(folder / SINGLE_FILE)["model.norm.weight"]
    assert torch.equal(model.norm_M, stored.bfloat16())


def test_a_stored_copy_of_a_tied_embedding_and_old_buffers_are_allowed(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = shutil.copytree(
        make_checkpoint("llama", tie_word_embeddings=True), tmp_path / "checkpoint"
    )
    embedding = load_file(folder / SINGLE_FILE)["model.embed_tokens.weight"]
    edit(
        folder,
        **{
            "lm_head.weight": embedding.clone(),
            "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        },
    )
    model = load(folder)
    assert model.lm_head.weight_OI is model.embedding_VM


def test_a_missing_tensor_is_named(folder: Path) -> None:
    edit(folder, **{"model.layers.1.mlp.up_proj.weight": None})
    assert refusal(folder) == f"{folder / SINGLE_FILE}: missing model.layers.1.mlp.up_proj.weight"


def test_many_missing_tensors_are_counted(folder: Path) -> None:
    names = [name for name in load_file(folder / SINGLE_FILE) if "layers.1." in name]
    edit(folder, **dict.fromkeys(names))
    assert refusal(folder).endswith(f"and {len(names) - 5} more")


def test_an_unknown_tensor_is_named(folder: Path) -> None:
    edit(folder, **{"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)})
    message = refusal(folder)
    assert str(folder / SINGLE_FILE) in message
    assert "model.layers.0.self_attn.q_proj.bias" in message


def test_a_wrong_shape_gives_both_shapes(folder: Path) -> None:
    edit(folder, **{"model.layers.0.self_attn.k_proj.weight": torch.zeros(16, 64)})
    assert refusal(folder) == (
        f"{folder / SINGLE_FILE}: model.layers.0.self_attn.k_proj.weight has shape (16, 64), "
        "but config.json asks for (32, 64)"
    )


def test_a_tensor_of_integers_is_refused(folder: Path) -> None:
    edit(folder, **{"model.norm.weight": torch.ones(64, dtype=torch.int8)})
    assert "model.norm.weight is stored as I8" in refusal(folder)


def test_a_truncated_file_is_named(folder: Path) -> None:
    path = folder / SINGLE_FILE
    path.write_bytes(path.read_bytes()[:-1000])
    assert refusal(folder).startswith(f"{path}: damaged or not safetensors")


def test_a_file_of_something_else_is_named(folder: Path) -> None:
    path = folder / SINGLE_FILE
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert refusal(folder).startswith(f"{path}: damaged or not safetensors")


def test_an_empty_file_is_named(folder: Path) -> None:
    (folder / SINGLE_FILE).write_bytes(b"")
    assert str(folder / SINGLE_FILE) in refusal(folder)


def test_no_weights_at_all_says_what_was_expected(folder: Path) -> None:
    (folder / SINGLE_FILE).unlink()
    assert refusal(folder) == f"{folder}: no weights; expected {SINGLE_FILE} or {INDEX_FILE}"


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    assert refusal(sharded) == f"{shard}: no such file, but {INDEX_FILE} names it"


def test_a_corrupt_index_is_named(sharded: Path) -> None:
    (sharded / INDEX_FILE).write_text('{"weight_map": {')
    assert refusal(sharded).startswith(f"{sharded / INDEX_FILE}: not JSON")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_map_is_refused(sharded: Path, content: str) -> None:
    (sharded / INDEX_FILE).write_text(content)
    assert "weight_map must be an object" in refusal(sharded)


def test_an_index_may_not_point_outside_its_folder(sharded: Path) -> None:
    (sharded / INDEX_FILE).write_text(json.dumps({"weight_map": {"x": "../other.safetensors"}}))
    assert "'../other.safetensors' is not the name of a file" in refusal(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    double = next(iter(load_file(first).items()))
    save_file({**load_file(second), double[0]: double[1]}, second)
    assert refusal(sharded) == f"{second}: {double[0]} is also in {first.name}"


def test_random_weights_are_reproducible_and_keep_activations_in_scale(folder: Path) -> None:
    first, second, other = (empty_decoder(folder) for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        init_random_weights(model, seed)
    name = "model.layers.0.mlp.down_proj.weight"
    assert all(torch.equal(w, second.weights()[n]) for n, w in first.weights().items())
    assert not torch.equal(first.weights()[name], other.weights()[name])
    assert first.weights()[name].std().item() == pytest.approx(96**-0.5, rel=0.1)
    assert torch.equal(first.norm_M, torch.ones(64))


@pytest.mark.parametrize("family", ["mixtral", "qwen3 moe"])
def test_an_expert_that_is_missing_is_named(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, family: str
) -> None:
    few = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    made = make_checkpoint(family, max_shard_size="100KB", **(few if "moe" in family else {}))
    load(made)
    whole = make_checkpoint(family, **(few if "moe" in family else {}))
    folder = shutil.copytree(whole, tmp_path / "checkpoint")
    down = next(name for name in load_file(folder / SINGLE_FILE) if ".experts.3." in name)
    edit(folder, **{down: None})
    assert f"missing {down}" in refusal(folder)
    edit(folder, **{down: torch.zeros(1), down.replace(".3.", ".99."): torch.zeros(1)})
    assert "no place in the model for" in refusal(folder)
