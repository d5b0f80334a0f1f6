"""Fills a decoder's weights from safetensors files, one tensor at a time.

A tensor is copied from its memory-mapped file straight into the slice of the model that it fills,
and of a tensor that is shared out among ranks only this rank's part is read: nothing is ever there
twice, and what is mapped is the page cache, which the ranks of a machine have in common. A matrix
that is to be quantized is read, quantized, and let go before the next one. Every weight must be
there exactly once, in its shape, and nothing else may be.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from models.checkpoint import CheckpointError, ExpertsConfig, read_json
from models.decoder import Decoder
from models.parallel.sharding import Part, Shards
from models.quantization.matrix import quantize
from models.quantization.slot import MatrixSlot
from models.quantization.stored_matrix import (
    MatrixPart,
    StoredTensor,
    read_matrix,
    tensor_names,
)
from models.stored_experts import ExpertMatrix, ExpertPlace, expert_places, router_name

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_FLOAT_DTYPES = {"F64", "F32", "F16", "BF16"}
_NUM_NAMES_SHOWN = 5


def load_weights(model: Decoder, checkpoint_dir: Path) -> None:
    """Fill every weight of the model, or this rank's part of it, casting to its dtype.

    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing, unknown, double, or
            of another shape than config.json says.
    """
    with ExitStack() as files:
        stored = _open(checkpoint_dir, files, model.shards)
        loader = _Loader(model, stored)
        missing = sorted(loader.needed_names() - stored.keys())
        unknown = sorted(stored.keys() - loader.known_names())
        if unknown:
            path = stored[unknown[0]].path
            raise CheckpointError(f"{path}: no place in the model for {_some(unknown)}")
        if missing:
            raise CheckpointError(f"{_manifest(checkpoint_dir)}: missing {_some(missing)}")
        loader.load()
    _fill_tied_head(model)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in one of the open files."""

    path: Path
    name: str
    file: Any  # of safetensors, which exports no name for it
    place: ExpertPlace | None = None  # in the tensor, where it holds a layer's experts

    def tensor(self) -> StoredTensor:
        found: StoredTensor = self.file.get_slice(self.name)
        return found if self.place is None else ExpertMatrix(found, self.place)

    def by_names(self, experts: ExpertsConfig | None) -> "Iterator[tuple[str, _Stored]]":
        """The matrices that it holds, by the names that they have by themselves."""
        if experts is None:
            yield self.name, self
            return
        places = list(expert_places(self.name, experts))
        if not places:
            yield router_name(self.name, experts), self
        for place in places:
            yield place.name, replace(self, place=place)


class _Loader:
    """From the tensors of a checkpoint to the weights and quantized matrices of a model."""

    def __init__(self, model: Decoder, stored: Mapping[str, _Stored]) -> None:
        self._shards = model.shards
        self._stored = stored
        self._weights = model.weights()
        is_tied = model.config.tie_word_embeddings
        self._slots = {n: s for n, s in model.slots().items() if not (is_tied and n == "lm_head")}
        self._quantization = model.config.quantization
        self._device = model.embedding_VM.device

    def needed_names(self) -> set[str]:
        """Of tensors that must be there."""
        return {*self._weights, *(n for module in self._slots for n in self._names(module)[0])}

    def known_names(self) -> set[str]:
        """Of tensors that may be there."""
        optional = {n for module in self._slots for n in self._names(module)[1]}
        return self.needed_names() | optional

    def load(self) -> None:
        """File by file, in the order of their tensors; a matrix comes whole with its first one."""
        module_of = {name: m for m in self._slots for name in self._names(m)[0]}
        is_filled: set[str] = set()
        for name, stored in self._stored.items():
            with _named_errors(stored.path):
                if name in self._weights:
                    self._fill_weight(name, stored)
                elif (module := module_of.get(name)) is not None and module not in is_filled:
                    is_filled.add(module)
                    self._fill_slot(module, stored.path)

    def _names(self, module: str) -> tuple[list[str], list[str]]:
        """A quantized module's tensors: those that must be there, and others that may."""
        stored = self._quantization.stored if self._quantization is not None else None
        if stored is None:
            return [f"{module}.weight"], []
        needed, optional = tensor_names(self._slots[module].scheme, stored)
        return [f"{module}.{n}" for n in needed], [f"{module}.{n}" for n in optional]

    def _fill_weight(self, name: str, stored: _Stored) -> None:
        weight, part, tensor = self._weights[name], self._shards.part(name), stored.tensor()
        _check(stored.path, name, tensor, _whole_shape(tuple(weight.shape), part))
        _copy(tensor, weight, part)

    def _fill_slot(self, module: str, path: Path) -> None:
        slot, name = self._slots[module], f"{module}.weight"
        part = self._shards.part(name)
        quantization = self._quantization
        assert quantization is not None, "there is a slot"
        if quantization.stored is None:
            shape = (slot.num_outputs, slot.num_inputs)
            tensor = self._stored[name].tensor()
            _check(path, name, tensor, _whole_shape(shape, part))
            weight_OI = torch.empty(shape, device=self._device)
            _copy(tensor, weight_OI, part)
            slot.fill(quantize(weight_OI, slot.scheme))
            return
        names = [n for some in self._names(module) for n in some if n in self._stored]
        tensors = {n.removeprefix(f"{module}."): self._stored[n].tensor() for n in names}
        matrix_part = _matrix_part(slot, part)
        if matrix_part.outputs.stop - matrix_part.outputs.start != slot.num_outputs:
            raise CheckpointError(
                f"{path}: {module} is quantized and has no multiple of the ranks' rows; supported: "
                "tensor_parallel_size 1"
            )
        try:
            slot.fill(read_matrix(tensors, matrix_part, slot.scheme, quantization.stored))
        except ValueError as error:
            raise CheckpointError(f"{path}: {module}.{error}") from error


