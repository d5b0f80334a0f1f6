"""A model whose vectors are known in the head, and whose batches start when a test says so."""

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.embedding.batching import BatchLimits, BatchShape

Row = Sequence[int]


class FakeComputer:
    """The vector of a row is its first token and its length."""

    width = 2

    def __init__(self, *, max_tokens: int = 2048, step_tokens: int = 0) -> None:
        self.batch_limits = BatchLimits(max_tokens=max_tokens, step_tokens=step_tokens)
        self.batches: list[list[Row]] = []
        self.errors: list[Exception] = []  # raised by the next batches
        self.tokens_per_s: float | None = None  # moves `now_s`
        self.now_s = 0.0
        self._gate = threading.Event()
        self._gate.set()
        self._permits = threading.Semaphore(0)
        self._started = threading.Semaphore(0)

    def compute(self, rows: Sequence[Row], shape: BatchShape) -> NDArray[np.float32]:
        self.batches.append(list(rows))
        self._started.release()
        if not self._gate.is_set():
            self._permits.acquire()
        if self.tokens_per_s is not None:
            self.now_s += shape.num_tokens / self.tokens_per_s
        if self.errors:
            raise self.errors.pop(0)
        return np.array([[row[0], len(row)] for row in rows], dtype=np.float32)

    def clock(self) -> float:
        return self.now_s

    def hold(self) -> None:
        """From now on each batch waits for `let_pass`."""
        self._gate.clear()

    def let_pass(self, num_batches: int = 1) -> None:
        self._permits.release(num_batches)

    def open(self) -> None:
        """Nothing waits any more."""
        self._gate.set()
        self._permits.release(1000)

    async def batch_has_started(self) -> list[Row]:
        """Wait for the next one; its rows."""
        await asyncio.to_thread(self._started.acquire)
        return self.batches[-1]
