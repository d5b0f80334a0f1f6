"""Where LoRA adapters act: the linear layers of `models.decoder`, and the modules fused in each.

Knows names and sizes alone: no tensors, so that a plan can be made without torch.
"""

from dataclasses import dataclass
from enum import StrEnum

from models.checkpoint import DecoderConfig


class LinearName(StrEnum):
    """The linear layers of a decoder layer."""

    QKV = "qkv"
    OUTPUT = "o"
    GATE_UP = "gate_up"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLinear:
    """A linear layer and the checkpoint's modules that are fused in it, in the order of outputs."""

    name: LinearName
    num_inputs: int
    modules: tuple[str, ...]  # below `model.layers.N.`
    num_outputs: tuple[int, ...]  # of each module


#: What an adapter may target, as PEFT calls it.
MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def target_linears(config: DecoderConfig) -> tuple[TargetLinear, ...]:
    """The linear layers of every decoder layer. Of a rank's config: with the rank's sizes."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    width, ff_width = config.hidden_size, config.intermediate_size
    return (
        TargetLinear(
            name=LinearName.QKV,
            num_inputs=width,
            modules=MODULES[:3],
            num_outputs=(queries, keys, keys),
        ),
        TargetLinear(
            name=LinearName.OUTPUT,
            num_inputs=queries,
            modules=MODULES[3:4],
            num_outputs=(width,),
        ),
        TargetLinear(
            name=LinearName.GATE_UP,
            num_inputs=width,
            modules=MODULES[4:6],
            num_outputs=(ff_width, ff_width),
        ),
        TargetLinear(
            name=LinearName.DOWN,
            num_inputs=ff_width,
            modules=MODULES[6:],
            num_outputs=(width,),
        ),
    )


def module_sizes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each module."""
    return {
        module: (linear.num_inputs, num_outputs)
        for linear in target_linears(config)
        for module, num_outputs in zip(linear.modules, linear.num_outputs, strict=True)
    }


def count_slot_numbers(config: DecoderConfig, rank: int) -> int:
    """The numbers of one adapter of that (LoRA) rank, in all layers, as a slot keeps them on a GPU
    (the CPU kernels' slots have multiples of 16 as ranks)."""
    per_layer = sum(inputs + outputs for inputs, outputs in module_sizes(config).values())
    return config.num_layers * per_layer * rank
