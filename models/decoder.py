"""One decoder for Llama, Mistral, Qwen2 and Qwen3: their differences are data in `DecoderConfig`.

It knows the arithmetic of a step and the checkpoint's name of each weight; not where keys and
values live (`models.attention`), nor how weights are read (`models.weights`), nor which part of
them a tensor-parallel rank holds (`models.parallel.sharding`).

Shapes: T = tokens in the step, M = model width, F = feed-forward width, H = query heads,
K = key/value heads, N = H + K, D = head width, V = vocabulary. Sizes are per tensor-parallel rank.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from models.attention.backend import StepAttention
from models.checkpoint import DecoderConfig
from models.layers import Linear, Rope, rms_norm
from models.operations import DecoderOperations, HeadNorms, Rotation, TorchOperations
from models.parallel.group import TPGroup
from models.parallel.sharding import Shards


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderStep:
    """What every layer of a step uses."""

    operations: DecoderOperations
    rotation: Rotation
    attention: StepAttention


class DecoderLayer:
    """Attention and feed-forward, each after a norm and added to the residual stream.

    Every rank has some of the heads and some of the feed-forward's numbers, and the whole stream:
    what the two add to it is the sum of what the ranks compute.
    """

    def __init__(
        self,
        shards: Shards,
        layer_index: int,
        *,
        group: TPGroup,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        config = shards.config
        self._config = config
        self._layer_index = layer_index
        self._group = group
        is_first = shards.holds_summed_biases
        width, ff_width = config.hidden_size, config.intermediate_size
        q_width = config.num_heads * config.head_dim
        kv_width = config.num_kv_heads * config.head_dim

        def linear(num_inputs: int, num_outputs: int, bias: bool) -> Linear:
            return Linear(num_inputs, num_outputs, bias=bias, dtype=dtype, device=device)

        def norm(size: int) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        self.input_norm_M = norm(width)
        self.qkv = linear(width, q_width + 2 * kv_width, config.has_qkv_bias)
        self.head_norms: HeadNorms | None = None
        if config.has_qk_norm:
            self.head_norms = HeadNorms(
                query_D=norm(config.head_dim), key_D=norm(config.head_dim), eps=config.rms_norm_eps
            )
        self.o = linear(q_width, width, config.has_output_bias and is_first)
        self.post_attention_norm_M = norm(width)
        self.gate_up = linear(width, 2 * ff_width, config.has_mlp_bias)
        self.down = linear(ff_width, width, config.has_mlp_bias and is_first)

    def forward(
        self,
        x_TM: torch.Tensor,
        added_TM: torch.Tensor | None,
        step: "DecoderStep",
    ) -> torch.Tensor:
        """One layer. The residual stream `x_TM` changes in place.

        `added_TM` is the previous layer's contribution, which the first norm adds on its way; the
        last one of this layer is returned, for the next to add.
        """
        operations, eps = step.operations, self._config.rms_norm_eps
        attended_TM = self._attend(
            operations.add_rms_norm(x_TM, added_TM, self.input_norm_M, eps), step
        )
        normed_TM = operations.add_rms_norm(x_TM, attended_TM, self.post_attention_norm_M, eps)
        down_TM = self.down(operations.silu_mul(self.gate_up(normed_TM)))
        return self._group.all_reduce(down_TM)

    def _attend(self, x_TM: torch.Tensor, step: "DecoderStep") -> torch.Tensor:
        num_heads, num_kv_heads = self._config.num_heads, self._config.num_kv_heads
        heads_TND = self.qkv(x_TM).view(len(x_TM), -1, self._config.head_dim)
        qk_TND, v_TKD = heads_TND.split_with_sizes((num_heads + num_kv_heads, num_kv_heads), dim=1)
        rotated_TND = step.rotation(qk_TND, self.head_norms)
        q_THD, k_TKD = rotated_TND.split_with_sizes((num_heads, num_kv_heads), dim=1)
        out_THD = step.attention.attend(q_THD, k_TKD, v_TKD, layer_index=self._layer_index)
        return self._group.all_reduce(self.o(out_THD.flatten(1)))

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The checkpoint's names below `model.layers.N.`, each with the slice that it fills."""
        config = self._config
        q_width, kv_width = (
            config.num_heads * config.head_dim,
            config.num_kv_heads * config.head_dim,
        )
        ff_width = config.intermediate_size
        yield "input_layernorm.weight", self.input_norm_M
        yield "post_attention_layernorm.weight", self.post_attention_norm_M
        qkv_names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        yield from _slices(self.qkv, qkv_names, (q_width, kv_width, kv_width))
        if self.head_norms is not None:
            yield "self_attn.q_norm.weight", self.head_norms.query_D
            yield "self_attn.k_norm.weight", self.head_norms.key_D
        yield from _slices(self.o, ("self_attn.o_proj",), (config.hidden_size,))
        yield from _slices(self.gate_up, ("mlp.gate_proj", "mlp.up_proj"), (ff_width, ff_width))
        yield from _slices(self.down, ("mlp.down_proj",), (config.hidden_size,))


