"""Models quantized while they are loaded, against the same numbers as a checkpoint of floats."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.checkpoint import CheckpointError, read_decoder_config
from models.quantization.scheme import MADE_HERE, QUANTIZATION_NAMES, choose_quantization
from models.weights import SINGLE_FILE
from tests.models.conftest import MakeCheckpoint
from tests.models.quantization.packed_checkpoints import dequantized_checkpoint
from tests.models.step_driver import StepDriver, random_tokens, reference_logprobs

TOKENS = random_tokens(37)
EXPERTS: dict[str, dict[str, object]] = {
    "mixtral": {"num_local_experts": 5},
    "qwen3 moe": {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 48},
}
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 257}


@pytest.mark.parametrize(
    ("family", "is_tied"),
    [
        ("llama", False),
        ("llama", True),
        ("qwen2", False),
        ("qwen2", True),
        ("mixtral", False),
        ("qwen3 moe", True),
    ],
)
@pytest.mark.parametrize("name", MADE_HERE)
def test_a_quantized_model_computes_with_its_levels(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str, family: str, is_tied: bool
) -> None:
    experts = EXPERTS.get(family, {})
    folder = make_checkpoint(family, tie_word_embeddings=is_tied, **SHAPE, **experts)
    expected = reference_logprobs(dequantized_checkpoint(folder, name, tmp_path / "q"), TOKENS)
    driver = StepDriver(folder, quantization=name)
    sequence = driver.add(TOKENS)
    driver.finish(sequence, 5, 1, 20, 1)
    logprobs = torch.stack(sequence.logprobs)
    if not MADE_HERE[name].layers.is_dynamic:
        torch.testing.assert_close(logprobs, expected, atol=2e-4, rtol=0, check_stride=False)
        return
    divergence = (expected.exp() * (expected - logprobs)).sum(-1)
    # A token whose experts are nearly tied gets others.
    middle = divergence.median() if experts else divergence.mean()
    assert middle < (0.02 if name == "fp8" else 0.005)


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


MEASURE = """
import sys, threading
from dataclasses import replace
from pathlib import Path
import torch
from models.checkpoint import read_decoder_config
from models.decoder import Decoder
from models.native.library import native_library
from models.quantization.scheme import MADE_HERE
from models.weights import load_weights

def private_bytes():
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024

def sample():
    while not ended.wait(0.001):
        samples.append(private_bytes())

samples, ended = [], threading.Event()
torch.set_num_threads(1)
torch.ones(8).uniform_()  # what torch allocates once
native_library()
folder = Path(sys.argv[1])
config = replace(read_decoder_config(folder), quantization=MADE_HERE["int8"])
before = private_bytes()
sampling = threading.Thread(target=sample)
sampling.start()
decoder = Decoder(config, num_positions=16, dtype=torch.bfloat16, device="cpu")
load_weights(decoder, folder)
ended.set()
sampling.join()
print(len(samples), max(samples) - before)
"""


def test_the_whole_model_is_never_there_as_floats(make_checkpoint: MakeCheckpoint) -> None:
    """86 MB in float32, whose largest matrix has 4 MB."""
    folder = make_checkpoint(
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
    )
    command = [sys.executable, "-c", MEASURE, str(folder)]
    # What is freed goes back at once, and is not kept for the next matrix.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    num_samples, peak_bytes = map(int, done.stdout.split())
    assert num_samples > 20
    assert peak_bytes < (folder / SINGLE_FILE).stat().st_size / 4 + 5 * 4 * 2**20
