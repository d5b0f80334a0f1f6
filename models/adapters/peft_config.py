"""`adapter_config.json` of a LoRA adapter, as PEFT writes it: read, checked, what it means.

Whatever changes the arithmetic in a way that is not computed here is refused by its name. Messages
name the file without its folder, because clients read them.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from models.adapters.targets import MODULES

CONFIG_FILE = "adapter_config.json"

# Fields that change what is computed where they are set, but for these values.
_NEUTRAL: dict[str, object] = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "use_bdlora": False,
    "megatron_config": None,
    "task_type": "CAUSAL_LM",
}
# These start from the base model as it is; others (PiSSA, OLoRA, …) change its weights first.
_HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_PLAIN_NAME = re.compile(r"\^?(\w|\\?\.)+")  # of patterns: nothing that takes long to match


class AdapterError(ValueError):
    """An adapter that cannot be used; the message is meant for those who asked for it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PEFTConfig:
    """A checked configuration."""

    rank: int
    alpha: float
    uses_rslora: bool
    #: Names, or a regular expression, which is not evaluated.
    target_modules: tuple[str, ...] | str
    layers: frozenset[int] | None  # None: all
    rank_pattern: tuple[tuple[str, int], ...]
    alpha_pattern: tuple[tuple[str, float], ...]

    def rank_of(self, module: str) -> int:
        """`module`: its whole name, like `model.layers.0.self_attn.q_proj`."""
        return int(_matching(self.rank_pattern, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """What the product of both matrices is multiplied by."""
        rank = self.rank_of(module)
        alpha = _matching(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.uses_rslora else alpha / rank

    def expected_modules(self, num_layers: int) -> set[str]:
        """Whole names of the modules that it must have matrices for."""
        if isinstance(self.target_modules, str):
            return set()
        return {
            name
            for layer in range(num_layers)
            if self.layers is None or layer in self.layers
            for name in (f"model.layers.{layer}.{module}" for module in MODULES)
            if any(name == target or name.endswith(f".{target}") for target in self.target_modules)
        }


def read_peft_config(folder: Path) -> PEFTConfig:
    """
    Raises:
        AdapterError: the file is missing or wrong, or asks for what is not computed here.
    """
    raw = _read(folder / CONFIG_FILE)
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise _error(f"peft_type {kind!r} is not supported; supported: 'LORA'")
    for name, neutral in _NEUTRAL.items():
        value = raw.get(name)
        if value and value != neutral:
            raise _error(
                f"{name} = {json.dumps(value)[:80]} is not supported; supported: "
                f"{json.dumps(neutral)}"
            )
    start = raw.get("init_lora_weights")
    if start not in _HARMLESS_STARTS:
        raise _error(
            f"init_lora_weights = {json.dumps(start)[:80]} changes the base model's weights, which "
            "is not supported; convert the adapter to a plain LoRA when it is saved"
        )
    return PEFTConfig(
        rank=_positive_int(raw, "r"),
        alpha=_number(raw, "lora_alpha", raw.get("lora_alpha")),
        uses_rslora=_boolean(raw, "use_rslora"),
        target_modules=_targets(raw),
        layers=_layers(raw),
        rank_pattern=tuple(
            (key, _positive_int(values, key)) for key, values in _pattern(raw, "rank_pattern")
        ),
        alpha_pattern=tuple(
            (key, _number(raw, f"alpha_pattern.{key}", values[key]))
            for key, values in _pattern(raw, "alpha_pattern")
        ),
    )


def _read(path: Path) -> dict[str, object]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _error("no such file") from error
    except OSError as error:
        raise _error(str(error.strerror)) from error
    except ValueError as error:
        raise _error(f"not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise _error("the top level must be an object")
    return raw


def _error(problem: str) -> AdapterError:
    return AdapterError(f"{CONFIG_FILE}: {problem}")


def _positive_int(raw: dict[str, object], key: str) -> int:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise _error(f"{key} must be a positive integer, not {json.dumps(value)[:80]}")
    return value


def _number(raw: dict[str, object], key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise _error(f"{key} must be a number, not {json.dumps(value)[:80]}")
    return float(value)


def _boolean(raw: dict[str, object], key: str) -> bool:
    value = raw.get(key) or False
    if not isinstance(value, bool):
        raise _error(f"{key} must be true or false, not {json.dumps(value)[:80]}")
    return value


def _targets(raw: dict[str, object]) -> tuple[str, ...] | str:
    targets = raw.get("target_modules")
    if targets == "all-linear":
        return tuple(module.rpartition(".")[2] for module in MODULES)
    if isinstance(targets, str) and targets:
        return targets
    if not isinstance(targets, list) or not targets:
        raise _error("target_modules must be a list of names, or a regular expression")
    short_names = {module.rpartition(".")[2] for module in MODULES}
    for target in targets:
        if not isinstance(target, str) or target.rpartition(".")[2] not in short_names:
            raise _error(
                f"target_modules has {json.dumps(target)[:80]}, which is not supported; "
                f"supported: {', '.join(sorted(short_names))}"
            )
    return tuple(targets)


def _layers(raw: dict[str, object]) -> frozenset[int] | None:
    layers = raw.get("layers_to_transform")
    if layers is None:
        return None
    listed = layers if isinstance(layers, list) else [layers]
    if not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in listed):
        raise _error("layers_to_transform must be a layer's number or a list of them")
    return frozenset(listed)


def _pattern(raw: dict[str, object], key: str) -> list[tuple[str, dict[str, object]]]:
    values = raw.get(key) or {}
    if not isinstance(values, dict):
        raise _error(f"{key} must be an object")
    for name in values:
        if not _PLAIN_NAME.fullmatch(name):
            raise _error(f"{key}: {name[:80]!r} is a regular expression; supported: names")
    return [(name, values) for name in values]


def _matching(
    pattern: tuple[tuple[str, int], ...] | tuple[tuple[str, float], ...],
    module: str,
    default: float,
) -> float:
    """PEFT's rule: the first key that is the module's name, or the end of it after a dot."""
    for key, value in pattern:
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
