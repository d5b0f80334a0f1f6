"""What guided decoding costs: the same load with and without a grammar, by turns in one run.

    python -m scripts.bench.guided                   # 135M shape, bf16, 32 concurrent, 128/64

Every output is cut at its length. The grammar is a JSON Schema that cannot end sooner; it is
compiled and cached before the first counted run.
"""

import argparse
import json

from cluster.config import EngineConfig
from cluster.types import GrammarKind, GrammarSpec, SamplingParams
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.grammar.compiler import GrammarCompiler
from scripts.bench.checkpoints import SHAPES, checkpoint
from scripts.bench.engine_load import Run, random_prompts, run_engine
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
    plain: list[Run] = []
    guided: list[Run] = []
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
            turns: list[tuple[list[Run], GrammarSpec | None]] = [(plain, None), (guided, spec)]
            for runs, grammar in turns[:: 1 if repetition % 2 else -1]:
                params = SamplingParams(
                    max_tokens=arguments.output_len,
                    temperature=1.0,
                    seed=repetition,
                    ignore_eos=True,
                    grammar=grammar,
                )
                runs.append(run_engine(engine, prompts, params))
            rates = f"{plain[-1].tokens_per_s:.1f} plain, {guided[-1].tokens_per_s:.1f} guided"
            print(f"  run {repetition + 1}: {rates}", flush=True)
    print(_table(f"{arguments.concurrency} concurrent", plain[1:], guided[1:]))


def _table(load: str, plain: list[Run], guided: list[Run]) -> str:
    pairs = list(zip(guided, plain, strict=True))
    rates = Figure(tuple(g.tokens_per_s / p.tokens_per_s for g, p in pairs))
    costs = Figure(tuple(g.cpu_s / p.cpu_s for g, p in pairs))
    rows = []
    for name, runs, ratios in (
        ("without a grammar", plain, ("", "")),
        ("JSON Schema, cached", guided, (f"{rates:.3f}", f"{costs:.3f}")),
    ):
        tokens_per_s = Figure(tuple(run.tokens_per_s for run in runs))
        cpu_ms = Figure(tuple(1000 * run.cpu_s / run.num_tokens for run in runs))
        rows.append([name, f"{tokens_per_s}", ratios[0], f"{cpu_ms:.2f}", ratios[1]])
    return table([load, "output tok/s", "ratio", "CPU, ms/token", "ratio"], rows)


if __name__ == "__main__":
    main()
