"""Tiny checkpoints of every native family, requests of every kind, and what they give.

The measure for whatever may change the time and nothing else: ranks, guesses, kernels, caches.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cluster.types import BeamParams, GrammarKind, GrammarSpec, Request, SamplingParams
from models.engine.model_runner import ModelRunner
from models.grammar.compiler import GrammarCompiler
from models.native.library import native_library
from tests.models.engine_runs import Outputs, prompts_of_mixed_lengths, run, texts_of
from tests.models.parallel.rank_threads import engine_config, engine_on

VOCAB_SIZE = 545  # no multiple of anything: the last rank's part of it is padded
#: Family, seed of its weights, and what differs from the usual shape. With these seeds no choice of
#: `all_requests` is so near that logits which differ by 3e-5 would choose otherwise: the order of a
#: sum makes differences of a tenth of that.
FAMILIES: dict[str, tuple[str, int, dict[str, object]]] = {
    "llama": ("llama", 0, {"attention_bias": True, "mlp_bias": True}),
    "llama kernels": (
        "llama",
        3,
        {"head_dim": 32, "intermediate_size": 128, "tie_word_embeddings": True},
    ),
    "mistral": ("mistral", 1, {"sliding_window": 24, "num_key_value_heads": 4}),
    "qwen2": ("qwen2", 3, {"num_key_value_heads": 1}),  # one key head, on all ranks
    "qwen3": ("qwen3", 0, {"tie_word_embeddings": True}),
    "mixtral": ("mixtral", 5, {}),
    "mixtral kernels": (
        "mixtral",
        1,
        {"head_dim": 32, "intermediate_size": 128, "num_local_experts": 5, "sliding_window": 24},
    ),
    "qwen3 moe": (
        "qwen3 moe",
        1,
        {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 48},
    ),
}
SCHEMA = {
    "type": "object",
    "properties": {
        "sentiment": {"enum": ["positive", "negative"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "tags": {"type": "array", "items": {"enum": ["clean", "quiet"]}, "maxItems": 2},
    },
    "required": ["sentiment", "stars", "tags"],
    "additionalProperties": False,
}
JSON_SPEC = GrammarSpec(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(SCHEMA))
REGEX_SPEC = GrammarSpec(kind=GrammarKind.REGEX, text=r"[a-c]{3,8}-\d{2}")


@dataclass(frozen=True)
class FamilySample:
    """A checkpoint in float32, two layers deep."""

    folder: Path
    compiler: GrammarCompiler
    num_kv_heads: int
    head_dim: int

    @property
    def has_kernels(self) -> bool:
        """Whether the CPU kernels serve it, and there are any."""
        return self.head_dim % 32 == 0 and native_library() is not None

    def memory_of(self, num_blocks: int, *, size: int = 1) -> int:
        """Bytes of so many blocks on one of `size` ranks."""
        num_kv_heads = max(1, self.num_kv_heads // size)
        # K and V, layers, float32, tokens
        return num_blocks * 2 * 2 * num_kv_heads * self.head_dim * 4 * 16

    @cached_property
    def expected(self) -> Outputs:
        """What `all_requests` give on one rank with room for everything, nothing guessed."""
        runner = ModelRunner(self.folder, engine_config(), dtype="float32", device="cpu")
        engine = engine_on(runner, self.compiler)
        outputs = run(engine, all_requests())
        assert engine.stats().preemptions_total == 0
        return outputs

    @property
    def expected_texts(self) -> list[list[int]]:
        return texts_of(all_requests(), self.expected)


def all_requests() -> list[Request]:
    """Greedy ones with logprobs, forks with penalties, beams, grammars, and everything else that a
    row of logits may be changed by; half of their prompts begin alike."""
    kinds = [
        SamplingParams(max_tokens=10, temperature=0.0, logprobs=2, prompt_logprobs=1),
        SamplingParams(
            max_tokens=10, temperature=0.9, top_p=0.95, n=3, seed=11, frequency_penalty=0.2
        ),
        SamplingParams(max_tokens=10, temperature=0.0, n=2, beam=BeamParams(width=4)),
        SamplingParams(max_tokens=10, temperature=1.0, seed=5, grammar=REGEX_SPEC),
    ]
    in_json = SamplingParams(max_tokens=10, temperature=1.0, seed=5, grammar=JSON_SPEC, logprobs=1)
    edited = SamplingParams(
        max_tokens=14,
        temperature=0.7,
        seed=3,
        n=2,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        logit_bias={7: 2.0, 9: -4.0},
        min_tokens=6,
        stop_token_ids=tuple(range(100, 200)),
        top_k=40,
        min_p=0.01,
        logprobs=1,
    )
    prompts = prompts_of_mixed_lengths()
    chosen = [(f"{k}", kinds[k % 4], prompt) for k, prompt in enumerate(prompts)]
    chosen += [(f"edited {k}", edited, prompt) for k, prompt in enumerate(prompts[3:9])]
    chosen += [(f"json {k}", in_json, prompt) for k, prompt in enumerate(prompts[10:13])]
    return [
        Request(request_id=name, prompt_token_ids=prompt, sampling_params=params)
        for name, params, prompt in chosen
    ]
