"""The ways to compute experts agree with each token's experts computed by themselves."""

import pytest
import torch
import torch.nn.functional as F

from models.checkpoint import DecoderConfig, ExpertsConfig, read_decoder_config
from models.experts import ExpertFeedForward, can_multiply_groups
from models.operations import TorchOperations
from tests.models.conftest import MakeCheckpoint

SHAPE = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
SILU_MUL = TorchOperations().silu_mul


@pytest.fixture(params=[False, True], ids=["as they are", "normalized"])
def config(request: pytest.FixtureRequest, make_checkpoint: MakeCheckpoint) -> DecoderConfig:
    return read_decoder_config(make_checkpoint("qwen3 moe", **SHAPE, norm_topk_prob=request.param))


def experts_of(config: DecoderConfig) -> ExpertsConfig:
    assert config.experts is not None
    return config.experts


def made(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> ExpertFeedForward:
    torch.manual_seed(1)
    layer = ExpertFeedForward(config, experts_of(config), 0, dtype=dtype, device="cpu")
    for fused in layer.linears():
        fused.linear.weight_OI.normal_(std=0.2)
    return layer


def written_out(
    layer: ExpertFeedForward, config: DecoderConfig, x_TM: torch.Tensor
) -> torch.Tensor:
    """Token by token and expert by expert, in float64."""
    experts = experts_of(config)
    router, *others = [fused.linear.weight_OI.double() for fused in layer.linears()]
    gate_ups, downs = others[: experts.num_experts], others[experts.num_experts :]
    rows = []
    for x_M in x_TM.double():
        weights, chosen = F.linear(x_M, router).softmax(-1).topk(experts.num_chosen)
        if experts.has_normalized_weights:
            weights = weights / weights.sum()
        total = torch.zeros_like(x_M)
        for weight, number in zip(weights, chosen.tolist(), strict=True):
            gate, up = F.linear(x_M, gate_ups[number]).chunk(2)
            total += weight * F.linear(F.silu(gate) * up, downs[number])
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("num_tokens", [1, 2, 40])
def test_a_tokens_output_is_the_weighed_sum_of_its_experts(
    config: DecoderConfig, num_tokens: int
) -> None:
    layer, x_TM = made(config), torch.randn(num_tokens, 64)
    ours = layer.forward(x_TM, SILU_MUL).double()
    torch.testing.assert_close(ours, written_out(layer, config, x_TM), atol=1e-5, rtol=1e-5)


def test_all_experts_for_all_tokens_give_the_same(config: DecoderConfig) -> None:
    layer, x_TM = made(config), torch.randn(20, 64)
    expected = layer.forward(x_TM, SILU_MUL)
    layer._is_on_gpu = True
    torch.testing.assert_close(layer.forward(x_TM, SILU_MUL), expected, atol=1e-5, rtol=1e-5)


def test_an_expert_that_was_not_asked_may_give_anything(config: DecoderConfig) -> None:
    layer, x_TM = made(config), torch.randn(1, 64)
    expected = layer.forward(x_TM, SILU_MUL)
    _, chosen_TC = layer._choose(x_TM)
    other = next(n for n in range(7) if n not in chosen_TC.flatten().tolist())
    list(layer.linears())[1 + other].linear.weight_OI.fill_(float("inf"))
    for layer._is_on_gpu in (False, True):
        torch.testing.assert_close(layer.forward(x_TM, SILU_MUL), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(
    not can_multiply_groups(torch.bfloat16), reason="this torch has no grouped product"
)
def test_products_in_groups_equal_those_one_by_one(config: DecoderConfig) -> None:
    layer, x_TM = made(config, torch.bfloat16), torch.randn(20, 64).bfloat16()
    expected = layer.forward(x_TM, SILU_MUL)
    layer._stack()
    grouped = layer.forward(x_TM, SILU_MUL)
    torch.testing.assert_close(grouped, expected, atol=2e-2, rtol=2e-2)
    for fused in layer.linears():
        assert not fused.linear.weight_OI.isnan().any(), "the stack is what weights are read into"
