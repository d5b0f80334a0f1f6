"""A batch on a real cluster whose parts are killed at random moments: does each line come once?

    python -m scripts.crash_batch --lines 20000
    python -m scripts.crash_batch --lines 500 --kills 4 --seed 7

Starts a cluster with the demo model in a home of its own, runs a batch undisturbed, then the same
batch again while the task worker, a model replica, Redis and the ingress are killed (SIGKILL), each
at least once, when so much of the work is done. In the end every `custom_id` must be there once,
with the answer of the undisturbed run (temperature 0). Says what it saw; exit status 1 when
something was lost, doubled or changed.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from cluster.api_keys import load_or_create_key
from cluster.config import ShoalConfig, parse_config
from deployments import launch
from deployments.local_ray import LocalRay, processes_of

MODEL = "shoal/demo-chat"
URL = "/v1/chat/completions"
TARGETS = ("task worker", "model replica", "Redis", "ingress")
_TITLES = {
    "task worker": "ServeReplica:shoal:TaskWorker",
    "model replica": "ServeReplica:shoal:ModelReplica",
    "ingress": "ServeReplica:shoal:Ingress",
}
_FINAL = ("completed", "failed", "expired", "cancelled")
_NAMES = ("Ada", "Bruno", "Chiara", "Deniz", "Emil", "Freya", "Goran", "Hana", "Ivo", "Jana")
_WISHES = ("Say hello to {}.", "Hi, I am {}!", "Where is {}?", "Count for {}.", "Thank you, {}.")
_POLL_S = 0.2


@dataclass
class Kills:
    """What was killed, and when: the share of lines that were done."""

    done: list[tuple[str, float]] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(f"{target} at {share:.0%}" for target, share in self.done)


class RunningCluster:
    """The cluster, as its clients and its enemies see it."""

    def __init__(self, config: ShoalConfig, home: Path, key: str) -> None:
        self._home = home
        url = f"http://127.0.0.1:{config.http.port}/v1"
        self.client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=60)

    async def insist(self, call: Any) -> Any:
        """Ask until it is answered: the ingress, or Redis behind it, may be dead just now."""
        while True:
            try:
                return await call()
            except (openai.APIConnectionError, openai.InternalServerError, openai.NotFoundError):
                await asyncio.sleep(_POLL_S)

    async def start(self, lines: list[bytes]) -> str:
        file = await self.insist(
            lambda: self.client.files.create(file=("in.jsonl", b"\n".join(lines)), purpose="batch")
        )
        batch = await self.insist(
            lambda: self.client.batches.create(
                input_file_id=file.id, endpoint=URL, completion_window="24h"
            )
        )
        return str(batch.id)

    async def look(self, batch_id: str) -> Any:
        return await self.insist(lambda: self.client.batches.retrieve(batch_id))

    async def results(self, batch: Any) -> list[dict[str, Any]]:
        """Of both files."""
        found = []
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = await self.insist(lambda i=file_id: self.client.files.content(i))
            found += [json.loads(line) for line in content.text.splitlines()]
        return found

    def kill(self, target: str) -> bool:
        """Whether there was one to kill."""
        if target == "Redis":
            state = json.loads((self._home / "redis" / "supervisor.json").read_text())
            pids = [state["server_pid"]] if state["server_pid"] else []
        else:
            ray_state = LocalRay(self._home).state()
            assert ray_state is not None
            pids = [
                process.pid
                for process in processes_of(ray_state)
                if _TITLES[target] in " ".join(process.cmdline())
            ]
        if not pids:
            return False
        os.kill(random.choice(pids), signal.SIGKILL)
        return True


def make_config(port: int, key: Any, *, num_replicas: int) -> ShoalConfig:
    return parse_config(
        {
            "models": [{"name": MODEL, "source": "demo", "num_replicas": num_replicas}],
            "http": {"port": port},
            "auth": {"api_keys": [key.stored.model_dump()]},
        }
    )


def make_lines(num: int) -> list[bytes]:
    rng = random.Random(0)
    lines = []
    for number in range(num):
        content = f"{rng.choice(_WISHES).format(rng.choice(_NAMES))} ({number})"
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 16,
            "temperature": 0,
        }
        line = {"custom_id": f"line-{number}", "method": "POST", "url": URL, "body": body}
        lines.append(json.dumps(line).encode())
    return lines


async def run_batch(
    cluster: RunningCluster, lines: list[bytes], *, kills: list[str]
) -> tuple[list[dict[str, Any]], Kills, float]:
    """The results of a batch during which these are killed; how it went; how many seconds."""
    started_s = time.monotonic()
    done = Kills()
    waiting = [
        (len(lines) * (position + random.random()) / (len(kills) + 1), target)
        for position, target in enumerate(kills)
    ]
    batch_id = await cluster.start(lines)
    while True:
        batch = await cluster.look(batch_id)
        if batch.status in _FINAL:
            break
        num_done = batch.request_counts.completed + batch.request_counts.failed
        if waiting and num_done >= waiting[0][0] and cluster.kill(waiting[0][1]):
            done.done.append((waiting.pop(0)[1], num_done / len(lines)))
        await asyncio.sleep(_POLL_S)
    print(f"  {batch.status}: {batch.request_counts.completed} completed,", end=" ")
    print(f"{batch.request_counts.failed} failed of {batch.request_counts.total}", flush=True)
    return await cluster.results(batch), done, time.monotonic() - started_s


def answers(results: list[dict[str, Any]]) -> dict[str, str]:
    found = {}
    for line in results:
        body = line["response"]["body"]
        status = line["response"]["status_code"]
        is_good = status == 200
        found[line["custom_id"]] = (
            body["choices"][0]["message"]["content"] if is_good else f"{status}: {body}"
        )
    return found


def problems(
    num_lines: int, results: list[dict[str, Any]], expected: list[dict[str, Any]]
) -> list[str]:
    counted = Counter(line["custom_id"] for line in results)
    names = [f"line-{number}" for number in range(num_lines)]
    found = [f"{name} is missing" for name in names if name not in counted]
    found += [f"{name} is there {times} times" for name, times in counted.items() if times > 1]
    found += [f"{name} was never asked for" for name in counted.keys() - set(names)]
    ours, theirs = answers(results), answers(expected)
    found += [
        f"{name} answers {ours[name]!r}, undisturbed {theirs.get(name)!r}"
        for name in ours
        if ours[name] != theirs.get(name)
    ]
    if [line["custom_id"] for line in results] != names:
        found.append("the lines are not in the input's order, or some are in the error file")
    return found


async def crash_batch(cluster: RunningCluster, num_lines: int, num_kills: int) -> list[str]:
    lines = make_lines(num_lines)
    print(f"{num_lines} lines, undisturbed:", flush=True)
    expected, _, undisturbed_s = await run_batch(cluster, lines, kills=[])
    print(f"  {undisturbed_s:.0f} s\n{num_lines} lines, {num_kills} kills:", flush=True)
    targets = list(TARGETS) * (num_kills // len(TARGETS) + 1)
    chosen = [*TARGETS, *random.sample(targets, len(targets))][:num_kills]
    random.shuffle(chosen)
    results, kills, disturbed_s = await run_batch(cluster, lines, kills=chosen)
    print(f"  {disturbed_s:.0f} s; killed: {kills}", flush=True)
    found = problems(num_lines, results, expected)
    if len(kills.done) < num_kills:
        found.append(f"the batch ended before all {num_kills} kills")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=12, help="at least 4 kill each part once")
    parser.add_argument("--replicas", type=int, default=1, help="of the model")
    parser.add_argument("--seed", type=int, help="of what is killed when; else chosen and said")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}")
    random.seed(seed)
    with tempfile.TemporaryDirectory(prefix="shoal-crash-") as folder:
        home = Path(folder)
        os.environ["SHOAL_HOME"] = folder
        key = load_or_create_key(home)
        config = make_config(free_port(), key, num_replicas=options.replicas)
        try:
            launch.up(config, say=lambda line: print(f"  {line}", flush=True))
            cluster = RunningCluster(config, home, key.text)
            found = asyncio.run(crash_batch(cluster, options.lines, options.kills))
        finally:
            launch.down()
    for problem in found[:20]:
        print(problem)
    print("every line once, as undisturbed" if not found else f"{len(found)} problems")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
