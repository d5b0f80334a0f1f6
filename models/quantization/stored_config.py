"""What `quantization_config` in a checkpoint's config.json says: AWQ, GPTQ and compressed-tensors.

Everything that changes what the stored numbers mean is either understood or refused by name, with
what is supported. Without torch.
"""

import json
import re
from collections.abc import Mapping

from models.quantization.scheme import (
    GROUP_MULTIPLE,
    MatrixScheme,
    Quantization,
    StoredFormat,
    StoredLayout,
)

METHODS = ("awq", "gptq", "compressed-tensors")
Section = Mapping[str, object]
_TOKEN_SCHEME = 'dynamic, symmetric, of strategy "token", of the kind and bits of the weights'


def read_stored_quantization(section: Section) -> Quantization:
    """
    Args:
        section: the object `quantization_config`.

    Raises:
        ValueError: it is not understood, or says something that is not computed here.
    """
    method = section.get("quant_method")
    match method:
        case "awq":
            return _awq(section)
        case "gptq":
            return _gptq(section)
        case "compressed-tensors":
            return _compressed(section)
        case _:
            raise _refused("quant_method", method, METHODS)


def _awq(section: Section) -> Quantization:
    _only(section, "bits", (4,))
    _only(section, "version", ("gemm",), default="gemm")
    _only(section, "zero_point", (True,), default=True)
    size = _group_size(section.get("group_size", 128))
    left_out = _names(section, "modules_to_not_convert")
    return Quantization(
        name=f"awq (4 bits, {_per(size)})",
        layers=MatrixScheme(weights="int4", group_size=size, has_zeros=True),
        stored=StoredFormat(
            layout="awq", method="awq", left_out=tuple(re.escape(name) for name in left_out)
        ),
    )


def _gptq(section: Section) -> Quantization:
    bits = _only(section, "bits", (4, 8))
    _only(section, "pack_dtype", ("int32",), default="int32")
    if section.get("modules_in_block_to_quantize"):
        raise ValueError(
            "modules_in_block_to_quantize is not supported; supported: all linear layers alike"
        )
    version_key = "checkpoint_format" if "checkpoint_format" in section else "format"
    version = _only(section, version_key, ("gptq", "gptq_v2"), default="gptq")
    size = _group_size(section.get("group_size", 128))
    layers = MatrixScheme(weights="int4" if bits == 4 else "int8", group_size=size, has_zeros=True)
    return Quantization(
        name=f"gptq ({bits} bits, {_per(size)})",
        layers=layers,
        head=layers if section.get("lm_head") is True else None,
        stored=StoredFormat(
            layout="gptq",
            method="gptq",
            has_zeros_less_one=version == "gptq",
            has_input_groups=section.get("desc_act") is True,
            left_out=_left_out_by_gptq(section),
        ),
    )


def _left_out_by_gptq(section: Section) -> tuple[str, ...]:
    """GPTQModel's `dynamic`: "-:" and an expression, which fits modules from their start, leaves
    them out; others give modules bits or groups of their own."""
    rules = _mapping("dynamic", section.get("dynamic") or {})
    others = [rule for rule in rules if not rule.startswith("-:")]
    if others:
        raise ValueError(
            f"dynamic {json.dumps(others[0])} is not supported; supported: "
            '"-:" with what is left out, all other linear layers alike'
        )
    return tuple(_expression("dynamic", rule.removeprefix("-:")) for rule in rules)


def _compressed(section: Section) -> Quantization:
    _refuse_beside_weights(section)
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        count = len(groups) if isinstance(groups, dict) else 0
        raise ValueError(f"config_groups has {count} groups; supported: 1, for all linear layers")
    group = _mapping("config_groups", next(iter(groups.values())))
    _only(group, "targets", (["Linear"],))
    if group.get("output_activations"):
        raise ValueError("output_activations are not supported; supported: null")
    weights = _mapping("weights", group.get("weights"))
    scheme = _weight_scheme(weights, is_dynamic=_is_dynamic(group, weights))
    stored_format = group.get("format") or section.get("format")
    left_out = tuple(_pattern(name) for name in _names(section, "ignore"))
    stored = StoredFormat(
        layout=_compressed_layout(stored_format, scheme),
        method="compressed-tensors",
        has_stored_zeros=weights.get("symmetric") is False,
        has_input_groups=weights.get("actorder") in ("group", "dynamic"),
        left_out=left_out,
    )
    kind = f"{weights['num_bits']} bits" if weights["type"] == "int" else "fp8"
    activations = ", dynamic activations" if scheme.is_dynamic else ""
    return Quantization(
        name=f"compressed-tensors ({kind}, {_per(scheme.group_size)}{activations})",
        layers=scheme,
        head=scheme if stored.covers("lm_head") else None,
        stored=stored,
    )


