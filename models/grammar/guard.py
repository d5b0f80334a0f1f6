"""A process of its own that tries a grammar first, so that a hostile one hurts nobody else.

    python -m models.grammar.guard FD      (started by `GrammarGuard`, speaks over socket FD)

The child checks the client's text, compiles it and probes the first steps, under an address-space
limit and on a small stack. The time limit is of the processor's time: a busy machine refuses no
grammar that a quiet one takes. A child that has used it up, that is silent for many times as long,
or dead, is killed, and the next grammar gets a fresh one. What passes comes back as source text
that is known to compile quickly.
"""

import random
import select
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import psutil
from llguidance import LLMatcher, LLTokenizer

from cluster.types import GrammarSpec
from models.child_process import limit_memory, receive_frame, send_frame, start_child
from models.grammar.errors import GrammarError
from models.grammar.limits import GrammarLimits
from models.grammar.source import grammar_source, shorten
from models.grammar.vocabulary import load_vocabulary

START_TIMEOUT_S = 120.0  # imports and a large tokenizer on a loaded machine
_PATIENCE = 10  # times the limit of the processor's time, by the clock
_LOOK_AGAIN_S = 0.05
# Threads of the back end's pool have 2 MiB; what overflows that must overflow here.
_STACK_BYTES = 2 * 1024 * 1024

Message = TypeVar("Message", bound=msgspec.Struct)


class GuardSetup(msgspec.Struct, frozen=True, kw_only=True):
    """Which vocabulary to compile for, and how much a grammar may cost."""

    tokenizer_file: str
    vocab_size: int
    eos_token_ids: list[int]
    limits: GrammarLimits


class GuardVerdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The source text of a grammar that is safe to compile, or why it is refused."""

    source: str = ""
    refusal: str | None = None


class GrammarGuard:
    """The parent's end. One grammar at a time; `close` when done."""

    def __init__(self, setup: GuardSetup) -> None:
        """Starts the child and does not wait for it."""
        self._setup = setup
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._start()

    def examine(self, spec: GrammarSpec) -> str:
        """Source text that compiles within the limits.

        Raises:
            GrammarError: the grammar is refused, takes too long or too much memory.
        """
        if self._process is None:
            self._start()
        self._await_ready()
        timeout_s = self._setup.limits.compile_timeout_s
        try:
            self._send(spec)
            self._await_answer()
            verdict = self._receive(GuardVerdict, _PATIENCE * timeout_s)
        except TimeoutError as error:
            self.close()
            raise GrammarError(f"compiling takes longer than {timeout_s:g} s") from error
        except OSError as error:
            self.close()
            raise GrammarError("compiling takes too much memory or is nested too deeply") from error
        if verdict.refusal is not None:
            raise GrammarError(verdict.refusal)
        return verdict.source

    def close(self) -> None:
        """Kill the child, if there is one. A later `examine` starts another."""
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is not None:
            process.kill()
            process.wait()

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _start(self) -> None:
        self._process, self._socket = start_child("models.grammar.guard")
        self._is_ready = False
        self._send(self._setup)

    def _await_ready(self) -> None:
        if self._is_ready:
            return
        try:
            self._receive(GuardVerdict, START_TIMEOUT_S)
        except OSError as error:
            self.close()
            raise RuntimeError("the grammar guard did not start; see its error output") from error
        self._is_ready = True

    def _await_answer(self) -> None:
        """
        Raises:
            TimeoutError: the child has used up its time, or is silent for too long.
        """
        assert self._socket is not None
        limit_s = self._setup.limits.compile_timeout_s
        end_s = self._processor_s() + limit_s
        deadline = time.monotonic() + _PATIENCE * limit_s
        left_s = limit_s
        while not select.select([self._socket], [], [], left_s)[0]:
            if self._processor_s() >= end_s or time.monotonic() >= deadline:
                raise TimeoutError
            left_s = max(_LOOK_AGAIN_S, end_s - self._processor_s())

    def _processor_s(self) -> float:
        """What the child has used since its start."""
        assert self._process is not None
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:  # it has died: its socket says so
            return 0.0
        return float(times.user + times.system)

    def _send(self, message: msgspec.Struct) -> None:
        assert self._socket is not None
        self._socket.settimeout(_PATIENCE * self._setup.limits.compile_timeout_s)
        send_frame(self._socket, message)

    def _receive(self, kind: type[Message], timeout_s: float) -> Message:
        assert self._socket is not None
        return receive_frame(self._socket, kind, deadline=time.monotonic() + timeout_s)


def probe(matcher: LLMatcher, limits: GrammarLimits, vocab_size: int) -> None:
    """Walk the first steps as a model might and time each.

    Raises:
        GrammarError: a step takes too long, goes over the counted limits, or nothing is allowed.
    """
    row = np.zeros((vocab_size + 31) // 32, dtype=np.int32)
    chooser = random.Random(0)
    for _ in range(limits.probe_steps):
        started_s = time.thread_time()
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
        if not matcher.is_error() and not allowed.size:
            raise GrammarError("it leads to a place where no token of this model may follow")
        is_at_end = matcher.is_stopped()
        if not is_at_end:
            matcher.consume_token(int(chooser.choice(allowed)))
        if matcher.is_error():
            raise GrammarError(f"too complex to generate from: {shorten(matcher.get_error())}")
        if time.thread_time() - started_s > limits.max_probe_step_s:
            raise GrammarError("too complex to generate from: a step takes too long")
        if is_at_end:
            break


def _serve(connection: socket.socket) -> None:
    setup = receive_frame(connection, GuardSetup, deadline=None)
    vocabulary = load_vocabulary(
        Path(setup.tokenizer_file),
        vocab_size=setup.vocab_size,
        eos_token_ids=frozenset(setup.eos_token_ids),
    )
    limit_memory(setup.limits.guard_memory_bytes)
    send_frame(connection, GuardVerdict())
    while True:
        try:
            spec = receive_frame(connection, GrammarSpec, deadline=None)
        except ConnectionResetError:
            return  # the parent is done with this guard, or gone
        send_frame(connection, _examine(spec, setup, vocabulary))


def _examine(spec: GrammarSpec, setup: GuardSetup, vocabulary: LLTokenizer) -> GuardVerdict:
    try:
        source = grammar_source(spec)
        probe(setup.limits.new_matcher(vocabulary, source), setup.limits, setup.vocab_size)
    except GrammarError as error:
        return GuardVerdict(refusal=str(error))
    except MemoryError:
        return GuardVerdict(refusal="compiling takes too much memory")
    return GuardVerdict(source=source)


def main() -> None:
    """Serve the parent on the socket whose number is the argument."""
    threading.stack_size(_STACK_BYTES)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        server = threading.Thread(target=_serve, args=(connection,))
        server.start()
        server.join()


if __name__ == "__main__":
    main()
