"""The engine's loads over HTTP: ours beside vLLM's and llama.cpp's servers, by turns in one run.

    python -m scripts.bench.engine_http                   # 135M shape, bf16, 8 and 32 clients
    python -m scripts.bench.engine_http --workload short,shared --concurrency 32 --repeat 5
    python -m scripts.bench.engine_http --shape tiny --peers none --repeat 1

The loads are those of `scripts.bench.engine` (short, long, shared). Each client streams one request
after the other, `--rounds` of them; every answer must have its full length. All servers are started
first, with the same random checkpoint, and stopped at the end; those whose turn it is not are
stopped (SIGSTOP), ours with all of Ray. The first run of each load warms up, and so does one
request before each turn. Ratios are taken run by run.

The client is one process on the same machine; what it takes, it takes from every server alike. The
peers are found as in `scripts.bench.engine`; see there for how they are installed.
"""

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import ExitStack

from cluster.types import Request
from scripts.bench.checkpoints import DTYPES, SHAPES, checkpoint
from scripts.bench.completion_load import StreamTimes, run_clients
from scripts.bench.engine import add_peer_options, names, numbers, positive
from scripts.bench.engine_peers import missing
from scripts.bench.engine_servers import (
    MODEL,
    PEER_SERVERS,
    Server,
    ServerOptions,
    ShoalServer,
)
from scripts.bench.engine_workloads import WORKLOADS, Workload, prompt_seed
from scripts.bench.peer_process import describe, end_peers_when_ended
from scripts.bench.report import Figure, environment, table

PACKAGES = ("torch", "transformers", "ray")
HTTP_WORKLOADS = ("short", "long", "shared")
_FIRST_SEED = 200_000  # of the requests before each turn: no counted prompt is cached by them
EXTRA_TOKENS = 64  # of context, beyond the longest request


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    end_peers_when_ended()
    print(environment(PACKAGES))
    print(f"{arguments.shape} shape, {arguments.dtype}, {arguments.rounds} rounds of each client\n")
    workloads = [WORKLOADS[name] for name in arguments.workload]
    rows: list[list[object]] = []
    with ExitStack() as until_done:
        servers = _start(arguments, workloads, until_done)
        for workload in workloads:
            for concurrency in arguments.concurrency:
                rows += _measure(servers, workload, concurrency, arguments)
    header = ["load", "clients", "server", "output tok/s", "first token p50, ms"]
    print("\n" + table([*header, "event gap p99, ms", "Shoal is × as fast"], rows))


def _start(
    arguments: argparse.Namespace, workloads: Sequence[Workload], until_done: ExitStack
) -> list[Server]:
    """Ours first, then the peers that were asked for and are there."""
    options = ServerOptions(
        checkpoint=checkpoint(arguments.shape, arguments.dtype),
        dtype=arguments.dtype,
        max_model_len=max(one.max_model_len for one in workloads) + EXTRA_TOKENS,
        max_concurrency=max(arguments.concurrency),
        vllm_python=arguments.vllm_python,
        gguf=arguments.gguf,
        port=arguments.port,
    )
    makers = [ShoalServer]
    for name in arguments.peers:
        problem = missing(name, vllm_python=options.vllm_python, gguf=options.gguf)
        if problem is None:
            print(describe(name, vllm_python=options.vllm_python), flush=True)
            makers.append(PEER_SERVERS[name])
        else:
            print(problem)
    servers: list[Server] = []
    for maker in makers:
        servers.append(maker(options))
        until_done.callback(servers[-1].close)
    return servers


def _measure(
    servers: Sequence[Server], workload: Workload, concurrency: int, arguments: argparse.Namespace
) -> list[list[object]]:
    """A load on each server by turns; a row for each of them."""
    vocab_size = SHAPES[arguments.shape]["vocab_size"]
    found: dict[str, list[StreamTimes]] = {server.title: [] for server in servers}
    for repetition in range(-1, arguments.repeat):  # the first one warms up
        seed = prompt_seed(concurrency, repetition)
        requests = workload.requests(concurrency * arguments.rounds, vocab_size, seed)
        first = workload.requests(1, vocab_size, _FIRST_SEED + seed)
        for server in servers:
            times = _turn(server, first, requests, concurrency)
            print(
                f"  {workload.name}, {concurrency} clients, run {repetition + 1}, {server.title}: "
                f"{times.tokens_per_s:.1f} tok/s",
                flush=True,
            )
            if repetition >= 0:
                found[server.title].append(times)
    ours = found[servers[0].title]
    rows: list[list[object]] = []
    for title, runs in found.items():
        pairs = zip(ours, runs, strict=True)
        ratio = Figure(tuple(our.tokens_per_s / their.tokens_per_s for our, their in pairs))
        rows.append(
            [
                workload.name,
                concurrency,
                title,
                f"{Figure(tuple(run.tokens_per_s for run in runs))}",
                f"{Figure(tuple(run.first_token_ms for run in runs))}",
                f"{Figure(tuple(run.gap_ms for run in runs))}",
                "" if runs is ours else f"{ratio:.2f}",
            ]
        )
    return rows


def _turn(
    server: Server, first: Sequence[Request], requests: Sequence[Request], concurrency: int
) -> StreamTimes:
    """`first` is not counted."""
    with server.awake():
        asyncio.run(run_clients(server.url, MODEL, server.headers, first, 1))
        return asyncio.run(run_clients(server.url, MODEL, server.headers, requests, concurrency))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workload", type=names(HTTP_WORKLOADS, "all"), metavar="NAMES", default=["short"])
    add("--concurrency", type=numbers, metavar="N,…", default=[8, 32], help="clients")
    add("--rounds", type=positive, metavar="N", default=2, help="requests of each (default 2)")
    add("--repeat", type=positive, metavar="N", default=3, help="counted runs (default 3)")
    add("--shape", choices=tuple(SHAPES), default="135m", help="of the model (default 135m)")
    add("--dtype", choices=DTYPES, default="bfloat16", help="default bfloat16")
    add("--port", type=int, metavar="N", default=8300, help="of our cluster (default 8300)")
    add_peer_options(parser, tuple(PEER_SERVERS))
    parser.set_defaults(peers=list(PEER_SERVERS))
    return parser


if __name__ == "__main__":
    main()
