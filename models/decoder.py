"""One decoder for Llama, Mistral, Mixtral, Qwen2, Qwen3 and Qwen3-MoE: their differences are data
in `DecoderConfig`.

It knows the arithmetic of a step and the checkpoint's name of each weight; not where keys and
values live (`models.attention`), nor how weights are read (`models.weights`), nor which part of
them a tensor-parallel rank holds (`models.parallel.sharding`), nor how a linear layer computes its
product: `layer.qkv(x)` is the same call for floats, packed and quantized ones (`models.layers`).

Shapes: T = tokens in the step, M = model width, F = feed-forward width, H = query heads,
K = key/value heads, N = H + K, D = head width, V = vocabulary. Sizes are per tensor-parallel rank.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from models.adapters.bank import AdapterStep
from models.adapters.targets import LinearName
from models.attention.backend import StepAttention
from models.checkpoint import DecoderConfig
from models.experts import ExpertFeedForward
from models.fused_linear import FusedLinear, LinearMaker
from models.layers import Linear, MatrixProduct, Rope
from models.native.adapters import NativeAdapterStep
from models.native.layers import LayerParts, NativeLayers, NativePass, native_layers
from models.native.operations import NativeOperations
from models.operations import DecoderOperations, HeadNorms, Rotation, TorchOperations
from models.parallel.group import TPGroup
from models.parallel.sharding import Shards
from models.quantization.slot import MatrixSlot

MakeProduct = Callable[[torch.Tensor], MatrixProduct]
#: Token ids and positions [T], and what `Decoder.forward` takes beside them.
DecoderInputs = tuple[torch.Tensor, torch.Tensor, StepAttention, AdapterStep | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderStep:
    """What every layer of a step uses."""

    operations: DecoderOperations
    rotation: Rotation
    attention: StepAttention
    adapters: AdapterStep | None  # None: no sequence of the step has one


@dataclass(slots=True, kw_only=True)
class LayerPass:
    """Tokens on their way through the layers."""

    x_TM: torch.Tensor  # the residual stream
    added_TM: torch.Tensor | None = None  # what the last layer that they passed adds to it
    num_layers: int = 0  # that they passed
    route: NativePass | DecoderStep  # by one call, or by one of each operation


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
        maker = LinearMaker(config, dtype=dtype, device=device)
        #: The layer's linears, as they are fused.
        self.linears: list[FusedLinear] = []

        def linear(num_inputs: int, sizes: dict[str, int], has_bias: bool) -> Linear:
            names = tuple(f"model.layers.{layer_index}.{name}" for name in sizes)
            fused = maker.make(
                names, tuple(sizes.values()), num_inputs=num_inputs, has_bias=has_bias
            )
            self.linears.append(fused)
            return fused.linear

        def norm(size: int) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        self.input_norm_M = norm(width)
        qkv_sizes = {
            "self_attn.q_proj": q_width,
            "self_attn.k_proj": kv_width,
            "self_attn.v_proj": kv_width,
        }
        self.qkv = linear(width, qkv_sizes, config.has_qkv_bias)
        self.head_norms: HeadNorms | None = None
        if config.has_qk_norm:
            self.head_norms = HeadNorms(
                query_D=norm(config.head_dim), key_D=norm(config.head_dim), eps=config.rms_norm_eps
            )
        has_o_bias = config.has_output_bias and is_first
        self.o = linear(q_width, {"self_attn.o_proj": width}, has_o_bias)
        self.post_attention_norm_M = norm(width)
        self.experts: ExpertFeedForward | None = None
        if config.experts is not None and config.experts.is_in_layer[layer_index]:
            self.experts = ExpertFeedForward(
                config, config.experts, layer_index, dtype=dtype, device=device
            )
            self.linears.extend(self.experts.linears())
            return
        gate_up_sizes = {"mlp.gate_proj": ff_width, "mlp.up_proj": ff_width}
        self.gate_up = linear(width, gate_up_sizes, config.has_mlp_bias)
        self.down = linear(ff_width, {"mlp.down_proj": width}, config.has_mlp_bias and is_first)

    def parts(self) -> LayerParts | None:
        """What it is made of; None for experts."""
        if self.experts is not None:
            return None
        return LayerParts(
            input_norm_M=self.input_norm_M,
            post_attention_norm_M=self.post_attention_norm_M,
            head_norms=self.head_norms,
            qkv=self.qkv,
            o=self.o,
            gate_up=self.gate_up,
            down=self.down,
        )

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
        if self.experts is not None:
            return self._group.all_reduce(self.experts.forward(normed_TM, operations.silu_mul))
        gate_up_TF2 = self._project(self.gate_up, LinearName.GATE_UP, normed_TM, step)
        acted_TF = operations.silu_mul(gate_up_TF2)
        return self._group.all_reduce(self._project(self.down, LinearName.DOWN, acted_TF, step))

    def _attend(self, x_TM: torch.Tensor, step: "DecoderStep") -> torch.Tensor:
        num_heads, num_kv_heads = self._config.num_heads, self._config.num_kv_heads
        qkv_TO = self._project(self.qkv, LinearName.QKV, x_TM, step)
        heads_TND = qkv_TO.view(len(x_TM), -1, self._config.head_dim)
        qk_TND, v_TKD = heads_TND.split_with_sizes((num_heads + num_kv_heads, num_kv_heads), dim=1)
        rotated_TND = step.rotation(qk_TND, self.head_norms)
        q_THD, k_TKD = rotated_TND.split_with_sizes((num_heads, num_kv_heads), dim=1)
        out_THD = step.attention.attend(q_THD, k_TKD, v_TKD, layer_index=self._layer_index)
        o_TM = self._project(self.o, LinearName.OUTPUT, out_THD.flatten(1), step)
        return self._group.all_reduce(o_TM)

    def _project(
        self, linear: Linear, name: LinearName, x_TI: torch.Tensor, step: "DecoderStep"
    ) -> torch.Tensor:
        """A linear layer, and what the adapters of the step's sequences add to it."""
        out_TO = linear(x_TI)
        if step.adapters is not None:
            step.adapters.add(out_TO, x_TI, self._layer_index, name)
        return out_TO

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The checkpoint's names, each with the slice that it fills; floats only."""
        prefix = f"model.layers.{self._layer_index}"
        yield f"{prefix}.input_layernorm.weight", self.input_norm_M
        yield f"{prefix}.post_attention_layernorm.weight", self.post_attention_norm_M
        if self.head_norms is not None:
            yield f"{prefix}.self_attn.q_norm.weight", self.head_norms.query_D
            yield f"{prefix}.self_attn.k_norm.weight", self.head_norms.key_D
        for fused in self.linears:
            yield from fused.weights()


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
        self._head = LinearMaker(config, dtype=dtype, device=device).make(
            ("lm_head",), (num_rows,), num_inputs=config.hidden_size, has_bias=False
        )
        self.lm_head = self._head.linear
        if config.tie_word_embeddings and not self._head.slots:
            self.lm_head.weight_OI = self.embedding_VM
        self._rope = Rope(
            config.rope,
            head_dim=config.head_dim,
            num_positions=num_positions,
            dtype=dtype,
            device=device,
        )
        self._native_layers: NativeLayers | None = None  # see `pack`

    def forward(
        self,
        token_ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        attention: StepAttention,
        adapters: AdapterStep | None = None,
    ) -> torch.Tensor:
        """The hidden states [T, M] before the final norm, the same on every rank; writes the
        step's keys and values."""
        tokens = self.begin(token_ids_T, positions_T, attention, adapters)
        self.advance(tokens, len(self.layers))
        x_TM, added_TM = tokens.x_TM, tokens.added_TM
        return x_TM if added_TM is None else x_TM.add_(added_TM)

    def begin(
        self,
        token_ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        attention: StepAttention,
        adapters: AdapterStep | None = None,
    ) -> LayerPass:
        """Tokens that have passed no layer."""
        x_TM = self._embed(token_ids_T)
        if self._native_layers is not None and isinstance(adapters, NativeAdapterStep | None):
            native = self._native_layers.begin(x_TM, positions_T, attention, adapters)
            if native is not None:
                return LayerPass(x_TM=x_TM, added_TM=native.added_TM, route=native)
        step = DecoderStep(
            operations=self._operations,
            rotation=self._operations.rotation(
                self._rope, positions_T, num_heads=self.config.num_heads
            ),
            attention=attention,
            adapters=adapters,
        )
        return LayerPass(x_TM=x_TM, route=step)

    def advance(self, tokens: LayerPass, stop_layer: int) -> None:
        """Compute the layers below `stop_layer` that the tokens have not passed, and write their
        keys and values there."""
        route = tokens.route
        if isinstance(route, NativePass):
            assert self._native_layers is not None, "it has begun this"
            self._native_layers.advance(route, range(tokens.num_layers, stop_layer))
        else:
            for layer in self.layers[tokens.num_layers : stop_layer]:
                tokens.added_TM = layer.forward(tokens.x_TM, tokens.added_TM, route)
        tokens.num_layers = stop_layer

    def logits(self, hidden_RM: torch.Tensor) -> torch.Tensor | None:
        """Logits [R, vocabulary] of some rows of what `forward` returned, in the model's dtype, on
        rank 0; None on the others."""
        eps = self.config.rms_norm_eps
        normed_RM = self._operations.add_rms_norm(hidden_RM, None, self.norm_M, eps)
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

    def pack(self, make_product: MakeProduct | None = None) -> None:
        """Bring the loaded matrices into the CPU's own layout; see `Linear.pack`.

        One at a time, so that no more than one is there twice. A tied embedding stays beside its
        packed copy: rows are looked up in the one, and each step reads all of the other. Where all
        is the kernels' own afterwards, one call computes the layers.

        Args:
            make_product: of each float weight; None: oneDNN's, which would build a kernel for any
                number of rows that an expert meets: its matrices stay as they are.
        """
        for fused in self._linears():
            linear = fused.linear
            if make_product is None:
                if not fused.has_any_rows:
                    linear.pack()
            elif linear.product is None:
                linear.replace_weight(make_product(linear.weight_OI))
        parts = [made for layer in self.layers if (made := layer.parts()) is not None]
        ranks = self._group.native_ranks
        can_sum = ranks is not None or self._group.size == 1
        has_kernels = can_sum and isinstance(self._operations, NativeOperations)
        if has_kernels and len(parts) == len(self.layers):
            self._native_layers = native_layers(self.config, parts, self._rope, ranks=ranks)

    def weights(self) -> dict[str, torch.Tensor]:
        """Every float weight of this rank by its name in the checkpoint: views, so that writing to
        them loads. What they hold of it says `shards.part`; rows beyond that are padding."""
        named = {"model.embed_tokens.weight": self.embedding_VM, "model.norm.weight": self.norm_M}
        if not self.config.tie_word_embeddings:
            named.update(self._head.weights())
        for layer in self.layers:
            named.update(layer.weights())
        return named

    def slots(self) -> dict[str, MatrixSlot]:
        """The places of this rank's quantized matrices, by the names of their modules. A head that
        is tied to the embedding is in neither of the two: it is made of the embedding's floats."""
        return {
            name: slot
            for fused in self._linears()
            for name, slot in zip(fused.names, fused.slots, strict=False)
        }

    def _linears(self) -> Iterator[FusedLinear]:
        for layer in self.layers:
            yield from layer.linears
        yield self._head
