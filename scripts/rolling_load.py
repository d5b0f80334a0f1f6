"""Three models under load, one updated and one asleep meanwhile: does every answer come whole?

    python -m scripts.rolling_load
    python -m scripts.rolling_load --clients 1 --tokens 90 --settle 1     # shorter
    python -m scripts.rolling_load --no-room                # the update ends a replica first

Starts a cluster of its own with three pools of the demo model: `shared` is computed by two ranks,
`adapted` has two LoRA adapters (made on the spot), `sleeper` may have no replica. Streamed and
whole answers, of the adapters too, are asked for without a pause. Then `shoal deploy` brings
`adapted` to other weights and other limits, and at the same time `sleeper` is left alone until it
has no replica, and asked again. Every answer must end whole (`scripts.checked_requests`), what
`adapted` says must have changed, and `sleeper` must have slept. Prints a table; exit status 1 where
something did not hold.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch
import yaml
from safetensors.torch import load_file, save_file

from cluster.model_source import DEMO_SOURCE, resolve_model_source
from deployments.local_ray import LocalRay, processes_of
from models.checkpoint import read_decoder_config
from scripts.bench.lora import make_adapter
from scripts.bench.report import environment, table
from scripts.bench.running_cluster import API_KEY, RunningCluster, running_cluster
from scripts.checked_requests import Ending, MixedLoad

SHARED, ADAPTED, SLEEPER = "shared", "adapted", "sleeper"
ADAPTERS = ("adapted-formal", "adapted-brief")
NUM_RANKS = 2
RANK_TITLE = "ray::RankActor"  # of the ranks above 0
IDLE_BEFORE_ZERO_S = 6.0
TIMEOUT_S = 600.0
POLL_S = 0.2
PACKAGES = ("ray", "torch")


@dataclass(slots=True)
class Seen:
    """What is said of the run."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    deploying_s: tuple[float, float] = (0.0, 0.0)  # of the monotonic clock
    asleep_s: float = 0.0  # when `sleeper` was seen without a replica

    def note(self, line: str) -> None:
        self.lines.append(line)
        print(f"  {line}", flush=True)


def make_config(
    source: Path, folder: Path, *, max_model_len: int, has_room: bool
) -> dict[str, Any]:
    """`source`: of the model that is updated; its adapters are in `folder`."""
    limits = {"num_threads": 1, "kv_cache_memory_bytes": 2**25}
    demo = {"source": DEMO_SOURCE, "dtype": "float32", "num_cpus": 0.4, "engine": limits}
    adapters = [{"name": name, "source": str(folder / name)} for name in ADAPTERS]
    sleeping = {"idle_before_zero_s": IDLE_BEFORE_ZERO_S, "downscale_delay_s": 1.0}
    adapted = {
        **demo,
        "name": ADAPTED,
        "source": str(source),
        "engine": {**limits, "max_model_len": max_model_len},
        "adapters": adapters,
    }
    if not has_room:
        adapted["num_cpus"] = os.cpu_count() or 1
    return {
        "models": [
            {**demo, "name": SHARED, "tensor_parallel_size": NUM_RANKS},
            adapted,
            {
                **demo,
                "name": SLEEPER,
                "min_replicas": 0,
                "max_replicas": 1,
                "autoscaling": sleeping,
            },
        ],
        "embedders": [],
    }


def make_sources(folder: Path) -> tuple[Path, Path]:
    """The adapters, and two checkpoints: the demo model, and one that says other things."""
    demo = Path(resolve_model_source(DEMO_SOURCE))
    config = read_decoder_config(demo)
    torch.manual_seed(0)
    for name in ADAPTERS:
        make_adapter(folder / name, config, rank=8)
    changed = shutil.copytree(demo, folder / "changed")
    weights = load_file(changed / "model.safetensors")
    noisy = {
        name: weight + 0.5 * weight.std() * torch.randn_like(weight) if weight.dim() > 1 else weight
        for name, weight in weights.items()
    }
    save_file(noisy, changed / "model.safetensors", metadata={"format": "pt"})
    return demo, changed