def _fill_tied_head(model: Decoder) -> None:
    slot = model.slots().get("lm_head")
    if slot is not None and model.config.tie_word_embeddings:
        slot.fill(quantize(model.embedding_VM, slot.scheme))


def _matrix_part(slot: MatrixSlot, part: Part | None) -> MatrixPart:
    shape = [slot.num_outputs, slot.num_inputs]
    spans = [slice(0, size) for size in shape]
    if part is not None:
        shape[part.dim] = part.total
        spans[part.dim] = slice(part.start, part.stop)
    return MatrixPart(num_outputs=shape[0], num_inputs=shape[1], outputs=spans[0], inputs=spans[1])


def init_random_weights(model: Decoder, seed: int) -> None:
    """Fill the model with reproducible noise of a trained model's scale, for benchmarks.

    Norms become one and biases zero; matrices are normal with the deviation that keeps the
    activations' scale (1 / √inputs). Each weight's noise is a function of the seed and its name, so
    that a quantized model is made of the same numbers as one of floats.
    """
    for name, weight in model.weights().items():
        if weight.dim() == 2:
            _fill_with_noise(weight, name, model.shards, seed)
        else:
            weight.fill_(0 if name.endswith(".bias") else 1)
    is_tied = model.config.tie_word_embeddings
    for module, slot in model.slots().items():
        if not (is_tied and module == "lm_head"):
            device = model.embedding_VM.device
            weight_OI = torch.empty(slot.num_outputs, slot.num_inputs, device=device)
            _fill_with_noise(weight_OI, f"{module}.weight", model.shards, seed)
            slot.fill(quantize(weight_OI, slot.scheme))
    _fill_tied_head(model)


def _fill_with_noise(weight_OI: torch.Tensor, name: str, shards: Shards, seed: int) -> None:
    generator = torch.Generator(weight_OI.device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    _, num_inputs = _whole_shape(tuple(weight_OI.shape), shards.part(name))
    weight_OI.normal_(std=1 / math.sqrt(num_inputs), generator=generator)


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


def _open(checkpoint_dir: Path, files: ExitStack, shards: Shards) -> dict[str, _Stored]:
    """Every tensor of the checkpoint that is this rank's business, by name; the files stay open."""
    found: dict[str, _Stored] = {}
    for path in _weight_files(checkpoint_dir):
        with _named_errors(path):
            file = files.enter_context(safe_open(path, framework="pt", device="cpu"))
            for stored_name in file.keys():  # noqa: SIM118 (a file, not a dict)
                stored = _Stored(path, stored_name, file)
                for name, matrix in stored.by_names(shards.model_config.experts):
                    if name in found:
                        raise CheckpointError(f"{path}: {name} is also in {found[name].path.name}")
                    if not _is_left_out(name, shards):
                        found[name] = matrix
    return found


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not safetensors: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error


def _check(path: Path, name: str, stored: StoredTensor, wanted_shape: tuple[int, ...]) -> None:
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


def _whole_shape(part_shape: tuple[int, ...], part: Part | None) -> tuple[int, ...]:
    """The checkpoint's shape of a weight of which this rank has a part of this shape."""
    shape = list(part_shape)
    if part is not None:
        shape[part.dim] = part.total
    return tuple(shape)


def _copy(stored: StoredTensor, weight: torch.Tensor, part: Part | None) -> None:
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
    if name.startswith("lm_head."):
        return shards.config.tie_word_embeddings
    return shards.is_left_out(name)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NUM_NAMES_SHOWN])
    rest = len(names) - _NUM_NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
