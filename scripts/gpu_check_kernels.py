"""The part of `scripts.gpu_check` that compares the kernels with float64 and with torch."""

from dataclasses import dataclass
from typing import Any

import torch

from models.attention.triton import TritonAttention
from models.checkpoint import RopeConfig
from models.engine.kv_cache import KVCache
from models.engine.step_inputs import StepInputs
from models.layers import Rope
from models.operations import HeadNorms, TorchOperations
from models.triton.operations import TritonOperations


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large each part is."""

    device: str
    dtype: torch.dtype
    head_dims: tuple[int, ...]
    contexts: tuple[int, ...]  # of the kernels' cases
    model: dict[str, Any]  # the configuration of the model whose speed is measured
    batches: tuple[int, ...]
    context: int  # tokens of each sequence whose decoding is measured
    prompt: int
    num_steps: int
    kv_bytes: int | None
    copy_bytes: int


def written_out(
    q_QHD: torch.Tensor, k_LKD: torch.Tensor, v_LKD: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Attention of a sequence's last queries, in float64."""
    group_size = q_QHD.shape[1] // k_LKD.shape[1]
    k_LHD, v_LHD = (x.double().repeat_interleave(group_size, dim=1) for x in (k_LKD, v_LKD))
    scores_HQL = torch.einsum("qhd,lhd->hql", q_QHD.double(), k_LHD) * q_QHD.shape[2] ** -0.5
    num_queries, num_keys = len(q_QHD), len(k_LKD)
    own_Q1 = torch.arange(num_keys - num_queries, num_keys, device=q_QHD.device)[:, None]
    distance_QL = own_Q1 - torch.arange(num_keys, device=q_QHD.device)
    is_seen_QL = distance_QL >= 0
    if window is not None:
        is_seen_QL &= distance_QL < window
    weights_HQL = scores_HQL.masked_fill(~is_seen_QL, float("-inf")).softmax(-1)
    return torch.einsum("hql,lhd->qhd", weights_HQL, v_LHD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One cache and one step: a decoding sequence for each context, and one chunk."""

    dtype: torch.dtype
    cache_dtype: torch.dtype
    head_dim: int
    group_size: int
    block_size: int
    window: int | None


def attention_error(case: Case, scale: Scale) -> float:
    """The largest difference from float64, over a step that stores and a step that attends."""
    torch.manual_seed(0)
    num_kv_heads = 2
    num_heads = num_kv_heads * case.group_size
    lengths = [(1, context) for context in scale.contexts]
    lengths += [(min(33, context), context) for context in scale.contexts[-2:] if context > 1]
    counts = [-(-context // case.block_size) for _, context in lengths]
    blocks = torch.randperm(sum(counts)).tolist()
    tables = [[blocks.pop() for _ in range(count)] for count in counts]
    shape = (1, sum(counts), 2, num_kv_heads, case.block_size, case.head_dim)
    cache = KVCache(torch.zeros(shape, device=scale.device).to(case.cache_dtype))
    backend = TritonAttention(
        cache,
        num_heads=num_heads,
        layer_windows=(case.window,),
        max_num_seqs=16,
        max_model_len=max(scale.contexts),
    )

    def made(heads: int) -> list[torch.Tensor]:
        numbers = [torch.randn(c, heads, case.head_dim, device=scale.device) for _, c in lengths]
        rounded = [x.to(case.cache_dtype) if heads == num_kv_heads else x for x in numbers]
        return [x.to(case.dtype) for x in rounded]

    queries, keys, values = made(num_heads), made(num_kv_heads), made(num_kv_heads)
    for table, key, value in zip(tables, keys, values, strict=True):
        positions = torch.arange(len(key), device=scale.device)
        block = torch.tensor(table, device=scale.device)[positions // case.block_size]
        cache.layer(0)[block, 0, :, positions % case.block_size] = key.to(case.cache_dtype)
        cache.layer(0)[block, 1, :, positions % case.block_size] = value.to(case.cache_dtype)
    spans = [(index, c - q, c) for index, (q, c) in enumerate(lengths)]
    inputs = step_inputs(tables, spans, case.block_size)
    ours = backend.prepare(inputs).attend(
        torch.cat([queries[i][a:b] for i, a, b in spans]),
        torch.cat([keys[i][a:b] for i, a, b in spans]),
        torch.cat([values[i][a:b] for i, a, b in spans]),
        layer_index=0,
    )
    exact = [written_out(queries[i][a:b], keys[i], values[i], case.window) for i, a, b in spans]
    return float((ours.double() - torch.cat(exact)).abs().max())


def step_inputs(
    tables: list[list[int]], spans: list[tuple[int, int, int]], block_size: int
) -> StepInputs:
    """A step of (table, first position, end)."""
    return StepInputs(
        token_ids=[3] * sum(end - start for _, start, end in spans),
        positions=[p for _, start, end in spans for p in range(start, end)],
        slot_mapping=[
            tables[i][p // block_size] * block_size + p % block_size
            for i, start, end in spans
            for p in range(start, end)
        ],
        query_lens=[end - start for _, start, end in spans],
        context_lens=[end for _, _, end in spans],
        block_tables=[tables[i] for i, _, _ in spans],
        sampling_rows=[],
    )


def check_attention(scale: Scale) -> dict[str, Any]:
    exact, half = torch.float32, torch.bfloat16
    kinds = [(half, half, 3e-2), (torch.float16, torch.float16, 4e-3), (exact, exact, 2e-5)]
    kinds.append((half, torch.float8_e4m3fn, 3e-2))
    results: dict[str, Any] = {}
    for dtype, cache_dtype, tolerance in kinds if scale.device == "cuda" else kinds[2:3]:
        for head_dim in scale.head_dims:
            for group_size, block_size, window in ((1, 16, None), (4, 16, 100), (7, 64, None)):
                case = Case(
                    dtype=dtype,
                    cache_dtype=cache_dtype,
                    head_dim=head_dim,
                    group_size=group_size,
                    block_size=block_size,
                    window=window,
                )
                error = attention_error(case, scale)
                results[str(case)] = {"error": error, "ok": error <= tolerance}
    return {"ok": all(result["ok"] for result in results.values()), "cases": results}


def check_operations(scale: Scale) -> dict[str, Any]:
    """The largest differences from torch's own operations, relative to 1 + the number."""
    width, head_dim, num_tokens = (4096, 128, 64) if scale.device == "cuda" else (64, 16, 2)
    ours, theirs = TritonOperations(), TorchOperations()
    x, added = torch.randn(2, num_tokens, width, device=scale.device).to(scale.dtype)
    norms = HeadNorms(query_D=x[0, :head_dim], key_D=x[1, :head_dim], eps=1e-5)
    rope = Rope(
        RopeConfig(theta=1e4, scaling=None),
        head_dim=head_dim,
        num_positions=num_tokens,
        dtype=scale.dtype,
        device=scale.device,
    )
    positions = torch.arange(num_tokens, dtype=torch.int32, device=scale.device)

    def computed(by: TritonOperations | TorchOperations) -> dict[str, torch.Tensor]:
        heads = x.clone().view(num_tokens, -1, head_dim)
        return {
            "add_rms_norm": by.add_rms_norm(x.clone(), added, x[0], 1e-5),
            "silu_mul": by.silu_mul(x),
            "rotation": by.rotation(rope, positions, num_heads=2)(heads, norms),
        }

    expected = computed(theirs)
    errors = {
        name: float(((a.float() - b.float()).abs() / (1 + b.float().abs())).max())
        for (name, a), b in zip(computed(ours).items(), expected.values(), strict=True)
    }
    tolerance = 3e-2 if scale.dtype is torch.bfloat16 else 1e-4
    return {"ok": max(errors.values()) <= tolerance, "errors": errors}