def deploy(cluster: RunningCluster, config: dict[str, Any]) -> None:
    """`shoal deploy`, from a shell on the head of the running cluster."""
    path = cluster.home / "changed.yaml"
    path.write_text(yaml.safe_dump(config))
    ray = LocalRay(cluster.home)
    state = ray.state()
    assert state is not None
    environ = ray.driver_environment(state)
    environ |= {"SHOAL_PORT": cluster.url.rpartition(":")[2], "SHOAL_API_KEY": API_KEY}
    shoal = [sys.executable, "-c", "from cluster.cli import main; main()"]
    subprocess.run([*shoal, "deploy", str(path)], env=environ, check=True)


async def update(cluster: RunningCluster, config: dict[str, Any], seen: Seen) -> None:
    started_s = time.monotonic()
    await asyncio.to_thread(deploy, cluster, config)
    seen.deploying_s = (started_s, time.monotonic())
    seen.note(f"`shoal deploy` returned after {seen.deploying_s[1] - started_s:.1f} s")


async def sleep_and_wake(
    client: httpx.AsyncClient, load: MixedLoad, seen: Seen, *, num_clients: int
) -> None:
    await load.stop(SLEEPER)
    stopped_s = time.monotonic()
    while await num_replicas(client, SLEEPER):
        if time.monotonic() > stopped_s + TIMEOUT_S:
            seen.problems.append(f"{SLEEPER} had a replica for {TIMEOUT_S:g} s of silence")
            break
        await asyncio.sleep(POLL_S)
    seen.asleep_s = time.monotonic()
    seen.note(f"{SLEEPER} had no replica {seen.asleep_s - stopped_s:.1f} s after its last answer")
    load.start([SLEEPER], clients_each=num_clients)


async def num_replicas(client: httpx.AsyncClient, model: str) -> int:
    answer = await client.get("/v1/cluster")
    pools = {pool["name"]: pool for pool in answer.raise_for_status().json()["pools"]}
    return len(pools[model]["replicas"])


async def greedy_text(client: httpx.AsyncClient, model: str) -> str:
    body = {"model": model, "prompt": "Tell me", "max_tokens": 24, "temperature": 0}
    answer = await client.post("/v1/completions", json=body)
    text: str = answer.raise_for_status().json()["choices"][0]["text"]
    return text


async def context_length(client: httpx.AsyncClient, model: str) -> int:
    answer = await client.get("/v1/models")
    models = {one["id"]: one for one in answer.raise_for_status().json()["data"]}
    return int(models[model]["context_length"])


async def rehearse(
    cluster: RunningCluster, changed: dict[str, Any], arguments: argparse.Namespace
) -> tuple[Seen, list[Ending]]:
    """The whole of it on a running cluster."""
    seen = Seen()
    state = LocalRay(cluster.home).state()
    assert state is not None
    ranks = [one for one in processes_of(state) if RANK_TITLE in " ".join(one.cmdline())]
    if len(ranks) != NUM_RANKS - 1:
        seen.problems.append(f"{len(ranks)} ranks beside rank 0, not {NUM_RANKS - 1}")
    async with httpx.AsyncClient(
        base_url=cluster.url,
        headers={"Authorization": f"Bearer {API_KEY}"},
        limits=httpx.Limits(max_connections=None),
        timeout=TIMEOUT_S,
    ) as client:
        load = MixedLoad(client, max_tokens=arguments.tokens)
        load.start([SHARED, ADAPTED, *ADAPTERS, SLEEPER], clients_each=arguments.clients)
        await load.until_each_has_ended(arguments.settle)
        before = await greedy_text(client, ADAPTED), await context_length(client, ADAPTED)
        seen.note(f"every model has answered {arguments.settle} times; now the change")
        async with asyncio.TaskGroup() as group:
            group.create_task(update(cluster, changed, seen))
            group.create_task(sleep_and_wake(client, load, seen, num_clients=arguments.clients))
        await load.until_each_has_ended(arguments.settle)
        after = await greedy_text(client, ADAPTED), await context_length(client, ADAPTED)
        await load.stop()
    for what, old, new in zip(("text", "context length"), before, after, strict=True):
        seen.note(f"{what} of {ADAPTED}: {old!r}, then {new!r}")
        if old == new:
            seen.problems.append(f"the {what} of {ADAPTED} is as before: it was not updated")
    return seen, load.endings


