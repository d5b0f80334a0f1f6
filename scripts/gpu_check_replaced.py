"""The part of `scripts.gpu_check` about kernels that stand for operations which torch has: the
sampler's choice and fp8 products. They choose and compute the same, and their times are beside
torch's, in milliseconds."""

from collections.abc import Callable
from typing import Any

import torch
import triton

from cluster.types import SamplingParams
from models.engine.sampler import Sampler
from models.engine.step_inputs import SamplingRow
from models.quantization.matrix import FP8
from models.triton.matmul import MAX_ROWS, multiply_fp8
from models.triton.sampling import choose_tokens
from scripts.gpu_check_kernels import Scale

KINDS = {
    "whole": SamplingParams(temperature=0.8),
    "top_p": SamplingParams(temperature=0.8, top_p=0.95),
    "top_k": SamplingParams(temperature=0.8, top_k=50),
}
#: Outputs and inputs of a 70B model's matrices: gate and up, down, queries to values, output.
MATRICES_70B = ((57344, 8192), (8192, 28672), (10240, 8192), (8192, 8192))


def milliseconds(scale: Scale, work: Callable[[], object]) -> float | None:
    """The median; None where the interpreter computes."""
    if scale.device != "cuda":
        work()
        return None
    return float(triton.testing.do_bench(work, warmup=10, rep=40, return_mode="median"))


def check_sampling(scale: Scale) -> dict[str, Any]:
    """Rows of random logits; weights round otherwise in torch, so that one in a hundred rows may
    be chosen for differently."""
    results: dict[str, Any] = {}
    num_equal = num_rows = 0
    for batch in scale.batches:
        for name, params in KINDS.items():
            equal, times = _sample(scale, batch, params)
            num_equal += equal
            num_rows += batch
            results[f"{name}, batch {batch}"] = times
    return {"ok": num_equal >= 0.99 * num_rows, "equal": f"{num_equal} of {num_rows}", **results}


def _sample(
    scale: Scale, batch: int, params: SamplingParams
) -> tuple[int, dict[str, float | None]]:
    """For how many rows the two choose the same, and how long each takes."""
    ours, torchs = Sampler(choose_tokens=choose_tokens), Sampler()
    shape = (batch, scale.model["vocab_size"])
    logits_RV = (torch.randn(shape, device=scale.device) * 4).to(scale.dtype)
    rows = [
        SamplingRow(
            params=params,
            seed=index,
            logit_index=index,
            position=0,
            prompt_token_ids=(),
            output_token_ids=(),
        )
        for index in range(batch)
    ]
    chosen, expected = (by.sample(logits_RV, rows)[0] for by in (ours, torchs))
    times = {
        "ours": milliseconds(scale, lambda: ours.sample(logits_RV, rows)),
        "torch": milliseconds(scale, lambda: torchs.sample(logits_RV, rows)),
    }
    return sum(a == b for a, b in zip(chosen, expected, strict=True)), times


def check_fp8_products(scale: Scale) -> dict[str, Any]:
    """Products of `MAX_ROWS` rows, whose error is relative to float32's."""
    matrices = MATRICES_70B if scale.device == "cuda" else ((64, 256),)
    results = {
        f"{num_outputs} x {num_inputs}": _multiply(scale, num_outputs, num_inputs)
        for num_outputs, num_inputs in matrices
    }
    return {"ok": all(result["error"] < 1e-2 for result in results.values()), **results}


def _multiply(scale: Scale, num_outputs: int, num_inputs: int) -> dict[str, Any]:
    levels_TI = torch.randn(MAX_ROWS, num_inputs, device=scale.device).to(FP8)
    weight_OI = torch.randn(num_outputs, num_inputs, device=scale.device).to(FP8)
    scales_T1 = torch.rand(MAX_ROWS, 1, device=scale.device) + 0.5
    scales_1O = torch.rand(1, num_outputs, device=scale.device) + 0.5

    def ours() -> torch.Tensor:
        return multiply_fp8(levels_TI, scales_T1, weight_OI, scales_1O, dtype=torch.bfloat16)

    def exact() -> torch.Tensor:
        return levels_TI.float() @ weight_OI.float().t() * scales_T1 * scales_1O

    def torchs() -> torch.Tensor:
        return torch._scaled_mm(
            levels_TI,
            weight_OI.t(),
            scale_a=scales_T1,
            scale_b=scales_1O,
            out_dtype=torch.bfloat16,
        )

    expected = exact()
    return {
        "error": float((ours().float() - expected).norm() / expected.norm()),
        "ours": milliseconds(scale, ours),
        "torch": milliseconds(scale, torchs if scale.device == "cuda" else exact),
    }
