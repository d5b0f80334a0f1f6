"""A server or engine of somebody else in a process of its own, which rests between its turns."""

import atexit
import contextlib
import ctypes.util
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

#: vLLM compiles when it first sees a shape, which takes minutes where cores are shared.
START_TIMEOUT_S = 900.0
#: For vLLM's CPU build.
_VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}

#: Its package has another name than its distributions: vllm, vllm-cpu.
_SAY_VLLM_VERSION = """\
from importlib import metadata
for name in metadata.packages_distributions().get("vllm", ["vllm"])[:1]:
    print(name, metadata.version(name))
"""


def describe(name: str, *, vllm_python: str | None) -> str:
    """The version of a peer that is there, as it says."""
    if name == "transformers":
        return f"transformers: {importlib.metadata.version(name)}"
    if name == "vllm":
        command = [vllm_python or sys.executable, "-c", _SAY_VLLM_VERSION]
    else:
        command = ["llama-server", "--version"]
    said = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    ).stdout.split("\n", 1)[0]
    return f"{name}: {said}"


def vllm_environment(python: str, num_threads: int) -> dict[str, str]:
    """What vLLM's CPU build is to be started with, as its documentation says: its threads bound to
    cores, and tcmalloc and Intel's OpenMP loaded first where they are installed.

    `python`: the interpreter whose environment has it.
    """
    cores = sorted(os.sched_getaffinity(0))[:num_threads]
    openmp = Path(python).absolute().parents[1] / "lib" / "libiomp5.so"
    first = [ctypes.util.find_library("tcmalloc_minimal"), str(openmp) if openmp.is_file() else ""]
    sockets = tempfile.mkdtemp(prefix="shoal-vllm-")  # which it leaves behind when it is killed
    atexit.register(shutil.rmtree, sockets, ignore_errors=True)
    return {
        **_VLLM_ENVIRONMENT,
        "VLLM_RPC_BASE_PATH": sockets,
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "LD_PRELOAD": ":".join(library for library in first if library),
    }


def llama_command(
    gguf: Path, *, port: int, num_threads: int, num_slots: int, max_model_len: int
) -> list[str]:
    """llama.cpp's server with as many slots as there are requests at once, each of the full
    length."""
    threads = str(num_threads)
    command = ["llama-server", "-m", str(gguf), "-t", threads, "-tb", threads]
    command += ["-np", str(num_slots), "-c", str(num_slots * max_model_len)]
    command += ["-b", "2048", "-ub", "512", "--host", "127.0.0.1", "--port", str(port)]
    return command


class PeerProcess:
    """It heads a group that is stopped (SIGSTOP) and continued together."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], *, is_asked: bool
    ) -> None:
        """`environment`: what the caller's has already stays. `is_asked`: it answers lines on stdin
        with lines on stdout."""
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # `end` closes it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if is_asked else self._log,
            stderr=self._log,
            env={**environment, **os.environ},
            text=True,
            start_new_session=True,
        )

    def ask(self, line: str) -> str:
        """The next line of the answer, empty where the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(line, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            return ""
        return self._process.stdout.readline()

    def check(self) -> None:
        """
        Raises:
            RuntimeError: the process has ended.
        """
        if self._process.poll() is not None:
            raise RuntimeError(f"{self._process.args!r} ended: {self.last_words()}")

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        self._log.seek(0)
        return self._log.read()[-2000:].strip()

    def pause(self) -> None:
        """Returns when it has stopped, or ended."""
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    @contextmanager
    def awake(self) -> Iterator[None]:
        self.check()
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def end(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(self._process.pid, number)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def end_peers_when_ended() -> None:
    """SIGTERM ends this process as ctrl-C does, by an exception: peers are in process groups of
    their own, and some are stopped, so nothing else would end them."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def await_health(url: str, process: PeerProcess, title: str) -> None:
    """Return when `/health` says so.

    Raises:
        RuntimeError: the process ended, or is not ready in time; with its last words.
    """
    deadline_s = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=10) as client:
        while time.monotonic() < deadline_s:
            process.check()
            try:
                if client.get(f"{url}/health").is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
    raise RuntimeError(
        f"{title} was not ready after {START_TIMEOUT_S:.0f} s: {process.last_words()}"
    )
