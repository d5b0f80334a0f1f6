"""Which part of each weight a tensor-parallel rank holds: the table beside `models.decoder`.

Knows names and sizes alone: no tensors, so that a plan can be made without torch.

A matrix is [outputs, inputs]. The first of two is cut by outputs and the second by the same numbers
as inputs, so that one sum over the ranks per pair is all that they exchange (Megatron-LM, section
3). Where there are more ranks than key/value heads, several ranks hold the same one.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto

from models.checkpoint import DecoderConfig

# Rows of a rank's part of the vocabulary are a multiple of this: widths that matrix units like.
VOCABULARY_MULTIPLE = 8


class Axis(Enum):
    """What the ranks share out among themselves."""

    VOCABULARY = auto()
    QUERY_HEADS = auto()
    KV_HEADS = auto()
    FEED_FORWARD = auto()
    FIRST_RANK = auto()  # added to a sum over the ranks, and must be there once


#: The weights that are cut, by the end of their names: the dimension, and what its numbers belong
#: to. All others every rank holds whole.
SHARDED: dict[str, tuple[int, Axis]] = {
    "embed_tokens.weight": (0, Axis.VOCABULARY),
    "lm_head.weight": (0, Axis.VOCABULARY),
    "q_proj.weight": (0, Axis.QUERY_HEADS),
    "q_proj.bias": (0, Axis.QUERY_HEADS),
    "k_proj.weight": (0, Axis.KV_HEADS),
    "k_proj.bias": (0, Axis.KV_HEADS),
    "v_proj.weight": (0, Axis.KV_HEADS),
    "v_proj.bias": (0, Axis.KV_HEADS),
    "o_proj.weight": (1, Axis.QUERY_HEADS),
    "o_proj.bias": (0, Axis.FIRST_RANK),
    "gate_proj.weight": (0, Axis.FEED_FORWARD),
    "w1.weight": (0, Axis.FEED_FORWARD),  # Mixtral's names of an expert's gate, up and down
    "w3.weight": (0, Axis.FEED_FORWARD),
    "w2.weight": (1, Axis.FEED_FORWARD),
    "gate_proj.bias": (0, Axis.FEED_FORWARD),
    "up_proj.weight": (0, Axis.FEED_FORWARD),
    "up_proj.bias": (0, Axis.FEED_FORWARD),
    "down_proj.weight": (1, Axis.FEED_FORWARD),
    "down_proj.bias": (0, Axis.FIRST_RANK),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Numbers `start` … `stop - 1` of a dimension that has `total` in the checkpoint."""

    dim: int
    start: int
    stop: int
    total: int


class Shards:
    """One rank's share of a decoder. With one rank, everything."""

    def __init__(self, config: DecoderConfig, *, rank: int = 0, size: int = 1) -> None:
        """
        Raises:
            ValueError: the model cannot be shared out among `size` ranks.
        """
        assert 0 <= rank < size, "ranks are counted from 0"
        problem = sharding_problem(config, size)
        if problem is not None:
            raise ValueError(problem)
        self.rank = rank
        self.size = size
        self.model_config = config
        #: The model as this rank computes it: its heads and its feed-forward numbers. The
        #: vocabulary, like the model's width, is the whole model's.
        self.config = replace(
            config,
            num_heads=config.num_heads // size,
            num_kv_heads=max(1, config.num_kv_heads // size),
            intermediate_size=config.intermediate_size // size,
            experts=None
            if config.experts is None
            else replace(config.experts, expert_size=config.experts.expert_size // size),
        )

    @property
    def num_vocabulary_rows(self) -> int:
        """Of every rank's embedding and head: the same number, padding included."""
        if self.size == 1:
            return self.model_config.vocab_size
        rows = -(-self.model_config.vocab_size // self.size)
        return -(-rows // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def first_vocabulary_row(self) -> int:
        return self.rank * self.num_vocabulary_rows

    @property
    def holds_summed_biases(self) -> bool:
        """Whether this rank adds the biases of layers whose outputs are summed over the ranks."""
        return self.rank == 0

    def is_left_out(self, name: str) -> bool:
        """Whether a weight of the checkpoint is not this rank's business at all."""
        _, axis = _sharding(name)
        return axis is Axis.FIRST_RANK and not self.holds_summed_biases

    def part(self, name: str) -> Part | None:
        """This rank's part of a weight of the checkpoint; None: all of it."""
        dim, axis = _sharding(name)
        if axis is None or axis is Axis.FIRST_RANK:
            return None
        model, mine = self.model_config, self.config
        match axis:
            case Axis.VOCABULARY:
                total = model.vocab_size
                start = min(self.first_vocabulary_row, total)
                stop = min(start + self.num_vocabulary_rows, total)
                return Part(dim=dim, start=start, stop=stop, total=total)
            case Axis.FEED_FORWARD:
                total, count = model.intermediate_size, mine.intermediate_size
                if ".experts." in name:
                    assert model.experts is not None, "they have names"
                    assert mine.experts is not None, "as the model"
                    total, count = model.experts.expert_size, mine.experts.expert_size
                start = self.rank * count
            case Axis.QUERY_HEADS:
                total, count = model.num_heads * model.head_dim, mine.num_heads * model.head_dim
                start = self.rank * count
            case Axis.KV_HEADS:
                total = model.num_kv_heads * model.head_dim
                count = mine.num_kv_heads * model.head_dim
                # With more ranks than heads: the head that this rank's query heads attend to.
                start = self.rank * model.num_kv_heads // self.size * model.head_dim
        return Part(dim=dim, start=start, stop=start + count, total=total)


def _sharding(name: str) -> tuple[int, Axis | None]:
    return SHARDED.get(".".join(name.rsplit(".", 2)[-2:]), (0, None))


def sharding_problem(config: DecoderConfig, size: int) -> str | None:
    """Why a model cannot be shared out among `size` ranks; None: it can."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    sizes = {"num_attention_heads": heads, "intermediate_size": config.intermediate_size}
    if config.experts is not None:
        sizes["an expert's width"] = config.experts.expert_size
    for name, count in sizes.items():
        if count % size:
            return f"tensor_parallel_size ({size}) does not divide {name} ({count})"
    if kv_heads % size and size % kv_heads:
        return (
            f"tensor_parallel_size ({size}) neither divides num_key_value_heads ({kv_heads}) "
            "nor is a multiple of it"
        )
    return None
