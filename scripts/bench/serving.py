"""The serving layer alone: a cluster whose engine computes nothing, against the fastest thing that
could emit the same stream, one Starlette process. By turns, in one run.

    python -m scripts.bench.serving                      # 256 streams at 20 ms per token
    python -m scripts.bench.serving --streams 64 --repeat 5
    python -m scripts.bench.serving --pools              # against two models, keys and adapters

Starts a cluster of its own (own SHOAL_HOME, own port) and stops it. Delivery is the time from the
end of the step that made a token to its arrival at the client; see `scripts.bench.stream_load`.

`--pools` compares two clusters instead: the one above, and one with two models, two adapters of the
first, and a tenant whose key and limits are in Redis; the streams are shared by all four names.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from cluster.cli_admin_client import AdminClient
from cluster.config import DEMO_CHAT_MODEL
from cluster.model_source import DEMO_SOURCE, resolve_model_source
from models.checkpoint import read_decoder_config
from scripts.bench.lora import make_adapter
from scripts.bench.report import Figure, environment, table
from scripts.bench.running_cluster import API_KEY, running_cluster

SECOND_MODEL = "shoal/second"
ADAPTERS = ("formal", "brief")
PACKAGES = ("ray", "uvicorn", "starlette", "uvloop", "msgspec", "orjson")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two servers, up and running."""

    name: str
    url: str
    model_pids: tuple[int, ...]  # the processes whose CPU time per token is reported
    api_key: str = API_KEY
    models: tuple[str, ...] = (DEMO_CHAT_MODEL,)


@contextmanager
def shoal_cluster(arguments: argparse.Namespace) -> Iterator[Side]:
    config = {"models": [_model(DEMO_CHAT_MODEL, arguments)]}
    with running_cluster(config, port=arguments.port) as cluster:
        yield Side("Shoal", cluster.url, _replica_pids(str(cluster.home)))


@contextmanager
def several_pools(arguments: argparse.Namespace) -> Iterator[Side]:
    """Two models, adapters of the first, and a tenant with a key and limits of its own."""
    shape = read_decoder_config(resolve_model_source(DEMO_SOURCE))
    with tempfile.TemporaryDirectory(prefix="shoal-adapters-") as folder:
        for name in ADAPTERS:
            make_adapter(Path(folder) / name, shape, rank=8)
        adapters = [{"name": name, "source": str(Path(folder) / name)} for name in ADAPTERS]
        first = {**_model(DEMO_CHAT_MODEL, arguments), "adapters": adapters}
        config = {"models": [first, _model(SECOND_MODEL, arguments)]}
        with running_cluster(config, port=arguments.port + 1) as cluster:
            yield Side(
                "Shoal, two models, keys and adapters",
                cluster.url,
                _replica_pids(str(cluster.home)),
                api_key=_tenant_key(cluster.url),
                models=(DEMO_CHAT_MODEL, SECOND_MODEL, *ADAPTERS),
            )


def _model(name: str, arguments: argparse.Namespace) -> dict[str, object]:
    limits = {
        "synthetic_step_ms": arguments.step_ms,
        "max_num_seqs": max(256, arguments.streams),
    }
    return {"name": name, "source": DEMO_SOURCE, "engine": limits}


def _tenant_key(url: str) -> str:
    """Of a tenant whose limits are looked up for each request, and never reached."""
    limits = dict.fromkeys(("requests_per_minute", "tokens_per_minute"), 10**9)
    with AdminClient(url, api_key=API_KEY) as client:
        client.create_tenant("bench", {**limits, "concurrent_requests": 10**6})
        return str(client.create_key("bench", {"name": "bench"})["key"])


@contextmanager
def starlette_process(arguments: argparse.Namespace) -> Iterator[Side]:
    port = arguments.port + 1
    command = [sys.executable, "-m", "scripts.bench.sse_peer", "--port", str(port)]
    process = subprocess.Popen([*command, "--step-ms", str(arguments.step_ms)])
    try:
        transport = httpx.HTTPTransport(retries=8)
        with httpx.Client(transport=transport) as client:
            client.get(f"http://127.0.0.1:{port}/")
        yield Side("one Starlette process", f"http://127.0.0.1:{port}", (process.pid,))
    finally:
        process.terminate()
        process.wait()


