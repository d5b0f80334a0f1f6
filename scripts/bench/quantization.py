"""What quantization costs in accuracy and gains in speed, against floats, in one run, by turns.

    python -m scripts.bench.quantization                  # both tables
    python -m scripts.bench.quantization --part accuracy  # demo model: perplexity, KL to float32
    python -m scripts.bench.quantization --part speed --shape 135m --batches 1,32 --repeat 5

Accuracy: the demo model reads a fixed text of this repository (the sample bucket and LICENSE, in
pieces of 512 tokens); at every position its distribution is compared with that of float32. Speed:
greedy decoding of random weights; each repetition takes all kinds in turn, and ratios to bfloat16
are taken repetition by repetition. `deterministic` is bfloat16 with the engine's option.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from cluster.config import EngineConfig
from cluster.model_source import DEMO_SOURCE, resolve_model_source
from cluster.types import SamplingParams
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.engine.step_inputs import PromptLogprobsRow, StepInputs
from models.quantization.scheme import MADE_HERE
from models.tokenizer import Tokenizer
from scripts.bench.checkpoints import SHAPES, checkpoint
from scripts.bench.engine_load import random_prompts, run_engine
from scripts.bench.report import Figure, environment, table

PACKAGES = ("torch",)
ROOT = Path(__file__).resolve().parents[2]
PIECE_TOKENS = 512
DETERMINISTIC = "bfloat16, deterministic"


@dataclass(frozen=True, slots=True)
class Reading:
    """The logarithms of a model's distributions over a text, and of the tokens that came."""

    logprobs_TV: torch.Tensor
    targets_T: torch.Tensor

    @property
    def perplexity(self) -> float:
        return float((-self._of_targets().mean()).exp())

    def _of_targets(self) -> torch.Tensor:
        return self.logprobs_TV.gather(1, self.targets_T[:, None]).squeeze(1)

    def divergence(self, other: "Reading") -> torch.Tensor:
        """Kullback-Leibler divergence of the other from this one, at each position."""
        return (self.logprobs_TV.exp() * (self.logprobs_TV - other.logprobs_TV)).sum(1)


def pieces_of_text(tokenizer: Tokenizer) -> list[list[int]]:
    """The fixed text in token ids."""
    paths = [*sorted((ROOT / "cluster" / "sample_bucket").glob("*.md")), ROOT / "LICENSE"]
    pieces: list[list[int]] = []
    for path in paths:
        ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=True)
        pieces += [ids[i : i + PIECE_TOKENS] for i in range(0, len(ids), PIECE_TOKENS)]
    return [piece for piece in pieces if len(piece) > 1]


