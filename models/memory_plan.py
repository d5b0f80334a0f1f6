"""What a model needs on given GPUs and what it could do there at most, from config.json alone.

No torch and no weights: sizes are counted, and speeds are rooflines. A step takes as long as the
longer of two things, reading what it must from memory and computing what it must, and then the
exchanges between the ranks; nothing measured is in it, so real engines stay below.

    decode step  bytes = weights but the embedding's unread rows + every sequence's keys and values
                 (of experts: those that some sequence is expected to choose)
                 FLOPs = 2 · sequences · weights in products + 4 · attended tokens · heads · width
    prompt       FLOPs = the same with its tokens, each of which attends to half of them on average
    exchanges    2 · layers + 1 sums of [tokens, model width], which a ring brings to each GPU
                 2 · (ranks - 1) / ranks times, and logits [sequences, vocabulary] gathered on
                 rank 0, whose link is therefore the busiest; and the link's latency for each

A quantized matrix counts by its levels and scales. Where activations are quantized too, a GPU
multiplies twice as fast (its dense int8 and fp8 rates); else as fast as the dtype's floats.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from models.adapters.targets import count_slot_numbers
from models.checkpoint import (
    SUPPORTED_DTYPES,
    DecoderConfig,
    ExpertsConfig,
    read_decoder_config,
)
from models.gpus import GPU, read_gpus
from models.parallel.sharding import Shards, sharding_problem
from models.quantization.scheme import choose_quantization

GIB = 2**30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BLOCK_SIZE = 16
UTILIZATION = 0.9  # `gpu_memory_utilization`: the rest is for what a step needs in between
CONTEXT_BYTES = 3 * GIB // 4  # assumed for CUDA, NCCL and tables of rotations on each GPU
PROMPT_STEP_TOKENS = 2048
DYNAMIC_SPEEDUP = 2  # of int8 and fp8 products against bfloat16
FLOAT32_SLOWDOWN = 2  # of TF32 products against bfloat16


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One tensor-parallel size. Bytes and blocks are those of each GPU (rank 0, which has most)."""

    size: int
    num_replicas: int
    weight_bytes: int = 0
    adapter_bytes: int = 0  # of the slots
    kv_bytes: int = 0
    kv_bytes_per_token: int = 0
    capacity_tokens: int = 0
    num_sequences: int = 0  # of the context, at once
    exchanges_per_step: int = 0
    exchanged_bytes_per_step: int = 0  # that reach rank 0, in a decode step of `num_sequences`
    decode_tokens_per_s: float = 0.0  # one sequence alone, one replica
    batch_tokens_per_s: float = 0.0  # `num_sequences` of them
    prompt_tokens_per_s: float = 0.0
    problem: str | None = None  # why it cannot be


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model on GPUs of one machine, for every size that divides their number."""

    config: DecoderConfig
    gpu: GPU
    num_gpus: int
    context_tokens: int
    num_parameters: int
    num_active_parameters: int  # that a token uses: fewer than there are where there are experts
    ranks: tuple[RankPlan, ...]


def make_plan(
    folder: Path,
    gpus: str,
    *,
    dtype: str = "auto",
    quantization: str = "auto",
    context_tokens: int | None = None,
    max_loaded_adapters: int = 0,
    max_lora_rank: int = 16,
) -> Plan:
    """
    Args:
        folder: with a config.json; nothing else is read.
        gpus: like "h100:8".
        dtype: "auto" is the checkpoint's own.
        quantization: one of `QUANTIZATION_NAMES`; "auto" is as the checkpoint is stored.
        context_tokens: of each sequence; None: 8192, or the model's limit where that is less.
        max_loaded_adapters, max_lora_rank: as in the engine's configuration.

    Raises:
        ValueError: something given is unknown, or nothing fits; the message has both numbers.
    """
    config = read_decoder_config(folder)
    gpu, num_gpus = read_gpus(gpus)
    if dtype != "auto":
        if dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype {dtype!r} is not one of auto, {', '.join(SUPPORTED_DTYPES)}")
        config = replace(config, dtype=dtype)  # type: ignore[arg-type]  # it is one of them
    chosen = choose_quantization(quantization, config.quantization)
    config = replace(config, quantization=chosen)
    limit = config.max_position_embeddings
    if max_loaded_adapters and config.experts is not None:
        raise ValueError(
            f"max_loaded_adapters is {max_loaded_adapters}; beside experts it must be 0"
        )
    context = min(8192, limit) if context_tokens is None else context_tokens
    if not 0 < context <= limit:
        raise ValueError(
            f"a context of {context:,} tokens is beyond the model's max_position_embeddings "
            f"({limit:,})"
        )
    ranks = tuple(
        _plan_ranks(
            _Roofline(config, gpu, size),
            num_replicas=num_gpus // size,
            context=context,
            adapter_numbers=max_loaded_adapters
            * count_slot_numbers(Shards(config, size=size).config, max_lora_rank),
        )
        if (problem := sharding_problem(config, size)) is None
        else RankPlan(size=size, num_replicas=num_gpus // size, problem=problem)
        for size in range(1, num_gpus + 1)
        if num_gpus % size == 0
    )
    if all(plan.problem is not None for plan in ranks):
        reasons = "; ".join(f"{plan.size} GPUs: {plan.problem}" for plan in ranks)
        raise ValueError(f"{num_gpus} × {gpu.title} cannot hold this model: {reasons}")
    whole, experts = _count(Shards(config)), config.experts
    idle = 0
    if experts is not None:
        idle = whole.in_experts // experts.num_experts * (experts.num_experts - experts.num_chosen)
    return Plan(
        config=config,
        gpu=gpu,
        num_gpus=num_gpus,
        context_tokens=context,
        num_parameters=whole.total,
        num_active_parameters=whole.total - idle,
        ranks=ranks,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Numbers that rank 0 holds."""

    total: int
    read_per_step: int  # of these, what each step reads: an embedding only feeds single rows
    in_products: int  # and what it multiplies with every token: of experts, a token's own
    in_experts: int  # of those read by a step of many tokens: fewer read less


