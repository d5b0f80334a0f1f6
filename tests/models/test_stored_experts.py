"""Experts stored as one tensor a layer are the same model as experts stored by themselves."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from models.checkpoint import CheckpointError, read_decoder_config
from models.decoder import Decoder
from models.parallel.group import TPGroup
from models.weights import SINGLE_FILE, load_weights
from tests.models.conftest import MakeCheckpoint

SHAPES: dict[str, dict[str, object]] = {
    "mixtral": {"num_local_experts": 5},
    "qwen3 moe": {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
}


class Rank(TPGroup):
    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size


@pytest.fixture(params=SHAPES)
def folders(
    request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> tuple[Path, Path]:
    """The same model in both layouts."""
    each = make_checkpoint(request.param, **SHAPES[request.param])
    model = transformers.AutoModelForCausalLM.from_pretrained(each)
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    return each, tmp_path / "fused"


def weights(folder: Path, rank: int = 0, size: int = 1) -> dict[str, torch.Tensor]:
    config = read_decoder_config(folder)
    decoder = Decoder(
        config, num_positions=16, dtype=torch.float32, device="cpu", group=Rank(rank, size)
    )
    load_weights(decoder, folder)
    return decoder.weights()


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 2), (1, 2)])
def test_both_layouts_fill_the_same_weights(
    folders: tuple[Path, Path], rank: int, size: int
) -> None:
    each, fused = folders
    names = load_file(fused / SINGLE_FILE).keys()
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in names)
    expected, found = weights(each, rank, size), weights(fused, rank, size)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name


def test_a_tensor_of_more_experts_than_the_configuration_is_refused(
    folders: tuple[Path, Path],
) -> None:
    _, fused = folders
    tensors = load_file(fused / SINGLE_FILE)
    name = "model.layers.0.mlp.experts.down_proj"
    tensors[name] = torch.cat((tensors[name], tensors[name][:1]))
    save_file(tensors, fused / SINGLE_FILE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"experts\.0\.\w+\.weight has shape \(6, "):
        weights(fused)
