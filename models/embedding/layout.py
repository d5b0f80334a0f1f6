"""What a checkpoint folder says about how its embeddings are made: sentence-transformers' layout.

Knows modules.json, the folders it names (1_Pooling, 2_Dense, 2_Normalize), the prompts of
config_sentence_transformers.json and sentence_bert_config.json, as versions 2 to 6 write them.
A folder without modules.json is a plain checkpoint: its tokens' mean is taken, as that library
does, but for a causal language model, which only its last token has read to the end.

Whatever changes vectors and is not computed here is refused by name. Weights are not read.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from models.checkpoint import CheckpointError, read_json
from models.embedding.json_file import JSONFile

_MODULES_FILE = "modules.json"
_PROMPTS_FILE = "config_sentence_transformers.json"
_LIBRARY = "sentence_transformers."
_ENCODER_CONFIG_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_PASSAGE_PROMPTS = ("document", "passage", "corpus")  # the first that there is


class Pooling(StrEnum):
    """How the vectors of a text's tokens become one."""

    CLS = "cls"  # the first token's
    MAX = "max"
    MEAN = "mean"
    MEAN_SQRT_LENGTH = "mean_sqrt_len_tokens"  # the sum, divided by the root of the length
    WEIGHTED_MEAN = "weightedmean"  # weights 1, 2, 3, …
    LAST_TOKEN = "lasttoken"


_POOLING_FLAGS = {  # version 5 and older have one key for each; the order is that of their vectors
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_max_tokens": Pooling.MAX,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_mean_sqrt_len_tokens": Pooling.MEAN_SQRT_LENGTH,
    "pooling_mode_weightedmean_tokens": Pooling.WEIGHTED_MEAN,
    "pooling_mode_lasttoken": Pooling.LAST_TOKEN,
}


class Activation(StrEnum):
    """What follows a dense layer."""

    IDENTITY = "torch.nn.modules.linear.Identity"
    TANH = "torch.nn.modules.activation.Tanh"
    RELU = "torch.nn.modules.activation.ReLU"
    GELU = "torch.nn.modules.activation.GELU"
    SILU = "torch.nn.modules.activation.SiLU"
    SIGMOID = "torch.nn.modules.activation.Sigmoid"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseLayout:
    """A linear layer over the pooled vector."""

    folder: Path
    num_inputs: int
    num_outputs: int
    has_bias: bool
    activation: Activation


@dataclass(frozen=True, slots=True)
class NormalizeLayout:
    """The vector is divided by its length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingLayout:
    """All of it. `poolings`: several are put one after the other into a longer vector."""

    encoder_folder: Path  # with config.json, the tokenizer and the weights
    poolings: tuple[Pooling, ...]
    token_width: int | None  # as the pooling's configuration has it
    head: tuple[DenseLayout | NormalizeLayout, ...]  # what follows the pooling, in order
    includes_prompt: bool  # the prefix's tokens are pooled as the text's are
    max_input_tokens: int | None
    is_lowercased: bool
    query_prefix: str | None  # None: the checkpoint does not say
    passage_prefix: str | None


def read_layout(folder: Path) -> EmbeddingLayout:
    """
    Raises:
        CheckpointError: a file is missing, is not what it should be, or asks for something that
            Shoal does not compute; names the file.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    modules = _modules(folder)
    encoder_folder = modules[0].folder if modules else folder
    limits = _encoder_config(encoder_folder)
    pooling = _PoolingLayout.of(encoder_folder) if not modules else _read_pooling(modules)
    query_prefix, passage_prefix = _prompts(folder)
    return EmbeddingLayout(
        encoder_folder=encoder_folder,
        poolings=pooling.poolings,
        token_width=pooling.token_width,
        head=tuple(_head_layer(module) for module in modules[2:] if module.kind != "Dropout"),
        includes_prompt=pooling.includes_prompt,
        max_input_tokens=limits.positive_int("max_seq_length"),
        is_lowercased=limits.boolean("do_lower_case", False),
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
    )


@dataclass(frozen=True, slots=True)
class _Module:
    kind: str  # the class's name
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _PoolingLayout:
    poolings: tuple[Pooling, ...]
    token_width: int | None = None
    includes_prompt: bool = True

    @classmethod
    def of(cls, encoder_folder: Path) -> "_PoolingLayout":
        """For a checkpoint that says nothing of pooling."""
        names = JSONFile.read(encoder_folder / "config.json").values.get("architectures")
        is_causal = isinstance(names, list) and any("CausalLM" in str(name) for name in names)
        return cls(poolings=(Pooling.LAST_TOKEN if is_causal else Pooling.MEAN,))


def _modules(folder: Path) -> list[_Module]:
    """Transformer, Pooling and what follows; [] for a plain checkpoint."""
    path = folder / _MODULES_FILE
    if not path.exists():
        return []
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CheckpointError(f"{path}: must hold a list of modules")
    modules = [_module(path, entry) for entry in entries]
    if [module.kind for module in modules[:2]] != ["Transformer", "Pooling"]:
        kinds = [module.kind for module in modules]
        raise CheckpointError(
            f"{path}: the modules {kinds} are not supported; supported: Transformer, Pooling, and "
            "after them Dense, Normalize and Dropout"
        )
    return modules


