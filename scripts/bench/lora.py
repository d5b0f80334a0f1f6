"""What LoRA adapters cost: output throughput with 0, 1, 4 and 16 of them in every batch, by turns.

    python -m scripts.bench.lora                          # 135M shape, bf16, rank 16, 32 concurrent
    python -m scripts.bench.lora --shape tiny --rank 8 --adapters 1,4 --repeat 5

One engine without slots, and one with slots for all adapters, which act on all seven matrices of
every layer. Each repetition runs every number of adapters one after the other; ratios are to the
engine without slots in the same repetition. "0 of 16" is the cost of having slots and not using
them.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from cluster.config import EngineConfig
from cluster.types import SamplingParams
from models.adapters.targets import module_sizes
from models.checkpoint import DecoderConfig, read_decoder_config
from models.engine.adapter_slots import AdapterSlots
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from scripts.bench.checkpoints import SHAPES, checkpoint
from scripts.bench.engine_load import make_engine, random_prompts, run_engine
from scripts.bench.report import Figure, environment, table


def make_adapter(folder: Path, config: DecoderConfig, *, rank: int) -> None:
    """Noise in PEFT's format: speed does not depend on values."""
    folder.mkdir()
    tensors = {}
    for layer in range(config.num_layers):
        for module, (num_inputs, num_outputs) in module_sizes(config).items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, num_inputs).bfloat16() * 0.01
            tensors[f"{name}.lora_B.weight"] = torch.randn(num_outputs, rank).bfloat16() * 0.01
    save_file(tensors, folder / "adapter_model.safetensors")
    peft = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(peft))


def adapter_engine(base: Path, adapters: Path, *, num_slots: int, rank: int) -> Engine:
    config = EngineConfig(
        max_model_len=2048,
        kv_cache_memory_bytes=2**30,
        max_loaded_adapters=num_slots,
        max_lora_rank=rank,
    )
    runner = ModelRunner(base, config)
    return Engine(runner, config, adapters=AdapterSlots(runner, lambda name: adapters / name))


def measure(arguments: argparse.Namespace, base: Path, adapters: Path) -> None:
    """Print the table."""
    config = read_decoder_config(base)
    num_slots = max(arguments.adapters)
    for number in range(num_slots):
        make_adapter(adapters / str(number), config, rank=arguments.rank)
    plain = make_engine(base)
    with_slots = adapter_engine(base, adapters, num_slots=num_slots, rank=arguments.rank)
    params = SamplingParams(max_tokens=arguments.output_len, temperature=0.0, ignore_eos=True)
    loads: dict[str, tuple[Engine, list[str]]] = {
        "no slots": (plain, [""]),
        f"0 of {num_slots}": (with_slots, [""]),
        **{
            f"{count} of {num_slots}": (with_slots, [str(number) for number in range(count)])
            for count in arguments.adapters
        },
    }
    speeds: dict[str, list[float]] = {name: [] for name in loads}
    for repetition in range(-1, arguments.repeat):  # the first one warms up, and loads
        for name, (engine, names) in loads.items():
            prompts = random_prompts(
                arguments.concurrency, arguments.prompt_len, config.vocab_size, repetition
            )
            run = run_engine(engine, prompts, params, names)
            speeds[name].append(run.tokens_per_s)
            print(f"  {name}, run {repetition + 1}: {run.tokens_per_s:.1f} tok/s", flush=True)
    rows: list[list[object]] = []
    for name, values in speeds.items():
        ratios = [a / b for a, b in zip(values, speeds["no slots"], strict=True)]
        rows.append([name, f"{Figure(tuple(values[1:]))}", f"{Figure(tuple(ratios[1:])):.2f}"])
    print(table(["adapters", "output tok/s", "ratio to no slots"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="135m")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--adapters",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[1, 4, 16],
        help="how many adapters a batch has; several values separated by commas",
    )
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3, help="counted runs, after one warm-up")
    arguments = parser.parse_args()
    print(environment(("torch",)))
    print(
        f"{arguments.shape} shape, {arguments.dtype}, rank {arguments.rank}, "
        f"{arguments.concurrency} concurrent, {torch.get_num_threads()} threads\n"
    )
    base = checkpoint(arguments.shape, arguments.dtype)
    with tempfile.TemporaryDirectory(prefix="shoal-adapters-") as folder:
        measure(arguments, base, Path(folder))


if __name__ == "__main__":
    main()