def judge(seen: Seen, endings: Sequence[Ending]) -> list[str]:
    """What did not hold."""
    found = [
        f"{one.model}, {'streamed' if one.is_streamed else 'whole'}: "
        f"{'cut' if one.has_begun else 'failed'}: {one.problem}"
        for one in endings
        if one.problem is not None
    ]
    started_s, ended_s = seen.deploying_s
    for model in (SHARED, ADAPTED, *ADAPTERS):
        of_model = [one for one in endings if one.model == model]
        if not any(one.started_s < started_s < one.ended_s for one in of_model):
            found.append(f"no answer of {model} was under way when the update began")
        if not any(started_s < one.started_s < ended_s for one in of_model):
            found.append(f"no answer of {model} was begun during the update")
    return [*seen.problems, *found]


def report(seen: Seen, endings: Sequence[Ending]) -> str:
    """A table, one line per name that was asked for."""
    header = ["model", "streams", "whole answers", "tokens", "failed", "cut"]
    header += ["first event, slowest s", "pause in a stream, longest s"]
    rows: list[list[object]] = []
    for model in (SHARED, ADAPTED, *ADAPTERS, SLEEPER):
        of_model = [one for one in endings if one.model == model]
        failed = [one for one in of_model if one.problem is not None and not one.has_begun]
        cut = [one for one in of_model if one.problem is not None and one.has_begun]
        streams = [one for one in of_model if one.is_streamed]
        rows.append(
            [
                model,
                len(streams),
                len(of_model) - len(streams),
                sum(one.num_tokens for one in of_model),
                len(failed),
                len(cut),
                f"{max((one.first_s for one in streams), default=0.0):.1f}",
                f"{max((one.longest_pause_s for one in streams), default=0.0):.1f}",
            ]
        )
    held = [one for one in endings if one.model == SLEEPER and one.started_s >= seen.asleep_s]
    first_s = held[0].first_s if held else 0.0
    started_s, ended_s = seen.deploying_s
    across = sum(one.started_s < ended_s and one.ended_s > started_s for one in endings)
    return (
        f"{table(header, rows)}\n\n{across} answers were under way at some time of the update; the "
        f"first of {SLEEPER} after its sleep took {first_s:.1f} s to its first event."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=3, help="of each model, and each adapter")
    parser.add_argument("--tokens", type=int, default=300, help="of a long answer")
    parser.add_argument(
        "--settle", type=int, default=6, help="answers of each model before and after the change"
    )
    parser.add_argument("--no-room", action="store_true", help="for a second replica at the update")
    parser.add_argument("--port", type=int, default=8330)
    arguments = parser.parse_args()
    print(environment(PACKAGES), "\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="shoal-rolling-") as name:
        folder, has_room = Path(name), not arguments.no_room
        first, second = make_sources(folder)
        config = make_config(first, folder, max_model_len=1024, has_room=has_room)
        changed = make_config(second, folder, max_model_len=768, has_room=has_room)
        with running_cluster(config, port=arguments.port) as cluster:
            seen, endings = asyncio.run(rehearse(cluster, changed, arguments))
    print(f"\n{report(seen, endings)}")
    problems = judge(seen, endings)
    for problem in problems[:20]:
        print(problem)
    print("no failed request, no cut stream" if not problems else f"{len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
