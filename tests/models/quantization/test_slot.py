"""Models quantized while they are loaded, against the same numbers as a checkpoint of floats."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import CheckpointError, read_decoder_config
from models.quantization.matrix import quantize
from models.quantization.scheme import MADE_HERE, QUANTIZATION_NAMES, choose_quantization
from models.weights import SINGLE_FILE
from tests.models.conftest import MakeCheckpoint
from tests.models.step_driver import StepDriver, random_tokens, reference_logprobs

TOKENS = random_tokens(37)
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 257}


def dequantized_checkpoint(folder: Path, name: str, to: Path) -> Path:
    """The checkpoint with every matrix rounded to its levels, the head's too."""
    shutil.copytree(folder, to)
    made = MADE_HERE[name]
    tensors = load_file(folder / SINGLE_FILE)
    for tensor_name, tensor in list(tensors.items()):
        module = tensor_name.removesuffix(".weight")
        scheme = made.of(module)
        if tensor.dim() == 2 and "embed" not in module and scheme is not None:
            tensors[tensor_name] = quantize(tensor, scheme).dequantized()
    if made.head is not None and "lm_head.weight" not in tensors:
        embedding = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = quantize(embedding, made.head).dequantized()
        config = json.loads((to / "config.json").read_text())
        (to / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    save_file(tensors, to / SINGLE_FILE, metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("name", MADE_HERE)
def test_a_quantized_model_computes_with_its_levels(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str, family: str, is_tied: bool
) -> None:
    folder = make_checkpoint(family, tie_word_embeddings=is_tied, **SHAPE)
    expected = reference_logprobs(dequantized_checkpoint(folder, name, tmp_path / "q"), TOKENS)
    driver = StepDriver(folder, quantization=name)
    sequence = driver.add(TOKENS)
    driver.finish(sequence, 5, 1, 20, 1)
    logprobs = torch.stack(sequence.logprobs)
    if not MADE_HERE[name].layers.is_dynamic:
        torch.testing.assert_close(logprobs, expected, atol=2e-4, rtol=0, check_stride=False)
        return
    divergence = (expected.exp() * (expected - logprobs)).sum(-1)
    assert divergence.mean() < (0.02 if name == "fp8" else 0.005)


def test_an_unknown_name_lists_the_known_ones(make_checkpoint: MakeCheckpoint) -> None:
    with pytest.raises(ValueError, match="int3") as caught:
        StepDriver(make_checkpoint(), quantization="int3")
    assert all(name in str(caught.value) for name in QUANTIZATION_NAMES)


def test_what_is_stored_quantized_is_not_quantized_again(
    make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    folder = shutil.copytree(make_checkpoint(), tmp_path / "q")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    stored = read_decoder_config(folder).quantization
    with pytest.raises(ValueError, match=r"stored as awq .*allowed: auto"):
        choose_quantization("int8", stored)
    with pytest.raises(CheckpointError, match="no place in the model for"):
        StepDriver(folder)