def _module(path: Path, entry: dict[str, object]) -> _Module:
    kind, place = entry.get("type"), entry.get("path")
    if not isinstance(kind, str) or not isinstance(place, str):
        raise CheckpointError(f"{path}: each module needs a type and a path")
    if not kind.startswith(_LIBRARY):
        raise CheckpointError(
            f"{path}: the module {kind!r} is the checkpoint's own code, which is not run"
        )
    if place.startswith("/") or ".." in Path(place).parts:
        raise CheckpointError(f"{path}: {place!r} is not a folder below the checkpoint")
    return _Module(kind.rsplit(".", 1)[-1], path.parent / place)


def _encoder_config(encoder_folder: Path) -> JSONFile:
    for name in _ENCODER_CONFIG_FILES:
        if (encoder_folder / name).exists():
            config = JSONFile.read(encoder_folder / name)
            task = config.text("transformer_task") or "feature-extraction"
            if task != "feature-extraction":
                raise config.error(f"transformer_task {task!r} is not supported")
            _check_modality(config)
            return config
    return JSONFile(encoder_folder / _ENCODER_CONFIG_FILES[0], {})


def _check_modality(config: JSONFile) -> None:
    modalities = config.mapping("modality_config")
    expected = {"method": "forward", "method_output_name": "last_hidden_state"}
    if modalities and modalities.get("text") != expected:
        raise config.error(
            "modality_config: only texts whose last hidden state is used are supported"
        )


def _read_pooling(modules: list[_Module]) -> _PoolingLayout:
    config = JSONFile.read(modules[1].folder / "config.json")
    width_key = "embedding_dimension"
    if width_key not in config.values:
        width_key = "word_embedding_dimension"
    return _PoolingLayout(
        poolings=_poolings(config),
        token_width=config.positive_int(width_key),
        includes_prompt=config.boolean("include_prompt", True),
    )


def _poolings(config: JSONFile) -> tuple[Pooling, ...]:
    named = config.values.get("pooling_mode")
    if named is not None:
        names = named if isinstance(named, list) else [named]
        found = [pooling for name in names for pooling in Pooling if pooling == name]
        if len(found) < len(names) or not names:
            raise _unknown_pooling(config, named)
        return tuple(found)
    flags = [
        key
        for key in config.values
        if key.startswith("pooling_mode_") and config.boolean(key, False)
    ]
    for key in flags:
        if key not in _POOLING_FLAGS:
            raise _unknown_pooling(config, key)
    chosen = tuple(pooling for key, pooling in _POOLING_FLAGS.items() if key in flags)
    return chosen or (Pooling.MEAN,)


def _unknown_pooling(config: JSONFile, name: object) -> CheckpointError:
    supported = ", ".join(Pooling)
    return config.error(f"the pooling {name!r} is not supported; supported: {supported}")


def _head_layer(module: _Module) -> DenseLayout | NormalizeLayout:
    if module.kind == "Normalize":
        return NormalizeLayout()
    if module.kind != "Dense":
        raise CheckpointError(
            f"{module.folder}: the module {module.kind} is not supported after the pooling; "
            "supported: Dense, Normalize, Dropout"
        )
    config = JSONFile.read(module.folder / "config.json")
    num_inputs = config.positive_int("in_features")
    num_outputs = config.positive_int("out_features")
    if num_inputs is None or num_outputs is None:
        raise config.error("in_features and out_features are needed")
    if config.boolean("use_residual", False):
        raise config.error("use_residual is not supported")
    for key in ("module_input_name", "module_output_name"):
        if (config.text(key) or "sentence_embedding") != "sentence_embedding":
            raise config.error(f"{key} other than 'sentence_embedding' is not supported")
    return DenseLayout(
        folder=module.folder,
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        has_bias=config.boolean("bias", True),
        activation=_activation(config),
    )


def _activation(config: JSONFile) -> Activation:
    name = config.text("activation_function") or Activation.TANH
    if name not in set(Activation):
        supported = ", ".join(Activation)
        raise config.error(f"activation_function {name!r} is not supported; supported: {supported}")
    return Activation(name)


def _prompts(folder: Path) -> tuple[str | None, str | None]:
    """Before a query, before a passage."""
    config = JSONFile.read(folder / _PROMPTS_FILE, is_optional=True)
    prompts = config.mapping("prompts")
    for name, text in prompts.items():
        if not isinstance(text, str):
            raise config.error(f"prompts.{name} must be a text")
    default = prompts.get(config.text("default_prompt_name") or "")
    passage = next((prompts[name] for name in _PASSAGE_PROMPTS if name in prompts), default)
    query = prompts.get("query", default)
    return (None if query is None else str(query)), (None if passage is None else str(passage))
