"""A batch on a real cluster whose parts are killed at random moments: does each line come once?

    python -m scripts.crash_batch --lines 20000
    python -m scripts.crash_batch --lines 500 --kills 4 --seed 7

Starts a cluster with the demo model in a home of its own, runs a batch undisturbed, then the same
batch again while the task worker, a model replica, Redis and the ingress are killed (SIGKILL), each
at least once, at random moments of the time that the undisturbed run took; one that is not back yet
is killed as soon as it is. In the end every `custom_id` must be there once, with the answer of the
undisturbed run (temperature 0, and `deterministic` logits). Says what it saw; exit status 1 when
something was lost, doubled or changed, or when a part was not killed.
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
    """What is to be killed how often, over how many seconds; and what was, after how many."""

    counts: dict[str, int]
    within_s: float
    done: list[tuple[str, float]] = field(default_factory=list)

    def __str__(self) -> str:
        return ", ".join(f"{target} after {at_s:.0f} s" for target, at_s in self.done)

    async def carry_out(self, cluster: "RunningCluster") -> None:
        started_s = time.monotonic()

        async def kill_each(target: str, num: int) -> None:
            for at_s in sorted(random.uniform(0, self.within_s) for _ in range(num)):
                await asyncio.sleep(max(0.0, started_s + at_s - time.monotonic()))
                while True:
                    if cluster.kill(target):
                        break
                    await asyncio.sleep(_POLL_S)
                self.done.append((target, time.monotonic() - started_s))

        await asyncio.gather(*(kill_each(*pair) for pair in self.counts.items()))


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
            "models": [
                {
                    "name": MODEL,
                    "source": "demo",
                    "num_replicas": num_replicas,
                    # In bfloat16 two tokens may be equally likely but for the rounding, which
                    # otherwise depends on what else is in the batch.
                    "engine": {"deterministic": True},
                }
            ],
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
    cluster: RunningCluster, lines: list[bytes], kills: Kills
) -> tuple[list[dict[str, Any]], float]:
    """The results of a batch during which these are killed, and how many seconds it took."""
    started_s = time.monotonic()
    batch_id = await cluster.start(lines)
    killing = asyncio.create_task(kills.carry_out(cluster))
    while True:
        batch = await cluster.look(batch_id)
        if batch.status in _FINAL:
            break
        await asyncio.sleep(_POLL_S)
    elapsed_s = time.monotonic() - started_s
    killing.cancel()
    await asyncio.gather(killing, return_exceptions=True)
    print(f"  {batch.status}: {batch.request_counts.completed} completed,", end=" ")
    print(f"{batch.request_counts.failed} failed of {batch.request_counts.total}", end=", ")
    print(f"{elapsed_s:.0f} s", flush=True)
    return await cluster.results(batch), elapsed_s


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
    expected, undisturbed_s = await run_batch(cluster, lines, Kills({}, 0.0))
    print(f"{num_lines} lines, {num_kills} kills:", flush=True)
    counts = Counter([*TARGETS, *random.choices(TARGETS, k=num_kills - len(TARGETS))])
    kills = Kills(dict(counts), 0.8 * undisturbed_s)
    results, _ = await run_batch(cluster, lines, kills)
    print(f"  killed: {kills}", flush=True)
    missed = set(TARGETS) - {target for target, _ in kills.done}
    found = [f"no {target} was killed: use more lines" for target in sorted(missed)]
    return found + problems(num_lines, results, expected)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=12, help="at least 4: one of each part")
    parser.add_argument("--replicas", type=int, default=1, help="of the model")
    parser.add_argument("--seed", type=int, help="of what is killed when; else chosen and said")
    options = parser.parse_args()
    if options.kills < len(TARGETS):
        parser.error(f"--kills must be at least {len(TARGETS)}")
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