def count_weights(config: DecoderConfig, size: int) -> Counts:
    """The numbers of rank 0 of so many; see `Counts`."""
    return _count(Shards(config, size=size))


def _count(shards: Shards) -> Counts:
    config, width = shards.config, shards.model_config.hidden_size
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    qkv = (heads + 2 * kv_heads) * head_dim
    others = 2 * width
    others += qkv * config.has_qkv_bias + width * config.has_output_bias
    others += 2 * head_dim * config.has_qk_norm
    vocabulary = shards.num_vocabulary_rows * width
    num_layers = config.num_layers
    head = vocabulary
    embedding = 0 if config.tie_word_embeddings else vocabulary
    num_sparse, routers, expert = 0, 0, 0
    if (experts := config.experts) is not None:
        num_sparse = sum(experts.is_in_layer)
        routers = num_sparse * width * experts.num_experts
        expert = 3 * width * experts.expert_size
    num_dense = num_layers - num_sparse
    biases = num_dense * (2 * config.intermediate_size + width) * config.has_mlp_bias
    shared = num_layers * width * (qkv + heads * head_dim) + routers
    shared += num_dense * 3 * width * config.intermediate_size + head
    in_experts = num_sparse * expert * (0 if experts is None else experts.num_experts)
    chosen = num_sparse * expert * (0 if experts is None else experts.num_chosen)
    read = shared + in_experts + num_layers * others + biases + width
    return Counts(
        total=read + embedding,
        read_per_step=read,
        in_products=shared + chosen,
        in_experts=in_experts,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightBytes:
    """Of rank 0."""

    total: int
    read_per_step: int
    in_experts: int = 0  # as `Counts` has it

    def read_by(self, num_tokens: int, experts: ExpertsConfig | None) -> int:
        """What a step of so many tokens reads, where each chooses its experts by chance."""
        if experts is None:
            return self.read_per_step
        not_chosen = (1 - experts.num_chosen / experts.num_experts) ** num_tokens
        return self.read_per_step - int(self.in_experts * not_chosen)


def weight_bytes(shards: Shards) -> WeightBytes:
    """What the weights take, quantized or not; see `Counts`."""
    config, counts = shards.config, _count(shards)
    dtype_bytes = DTYPE_BYTES[config.dtype]
    total, read = counts.total * dtype_bytes, counts.read_per_step * dtype_bytes
    in_experts = counts.in_experts * dtype_bytes
    if config.quantization is None:
        return WeightBytes(total=total, read_per_step=read, in_experts=in_experts)
    for module, (num_outputs, num_inputs) in _matrices(shards):
        scheme = config.quantization.of(module)
        if scheme is None:
            continue
        quantized = scheme.num_bytes(num_outputs, num_inputs)
        floats = num_outputs * num_inputs * dtype_bytes
        read += quantized - floats
        in_experts += (quantized - floats) * (".experts." in module)
        is_beside = module == "lm_head" and config.tie_word_embeddings  # rows are looked up still
        total += quantized - (0 if is_beside else floats)
    return WeightBytes(total=total, read_per_step=read, in_experts=in_experts)


def _matrices(shards: Shards) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every matrix of rank 0 that may be quantized, with its outputs and inputs."""
    config, width = shards.config, shards.model_config.hidden_size
    q_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    shapes = {
        "self_attn.q_proj": (q_width, width),
        "self_attn.k_proj": (kv_width, width),
        "self_attn.v_proj": (kv_width, width),
        "self_attn.o_proj": (width, q_width),
    }
    ff_width, experts = config.intermediate_size, config.experts
    dense = {
        "mlp.gate_proj": (ff_width, width),
        "mlp.up_proj": (ff_width, width),
        "mlp.down_proj": (width, ff_width),
    }
    sparse: dict[str, tuple[int, int]] = {}
    if experts is not None:
        outer, inner = (experts.expert_size, width), (width, experts.expert_size)
        sparse = {
            f"{experts.module}.experts.{number}.{name}": shape
            for number in range(experts.num_experts)
            for name, shape in zip(experts.projections, (outer, outer, inner), strict=True)
        }
    for layer_index in range(config.num_layers):
        is_sparse = experts is not None and experts.is_in_layer[layer_index]
        for name, shape in (shapes | (sparse if is_sparse else dense)).items():
            yield f"model.layers.{layer_index}.{name}", shape
    yield "lm_head", (shards.num_vocabulary_rows, width)


def _plan_ranks(
    roofline: "_Roofline", *, num_replicas: int, context: int, adapter_numbers: int
) -> RankPlan:
    size = roofline.size
    total_bytes = roofline.weight_bytes.total
    adapter_bytes = adapter_numbers * roofline.dtype_bytes
    budget = int(roofline.gpu.memory_bytes * UTILIZATION) - CONTEXT_BYTES
    kv_bytes = budget - total_bytes - adapter_bytes
    num_blocks = max(0, kv_bytes) // (roofline.kv_bytes_per_token * BLOCK_SIZE)
    num_sequences = num_blocks // -(-context // BLOCK_SIZE)
    if num_sequences == 0:
        return RankPlan(
            size=size,
            num_replicas=num_replicas,
            problem=_too_little(
                total_bytes + adapter_bytes,
                budget,
                num_blocks * BLOCK_SIZE,
                context,
                what="weights and adapters" if adapter_bytes else "weights",
            ),
        )
    return RankPlan(
        size=size,
        num_replicas=num_replicas,
        weight_bytes=total_bytes,
        adapter_bytes=adapter_bytes,
        kv_bytes=kv_bytes,
        kv_bytes_per_token=roofline.kv_bytes_per_token,
        capacity_tokens=num_blocks * BLOCK_SIZE,
        num_sequences=num_sequences,
        exchanges_per_step=roofline.num_exchanges,
        exchanged_bytes_per_step=roofline.exchanged_bytes(num_sequences, num_sequences),
        decode_tokens_per_s=1 / roofline.decode_s(1, context),
        batch_tokens_per_s=num_sequences / roofline.decode_s(num_sequences, context),
        prompt_tokens_per_s=context / roofline.prompt_s(context),
    )


def _too_little(
    num_bytes: int, budget: int, capacity_tokens: int, context: int, *, what: str
) -> str:
    if num_bytes > budget:
        return (
            f"the {what} take {num_bytes / GIB:.1f} GiB of each GPU, "
            f"of whose memory {budget / GIB:.1f} GiB may be used"
        )
    return (
        f"beside {num_bytes / GIB:.1f} GiB of {what} there is room for the keys and values of "
        f"{capacity_tokens:,} tokens, less than one sequence of {context:,}"
    )


class _Roofline:
    """The formulas at the top of this file, for one tensor-parallel size."""

    def __init__(self, config: DecoderConfig, gpu: GPU, size: int) -> None:
        self.gpu = gpu
        self.size = size
        self._shards = Shards(config, size=size)
        self.counts = _count(self._shards)
        self.weight_bytes = weight_bytes(self._shards)
        self._experts = config.experts
        quantization = config.quantization
        is_dynamic = quantization is not None and quantization.layers.is_dynamic
        self._speedup = DYNAMIC_SPEEDUP if is_dynamic else 1
        self.dtype_bytes = DTYPE_BYTES[config.dtype]
        rank = self._shards.config
        self._kv_bytes_per_layer = 2 * rank.num_kv_heads * rank.head_dim * self.dtype_bytes
        self.kv_bytes_per_token = config.num_layers * self._kv_bytes_per_layer

    @property
    def num_exchanges(self) -> int:
        """Of each step: the embedding, two a layer, the logits."""
        return 0 if self.size == 1 else 2 * self._shards.config.num_layers + 2

    def exchanged_bytes(self, num_tokens: int, num_logits: int) -> int:
        """That reach rank 0 in a step of so many tokens, some of which want logits."""
        others = self.size - 1
        config = self._shards.config
        sums = (2 * config.num_layers + 1) * num_tokens * config.hidden_size * 2 * others
        logits = num_logits * self._shards.num_vocabulary_rows * others
        return (sums // self.size + logits) * self.dtype_bytes

    def decode_s(self, num_sequences: int, context: int) -> float:
        """A step that adds a token to each of so many sequences."""
        attended = num_sequences * self._attended_in_all_layers(context)
        num_bytes = self.weight_bytes.read_by(num_sequences, self._experts)
        num_bytes += attended * self._kv_bytes_per_layer
        head = self._head_numbers()
        in_products = (self.counts.in_products - head) // self._speedup + head
        flops = 2 * num_sequences * in_products + self._attention_flops(attended)
        return self._step_s(num_bytes, flops) + self._exchanges_s(num_sequences, num_sequences)

    def prompt_s(self, context: int) -> float:
        """All steps of a prompt; only its last token wants logits."""
        num_layers = self._shards.config.num_layers
        num_steps = -(-context // PROMPT_STEP_TOKENS)
        # Each token attends to half of what the last one does, or to the window.
        attended = context * min(self._attended_in_all_layers(context), num_layers * context // 2)
        in_products = (self.counts.in_products - self._head_numbers()) // self._speedup
        flops = 2 * context * in_products + self._attention_flops(attended)
        num_tokens = min(context, PROMPT_STEP_TOKENS)
        num_bytes = num_steps * self.weight_bytes.read_by(num_tokens, self._experts)
        exchanges_s = self._exchanges_s(min(context, PROMPT_STEP_TOKENS), 1)
        return self._step_s(num_bytes, flops) + num_steps * exchanges_s

    def _head_numbers(self) -> int:
        return self._shards.num_vocabulary_rows * self._shards.config.hidden_size

    def _attended_in_all_layers(self, context: int) -> int:
        windows = self._shards.config.layer_windows
        return sum(min(context, window or context) for window in windows)

    def _attention_flops(self, attended: int) -> int:
        return 4 * attended * self._shards.config.num_heads * self._shards.config.head_dim

    def _step_s(self, num_bytes: int, flops: int) -> float:
        slowdown = FLOAT32_SLOWDOWN if self.dtype_bytes == DTYPE_BYTES["float32"] else 1
        return max(num_bytes / self.gpu.bytes_per_s, flops * slowdown / self.gpu.flops_per_s)

    def _exchanges_s(self, num_tokens: int, num_logits: int) -> float:
        gpu = self.gpu
        moving_s = self.exchanged_bytes(num_tokens, num_logits) / gpu.link_bytes_per_s
        return self.num_exchanges * gpu.link_latency_s + moving_s
