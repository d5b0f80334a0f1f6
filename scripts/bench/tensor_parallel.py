"""Two ranks against one on this machine's CPU, by turns in one run: one thread for each rank.

    python -m scripts.bench.tensor_parallel                     # 1B shape, bf16, prompts of 512
    python -m scripts.bench.tensor_parallel --shape tiny --dtype float32 --size 4

Weights are random and never stored: speed does not depend on values. Run it alone: a rank that
waits for a core makes the others wait too.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.config import EngineConfig
from cluster.types import SamplingParams
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.engine.runner import Runner
from models.parallel.rank_link import ChildRanks
from models.parallel.runner import TPRunner
from scripts.bench.checkpoints import SHAPES
from scripts.bench.engine_load import random_prompts, run_engine
from scripts.bench.report import Figure, environment, table

CONTEXT_TOKENS = 2048
NUM_DECODING = 32


def write_config(folder: Path, shape: str) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": CONTEXT_TOKENS,
        "torch_dtype": "bfloat16",
        **SHAPES[shape],
    }
    (folder / "config.json").write_text(json.dumps(config))


@contextmanager
def running(folder: Path, size: int, dtype: str) -> Iterator[Runner]:
    """A runner of one thread for each rank."""
    config = engine_config(size)
    runner: Runner
    if size == 1:
        runner = ModelRunner(folder, config, dtype=dtype, device="cpu", random_weights=True)
    else:
        ranks = ChildRanks().start(size)
        runner = TPRunner(
            folder, config, ranks=ranks, dtype=dtype, device="cpu", random_weights=True
        )
    try:
        yield runner
    finally:
        runner.close()


def engine_config(size: int) -> EngineConfig:
    return EngineConfig(
        max_model_len=CONTEXT_TOKENS,
        num_threads=size,
        kv_cache_memory_bytes=2**29 // size,
        max_num_seqs=NUM_DECODING,
        max_num_batched_tokens=512,
        enable_prefix_caching=False,
    )


def prefill_tokens_per_s(engine: Engine, arguments: argparse.Namespace, seed: int) -> float:
    """Prompts one after the other, each in steps of at most 512 tokens."""
    vocab_size = SHAPES[arguments.shape]["vocab_size"]
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    prompts = random_prompts(arguments.num_prompts, arguments.prompt_len, vocab_size, seed)
    start_s = time.perf_counter()
    for prompt in prompts:
        run_engine(engine, [prompt], params)
    return len(prompts) * arguments.prompt_len / (time.perf_counter() - start_s)


def decode_tokens_per_s(engine: Engine, arguments: argparse.Namespace, seed: int) -> float:
    """Many short prompts at once; their own time is in it and is small."""
    vocab_size = SHAPES[arguments.shape]["vocab_size"]
    params = SamplingParams(max_tokens=arguments.output_len, temperature=0.0, ignore_eos=True)
    prompts = random_prompts(NUM_DECODING, 4, vocab_size, seed)
    return run_engine(engine, prompts, params).tokens_per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--size", type=int, default=2, help="ranks of the group")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--num-prompts", type=int, default=2, help="of each measurement")
    parser.add_argument("--output-len", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    print(environment(["torch"]))
    print(f"{arguments.shape} shape, {arguments.dtype}, one thread for each rank\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_config(folder, arguments.shape)
        with (
            running(folder, 1, arguments.dtype) as alone,
            running(folder, arguments.size, arguments.dtype) as group,
        ):
            engines = [
                Engine(alone, engine_config(1)),
                Engine(group, engine_config(arguments.size)),
            ]
            compare(engines, arguments)


def compare(engines: list[Engine], arguments: argparse.Namespace) -> None:
    """Print the table; the ratio is taken pair by pair."""
    loads: dict[str, Callable[[Engine, argparse.Namespace, int], float]] = {
        f"prompts of {arguments.prompt_len}": prefill_tokens_per_s,
        f"{NUM_DECODING} at once, decoding": decode_tokens_per_s,
    }
    rows = []
    for load, measure in loads.items():
        pairs = []
        for repetition in range(-1, arguments.repeat):  # the first one warms up
            pair = [measure(engine, arguments, repetition) for engine in engines]
            print(f"  {load}: {pair[0]:.1f} and {pair[1]:.1f} tok/s", flush=True)
            pairs.append(pair)
        single, group = zip(*pairs[1:], strict=True)
        ratio = statistics.median(two / one for one, two in pairs[1:])
        rows.append([load, f"{Figure(single)}", f"{Figure(group)}", f"{ratio:.2f}×"])
    print()
    print(table(["load", "1 rank, tok/s", f"{arguments.size} ranks, tok/s", "ratio"], rows))


if __name__ == "__main__":
    main()
