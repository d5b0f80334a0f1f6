"""A feed-forward of experts: a router gives each token to some of many, whose outputs are weighed
and added (Shazeer et al. 2017, as Mixtral and Qwen3-MoE have it).

On a CPU the step's tokens are sorted by expert, and each expert that has some computes them at
once. On a GPU nothing is known of the choice on the host: bfloat16 experts lie in one stack, which
`torch._grouped_mm` multiplies group by group; else every expert computes all tokens, and what was
not chosen is left out.

Shapes: T = tokens in the step, M = model width, E = experts, C = experts of a token, A = T * C
assignments, F = an expert's feed-forward width. F is per tensor-parallel rank: every rank has a
part of every expert, chooses alike, and the parts' outputs are summed as any feed-forward's.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from models.checkpoint import DecoderConfig, ExpertsConfig
from models.fused_linear import FusedLinear, LinearMaker
from models.layers import Linear

SiluMul = Callable[[torch.Tensor], torch.Tensor]


class ExpertFeedForward:
    """The router and the experts of one layer."""

    def __init__(
        self,
        config: DecoderConfig,
        experts: ExpertsConfig,
        layer_index: int,
        *,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self._config = experts
        maker = LinearMaker(config, dtype=dtype, device=device)
        prefix = f"model.layers.{layer_index}.{experts.module}"
        num_experts, width, ff_width = experts.num_experts, config.hidden_size, experts.expert_size
        # Few numbers that decide much: always floats.
        self._router = FusedLinear(
            linear=Linear(width, num_experts, bias=False, dtype=dtype, device=device),
            names=(f"{prefix}.gate",),
            sizes=(num_experts,),
        )
        gate, up, down = experts.projections
        names = [f"{prefix}.experts.{number}" for number in range(num_experts)]

        def linears(projections: tuple[str, ...], size: int, num_inputs: int) -> list[FusedLinear]:
            made = [
                maker.make(
                    tuple(f"{name}.{projection}" for projection in projections),
                    (size,) * len(projections),
                    num_inputs=num_inputs,
                    has_bias=False,
                )
                for name in names
            ]
            return [replace(fused, has_any_rows=True) for fused in made]

        self._gate_ups = linears((gate, up), ff_width, width)
        self._downs = linears((down,), width, ff_width)
        self._is_on_gpu = device.startswith("cuda")
        is_quantized = any(fused.slots for fused in self.linears())
        self._stacks: tuple[torch.Tensor, torch.Tensor] | None = None
        if self._is_on_gpu and can_multiply_groups(dtype) and not is_quantized:
            self._stack()

    def _stack(self) -> None:
        self._stacks = _stacked(self._gate_ups), _stacked(self._downs)

    def linears(self) -> Iterator[FusedLinear]:
        yield self._router
        yield from self._gate_ups
        yield from self._downs

    def forward(self, x_TM: torch.Tensor, silu_mul: SiluMul) -> torch.Tensor:
        """What the layer adds to the stream, of this rank's part of each expert."""
        weights_TC, chosen_TC = self._choose(x_TM)
        if self._is_on_gpu and self._stacks is None:
            return self._by_all(x_TM, weights_TC, chosen_TC, silu_mul)
        chosen_A = chosen_TC.flatten()
        order_A = chosen_A.argsort(stable=True)
        sorted_AM = x_TM.index_select(0, order_A // self._config.num_chosen)
        if self._stacks is not None:
            out_AM = self._in_groups(self._stacks, sorted_AM, chosen_A, silu_mul)
        else:
            out_AM = self._one_by_one(sorted_AM, chosen_A, silu_mul)
        placed_AM = torch.empty_like(out_AM)
        placed_AM.index_copy_(0, order_A, out_AM)
        return _weighed_sum(placed_AM.view(*chosen_TC.shape, -1), weights_TC)

    def _choose(self, x_TM: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token's experts and their weights, float32."""
        probabilities_TE = self._router.linear(x_TM).float().softmax(-1)
        weights_TC, chosen_TC = probabilities_TE.topk(self._config.num_chosen, dim=-1)
        if self._config.has_normalized_weights:
            weights_TC = weights_TC / weights_TC.sum(-1, keepdim=True)
        return weights_TC, chosen_TC

    def _one_by_one(
        self, sorted_AM: torch.Tensor, chosen_A: torch.Tensor, silu_mul: SiluMul
    ) -> torch.Tensor:
        counts = torch.bincount(chosen_A, minlength=self._config.num_experts).tolist()
        outputs = [
            down.linear(silu_mul(gate_up.linear(x_NM)))
            for x_NM, gate_up, down in zip(
                sorted_AM.split_with_sizes(counts), self._gate_ups, self._downs, strict=True
            )
            if len(x_NM)
        ]
        return torch.cat(outputs)

    def _in_groups(
        self,
        stacks: tuple[torch.Tensor, torch.Tensor],
        sorted_AM: torch.Tensor,
        chosen_A: torch.Tensor,
        silu_mul: SiluMul,
    ) -> torch.Tensor:
        gate_up_EOM, down_EMF = stacks
        experts_E1 = torch.arange(len(down_EMF), device=chosen_A.device)[:, None]
        ends_E = (chosen_A == experts_E1).sum(-1).cumsum(0).to(torch.int32)
        hidden_AO = torch._grouped_mm(sorted_AM, gate_up_EOM.transpose(1, 2), offs=ends_E)
        out_AM: torch.Tensor = torch._grouped_mm(
            silu_mul(hidden_AO), down_EMF.transpose(1, 2), offs=ends_E
        )
        return out_AM

    def _by_all(
        self,
        x_TM: torch.Tensor,
        weights_TC: torch.Tensor,
        chosen_TC: torch.Tensor,
        silu_mul: SiluMul,
    ) -> torch.Tensor:
        total_TM = torch.zeros(x_TM.shape, dtype=torch.float32, device=x_TM.device)
        for number, (gate_up, down) in enumerate(zip(self._gate_ups, self._downs, strict=True)):
            is_chosen_TC = chosen_TC == number
            out_TM = down.linear(silu_mul(gate_up.linear(x_TM))).float()
            out_TM *= (weights_TC * is_chosen_TC).sum(-1, keepdim=True)
            # Not by a weight of 0: what was not asked for may be infinite.
            total_TM += out_TM.masked_fill_(~is_chosen_TC.any(-1, keepdim=True), 0)
        return total_TM.to(x_TM.dtype)


def can_multiply_groups(dtype: torch.dtype) -> bool:
    """Whether this torch and GPU have the grouped product."""
    return dtype is torch.bfloat16 and hasattr(torch, "_grouped_mm")


def _stacked(linears: list[FusedLinear]) -> torch.Tensor:
    """All weights in one tensor [E, outputs, inputs], of which each linear has its own."""
    first = linears[0].linear.weight_OI
    stack = torch.empty(len(linears), *first.shape, dtype=first.dtype, device=first.device)
    for fused, weight_OI in zip(linears, stack, strict=True):
        weight_OI.copy_(fused.linear.weight_OI)
        fused.linear.weight_OI = weight_OI
    return stack


def _weighed_sum(out_TCM: torch.Tensor, weights_TC: torch.Tensor) -> torch.Tensor:
    """In float32 and in the order of the choice, so that a token's sum is the same in any step."""
    total_TM = out_TCM[:, 0].float() * weights_TC[:, :1]
    for place in range(1, weights_TC.shape[1]):
        total_TM += out_TCM[:, place].float() * weights_TC[:, place, None]
    return total_TM.to(out_TCM.dtype)