def read_text(runner: ModelRunner, pieces: list[list[int]]) -> Reading:
    """One piece a step."""
    rows: list[torch.Tensor] = []
    for ids in pieces:
        num_blocks = -(-len(ids) // runner.block_size)
        row = PromptLogprobsRow(first_index=0, target_token_ids=ids[1:], num_top=runner.vocab_size)
        outputs = runner.execute(
            StepInputs(
                token_ids=ids,
                positions=list(range(len(ids))),
                slot_mapping=list(range(len(ids))),
                query_lens=[len(ids)],
                context_lens=[len(ids)],
                block_tables=[list(range(num_blocks))],
                sampling_rows=[],
                prompt_logprobs_rows=[row],
            )
        )
        for found in outputs.prompt_logprobs[0]:
            logprobs_V = torch.empty(runner.vocab_size)
            logprobs_V[torch.tensor(found.top_token_ids)] = torch.tensor(found.top_logprobs)
            rows.append(logprobs_V)
    targets = [token for ids in pieces for token in ids[1:]]
    return Reading(torch.stack(rows), torch.tensor(targets))


def compare_accuracy(num_pieces: int) -> None:
    folder = resolve_model_source(DEMO_SOURCE)
    pieces = pieces_of_text(Tokenizer.from_folder(folder))[:num_pieces]
    config = EngineConfig(max_model_len=1024, kv_cache_memory_bytes=2**27)

    def read(dtype: str, quantization: str) -> Reading:
        runner = ModelRunner(folder, config, dtype=dtype, quantization=quantization, device="cpu")
        return read_text(runner, pieces)

    exact = read("float32", "none")
    rows = [("float32", "", exact)]
    rows += [("float32", name, read("float32", name)) for name in MADE_HERE]
    rows.append(("bfloat16", "", read("bfloat16", "none")))
    rows += [
        ("bfloat16", name, read("bfloat16", name)) for name in ("int8", "int8_dynamic", "int4")
    ]
    print(f"\nAccuracy: demo model, {len(exact.targets_T):,} positions\n")
    header = (
        "weights",
        "activations",
        "perplexity",
        "KL to float32, mean",
        "p99",
        "same best token",
    )
    lines = []
    for dtype, name, reading in rows:
        divergence = exact.divergence(reading)
        same = (exact.logprobs_TV.argmax(1) == reading.logprobs_TV.argmax(1)).float().mean()
        lines.append(
            (
                name or dtype,
                dtype,
                f"{reading.perplexity:.3f}",
                f"{divergence.mean():.5f}",
                f"{divergence.quantile(0.99):.4f}",
                f"{same:.1%}",
            )
        )
    print(table(header, lines))


def make_engine(folder: Path, kind: str, output_len: int) -> Engine:
    config = EngineConfig(
        max_model_len=1024,
        kv_cache_memory_bytes=2**28,
        deterministic=kind == DETERMINISTIC,
    )
    quantization = kind if kind in MADE_HERE else "none"
    runner = ModelRunner(
        folder, config, dtype="bfloat16", quantization=quantization, random_weights=True
    )
    assert output_len < runner.max_model_len
    return Engine(runner, config)


def compare_speed(arguments: argparse.Namespace) -> None:
    folder = checkpoint(arguments.shape, "bfloat16")
    # fp8 is emulated on a CPU: its speed there means nothing.
    kinds = ["bfloat16", *(n for n in MADE_HERE if n != "fp8" or torch.cuda.is_available())]
    if not torch.cuda.is_available():
        kinds.append(DETERMINISTIC)
    engines = {kind: make_engine(folder, kind, arguments.output_len) for kind in kinds}
    vocab_size = SHAPES[arguments.shape]["vocab_size"]
    params = SamplingParams(max_tokens=arguments.output_len, temperature=0.0, ignore_eos=True)
    lines = []
    for batch in arguments.batches:
        speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for repetition in range(-1, arguments.repeat):  # the first one warms up
            prompts = random_prompts(batch, arguments.prompt_len, vocab_size, repetition)
            for kind, engine in engines.items():
                run = run_engine(engine, prompts, params)
                if repetition >= 0:
                    speeds[kind].append(run.tokens_per_s)
        for kind in kinds:
            pairs = zip(speeds[kind], speeds["bfloat16"], strict=True)
            ratio = Figure(tuple(ours / floats for ours, floats in pairs))
            lines.append((batch, kind, f"{Figure(tuple(speeds[kind]))}", f"{ratio:.2f}"))
            print(f"  batch {batch}, {kind}: {lines[-1][2]} tok/s", flush=True)
    print(
        f"\nSpeed: {arguments.shape} shape, bfloat16 activations, {arguments.prompt_len} prompt + "
        f"{arguments.output_len} output tokens, {torch.get_num_threads()} threads\n"
    )
    print(table(("batch", "weights", "output tok/s", "times bfloat16"), lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", choices=("accuracy", "speed", "both"), default="both")
    parser.add_argument("--pieces", type=int, default=16, help="of the text, for the accuracy")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="135m")
    parser.add_argument(
        "--batches", type=lambda text: [int(part) for part in text.split(",")], default=[1, 32]
    )
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    print(environment(PACKAGES))
    if arguments.part != "speed":
        compare_accuracy(arguments.pieces)
    if arguments.part != "accuracy":
        compare_speed(arguments)


if __name__ == "__main__":
    main()
