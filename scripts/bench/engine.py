"""Offline engine throughput against transformers' continuous batching, in one run, by turns.

    python -m scripts.bench.engine                        # 135M shape, bf16, 32 concurrent, 128/64
    python -m scripts.bench.engine --shape tiny --concurrency 1,8,32 --repeat 5
    python -m scripts.bench.engine --prefix               # time to first token with a shared prefix

Prompts are random token ids, outputs have a fixed length (end-of-sequence is ignored). Each
repetition runs ours and the peer one after the other; the ratio is taken pair by pair.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from cluster.types import SamplingParams
from models.engine.engine import Engine
from scripts.bench.checkpoints import SHAPES, checkpoint
from scripts.bench.engine_load import make_engine, random_prompts, run_engine
from scripts.bench.report import Figure, environment, table

PACKAGES = ("torch", "transformers")


def run_greedy(engine: Engine, prompts: list[list[int]], output_len: int) -> float:
    """Seconds until every prompt has its output."""
    params = SamplingParams(max_tokens=output_len, temperature=0.0, ignore_eos=True)
    return run_engine(engine, prompts, params).elapsed_s


def transformers_runner(folder: Path) -> Callable[[list[list[int]], int], float]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", attn_implementation="sdpa"
    ).eval()

    def run(prompts: list[list[int]], output_len: int) -> float:
        generation = GenerationConfig(
            max_new_tokens=output_len, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        batching = ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=1024)
        start_s = time.perf_counter()
        outputs = model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=batching
        )
        elapsed_s = time.perf_counter() - start_s
        lengths = {len(output.generated_tokens) for output in outputs.values()}
        assert lengths == {output_len}, lengths
        assert len(outputs) == len(prompts)
        return elapsed_s

    return run


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Print the table of throughputs."""
    engine = make_engine(folder)
    peer = None if arguments.no_peer else transformers_runner(folder)
    vocab_size = SHAPES[arguments.shape]["vocab_size"]
    rows: list[list[object]] = []
    for concurrency in arguments.concurrency:
        num_tokens = concurrency * arguments.output_len
        ours: list[float] = []
        theirs: list[float] = []
        for repetition in range(-1, arguments.repeat):  # the first one warms up
            prompts = random_prompts(concurrency, arguments.prompt_len, vocab_size, repetition)
            ours.append(num_tokens / run_greedy(engine, prompts, arguments.output_len))
            if peer is not None:
                theirs.append(num_tokens / peer(prompts, arguments.output_len))
            print(
                f"  {concurrency} concurrent, run {repetition + 1}: {ours[-1]:.1f} tok/s",
                f"against {theirs[-1]:.1f}" if theirs else "",
                flush=True,
            )
        row: list[object] = [concurrency, f"{Figure(tuple(ours[1:]))}"]
        if theirs:
            ratios = tuple(a / b for a, b in zip(ours[1:], theirs[1:], strict=True))
            row += [f"{Figure(tuple(theirs[1:]))}", f"{Figure(ratios):.2f}"]
        rows.append(row)
    header = ["concurrent", "Shoal, output tok/s"]
    if peer is not None:
        header += ["transformers generate_batch, output tok/s", "ratio"]
    print(table(header, rows))


def measure_prefix(arguments: argparse.Namespace, folder: Path) -> None:
    """Print the times to first token of a first and a second request with a common prefix."""
    engine = make_engine(folder)
    vocab_size = SHAPES[arguments.shape]["vocab_size"]
    first: list[float] = []
    second: list[float] = []
    for repetition in range(-1, arguments.repeat):
        prefix, *tails = random_prompts(3, 512, vocab_size, repetition)
        first.append(1000 * run_greedy(engine, [prefix + tails[0][:32]], 1))
        second.append(1000 * run_greedy(engine, [prefix + tails[1][:32]], 1))
    ratios = tuple(b / a for a, b in zip(first[1:], second[1:], strict=True))
    print(
        table(
            ["512-token prefix + 32", "first request, ms", "second request, ms", "ratio"],
            [
                [
                    "time to first token",
                    f"{Figure(tuple(first[1:]))}",
                    f"{Figure(tuple(second[1:]))}",
                    f"{Figure(ratios):.2f}",
                ]
            ],
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="135m")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument(
        "--concurrency",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[32],
        help="requests at once; several values separated by commas (default 32)",
    )
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3, help="counted runs, after one warm-up")
    parser.add_argument("--no-peer", action="store_true", help="do not run transformers")
    parser.add_argument("--prefix", action="store_true", help="measure prefix reuse instead")
    arguments = parser.parse_args()
    print(environment(PACKAGES))
    print(f"{arguments.shape} shape, {arguments.dtype}, {torch.get_num_threads()} threads\n")
    folder = checkpoint(arguments.shape, arguments.dtype)
    if arguments.prefix:
        measure_prefix(arguments, folder)
    else:
        compare(arguments, folder)


if __name__ == "__main__":
    main()