def _refuse_beside_weights(section: Section) -> None:
    if section.get("kv_cache_scheme"):
        raise ValueError("kv_cache_scheme is not supported; supported: null")
    if section.get("transform_config"):
        raise ValueError("transform_config is not supported; supported: no transforms")
    sparsity = section.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        raise _refused("sparsity_config.format", sparsity["format"], ("dense",))


def _weight_scheme(weights: Section, *, is_dynamic: bool) -> MatrixScheme:
    kind = _only(weights, "type", ("int", "float"))
    bits = _only(weights, "num_bits", (4, 8) if kind == "int" else (8,))
    strategies = ("tensor", "channel", "group") if kind == "int" else ("tensor", "channel")
    strategy = _only(weights, "strategy", strategies)
    is_symmetric = _only(weights, "symmetric", (True, False), default=True)
    if not is_symmetric and (kind == "float" or is_dynamic):
        raise ValueError("symmetric false is supported for int weights with float activations only")
    size = _group_size(weights.get("group_size")) if strategy == "group" else None
    if is_dynamic and size is not None:
        raise ValueError(
            "strategy 'group' with quantized activations is not supported; supported: "
            "channel, tensor"
        )
    if kind == "float":
        return MatrixScheme(weights="fp8", is_dynamic=is_dynamic)
    if bits == 4:
        return MatrixScheme(weights="int4", group_size=size, has_zeros=True)
    return MatrixScheme(
        weights="int8", group_size=size, has_zeros=not is_symmetric, is_dynamic=is_dynamic
    )


def _is_dynamic(group: Section, weights: Section) -> bool:
    """Whether activations are quantized too, in the only way that is computed."""
    activations = group.get("input_activations")
    if not activations:
        return False
    activations = _mapping("input_activations", activations)
    wanted = {
        "dynamic": True,
        "symmetric": True,
        "strategy": "token",
        "type": weights.get("type"),
        "num_bits": weights.get("num_bits"),
    }
    given = {"symmetric": True, **activations}
    wrong = [key for key, value in wanted.items() if given.get(key) != value]
    if wrong or weights.get("num_bits") != 8:
        shown = ", ".join(f"{key} {json.dumps(given.get(key))}" for key in wrong or ["num_bits"])
        raise ValueError(
            f"input_activations with {shown} are not supported; supported: {_TOKEN_SCHEME} (8)"
        )
    return True


def _compressed_layout(stored_format: object, scheme: MatrixScheme) -> StoredLayout:
    match stored_format, scheme.weights:
        case "pack-quantized", "int4" | "int8":
            if scheme.is_dynamic:
                raise ValueError(
                    "format 'pack-quantized' with quantized activations is not supported; "
                    "supported: int-quantized"
                )
            return "packed"
        case "int-quantized" | "naive-quantized", "int8":
            return "plain"
        case "float-quantized" | "naive-quantized", "fp8":
            return "plain"
        case _:
            raise ValueError(
                f"format {stored_format!r} of {scheme.weights} weights is not supported; "
                "supported: pack-quantized (int), int-quantized (int8), float-quantized (fp8)"
            )


def _pattern(name: str) -> str:
    """compressed-tensors names a module whole, or by an expression that fits from its start."""
    if name.startswith("re:"):
        return _expression("ignore", name.removeprefix("re:"))
    return f"^{re.escape(name)}$"


def _expression(key: str, given: str) -> str:
    pattern = f"^(?:{given})"
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key}: {given!r} is not a regular expression: {error}") from error
    return pattern


def _names(section: Section, key: str) -> list[str]:
    names = section.get(key)
    if names is None:
        return []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} must be a list of names")
    return names


def _mapping(key: str, value: object) -> Section:
    if not isinstance(value, dict):
        raise ValueError(f"{key} must be an object, not {json.dumps(value)[:80]}")
    return value


def _group_size(size: object) -> int | None:
    if size == -1:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0 or size % GROUP_MULTIPLE:
        raise ValueError(
            f"group_size {json.dumps(size)} is not supported; supported: multiples of "
            f"{GROUP_MULTIPLE}, and -1"
        )
    return size


def _per(group_size: int | None) -> str:
    return "per channel" if group_size is None else f"groups of {group_size}"


def _only(
    section: Section, key: str, allowed: tuple[object, ...], *, default: object = None
) -> object:
    value = section.get(key, default)
    if isinstance(value, str):
        value = value.lower()
    if value not in allowed:
        raise _refused(key, value, allowed)
    return value


def _refused(key: str, value: object, allowed: tuple[object, ...]) -> ValueError:
    names = ", ".join(json.dumps(one) for one in allowed)
    return ValueError(f"{key} {json.dumps(value)} is not supported; supported: {names}")
