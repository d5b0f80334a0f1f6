"""A cluster of a benchmark's own: own SHOAL_HOME, own port, own key; stopped when it is done."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from cluster.config import shoal_home

API_KEY = "shoal-benchmark-key"


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """Where it answers, and where it keeps its files."""

    url: str
    home: Path

    def pause(self) -> None:
        """Stop all of its processes, Ray's too, where they stand."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in cluster_processes(self.home):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def cluster_processes(home: Path) -> list[psutil.Process]:
    """Every process of the cluster with this SHOAL_HOME."""
    return [
        process
        for process in psutil.process_iter(["environ"])
        if (process.info["environ"] or {}).get("SHOAL_HOME") == str(home)
    ]


@contextmanager
def running_cluster(
    config: Mapping[str, object], *, port: int, redis_url: str | None = None
) -> Iterator[RunningCluster]:
    """`shoal up` with a configuration, `shoal down` at the end. Without a Redis it has its own."""
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as home:
        _share_kernels(Path(home))
        path = Path(home) / "shoal.yaml"
        path.write_text(yaml.safe_dump(dict(config)))
        environ = {**os.environ, "SHOAL_HOME": home, "SHOAL_PORT": str(port)}
        environ["SHOAL_API_KEY"] = API_KEY
        if redis_url is not None:
            environ["SHOAL_REDIS_URL"] = redis_url
        shoal = [sys.executable, "-c", "from cluster.cli import main; main()"]
        subprocess.run([*shoal, "up", "--config", str(path)], env=environ, check=True)
        cluster = RunningCluster(f"http://127.0.0.1:{port}", Path(home))
        try:
            yield cluster
        finally:
            cluster.resume()
            subprocess.run([*shoal, "down"], env=environ, check=True)


def _share_kernels(home: Path) -> None:
    """Compiled CPU kernels are the same for every home (their names are hashes); compiling them
    takes most of a start."""
    kernels = shoal_home() / "native"
    kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / "native").symlink_to(kernels)
