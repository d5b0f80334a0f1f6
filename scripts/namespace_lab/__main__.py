"""`ray up` in a laboratory of namespaces, watched and checked: see `scripts/ray_up_namespaces`.

Runs as the first process of a process namespace, in a network and mount namespace of its own.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scripts.namespace_lab.checks import (
    Api,
    check_only_the_api_is_open,
    check_status,
    check_token_is_needed,
    check_worker_joins_and_leaves,
)
from scripts.namespace_lab.cluster_files import API_PORT, write_cluster_files
from scripts.namespace_lab.hosts import ROOT, Host, Lab, LabError

UP_TIMEOUT_S = 600.0
DOWN_TIMEOUT_S = 180.0


class Progress:
    """Says what is done, with the seconds since the start."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started_s:6.1f} s] {text}", file=sys.stderr, flush=True)

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        self.say(f"{text} …")
        started_s = time.monotonic()
        yield
        self.say(f"{text}: done in {time.monotonic() - started_s:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/ray_up_namespaces")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--times", type=positive, default=2)
    parser.add_argument("--keep-logs", action="store_true")
    options = parser.parse_args()
    progress = Progress()
    lab = Lab(options.folder)
    hosts: list[Host] = []
    try:
        lab.build()
        hosts += [lab.start_host(name) for name in ("head", "worker-1", "worker-2")]
        head, *workers = hosts
        stranger = lab.start_stranger()
        progress.say(f"hosts: {', '.join(f'{h.name} {h.address}' for h in hosts)}")
        for number in range(1, options.times + 1):
            progress.say(f"round {number} of {options.times}")
            one_round(lab, head, workers, stranger, progress)
    except (LabError, subprocess.TimeoutExpired) as error:
        progress.say(f"FAILED: {error}")
        save_logs(options.folder, hosts)
        progress.say(f"logs: {options.folder}")
        sys.exit(1)
    progress.say(f"all of it worked, {options.times} times from clean")
    if not options.keep_logs:
        shutil.rmtree(options.folder, ignore_errors=True)


def positive(text: str) -> int:
    """
    Raises:
        ValueError: it is no number above 0.
    """
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def one_round(
    lab: Lab, head: Host, workers: list[Host], stranger: Host, progress: Progress
) -> None:
    """From hosts where nothing runs to hosts where nothing runs.

    Raises:
        LabError: something is not as it should be.
    """
    cluster_file = write_cluster_files(lab, head, workers)
    with progress.phase("ray up"):
        ray(lab, "up", "-y", str(cluster_file), "--no-config-cache", timeout_s=UP_TIMEOUT_S)
    key = (lab.folder / "keys" / "api_key").read_text().strip()
    with Api(f"http://{head.address}:{API_PORT}", key) as api:
        progress.say(f"the API answered: {api.chat('Hello!')!r}")
        with progress.phase("a stranger tries every port"):
            progress.say(check_only_the_api_is_open([head], workers[0], stranger, API_PORT))
            check_token_is_needed(head)
        check_status(head)
        check_worker_joins_and_leaves(api, workers, progress.say)
    with progress.phase("ray down"):
        ray(lab, "down", "-y", str(cluster_file), timeout_s=DOWN_TIMEOUT_S)
    for host in (head, *workers):
        left = host.processes()
        if left:
            raise LabError(f"{host.name}: still running after `ray down`: {left}")


def ray(lab: Lab, *arguments: str, timeout_s: float) -> None:
    """A `ray` command of the launching host, its output in the laboratory's log.

    Raises:
        LabError: it failed; with the end of its output.
    """
    log_path = lab.folder / f"ray-{arguments[0]}.log"
    home = lab.folder / "launcher"
    home.mkdir(exist_ok=True)
    environment = {
        **{name: v for name, v in os.environ.items() if not name.startswith(("RAY_", "SHOAL_"))},
        "HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "RAY_UP_enable_autoscaler_v2": "1",  # the default, said so that ray does not explain it
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with log_path.open("ab") as log:
        done = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            timeout=timeout_s,
            check=False,
        )
    if done.returncode != 0:
        tail = log_path.read_text(errors="replace").splitlines()[-25:]
        raise LabError("\n".join([f"ray {arguments[0]} ended with {done.returncode}:", *tail]))


def save_logs(folder: Path, hosts: Sequence[Host]) -> None:
    """What Ray and Shoal wrote on the hosts, which is in memory only."""
    for host in hosts:
        root = Path(f"/proc/{host.init_pid()}/root")
        for pattern in ("root/.shoal/logs", "tmp/ray/session_2*/logs"):
            for source in root.glob(pattern):
                target = folder / "logs" / host.name / source.parts[-2]
                shutil.copytree(source, target, dirs_exist_ok=True, ignore_dangling_symlinks=True)


if __name__ == "__main__":
    main()
