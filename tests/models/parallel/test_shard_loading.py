"""Ranks read their parts of a checkpoint, all of it together, and no more memory than that."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoint import CheckpointError, read_decoder_config
from models.decoder import Decoder
from models.parallel.group import TPGroup
from models.weights import SINGLE_FILE, load_weights
from tests.models.conftest import MakeCheckpoint


def load_rank(folder: Path, rank: int, size: int) -> Decoder:
    group = TPGroup()  # of ranks that exchange nothing
    group.rank, group.size = rank, size
    config = read_decoder_config(folder)
    decoder = Decoder(config, num_positions=16, dtype=torch.float32, device="cpu", group=group)
    load_weights(decoder, folder)
    return decoder


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("llama", attention_bias=True, mlp_bias=True, vocab_size=100)


@pytest.mark.parametrize("size", [2, 4])
def test_the_ranks_parts_are_the_checkpoint(folder: Path, size: int) -> None:
    stored = load_file(folder / SINGLE_FILE)
    seen = {name: torch.zeros(tensor.shape) for name, tensor in stored.items()}
    for rank in range(size):
        decoder = load_rank(folder, rank, size)
        for name, weight in decoder.weights().items():
            part = decoder.shards.part(name)
            if part is None:
                assert torch.equal(weight, stored[name]), name
                seen[name] += 1
                continue
            count = part.stop - part.start
            wanted = stored[name].narrow(part.dim, part.start, count)
            assert torch.equal(weight.narrow(part.dim, 0, count), wanted), name
            assert not weight.narrow(part.dim, count, weight.shape[part.dim] - count).any(), name
            seen[name].narrow(part.dim, part.start, count).add_(1)
    for name, times in seen.items():
        is_whole_everywhere = "norm" in name
        copies = size if is_whole_everywhere else size // 2 if is_shared_key_head(name) else 1
        assert torch.all(times == copies), name


def is_shared_key_head(name: str) -> bool:
    """Two key heads: of four ranks, two have the same one."""
    return "k_proj" in name or "v_proj" in name


def test_a_tensor_of_another_shape_is_refused_with_the_whole_shapes(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / SINGLE_FILE)
    name = "model.layers.0.self_attn.o_proj.weight"
    save_file({**tensors, name: torch.zeros(64, 32)}, tmp_path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match=r"shape \(64, 32\), but .* asks for \(64, 64\)"):
        load_rank(tmp_path, 1, 2)


MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from models.checkpoint import read_decoder_config
from models.decoder import Decoder
from models.parallel.group import TPGroup
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
before = private_bytes()
sampling = threading.Thread(target=sample)
sampling.start()
folder, group = Path(sys.argv[1]), TPGroup()
group.rank, group.size = 1, int(sys.argv[2])
config = read_decoder_config(folder)
decoder = Decoder(config, num_positions=16, dtype=torch.float32, device="cpu", group=group)
load_weights(decoder, folder)
ended.set()
sampling.join()
shard_bytes = sum(weight.numel() * 4 for weight in decoder.weights().values())
print(len(samples), shard_bytes, max(samples) - before)
"""


@pytest.fixture(scope="module")
def large_folder(make_checkpoint: MakeCheckpoint) -> Path:
    """277 MB in float32."""
    return make_checkpoint(
        "llama",
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=4,
        head_dim=64,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=4096,
    )


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_needs_its_shard_and_a_tenth_to_load(large_folder: Path, size: int) -> None:
    """Private memory, as often as it can be looked at. A file's mapped pages are the page cache's,
    which the ranks share."""
    command = [sys.executable, "-c", MEASURE, str(large_folder), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    num_samples, shard_bytes, peak_bytes = map(int, done.stdout.split())
    assert num_samples > 20
    assert shard_bytes == pytest.approx(
        (large_folder / SINGLE_FILE).stat().st_size / size, rel=0.05
    )
    assert 0.9 * shard_bytes < peak_bytes < 1.1 * shard_bytes
