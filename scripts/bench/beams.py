"""Beam search against `transformers.generate(num_beams=…)` on the same batch, by turns in one run.

python -m scripts.bench.beams                    # 135M shape, bf16, 8 requests, width 4, 128/64
"""

import argparse
import time

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from cluster.types import BeamParams, SamplingParams
from scripts.bench.checkpoints import SHAPES, checkpoint
from scripts.bench.engine_load import make_engine, random_prompts, run_engine
from scripts.bench.report import Figure, environment, table

PACKAGES = ("torch", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="135m")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    print(environment(PACKAGES))
    folder = checkpoint(arguments.shape, "bfloat16")
    engine = make_engine(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    generation = GenerationConfig(
        max_new_tokens=arguments.output_len,
        num_beams=arguments.width,
        do_sample=False,
        pad_token_id=0,
    )
    params = SamplingParams(
        max_tokens=arguments.output_len,
        temperature=0.0,
        ignore_eos=True,
        beam=BeamParams(width=arguments.width),
    )
    ours: list[float] = []  # tokens per second of returned hypotheses, one for each prompt
    theirs: list[float] = []
    for repetition in range(-1, arguments.repeat):
        prompts = random_prompts(
            arguments.requests,
            arguments.prompt_len,
            SHAPES[arguments.shape]["vocab_size"],
            repetition,
        )
        ours.append(run_engine(engine, prompts, params).tokens_per_s)
        start_s = time.perf_counter()
        output = model.generate(torch.tensor(prompts), generation_config=generation)
        elapsed_s = time.perf_counter() - start_s
        assert output.shape[1] == arguments.prompt_len + arguments.output_len
        theirs.append(arguments.requests * arguments.output_len / elapsed_s)
        print(f"  run {repetition + 1}: {ours[-1]:.1f} against {theirs[-1]:.1f} tok/s", flush=True)
    ratios = tuple(a / b for a, b in zip(ours[1:], theirs[1:], strict=True))
    print(
        table(
            ["requests × beams", "Shoal, tok/s", "transformers generate, tok/s", "ratio"],
            [
                [
                    f"{arguments.requests} × {arguments.width}",
                    f"{Figure(tuple(ours[1:]))}",
                    f"{Figure(tuple(theirs[1:]))}",
                    f"{Figure(ratios):.2f}",
                ]
            ],
        )
    )


if __name__ == "__main__":
    main()