class Decoder:
    """Embedding, layers, final norm, and the projection to the vocabulary."""

    def __init__(
        self,
        config: DecoderConfig,
        *,
        num_positions: int,
        dtype: torch.dtype,
        device: str,
        operations: DecoderOperations | None = None,
        group: TPGroup | None = None,
    ) -> None:
        """Weights are allocated, not set: `models.weights` fills every one of them.

        Args:
            config: of the whole model.
            num_positions: positions 0 … num_positions - 1 may be computed.
            operations: None: torch's own.
            group: the ranks that share the model; None: this one has all of it.

        Raises:
            ValueError: the model cannot be shared out among so many ranks.
        """
        self._group = group or TPGroup()
        self.shards = Shards(config, rank=self._group.rank, size=self._group.size)
        self.config = self.shards.config
        self._operations = operations or TorchOperations()
        num_rows = self.shards.num_vocabulary_rows
        self.embedding_VM = torch.empty(num_rows, config.hidden_size, dtype=dtype, device=device)
        self.layers = [
            DecoderLayer(self.shards, layer_index, group=self._group, dtype=dtype, device=device)
            for layer_index in range(config.num_layers)
        ]
        self.norm_M = torch.empty(config.hidden_size, dtype=dtype, device=device)
        self.lm_head = Linear(
            config.hidden_size,
            0 if config.tie_word_embeddings else num_rows,
            bias=False,
            dtype=dtype,
            device=device,
        )
        if config.tie_word_embeddings:
            self.lm_head.weight_OI = self.embedding_VM
        self._rope = Rope(
            config.rope,
            head_dim=config.head_dim,
            num_positions=num_positions,
            dtype=dtype,
            device=device,
        )

    def forward(
        self, token_ids_T: torch.Tensor, positions_T: torch.Tensor, attention: StepAttention
    ) -> torch.Tensor:
        """The hidden states [T, M] before the final norm, the same on every rank; writes the
        step's keys and values."""
        x_TM = self._embed(token_ids_T)
        step = DecoderStep(
            operations=self._operations,
            rotation=self._operations.rotation(
                self._rope, positions_T, num_heads=self.config.num_heads
            ),
            attention=attention,
        )
        added_TM: torch.Tensor | None = None
        for layer in self.layers:
            added_TM = layer.forward(x_TM, added_TM, step)
        return x_TM if added_TM is None else x_TM.add_(added_TM)

    def logits(self, hidden_RM: torch.Tensor) -> torch.Tensor | None:
        """Logits [R, vocabulary] of some rows of what `forward` returned, in the model's dtype, on
        rank 0; None on the others."""
        normed_RM = rms_norm(hidden_RM, self.norm_M, self.config.rms_norm_eps)
        logits_RV = self._group.gather_columns(self.lm_head(normed_RM))
        return None if logits_RV is None else logits_RV[:, : self.config.vocab_size]

    def _embed(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """Each token's row comes from the rank that has it; the others add zeros."""
        if self._group.size == 1:
            return F.embedding(token_ids_T, self.embedding_VM)
        rows_T = token_ids_T - self.shards.first_vocabulary_row
        is_elsewhere_T = (rows_T < 0) | (rows_T >= len(self.embedding_VM))
        x_TM = F.embedding(rows_T.masked_fill(is_elsewhere_T, 0), self.embedding_VM)
        x_TM.masked_fill_(is_elsewhere_T[:, None], 0)
        return self._group.all_reduce(x_TM)

    def pack(self) -> None:
        """Bring the loaded matrices into the CPU's own layout; see `Linear.pack`.

        One at a time, so that no more than one is there twice. A tied embedding stays beside its
        packed copy: rows are looked up in the one, and each step reads all of the other.
        """
        for layer in self.layers:
            for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
                linear.pack()
        self.lm_head.pack()

    def weights(self) -> dict[str, torch.Tensor]:
        """Every weight of this rank by its name in the checkpoint: views, so that writing to them
        loads. What they hold of it says `shards.part`; rows beyond that are padding."""
        named = {"model.embed_tokens.weight": self.embedding_VM, "model.norm.weight": self.norm_M}
        if not self.config.tie_word_embeddings:
            named["lm_head.weight"] = self.lm_head.weight_OI
        for layer_index, layer in enumerate(self.layers):
            for name, weight in layer.weights():
                named[f"model.layers.{layer_index}.{name}"] = weight
        return named


def _slices(
    linear: Linear, names: tuple[str, ...], sizes: tuple[int, ...]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in zip(names, linear.weight_OI.split_with_sizes(sizes), strict=True):
        yield f"{name}.weight", weight
    if linear.bias_O is not None:
        for name, bias in zip(names, linear.bias_O.split_with_sizes(sizes), strict=True):
            yield f"{name}.bias", bias