def measure(side: Side, arguments: argparse.Namespace, streams: int) -> dict[str, float]:
    """One load on one side, with the CPU time that its model process took for it."""
    command = [sys.executable, "-m", "scripts.bench.stream_load", "--url", side.url]
    command += ["--api-key", side.api_key, "--step-ms", str(arguments.step_ms)]
    command += ["--model", ",".join(side.models)]
    command += ["--streams", str(streams), "--tokens", str(arguments.tokens)]
    before_s, start_s = _cpu_s(side), time.monotonic()
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result = json.loads(output)
    cpu_s = _cpu_s(side) - before_s
    # Threads that only wait cost a little all the time; that is not a token's cost.
    if result["num_errors"]:
        raise RuntimeError(f"{side.name}: {result['num_errors']} errors: {result['errors']}")
    result["model_cpu_us_per_token"] = 1e6 * cpu_s / result["num_tokens"]
    result["elapsed_s"] = time.monotonic() - start_s
    return {name: value for name, value in result.items() if isinstance(value, int | float)}


def _cpu_s(side: Side) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in side.model_pids]
    return sum(t.user + t.system for t in times)


def _replica_pids(home: str) -> tuple[int, ...]:
    pids = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        command = " ".join(process.info["cmdline"] or ())
        is_ours = (process.info["environ"] or {}).get("SHOAL_HOME") == home
        if is_ours and "ServeReplica" in command and "ModelReplica" in command:
            pids.append(process.pid)
    if not pids:
        raise RuntimeError("no replica of the benchmark's cluster found")
    return tuple(pids)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=250, help="tokens of each stream")
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--repeat", type=int, default=3, help="counted runs, after one warm-up")
    parser.add_argument(
        "--pools", action="store_true", help="against two models with keys and adapters"
    )
    parser.add_argument("--port", type=int, default=8300, help="this one and the next")
    arguments = parser.parse_args()
    print(environment(PACKAGES))
    offered = arguments.streams * 1000 / arguments.step_ms
    print(f"{arguments.streams} streams, {offered:.0f} tokens/s offered\n", flush=True)
    start_peer = several_pools if arguments.pools else starlette_process
    with shoal_cluster(arguments) as shoal, start_peer(arguments) as peer:
        results: dict[str, list[dict[str, float]]] = {shoal.name: [], peer.name: []}
        for repetition in range(arguments.repeat + 1):
            for side in (shoal, peer):
                result = measure(side, arguments, arguments.streams)
                print(f"  {side.name}, run {repetition}: {json.dumps(result)}", flush=True)
                if repetition > 0:
                    results[side.name].append(result)
    print()
    first, second = (peer, shoal) if arguments.pools else (shoal, peer)
    print(_table({side.name: results[side.name] for side in (first, second)}))


def _table(results: dict[str, list[dict[str, float]]]) -> str:
    """The ratio is of the first side to the second."""
    rows = []
    for name, runs in results.items():
        figures = {key: Figure(tuple(run[key] for run in runs)) for key in runs[0]}
        rows.append(
            [
                name,
                f"{figures['tokens_per_s']:.0f}",
                f"{figures['delivery_ms_p50']:.1f}",
                f"{figures['delivery_ms_p99']:.1f}",
                f"{figures['model_cpu_us_per_token']:.1f}",
            ]
        )
    ours, theirs = results.values()
    ratios = tuple(a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(ours, theirs, strict=True))
    rows.append(["ratio", f"{Figure(ratios):.2f}", "", "", ""])
    header = ["", "tokens/s", "delivery p50, ms", "p99, ms", "model process CPU, µs/token"]
    return table(header, rows)


if __name__ == "__main__":
    main()
