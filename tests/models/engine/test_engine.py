"""The whole engine on real (tiny, random) checkpoints: greedy tokens equal transformers'."""

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.types import PRIORITY_BATCH, BeamParams, Request, SamplingParams
from models.attention.native import NativeAttention
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.native.library import native_library
from tests.models.conftest import MakeCheckpoint
from tests.models.engine_runs import (
    greedy,
    make_engine,
    prompts_of_mixed_lengths,
    reference_outputs,
    run,
    tokens,
)

EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
KERNELS = {"head_dim": 32}  # which the CPU kernels serve
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama 3.1": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "llama kernels": ("llama", KERNELS),
    "mistral": ("mistral", {"sliding_window": 24}),
    "mistral kernels": ("mistral", {"sliding_window": 24, **KERNELS}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mixtral": ("mixtral", {}),
    "mixtral kernels": (
        "mixtral",
        {"num_local_experts": 5, "sliding_window": 24, **KERNELS},
    ),
    "qwen3 moe": ("qwen3 moe", EXPERTS),
    "qwen3 moe kernels": (
        "qwen3 moe",
        {**EXPERTS, "norm_topk_prob": True, "mlp_only_layers": [1], **KERNELS},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_transformers(family: str, make_checkpoint: MakeCheckpoint) -> None:
    name, overrides = FAMILIES[family]
    folder = make_checkpoint(name, **overrides)
    prompts = prompts_of_mixed_lengths()
    expected = reference_outputs(folder, prompts)
    head_dim = 32 if KERNELS.items() <= overrides.items() else 16
    has_kernels = head_dim == 32 and native_library() is not None
    bytes_per_block = 2 * 2 * 2 * head_dim * 4 * 16  # K and V, layers, heads, float32, tokens
    situations: dict[str, dict[str, object]] = {
        "one big step": {"max_num_batched_tokens": 4096},
        "chunked prefill": {"max_num_batched_tokens": 48},
        "no prefix reuse": {"enable_prefix_caching": False, "max_num_batched_tokens": 50},
        "odd blocks": {"block_size": 7, "max_num_batched_tokens": 64},
        "preemption": {"kv_cache_memory_bytes": 22 * bytes_per_block},
    }
    for situation, config in situations.items():
        engine = make_engine(folder, **config)
        assert uses_kernels(engine) == (has_kernels and situation != "odd blocks")
        for round_number in range(2):  # the second one finds its prefixes cached
            deltas = run(engine, greedy(prompts))
            got = [tokens(deltas[(str(k), 0)]) for k in range(len(prompts))]
            assert got == expected, f"{family}, {situation}, round {round_number}"
        stats = engine.stats()
        assert (stats.preemptions_total > 0) == (situation == "preemption"), situation
        assert (stats.cached_prompt_tokens_total > 0) == (situation != "no prefix reuse")


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("family", [name for name in FAMILIES if "kernels" in name])
def test_greedy_tokens_equal_transformers_where_there_is_no_compiler(
    family: str, make_checkpoint: MakeCheckpoint
) -> None:
    name, overrides = FAMILIES[family]
    folder = make_checkpoint(name, **overrides)
    prompts = prompts_of_mixed_lengths()
    engine = make_engine(folder, max_num_batched_tokens=48)
    assert not uses_kernels(engine)
    deltas = run(engine, greedy(prompts))
    got = [tokens(deltas[(str(k), 0)]) for k in range(len(prompts))]
    assert got == reference_outputs(folder, prompts)


def uses_kernels(engine: Engine) -> bool:
    runner = engine._runner
    assert isinstance(runner, ModelRunner)
    return isinstance(runner._attention, NativeAttention)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_greedy_forks_all_equal_transformers(family: str, make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(family)
    prompts = prompts_of_mixed_lengths()[:8]
    expected = reference_outputs(folder, prompts)
    bytes_per_block = 2 * 2 * 2 * 16 * 4 * 16
    engine = make_engine(
        folder, max_num_batched_tokens=48, kv_cache_memory_bytes=20 * bytes_per_block
    )
    deltas = run(engine, greedy(prompts, n=3))
    assert engine.stats().preemptions_total > 0
    for k, output in enumerate(expected):
        for index in range(3):
            assert tokens(deltas[(str(k), index)]) == output


def test_sampled_tokens_do_not_depend_on_the_batch(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("llama")
    prompts = prompts_of_mixed_lengths()
    params = {"temperature": 0.9, "top_p": 0.9, "seed": 17, "n": 2, "frequency_penalty": 0.3}
    together = run(make_engine(folder), greedy(prompts, **params))
    engine = make_engine(folder, max_num_batched_tokens=48)
    for request in greedy(prompts, **params):
        alone = run(engine, [request])
        for key, deltas in alone.items():
            assert tokens(deltas) == tokens(together[key])
    first = [tokens(deltas) for (_, index), deltas in together.items() if index == 0]
    second = [tokens(deltas) for (_, index), deltas in together.items() if index == 1]
    assert first != second


def test_logprobs_agree_with_transformers_log_softmax(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("llama")
    prompts = prompts_of_mixed_lengths()
    engine = make_engine(folder, max_num_batched_tokens=48)
    deltas = run(engine, greedy(prompts, logprobs=5, prompt_logprobs=3, temperature=1.0, seed=3))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for k, prompt in enumerate(prompts):
        mine = deltas[(str(k), 0)]
        output = tokens(mine)
        ids = torch.tensor([prompt + output])
        with torch.inference_mode():
            reference = model(ids).logits[0].log_softmax(-1)
        for offset, delta in enumerate(mine):
            assert delta.logprobs is not None
            (entry,) = delta.logprobs
            row = reference[len(prompt) + offset - 1]
            assert entry.logprob == pytest.approx(row[output[offset]].item(), abs=1e-4)
            top = row.topk(5)
            assert entry.top_token_ids == top.indices.tolist()
            assert entry.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-4)
        scored = mine[0].prompt_logprobs
        assert scored is not None
        assert len(scored) == len(prompt) - 1
        for position, entry in enumerate(scored):
            expected = reference[position, prompt[position + 1]].item()
            assert entry.logprob == pytest.approx(expected, abs=1e-4)
            assert entry.top_token_ids == reference[position].topk(3).indices.tolist()


@pytest.mark.parametrize("family", ["llama kernels", "mistral", "qwen3 moe"])
def test_a_cache_in_fp8_scores_alike_in_a_crowded_engine_and_near_a_whole_one(
    family: str, make_checkpoint: MakeCheckpoint
) -> None:
    """A last bit may end in another of its few numbers: near, not equal."""
    name, overrides = FAMILIES[family]
    folder = make_checkpoint(name, **overrides)
    requests = greedy(prompts_of_mixed_lengths()[3:], prompt_logprobs=0)

    def scores(**config: object) -> torch.Tensor:
        deltas = run(make_engine(folder, **config), requests)
        scored = [deltas[(one.request_id, 0)][0].prompt_logprobs or [] for one in requests]
        return torch.tensor([item.logprob for items in scored for item in items])

    whole, fp8 = scores(), scores(kv_cache_dtype="fp8")
    head_dim = 32 if KERNELS.items() <= overrides.items() else 16
    crowded = scores(
        kv_cache_dtype="fp8",
        kv_cache_memory_bytes=22 * 2 * 2 * 2 * head_dim * 16,
        max_num_batched_tokens=48,
    )
    assert (fp8 - crowded).abs().mean() < 0.02
    assert 0 < (fp8 - whole).abs().mean() < 0.2


def test_a_cache_that_cannot_hold_one_sequence_is_refused_with_both_numbers(
    make_checkpoint: MakeCheckpoint,
) -> None:
    with pytest.raises(ValueError, match=r"8 blocks of 16 tokens cannot hold.*\(256\)"):
        make_engine(make_checkpoint("llama"), kv_cache_memory_bytes=8 * 8192)


def test_steps_that_are_given_up_change_no_token(make_checkpoint: MakeCheckpoint) -> None:
    """Batch sequences, with n > 1 and beams: every other step is computed twice."""
    folder = make_checkpoint("llama")
    prompts = prompts_of_mixed_lengths()[6:12]
    requests = [
        *greedy(prompts),
        Request(
            request_id="forks",
            prompt_token_ids=prompts[0],
            sampling_params=SamplingParams(n=3, seed=4, max_tokens=12, ignore_eos=True),
        ),
        Request(
            request_id="beams",
            prompt_token_ids=prompts[1],
            sampling_params=SamplingParams(n=2, max_tokens=8, beam=BeamParams(width=3)),
        ),
    ]
    requests = [msgspec.structs.replace(one, priority=PRIORITY_BATCH) for one in requests]
    expected = run(make_engine(folder, max_num_batched_tokens=64), requests)
    engine = make_engine(folder, max_num_batched_tokens=64)
    for request in requests:
        engine.add_request(request)
    got: dict[tuple[str, int], list[int]] = {}
    num_steps = 0
    while engine.has_unfinished:
        num_steps += 1
        if num_steps % 2:
            engine.interrupt()
            assert not engine.step()
            engine.check()
        for delta in engine.step():
            got.setdefault((delta.request_id, delta.index), []).extend(delta.token_ids)
        engine.check()
    assert got == {key: tokens(deltas) for key, deltas in expected.items()}
