"""Ranks in threads of the test's process: the real worker, sockets and gloo, without the seconds
that each new process takes to load torch.
"""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cluster.config import EngineConfig
from models.engine.engine import Engine
from models.engine.runner import Runner
from models.grammar.compiler import GrammarCompiler
from models.parallel import rank_link
from models.parallel import runner as runner_module
from models.parallel.rank_link import RankLink
from models.parallel.runner import TPRunner
from models.parallel.worker import TPWorker


class RankThread:
    """Satisfies `RankHandle`: a thread that follows one end of a connection."""

    pid = 0

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ending(self) -> str | None:
        return None if self._thread.is_alive() else "ended with exit status 0"

    def wait_s(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def kill(self) -> None:
        """The thread reads no further step."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        with self._connection:
            TPWorker(self._connection).run()


def start_rank_threads(size: int) -> list[RankLink]:
    links = []
    for rank in range(1, size):
        mine, theirs = socket.socketpair()
        links.append(RankLink(rank, RankThread(theirs), mine, device_index=0))
    return links


@contextmanager
def patient_ranks(step_timeout_s: float = 120.0) -> Iterator[None]:
    """Limits that only what is broken reaches: a busy machine is no rank that hangs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "STEP_TIMEOUT_S", step_timeout_s)
        patch.setattr(runner_module, "_SETTLING_TIMEOUT_S", 60.0)
        patch.setattr(rank_link, "_END_TIMEOUT_S", 60.0)
        yield


@contextmanager
def parallel_runner(
    folder: Path,
    size: int,
    *,
    dtype: str = "float32",
    quantization: str = "auto",
    step_timeout_s: float = 120.0,
    **config: object,
) -> Iterator[TPRunner]:
    """A group of threads; torch's own threads are as before afterwards."""
    num_threads = torch.get_num_threads()
    with patient_ranks(step_timeout_s):
        try:
            runner = TPRunner(
                folder,
                engine_config(**config),
                ranks=start_rank_threads(size),
                dtype=dtype,
                device="cpu",
                quantization=quantization,
            )
            try:
                yield runner
            finally:
                runner.close()
        finally:
            torch.set_num_threads(num_threads)


def engine_config(**config: object) -> EngineConfig:
    return EngineConfig(**{"max_model_len": 256, "max_num_seqs": 48, **config})  # type: ignore[arg-type]


def engine_on(runner: Runner, compiler: GrammarCompiler | None = None, **config: object) -> Engine:
    """An engine of its own on a runner that several may use, one after the other."""
    return Engine(runner, engine_config(**config), grammar_compiler=compiler)
