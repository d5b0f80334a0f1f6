"""Speculative decoding by prompt lookup, on against off, by turns in the same run.

    python -m scripts.bench.speculation                     # 135M shape, bf16, 1, 4, 16 concurrent
    python -m scripts.bench.speculation --shape demo --concurrency 1,8,32 --repeat 5
    python -m scripts.bench.speculation --device cuda --shape 8b --concurrency 1,16,64

Every step is computed in full, with made-up weights, and every token is sampled; what the answer
says is then written by a script, so that it quotes as much of its prompt as a load says (random
token ids, prompts of --prompt-len, answers of --output-len tokens):

    quotes     runs of 32 tokens from the prompt, and 8 new ones after each
    fragments  runs of 4 and 4 new ones: lookups find a place, and are nearly always wrong there
    new        nothing is said twice: what looking for it costs

Each repetition runs every mode on the same prompts; ratios are taken pair by pair. Modes: off;
adaptive, as it is served; always, which guesses whatever it costs. Where others use the machine
too, the ratio of CPU times says more than that of the clock's.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.config import EngineConfig, SpeculativeConfig
from cluster.types import Request, SamplingParams
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.engine.step_inputs import StepInputs, StepOutputs
from scripts.bench.checkpoints import GPU_SHAPES, SHAPES, shape_folder
from scripts.bench.engine_load import Run, random_prompts, run_requests
from scripts.bench.report import Figure, environment, table

PACKAGES = ("torch",)
_GUESSES = SpeculativeConfig()
MODES: dict[str, SpeculativeConfig | None] = {
    "off": None,
    "adaptive": _GUESSES,
    "always": _GUESSES.model_copy(update={"adaptive": False}),
}


@dataclass(frozen=True, slots=True)
class Load:
    """Answers of runs from the prompt, and new tokens after each."""

    num_quoted: int
    num_new: int

    def answer(self, prompt: list[int], length: int, chance: random.Random) -> list[int]:
        tokens: list[int] = []
        while len(tokens) < length:
            start = chance.randrange(len(prompt) - self.num_quoted)
            tokens += prompt[start : start + self.num_quoted]
            tokens += [chance.randrange(2, max(prompt)) for _ in range(self.num_new)]
        return tokens[:length]


LOADS = {"quotes": Load(32, 8), "fragments": Load(4, 4), "new": Load(0, 8)}


class ScriptedRunner(ModelRunner):
    """Computes and samples, and then says what was written for it. No step begins before that."""

    def __init__(self, folder: Path, config: EngineConfig, *, dtype: str, device: str) -> None:
        super().__init__(folder, config, dtype=dtype, device=device, random_weights=True)
        self.answers: dict[int, list[int]] = {}  # by a prompt's first token, which differ

    @property
    def overlaps_steps(self) -> bool:
        return False

    def execute(self, inputs: StepInputs) -> StepOutputs:
        outputs = super().execute(inputs)
        token_ids = [
            self.answers[row.prompt_token_ids[0]][row.position - len(row.prompt_token_ids)]
            for row in inputs.sampling_rows
        ]
        return replace(outputs, token_ids=token_ids)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted({**SHAPES, **GPU_SHAPES}), default="135m")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--concurrency", default="1,4,16", help="like 1,8,32")
    parser.add_argument("--loads", default=",".join(LOADS), help="like quotes,new")
    parser.add_argument("--prompt-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=160)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    print(environment(PACKAGES))
    concurrencies = [int(text) for text in arguments.concurrency.split(",")]
    config = EngineConfig(
        max_model_len=arguments.prompt_len + arguments.output_len,
        max_num_seqs=max(16, *concurrencies),
        kv_cache_memory_bytes=2**30 if arguments.device == "cpu" else 2**35,
        speculative_config=_GUESSES,
    )
    folder = shape_folder(arguments.shape, arguments.dtype)
    runner = ScriptedRunner(folder, config, dtype=arguments.dtype, device=arguments.device)
    rows = [
        row
        for load in arguments.loads.split(",")
        for concurrency in concurrencies
        for row in measure(runner, config, load, concurrency, arguments)
    ]
    header = ["load", "concurrent", "mode", "tok/s", "against off", "by CPU time", "came true"]
    print(table(header, rows))


def measure(
    runner: ScriptedRunner,
    config: EngineConfig,
    load: str,
    concurrency: int,
    arguments: argparse.Namespace,
) -> list[list[str]]:
    """A row for each mode. Engines live through all repetitions, as they would when serving."""
    engines = {
        mode: Engine(runner, config.model_copy(update={"speculative_config": guesses}))
        for mode, guesses in MODES.items()
    }
    runs: dict[str, list[Run]] = {mode: [] for mode in MODES}
    for repetition in range(-1, arguments.repeat):  # the first one warms up
        requests = _requests(runner, load, concurrency, arguments, repetition)
        for mode, engine in engines.items():
            runs[mode].append(run_requests(engine, requests))
        said = ", ".join(f"{mode} {values[-1].tokens_per_s:.1f}" for mode, values in runs.items())
        print(f"  {load}, {concurrency} concurrent, run {repetition + 1}: {said}", flush=True)
    off = runs["off"][1:]
    return [
        [load, str(concurrency), mode, *_figures(engines[mode], runs[mode][1:], off)]
        for mode in MODES
    ]


def _figures(engine: Engine, runs: Sequence[Run], off: Sequence[Run]) -> list[str]:
    """The other columns of a row."""
    pairs = list(zip(runs, off, strict=True))
    stats = engine.stats()
    num_true = stats.spec_decode_accepted_tokens_total
    return [
        f"{Figure(tuple(run.tokens_per_s for run in runs))}",
        f"{Figure(tuple(run.tokens_per_s / other.tokens_per_s for run, other in pairs)):.2f}",
        f"{Figure(tuple(other.cpu_s / run.cpu_s for run, other in pairs)):.2f}",
        f"{num_true:,} of {stats.spec_decode_draft_tokens_total:,}",
    ]


def _requests(
    runner: ScriptedRunner,
    load: str,
    concurrency: int,
    arguments: argparse.Namespace,
    repetition: int,
) -> list[Request]:
    chance = random.Random(repetition)
    vocab_size = runner.vocab_size
    prompts = random_prompts(concurrency, arguments.prompt_len, vocab_size, repetition)
    params = SamplingParams(max_tokens=arguments.output_len, temperature=0.0, ignore_eos=True)
    requests = []
    for index, prompt in enumerate(prompts):
        prompt[0] = 2 + index
        runner.answers[prompt[0]] = LOADS[load].answer(prompt, arguments.output_len, chance)
        requests.append(
            Request(request_id=str(index), prompt_token_ids=prompt, sampling_params=params)
        )
    return requests


if __name__ == "__main__":
    main()
