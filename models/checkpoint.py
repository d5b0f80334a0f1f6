"""What a Hugging Face checkpoint folder says about its model: config.json as typed data.

Knows the files of transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and of
transformers 5 (`rope_parameters`, `dtype`). Where a file is silent, transformers' own defaults
hold. Does not know torch or tensors, so the ingress may use it; `models.weights` reads those.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from models.quantization.scheme import Quantization
from models.quantization.stored_config import read_stored_quantization

DTypeName = Literal["float32", "bfloat16", "float16"]

SUPPORTED_DTYPES = ("float32", "bfloat16", "float16")
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and is meant for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRopeScaling:
    """Positions divided by a factor."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3RopeScaling:
    """Llama 3.1: low frequencies divided by a factor, high ones kept, a ramp in between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding over the whole head width."""

    theta: float
    scaling: LinearRopeScaling | Llama3RopeScaling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """Layers whose feed-forward is many experts, of which each token uses some."""

    num_experts: int
    num_chosen: int  # by each token
    expert_size: int  # feed-forward width of one
    has_normalized_weights: bool  # those of a token's experts add up to 1
    is_in_layer: tuple[bool, ...]
    module: str  # the checkpoint's name for the router and its experts in a layer
    projections: tuple[str, str, str]  # and for an expert's gate, up and down matrices


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderShape:
    """What an engine has to know of any decoder: its cache, its limits, its vocabulary."""

    architecture: str
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    layer_windows: tuple[int | None, ...]  # tokens each layer attends to; None: all before it
    dtype: DTypeName
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig(DecoderShape):
    """Everything that distinguishes one decoder of `models.decoder` from another."""

    hidden_size: int
    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    has_qkv_bias: bool
    has_output_bias: bool  # of the attention's output projection
    has_mlp_bias: bool
    has_qk_norm: bool  # RMS norm of each query and key head, before the rotation
    tie_word_embeddings: bool
    bos_token_id: int | None
    experts: ExpertsConfig | None = None
    quantization: Quantization | None = None  # of the checkpoint, or what is made of its floats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What an architecture's name implies, where config.json cannot say it or says nothing."""

    qkv_bias: bool | None  # None: `attention_bias` decides, for the output projection as well
    has_mlp_bias_key: bool = False
    qk_norm: bool = False
    window: Literal["none", "every_layer", "some_layers"]
    has_window_default: bool = True
    experts: Literal["mixtral", "qwen3"] | None = None
    kv_heads_default: int | None = None  # None: as many as query heads
    head_dim_default: int | None = None  # None: hidden_size / num_attention_heads
    max_positions_default: int


_FAMILIES = {
    "LlamaForCausalLM": _Family(
        qkv_bias=None, has_mlp_bias_key=True, window="none", max_positions_default=2048
    ),
    "MistralForCausalLM": _Family(
        qkv_bias=False, window="every_layer", kv_heads_default=8, max_positions_default=131072
    ),
    "Qwen2ForCausalLM": _Family(
        qkv_bias=True, window="some_layers", kv_heads_default=32, max_positions_default=32768
    ),
    "Qwen3ForCausalLM": _Family(
        qkv_bias=None,
        qk_norm=True,
        window="some_layers",
        kv_heads_default=32,
        head_dim_default=128,
        max_positions_default=32768,
    ),
    "MixtralForCausalLM": _Family(
        qkv_bias=False,
        window="every_layer",
        has_window_default=False,
        experts="mixtral",
        kv_heads_default=8,
        max_positions_default=131072,
    ),
    "Qwen3MoeForCausalLM": _Family(
        qkv_bias=None,
        qk_norm=True,
        window="every_layer",
        has_window_default=False,
        experts="qwen3",
        kv_heads_default=4,
        max_positions_default=32768,
    ),
}
SUPPORTED_ARCHITECTURES = tuple(_FAMILIES)


