"""Embedding calls of many callers on one thread, in batches: bounded, urgent ones first.

The event loop's side admits calls and collects what comes back; the thread only computes. A call
whose caller leaves is forgotten, but for rows that are being computed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InternalError, TooManyRequestsError
from cluster.retrieval import InputKind
from deployments.embedding_lanes import Batch, EmbeddingLanes, WaitingCall, lanes_before
from models.embedding.batching import BatchLimits, BatchShape

logger = logging.getLogger(__name__)

BATCH_TARGET_S = 0.1  # a query waits for one batch of passages: it should not be longer
_MIN_BATCH_TOKENS = 64
_MIN_MEASURED_TOKENS = 256  # of smaller batches the fixed costs are most
_FIRST_TOKENS_PER_S = 10_000.0  # assumed until measured
_MAX_RETRY_AFTER_S = 60.0
_MAX_FAILED_BATCHES = 3  # in a row; then the device or the process is past hope


class BatchComputer(Protocol):
    """What the queue needs of a `TextEmbedder`."""

    @property
    def width(self) -> int: ...

    @property
    def batch_limits(self) -> BatchLimits: ...

    def compute(self, rows: Sequence[Sequence[int]], shape: BatchShape) -> NDArray[np.float32]: ...


class EmbeddingQueue:
    """`start` it on the loop that calls it; `drain` and `stop` it there too."""

    def __init__(
        self,
        computer: BatchComputer,
        *,
        max_queued_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._computer = computer
        self._max_queued_tokens = max_queued_tokens
        self._clock = clock
        self._lanes = EmbeddingLanes()
        self._calls: dict[WaitingCall, AdmittedCall] = {}  # in a lane or being computed
        self._num_tokens = dict.fromkeys(InputKind, 0)  # admitted and not computed yet
        self._has_work = asyncio.Event()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._num_admitted = 0
        self._num_failed_in_row = 0
        self._tokens_per_s = _FIRST_TOKENS_PER_S
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedding")
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self._run(), name="embedding queue")

    async def drain(self) -> None:
        """Wait until every admitted call has its answer."""
        await self._is_empty.wait()

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: nothing is computed any more.
        """
        if self._running is None or self._running.done():
            raise RuntimeError("the embedding queue does not run")
        if self._num_failed_in_row >= _MAX_FAILED_BATCHES:
            raise RuntimeError(f"{self._num_failed_in_row} batches failed one after the other")

    @property
    def num_queued_tokens(self) -> int:
        return sum(self._num_tokens.values())

    @property
    def queued_s(self) -> float:
        """About how long the queued tokens take."""
        return self.num_queued_tokens / self._tokens_per_s

    def admit(self, kind: InputKind, *, num_tokens: int) -> "AdmittedCall":
        """Make room for a call of about so many tokens; use it as a context.

        A call is refused when the tokens that go before it, with its own, are more than are kept;
        batches are so refused before passages, and those before queries. One that nothing goes
        before is always admitted.

        Raises:
            TooManyRequestsError: has `retry_after_s`.
        """
        before = sum(self._num_tokens[lane] for lane in lanes_before(kind))
        if before and before + num_tokens > self._max_queued_tokens:
            wait_s = min(max(1.0, before / self._tokens_per_s), _MAX_RETRY_AFTER_S)
            raise TooManyRequestsError(
                f"{before} tokens wait to be embedded; with these {num_tokens} they would be more "
                f"than the {self._max_queued_tokens} that are kept.",
                retry_after_s=wait_s,
            )
        return AdmittedCall(self, kind, num_tokens)

    # Of AdmittedCall.

    def _count(self, kind: InputKind, num_tokens: int) -> None:
        self._num_tokens[kind] += num_tokens

    def _enter(self) -> None:
        self._num_admitted += 1
        self._is_empty.clear()

    def _leave(self, call: "AdmittedCall") -> None:
        if call.waiting is not None:
            self._lanes.discard(call.waiting, call.kind)
            self._calls.pop(call.waiting, None)
        self._num_admitted -= 1
        if not self._num_admitted:
            self._is_empty.set()

    def _submit(self, call: "AdmittedCall", waiting: WaitingCall) -> None:
        self._calls[waiting] = call
        self._lanes.add(waiting, call.kind)
        self._has_work.set()

    # The loop.

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = self._lanes.next_batch(self._limits())
            if batch is None:
                self._has_work.clear()
                await self._has_work.wait()
                continue
            started_s = self._clock()
            try:
                vectors_ND = await loop.run_in_executor(
                    self._thread, self._computer.compute, batch.tokens(), batch.shape
                )
            except Exception:  # whatever a device raises: those who wait are told, others go on
                self._num_failed_in_row += 1
                logger.exception("a batch of %s failed", batch.shape)
                self._fail(batch)
                continue
            self._num_failed_in_row = 0
            self._measure(batch.shape, self._clock() - started_s)
            self._deliver(batch, vectors_ND)

    def _limits(self) -> BatchLimits:
        """The computer's own, and no more tokens than take about `BATCH_TARGET_S`."""
        limits = self._computer.batch_limits
        in_time = max(_MIN_BATCH_TOKENS, int(self._tokens_per_s * BATCH_TARGET_S))
        return replace(limits, max_tokens=min(limits.max_tokens, in_time))

    def _measure(self, shape: BatchShape, elapsed_s: float) -> None:
        if shape.num_tokens >= min(_MIN_MEASURED_TOKENS, self._limits().max_tokens // 2):
            now = shape.num_tokens / max(elapsed_s, 1e-6)
            self._tokens_per_s += 0.2 * (now - self._tokens_per_s)

    def _deliver(self, batch: Batch, vectors_ND: NDArray[np.float32]) -> None:
        is_finite_N = np.isfinite(vectors_ND.sum(axis=1))
        for (waiting, index), vector_D, is_finite in zip(
            batch.rows, vectors_ND, is_finite_N, strict=True
        ):
            call = self._calls.get(waiting)
            if call is None:
                continue  # its caller has left
            if is_finite:
                call.take(index, vector_D)
            else:
                call.fail(InternalError(f"The model gives no finite numbers for input.{index}."))

    def _fail(self, batch: Batch) -> None:
        for waiting, _ in batch.rows:
            call = self._calls.get(waiting)
            if call is not None:
                call.fail(InternalError("The texts could not be embedded; the log has the reason."))


class AdmittedCall:
    """A call's place in the queue, from its admission to its end."""

    def __init__(self, queue: EmbeddingQueue, kind: InputKind, num_tokens: int) -> None:
        self.kind = kind
        self.waiting: WaitingCall | None = None
        self._queue = queue
        self._num_tokens = 0  # still counted in the queue
        self._num_expected = num_tokens
        self._num_missing = 0
        self._vectors_ND: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
        self._done: asyncio.Future[None] | None = None

    def __enter__(self) -> Self:
        self._queue._enter()
        self._recount(self._num_expected)
        return self

    def __exit__(self, *_: object) -> None:
        self._recount(0)
        self._queue._leave(self)

    async def compute(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The vectors [N, D] of these rows of tokens, at least one.

        Raises:
            InternalError: the model failed.
        """
        self._recount(sum(len(row) for row in rows))
        self._vectors_ND = np.empty((len(rows), self._queue._computer.width), dtype=np.float32)
        self._num_missing = len(rows)
        self._done = asyncio.get_running_loop().create_future()
        self.waiting = WaitingCall(rows)
        self._queue._submit(self, self.waiting)
        await self._done
        return self._vectors_ND

    def take(self, index: int, vector_D: NDArray[np.float32]) -> None:
        """A row's vector has come."""
        assert self.waiting is not None
        assert self._done is not None
        self._vectors_ND[index] = vector_D
        self._num_missing -= 1
        self._recount(self._num_tokens - len(self.waiting.rows[index]))
        if not self._num_missing and not self._done.done():
            self._done.set_result(None)

    def fail(self, error: InternalError) -> None:
        assert self._done is not None
        if not self._done.done():
            self._done.set_exception(error)

    def _recount(self, num_tokens: int) -> None:
        self._queue._count(self.kind, num_tokens - self._num_tokens)
        self._num_tokens = num_tokens
