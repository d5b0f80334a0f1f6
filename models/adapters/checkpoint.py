"""A LoRA adapter's folder, read: every matrix checked, scaled, and in the layout that slots have.

Shapes: R = rank of a module's matrices, I/O = the module's inputs and outputs, of the whole model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from models.adapters.peft_config import CONFIG_FILE, AdapterError, PEFTConfig, read_peft_config
from models.adapters.targets import MODULES, module_sizes
from models.checkpoint import DecoderConfig
from models.parallel.sharding import Shards

WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_ENDS = (".lora_A.weight", ".lora_B.weight")
_NUM_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPair:
    """y += (x Aᵀ) B, where B has the scaling in it."""

    a_RI: torch.Tensor
    b_RO: torch.Tensor

    @property
    def num_bytes(self) -> int:
        return self.a_RI.nbytes + self.b_RO.nbytes

    def part(self, module: str, shards: Shards) -> "LoraPair":
        """What one tensor-parallel rank needs of it."""
        part = shards.part(f"{module}.weight")
        if part is None:
            return self
        span = slice(part.start, part.stop)
        if part.dim == 0:
            return LoraPair(a_RI=self.a_RI, b_RO=self.b_RO[:, span])
        return LoraPair(a_RI=self.a_RI[:, span], b_RO=self.b_RO)


#: A decoder layer's pairs by module; see `models.adapters.targets`.
LayerPairs = Mapping[str, LoraPair]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """In this process' memory, whole. `version` changes when the files do."""

    version: bytes
    layers: tuple[LayerPairs, ...]


def adapter_version(folder: Path) -> bytes:
    """What distinguishes this state of the files from others, without reading them.

    Raises:
        AdapterError: a file is missing.
    """
    facts = [str(folder)]
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        try:
            found = (folder / name).stat()
        except OSError as error:
            hint = ""
            if name == WEIGHTS_FILE and (folder / "adapter_model.bin").exists():
                hint = "; adapter_model.bin is there, but pickles are never read"
            raise AdapterError(f"{name}: {error.strerror}{hint}") from error
        facts.append(f"{found.st_ino}.{found.st_size}.{found.st_mtime_ns}")
    return "\n".join(facts).encode()


def read_adapter(
    folder: Path, config: DecoderConfig, *, max_rank: int, dtype: torch.dtype
) -> LoadedAdapter:
    """Read an adapter for a model, casting to the model's dtype.

    Raises:
        AdapterError: it does not fit the model or the limit, or is damaged; says where and why.
    """
    version = adapter_version(folder)
    peft = read_peft_config(folder)
    path = folder / WEIGHTS_FILE
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (a file, not a dict)
            modules = _check(shapes, peft, config, max_rank=max_rank)
            layers: list[dict[str, LoraPair]] = [{} for _ in range(config.num_layers)]
            for module in sorted(modules):
                a, b = (file.get_tensor(f"{_PREFIX}{module}{end}") for end in _ENDS)
                layer, name = _place(module)
                layers[layer][name] = _pair(module, a, b, peft.scaling_of(module), dtype)
    except SafetensorError as error:
        raise AdapterError(f"{WEIGHTS_FILE}: damaged or not safetensors: {error}") from error
    except OSError as error:
        raise AdapterError(f"{WEIGHTS_FILE}: {error.strerror or error}") from error
    if adapter_version(folder) != version:
        raise AdapterError(f"{WEIGHTS_FILE}: changed while it was read; ask again")
    return LoadedAdapter(version=version, layers=tuple(layers))


def _check(
    shapes: Mapping[str, tuple[int, ...]], peft: PEFTConfig, config: DecoderConfig, *, max_rank: int
) -> set[str]:
    """The modules that have matrices. Every name and shape is as it must be, or an error."""
    known = {
        f"model.layers.{layer}.{module}": size
        for layer in range(config.num_layers)
        for module, size in module_sizes(config).items()
    }
    modules = {name.removeprefix(_PREFIX).removesuffix(end) for name in shapes for end in _ENDS}
    modules &= known.keys()
    wanted = {f"{_PREFIX}{m}{end}" for m in modules for end in _ENDS}
    if unknown := sorted(shapes.keys() - wanted):
        raise AdapterError(f"{WEIGHTS_FILE}: no place in the model for {_some(unknown)}")
    expected = modules | peft.expected_modules(config.num_layers)
    required = {f"{_PREFIX}{m}{end}" for m in expected for end in _ENDS}
    if missing := sorted(required - shapes.keys()):
        raise AdapterError(f"{WEIGHTS_FILE}: missing {_some(missing)}")
    if not modules:
        raise AdapterError(f"{WEIGHTS_FILE}: has no matrices")
    for module in sorted(modules):
        rank = peft.rank_of(module)
        if rank > max_rank:
            raise AdapterError(
                f"its rank is {rank} ({module}), above this server's limit "
                f"engine.max_lora_rank ({max_rank})"
            )
        num_inputs, num_outputs = known[module]
        for end, wanted_shape in zip(_ENDS, ((rank, num_inputs), (num_outputs, rank)), strict=True):
            shape = shapes[f"{_PREFIX}{module}{end}"]
            if shape != wanted_shape:
                raise AdapterError(
                    f"{WEIGHTS_FILE}: {module}{end} has shape {shape}, but the model and "
                    f"{CONFIG_FILE} ask for {wanted_shape}"
                )
    return modules


def _pair(
    module: str, a_RI: torch.Tensor, b_OR: torch.Tensor, scaling: float, dtype: torch.dtype
) -> LoraPair:
    if not (a_RI.is_floating_point() and b_OR.is_floating_point()):
        raise AdapterError(f"{WEIGHTS_FILE}: {module} is stored as {a_RI.dtype}, {b_OR.dtype}")
    a_RI = a_RI.to(dtype)
    b_RO = (b_OR.float() * scaling).to(dtype).T.contiguous()
    # Slots are multiplied together and masked afterwards: what is not finite would spread.
    if not (a_RI.isfinite().all() and b_RO.isfinite().all()):
        raise AdapterError(f"{WEIGHTS_FILE}: {module} has numbers that are not finite")
    return LoraPair(a_RI=a_RI, b_RO=b_RO)


def _place(module: str) -> tuple[int, str]:
    """`model.layers.3.mlp.up_proj` → 3, `mlp.up_proj`."""
    _, _, layer, name = module.split(".", 3)
    assert name in MODULES, "modules are checked"
    return int(layer), name


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_NUM_NAMES_SHOWN])
    rest = len(names) - _NUM_NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown
