"""Fills a decoder's weights from safetensors files, one tensor at a time.

A tensor is copied from its memory-mapped file straight into the slice of the model that it fills,
and of a tensor that is shared out among ranks only this rank's part is read: nothing is ever there
twice, and what is mapped is the page cache, which the ranks of a machine have in common. Every
weight must be there exactly once, in its shape, and nothing else may be.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from models.checkpoint import CheckpointError, read_json
from models.decoder import Decoder
from models.parallel.sharding import Part, Shards

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_FLOAT_DTYPES = {"F64", "F32", "F16", "BF16"}
_NUM_NAMES_SHOWN = 5


class _StoredTensor(Protocol):
    """A tensor in a file, not read yet (safetensors exports no name for it)."""

    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str: ...

    def __getitem__(self, parts: tuple[slice, ...]) -> torch.Tensor: ...


def load_weights(model: Decoder, checkpoint_dir: Path) -> None:
    """Fill every weight of the model, or this rank's part of it, casting to its dtype.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing, unknown, double, or
            of another shape than config.json says.
    """
    wanted = model.weights()
    source_of: dict[str, Path] = {}
    for path in _weight_files(checkpoint_dir):
        _load_file(path, wanted, source_of, model.shards)
    missing = sorted(wanted.keys() - source_of.keys())
    if missing:
        raise CheckpointError(f"{_manifest(checkpoint_dir)}: missing {_some(missing)}")


def init_random_weights(model: Decoder, seed: int) -> None:
    """Fill the model with reproducible noise of a trained model's scale, for benchmarks.

    Norms become one and biases zero; matrices are normal with the deviation that keeps the
    activations' scale (1 / √inputs).
    """
    generator = torch.Generator(model.embedding_VM.device).manual_seed(seed)
    for name, weight in model.weights().items():
        if weight.dim() == 2:
            _, num_inputs = _whole_shape(weight, model.shards.part(name))
            weight.normal_(std=1 / math.sqrt(num_inputs), generator=generator)
        else:
            weight.fill_(0 if name.endswith(".bias") else 1)


def _manifest(checkpoint_dir: Path) -> Path:
    """The file that says where the weights are: the index of several shards, or the only one."""
    index_path = checkpoint_dir / INDEX_FILE
    return index_path if index_path.exists() else checkpoint_dir / SINGLE_FILE


def _weight_files(checkpoint_dir: Path) -> list[Path]:
    manifest = _manifest(checkpoint_dir)
    if not manifest.exists():
        raise CheckpointError(
            f"{checkpoint_dir}: no weights; expected {SINGLE_FILE} or {INDEX_FILE}"
        )
    if manifest.name == SINGLE_FILE:
        return [manifest]
    index = read_json(manifest)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{manifest}: weight_map must be an object of tensor and file names")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{manifest}: {name!r} is not the name of a file beside it")
        if not (checkpoint_dir / name).exists():
            raise CheckpointError(
                f"{checkpoint_dir / name}: no such file, but {INDEX_FILE} names it"
            )
    return [checkpoint_dir / name for name in names]


def _load_file(
    path: Path,
    wanted: Mapping[str, torch.Tensor],
    source_of: dict[str, Path],
    shards: Shards,
) -> None:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = [n for n in file.keys() if not _is_left_out(n, shards)]  # noqa: SIM118 (a file, not a dict)
            unknown = sorted(set(names) - wanted.keys())
            if unknown:
                raise CheckpointError(f"{path}: no place in the model for {_some(unknown)}")
            for name in names:
                if name in source_of:
                    raise CheckpointError(f"{path}: {name} is also in {source_of[name].name}")
                stored, part = file.get_slice(name), shards.part(name)
                _check(path, name, stored, _whole_shape(wanted[name], part))
                _copy(stored, wanted[name], part)
                source_of[name] = path
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not safetensors: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def _check(path: Path, name: str, stored: _StoredTensor, wanted_shape: tuple[int, ...]) -> None:
    shape = tuple(stored.get_shape())
    if shape != wanted_shape:
        raise CheckpointError(
            f"{path}: {name} has shape {shape}, but config.json asks for {wanted_shape}"
        )
    dtype = stored.get_dtype()
    if dtype not in _FLOAT_DTYPES:
        raise CheckpointError(
            f"{path}: {name} is stored as {dtype}; supported: {', '.join(sorted(_FLOAT_DTYPES))}"
        )


def _whole_shape(weight: torch.Tensor, part: Part | None) -> tuple[int, ...]:
    """The checkpoint's shape of a weight of which this rank has a part."""
    shape = list(weight.shape)
    if part is not None:
        shape[part.dim] = part.total
    return tuple(shape)


def _copy(stored: _StoredTensor, weight: torch.Tensor, part: Part | None) -> None:
    """Read this rank's part; what the weight has beyond it becomes zero."""
    if part is None:
        weight.copy_(stored[:,])
        return
    span = slice(part.start, part.stop)
    count = part.stop - part.start
    if count:
        indices = (span,) if part.dim == 0 else (slice(None), span)
        weight.narrow(part.dim, 0, count).copy_(stored[indices])
    weight.narrow(part.dim, count, weight.shape[part.dim] - count).zero_()


def _is_left_out(name: str, shards: Shards) -> bool:
    """Buffers of old checkpoints, the second copy of a tied embedding, biases that another rank
    adds."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    if name == "lm_head.weight":
        return shards.config.tie_word_embeddings
    return shards.is_left_out(name)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NUM_NAMES_SHOWN])
    rest = len(names) - _NUM_NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
