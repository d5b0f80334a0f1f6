"""What guided decoding costs: the same load with and without a grammar, by turns in one run.

    python -m scripts.bench.guided                   # 135M shape, bf16, 32 concurrent, 128/64

Every output is cut at its length. The grammar is a JSON Schema that cannot end sooner; it is
compiled and cached before the first counted run.
"""

import argparse
import json
import time

from cluster.config import EngineConfig
from cluster.types import GrammarKind, GrammarSpec, Request, SamplingParams
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.grammar.compiler import GrammarCompiler
from scripts.bench.checkpoints import SHAPES, checkpoint
from scripts.bench.engine import random_prompts
from scripts.bench.report import Figure, environment, table

PACKAGES = ("torch", "llguidance")
SCHEMA = {
    "type": "array",
    "minItems": 40,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 3, "maxLength": 40},
            "kind": {"enum": ["person", "place", "thing"]},
            "year": {"type": "integer", "minimum": 1900, "maximum": 2100},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
        },
        "required": ["name", "kind", "year", "tags"],
        "additionalProperties": False,
    },
}


def run(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> float:
    """Output tokens per second."""
    start_s = time.perf_counter()
    for number, prompt in enumerate(prompts):
        engine.add_request(
            Request(request_id=str(number), prompt_token_ids=prompt, sampling_params=params)
        )
    num_tokens = 0
    while engine.has_unfinished:
        num_tokens += sum(len(delta.token_ids) for delta in engine.step())
    assert params.max_tokens is not None
    assert num_tokens == len(prompts) * params.max_tokens
    return num_tokens / (time.perf_counter() - start_s)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="135m")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    print(environment(PACKAGES))
    folder = checkpoint(arguments.shape, "bfloat16")
    config = EngineConfig(
        max_model_len=2048, kv_cache_memory_bytes=2**30, enable_prefix_caching=False
    )
    runner = ModelRunner(folder, config)
    spec = GrammarSpec(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(SCHEMA))
    plain: list[float] = []
    guided: list[float] = []
    with GrammarCompiler(
        folder / "tokenizer.json",
        vocab_size=runner.vocab_size,
        eos_token_ids=runner.eos_token_ids,
    ) as compiler:
        engine = Engine(runner, config, grammar_compiler=compiler)
        for repetition in range(-1, arguments.repeat):
            prompts = random_prompts(
                arguments.concurrency, arguments.prompt_len, runner.vocab_size, repetition
            )
            turns: list[tuple[list[float], GrammarSpec | None]] = [(plain, None), (guided, spec)]
            for figures, grammar in turns[:: 1 if repetition % 2 else -1]:
                params = SamplingParams(
                    max_tokens=arguments.output_len,
                    temperature=1.0,
                    seed=repetition,
                    ignore_eos=True,
                    grammar=grammar,
                )
                figures.append(run(engine, prompts, params))
            print(f"  run {repetition + 1}: {plain[-1]:.1f} plain, {guided[-1]:.1f} guided")
    ratios = tuple(g / p for g, p in zip(guided[1:], plain[1:], strict=True))
    print(
        table(
            [f"{arguments.concurrency} concurrent", "output tok/s", "ratio"],
            [
                ["without a grammar", f"{Figure(tuple(plain[1:]))}", ""],
                ["JSON Schema, cached", f"{Figure(tuple(guided[1:]))}", f"{Figure(ratios):.3f}"],
            ],
        )
    )


if __name__ == "__main__":
    main()