def is_native(checkpoint_dir: Path) -> bool:
    """Whether `models.decoder` has the architecture; others may be computed by transformers.

    Raises:
        CheckpointError: there is no config.json, or it names no architecture.
    """
    if not checkpoint_dir.is_dir():
        raise CheckpointError(f"{checkpoint_dir}: no such checkpoint folder")
    return _architecture(_Object(checkpoint_dir / "config.json")) in _FAMILIES


def read_eos_token_ids(checkpoint_dir: Path) -> tuple[int, ...]:
    """The tokens that end a sequence, as both files name them.

    Raises:
        CheckpointError: a file is missing or wrong.
    """
    return _eos_token_ids(_Object(checkpoint_dir / "config.json"), checkpoint_dir)


def read_decoder_config(checkpoint_dir: Path) -> DecoderConfig:
    """Read `config.json` and, where there is one, `generation_config.json`.

    Raises:
        CheckpointError: the folder or file is missing, is not JSON, or asks for something that this
            engine does not compute.
    """
    if not checkpoint_dir.is_dir():
        raise CheckpointError(f"{checkpoint_dir}: no such checkpoint folder")
    config = _Object(checkpoint_dir / "config.json")
    architecture, family = _family_of(config)
    _refuse_what_is_not_computed(config)

    hidden_size = config.positive_int("hidden_size")
    num_heads = config.positive_int("num_attention_heads")
    num_kv_heads = config.positive_int(
        "num_key_value_heads", family.kv_heads_default or num_heads, null=num_heads
    )
    attention_bias = config.boolean("attention_bias", False) if family.qkv_bias is None else False
    max_positions = config.positive_int("max_position_embeddings", family.max_positions_default)
    num_layers = config.positive_int("num_hidden_layers")
    if num_heads % num_kv_heads:
        raise config.error(
            f"num_attention_heads ({num_heads}) is not a multiple of "
            f"num_key_value_heads ({num_kv_heads})"
        )
    return DecoderConfig(
        architecture=architecture,
        vocab_size=config.positive_int("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.positive_int("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(config, family, hidden_size=hidden_size, num_heads=num_heads),
        rms_norm_eps=config.positive_float("rms_norm_eps", 1e-6),
        rope=_rope(config, max_positions),
        max_position_embeddings=max_positions,
        has_qkv_bias=attention_bias or family.qkv_bias is True,
        has_output_bias=attention_bias,
        has_mlp_bias=family.has_mlp_bias_key and config.boolean("mlp_bias", False),
        has_qk_norm=family.qk_norm,
        tie_word_embeddings=config.boolean("tie_word_embeddings", False),
        layer_windows=_layer_windows(config, family, num_layers),
        dtype=_dtype(config),
        eos_token_ids=_eos_token_ids(config, checkpoint_dir),
        bos_token_id=config.optional_int("bos_token_id"),
        experts=_experts(config, family, num_layers),
        quantization=_quantization(config),
    )


class _Object:
    """A JSON object from a file (or nested in one), read with checks that name the file and key."""

    def __init__(self, path: Path, values: object = None, prefix: str = "") -> None:
        self.path = path
        self._prefix = prefix
        if values is None:
            values = read_json(path)
        if not isinstance(values, dict):
            raise CheckpointError(
                f"{path}: {prefix.rstrip('.') or 'the top level'} must be an object, "
                f"not {json.dumps(values)[:80]}"
            )
        self.values: Mapping[str, object] = values

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}")

    def wrong(self, key: str, expected: str) -> CheckpointError:
        given = json.dumps(self.values[key])[:80] if key in self.values else "missing"
        return self.error(f"{self._prefix}{key} must be {expected}, not {given}")

    def get(self, key: str) -> object:
        return self.values.get(key)

    def nested(self, key: str) -> "_Object | None":
        if self.get(key) is None:
            return None
        return _Object(self.path, self.values[key], f"{self._prefix}{key}.")

    def positive_int(self, key: str, default: int | None = None, *, null: int | None = None) -> int:
        """`default` where the key is missing, `null` where its value is null."""
        value = self.values.get(key, default)
        if value is None and key in self.values:
            value = null
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.wrong(key, "a positive integer")
        return value

    def positive_float(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.wrong(key, "a positive number")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def optional_int(self, key: str) -> int | None:
        value = self.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise self.wrong(key, "an integer or null")
        return value


def read_json(path: Path) -> object:
    """Parse a checkpoint's JSON file.

    Raises:
        CheckpointError: it is missing, unreadable, or not JSON.
    """
    try:
        return cast(object, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error


def _architecture(config: _Object) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise config.wrong("architectures", "a list of one name")
    return names[0]


def _family_of(config: _Object) -> tuple[str, _Family]:
    name = _architecture(config)
    if name not in _FAMILIES:
        raise config.error(
            f"architecture {name} is not supported; supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    return name, _FAMILIES[name]


def _refuse_what_is_not_computed(config: _Object) -> None:
    activation = config.values.get("hidden_act", "silu")
    if activation != "silu":
        raise config.error(f"hidden_act {activation!r} is not supported; supported: 'silu'")


def _quantization(config: _Object) -> Quantization | None:
    section = config.nested("quantization_config") or config.nested("compression_config")
    if section is None:
        return None
    try:
        stored = read_stored_quantization(section.values)
    except ValueError as error:
        raise config.error(f"quantization_config: {error}") from error
    # A head that is the embedding is stored as floats, whatever is said of linear layers.
    return replace(stored, head=None) if config.boolean("tie_word_embeddings", False) else stored


def _experts(config: _Object, family: _Family, num_layers: int) -> ExpertsConfig | None:
    match family.experts:
        case None:
            return None
        case "mixtral":
            experts = ExpertsConfig(
                num_experts=config.positive_int("num_local_experts", 8),
                num_chosen=config.positive_int("num_experts_per_tok", 2),
                expert_size=config.positive_int("intermediate_size"),
                has_normalized_weights=True,
                is_in_layer=(True,) * num_layers,
                module="block_sparse_moe",
                projections=("w1", "w3", "w2"),
            )
        case "qwen3":
            experts = ExpertsConfig(
                # Transformers 5 writes the first name, and 4 the second.
                num_experts=config.positive_int(
                    "num_local_experts", config.positive_int("num_experts", 128)
                ),
                num_chosen=config.positive_int("num_experts_per_tok", 8),
                expert_size=config.positive_int("moe_intermediate_size", 768),
                has_normalized_weights=config.boolean("norm_topk_prob", False),
                is_in_layer=_expert_layers(config, num_layers),
                module="mlp",
                projections=("gate_proj", "up_proj", "down_proj"),
            )
    if experts.num_chosen > experts.num_experts:
        raise config.error(
            f"num_experts_per_tok ({experts.num_chosen}) exceeds the number of experts "
            f"({experts.num_experts})"
        )
    return experts


def _expert_layers(config: _Object, num_layers: int) -> tuple[bool, ...]:
    """Every layer, or every so many, but for those that are listed."""
    period = config.positive_int("decoder_sparse_step", 1)
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(index, int) for index in dense):
        raise config.wrong("mlp_only_layers", "a list of layers' numbers")
    return tuple((i + 1) % period == 0 and i not in dense for i in range(num_layers))


def _head_dim(config: _Object, family: _Family, *, hidden_size: int, num_heads: int) -> int:
    head_dim = config.get("head_dim")
    if head_dim is None:
        head_dim = family.head_dim_default
    if head_dim is None:
        if hidden_size % num_heads:
            raise config.error(
                f"hidden_size ({hidden_size}) is not a multiple of "
                f"num_attention_heads ({num_heads}), and head_dim is not given"
            )
        head_dim = hidden_size // num_heads
    if not isinstance(head_dim, int) or head_dim <= 0 or head_dim % 2:
        raise config.error(f"head_dim must be a positive even integer, not {head_dim!r}")
    return head_dim


def _rope(config: _Object, max_positions: int) -> RopeConfig:
    parameters = config.nested("rope_parameters")  # transformers 5
    if parameters is not None:
        theta_source, scaling = parameters, parameters
    else:
        theta_source, scaling = config, config.nested("rope_scaling") or _Object(config.path, {})
    theta = theta_source.positive_float("rope_theta", 10000.0)
    for source in (config, scaling):
        if source.values.get("partial_rotary_factor", 1.0) not in (1.0, None):
            raise config.error("partial_rotary_factor other than 1 is not supported")
    rope_type = scaling.get("rope_type") or scaling.get("type") or "default"
    match rope_type:
        case "default":
            return RopeConfig(theta=theta)
        case "linear":
            factor = scaling.positive_float("factor")
            return RopeConfig(theta=theta, scaling=LinearRopeScaling(factor=factor))
        case "llama3":
            return RopeConfig(theta=theta, scaling=_llama3_scaling(scaling, max_positions))
        case _:
            raise config.error(
                f"rope type {rope_type!r} is not supported; supported: "
                f"{', '.join(SUPPORTED_ROPE_TYPES)}"
            )


def _llama3_scaling(scaling: _Object, max_positions: int) -> Llama3RopeScaling:
    low = scaling.positive_float("low_freq_factor")
    high = scaling.positive_float("high_freq_factor")
    if high <= low:
        raise scaling.error(f"high_freq_factor ({high}) must exceed low_freq_factor ({low})")
    return Llama3RopeScaling(
        factor=scaling.positive_float("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=scaling.positive_int(
            "original_max_position_embeddings", max_positions
        ),
    )


def _layer_windows(config: _Object, family: _Family, num_layers: int) -> tuple[int | None, ...]:
    if family.window == "none":
        return (None,) * num_layers
    if family.window == "some_layers" and not config.boolean("use_sliding_window", False):
        return (None,) * num_layers
    has_window = config.get("sliding_window") is not None
    if not has_window and ("sliding_window" in config.values or not family.has_window_default):
        return (None,) * num_layers
    if family.experts == "qwen3" and not config.boolean("use_sliding_window", False):
        return (None,) * num_layers
    window = config.positive_int("sliding_window", 4096)
    if family.window == "every_layer":
        return (window,) * num_layers
    return tuple(
        window if kind == "sliding_attention" else None for kind in _layer_types(config, num_layers)
    )


def _layer_types(config: _Object, num_layers: int) -> list[str]:
    """Of a family where a window covers some layers: listed, or those from max_window_layers on."""
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.values.get("max_window_layers", 28)
        if not isinstance(first, int) or first < 0:
            raise config.wrong("max_window_layers", "a number of layers")
        return [
            "sliding_attention" if index >= first else "full_attention"
            for index in range(num_layers)
        ]
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise config.wrong("layer_types", f"a list of num_hidden_layers ({num_layers}) names")
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise config.error(
                f"layer type {kind!r} is not supported; supported: "
                "full_attention, sliding_attention"
            )
    return kinds


def _dtype(config: _Object) -> DTypeName:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if name not in SUPPORTED_DTYPES:
        raise config.error(
            f"dtype {name!r} is not supported; supported: {', '.join(SUPPORTED_DTYPES)}"
        )
    return cast(DTypeName, name)


def _eos_token_ids(config: _Object, checkpoint_dir: Path) -> tuple[int, ...]:
    """The union of both files: instruction-tuned checkpoints often name the end of turn in one."""
    sources = [config]
    generation_path = checkpoint_dir / "generation_config.json"
    if generation_path.exists():
        sources.append(_Object(generation_path))
    found: set[int] = set()
    for source in sources:
        value = source.get("eos_token_id")
        token_ids = value if isinstance(value, list) else [] if value is None else [value]
        for token_id in token_ids:
            if not isinstance(token_id, int) or token_id < 0:
                raise source.wrong("eos_token_id", "a token id or a list of them")
            found.add(token_id)
    return tuple(sorted(found))
