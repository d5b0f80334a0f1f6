"""The engine on a thread of its own, seen from an asyncio loop.

The engine thread steps as long as there is work. Commands reach it through a queue; what a step
produced comes back to the loop in one call. A request's lifetime is that of its stream: closing
the iterator of `generate`, or calling `abort`, frees its blocks.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster.errors import (
    BadRequestError,
    EngineGoneError,
    InternalError,
    ServingError,
)
from cluster.types import PRIORITY_BATCH, GrammarSpec, Request, TokenDelta
from models.engine.admission import Admission
from models.engine.deltas import StepDeltas
from models.engine.engine import Engine, EngineStats
from models.engine.outlet import Outlet, TokenColumns
from models.grammar.compiler import CompiledGrammar

logger = logging.getLogger(__name__)

OnDelta = Callable[[TokenDelta | ServingError], None]

_STATS_PERIOD_S = 0.1
_RETRY_AFTER_S = 1.0
_NUM_COMPILERS = 4


@dataclass(frozen=True, slots=True)
class _Add:
    request: Request
    grammar: CompiledGrammar | None
    outlet: Outlet
    key: object


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str
    index: int | None


@dataclass(frozen=True, slots=True)
class _Wake:
    """An adapter was read."""


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class _Stream:
    """Who hears of one request, and how much of it is still to come."""

    __slots__ = ("admission", "has_started", "key", "on_delta", "open_indices", "outlet")

    def __init__(
        self,
        on_delta: OnDelta,
        indices: Iterable[int],
        admission: Admission,
        *,
        outlet: Outlet,
        key: object,
    ) -> None:
        self.on_delta = on_delta
        self.admission = admission
        self.outlet = outlet
        self.key = key
        self.open_indices = set(indices)  # neither finished nor aborted
        self.has_started = False


class AsyncEngine:
    """Every method but the constructor is called in the loop's thread."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_num_queued_requests: int = 2048,
        max_num_queued_tokens: int = 2**22,
    ) -> None:
        """The limits hold for online and for batch requests, each by themselves."""
        self._engine = engine
        self._online, self._batch = (
            Admission(max_requests=max_num_queued_requests, max_tokens=max_num_queued_tokens)
            for _ in range(2)
        )
        self._commands: queue.SimpleQueue[_Add | _Abort | _Wake | _Stop] = queue.SimpleQueue()
        engine.set_adapter_listener(lambda: self._commands.put(_Wake()))
        self._streams: dict[str, _Stream] = {}
        self._outlet = Outlet(self._deliver_tokens)  # of those who have none of their own
        self._listeners: list[Callable[[], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = asyncio.Event()
        self._compilers = ThreadPoolExecutor(_NUM_COMPILERS, thread_name_prefix="grammar")
        self._failure: BaseException | None = None
        self._stats = engine.stats()
        self._stats_at_s = 0.0

    @property
    def max_model_len(self) -> int:
        return self._engine.max_model_len

    @property
    def num_open_requests(self) -> int:
        return len(self._streams)

    def start(self) -> None:
        """Begin stepping; deltas arrive in the running loop."""
        assert self._thread is None, "an engine is started once"
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End every stream with an error, and the thread after its current step."""
        if self._thread is None:
            return
        self._commands.put(_Stop())
        await self._stopped.wait()
        self._compilers.shutdown(wait=False, cancel_futures=True)
        self._engine.close()

    def submit(
        self,
        request: Request,
        on_delta: OnDelta,
        *,
        outlet: Outlet | None = None,
        key: object = None,
    ) -> None:
        """Hand a request to the engine. `on_delta` is called in the loop's thread with every delta
        of each of its sequences; a `ServingError` instead ends the stream. Where an outlet is
        given, it takes, under the key, the tokens of which there is nothing more to say: nearly
        all of them, but no sequence's first or last.

        Raises:
            ServiceUnavailableError: the queue is full.
            EngineGoneError: the engine has stopped or failed.
            BadRequestError: the request id is in use, or the engine can never serve the request.
        """
        self._check_running()
        if request.request_id in self._streams:
            raise BadRequestError(f"the request id {request.request_id!r} is in use")
        self._engine.check_request(request)
        admission = self._online if request.priority < PRIORITY_BATCH else self._batch
        admission.admit(request)
        if outlet is None:
            outlet, key = self._outlet, request.request_id
        stream = _Stream(on_delta, request.indices, admission, outlet=outlet, key=key)
        self._streams[request.request_id] = stream
        if request.sampling_params.grammar is None:
            self._send(_Add(request, None, outlet, key))
        else:
            self._compile_then_add(request, request.sampling_params.grammar)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request; no further calls of its `on_delta`. Unknown ids are no error.

        With an index, drop that sequence alone: it gets no end, and the request ends with the
        others. Tokens that were under way may still come.
        """
        stream = self._streams.get(request_id)
        if stream is None:
            return
        if index is not None:
            if index not in stream.open_indices:
                return
            stream.open_indices.remove(index)
        if index is None or not stream.open_indices:
            self._forget(request_id)
            index = None
        self._commands.put(_Abort(request_id, index))

    def add_step_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` in the loop's thread after all deltas of a step were handed out."""
        self._listeners.append(listener)

    async def generate(self, request: Request) -> AsyncIterator[TokenDelta]:
        """Yield deltas until every sequence of the request has finished. Closing the iterator
        aborts the request.

        Raises:
            ServingError: as `submit`, or because the engine failed midway.
        """
        deltas: asyncio.Queue[TokenDelta | ServingError] = asyncio.Queue()
        self.submit(request, deltas.put_nowait)
        stream = self._streams[request.request_id]
        try:
            while stream.open_indices or not deltas.empty():
                delta = await deltas.get()
                if isinstance(delta, ServingError):
                    raise delta
                yield delta
        finally:
            self.abort(request.request_id)

    def stats(self) -> EngineStats:
        """The newest snapshot, at most a tenth of a second old while the engine steps."""
        return self._stats

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: the engine's thread has ended, or a rank that it needs.
        """
        if self._failure is not None:
            raise RuntimeError("the engine failed") from self._failure
        if self._thread is None or not self._thread.is_alive():
            raise RuntimeError("the engine is not running")
        self._engine.check_health()

    # -- in the loop's thread ------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._failure is not None or self._thread is None or self._stopped.is_set():
            raise EngineGoneError(
                "this replica's engine is not running", retry_after_s=_RETRY_AFTER_S
            )

    def _send(self, command: _Add) -> None:
        """To the engine's thread, which gives up a step of batch sequences for an online one."""
        self._commands.put(command)
        if command.request.priority < PRIORITY_BATCH:
            self._engine.interrupt()

    def _compile_then_add(self, request: Request, spec: GrammarSpec) -> None:
        """The request waits for its grammar outside of the engine, and delays no one there."""
        assert self._loop is not None
        stream = self._streams[request.request_id]
        compiling = self._loop.run_in_executor(self._compilers, self._engine.compile_grammar, spec)

        def done(future: asyncio.Future[CompiledGrammar]) -> None:
            if future.cancelled() or self._streams.get(request.request_id) is not stream:
                return  # aborted meanwhile
            error = future.exception()
            if error is None:
                self._send(_Add(request, future.result(), stream.outlet, stream.key))
            elif isinstance(error, ServingError):
                self._deliver_error(request.request_id, error)
            else:
                logger.error("compiling a grammar failed", exc_info=error)
                self._deliver_error(
                    request.request_id, InternalError("the grammar could not be compiled")
                )

        compiling.add_done_callback(done)

    def _deliver(self, step: StepDeltas) -> None:
        for outlet, columns in step.columns:
            assert outlet.deliver is not None, "an engine with a loop delivers"
            outlet.deliver(columns)
        for delta in step.deltas:
            stream = self._streams.get(delta.request_id)
            if stream is not None:  # not aborted while the step ran
                self._deliver_delta(stream, delta)
        for request_id, error in step.failures.items():
            self._deliver_error(request_id, error)
        for listener in self._listeners:
            listener()

    def _deliver_tokens(self, columns: TokenColumns) -> None:
        for request_id, index, token_id in zip(
            columns.keys, columns.indices, columns.token_ids, strict=True
        ):
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.on_delta(TokenDelta(request_id, index, [token_id]))

    def _deliver_delta(self, stream: _Stream, delta: TokenDelta) -> None:
        if not stream.has_started:
            stream.has_started = True
            stream.admission.start(delta.request_id)
        if delta.index not in stream.open_indices:
            return  # aborted while the step ran
        if delta.finish_reason is not None:
            stream.open_indices.remove(delta.index)
            if not stream.open_indices:
                del self._streams[delta.request_id]
        stream.on_delta(delta)

    def _deliver_error(self, request_id: str, error: ServingError) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            self._forget(request_id)
            stream.on_delta(error)
            for listener in self._listeners:
                listener()

    def _forget(self, request_id: str) -> bool:
        stream = self._streams.pop(request_id, None)
        if stream is None:
            return False
        stream.admission.leave(request_id)
        return True

    def _finish(self, error: ServingError) -> None:
        """The thread has ended: tell everyone who waits."""
        self._stopped.set()
        for request_id in list(self._streams):
            self._deliver_error(request_id, error)

    # -- in the engine's thread ----------------------------------------------------------------

    def _run(self) -> None:
        reason = "this replica is shutting down"
        try:
            while self._obey_commands():
                self._step()
        except BaseException as failure:
            logger.exception("the engine failed and stops")
            self._failure = failure
            reason = "the model's engine failed; the request was not completed"
        finally:
            error = EngineGoneError(reason, retry_after_s=_RETRY_AFTER_S)
            self._post(self._finish, error)

    def _step(self) -> None:
        step = self._engine.step()
        now_s = time.monotonic()
        if now_s - self._stats_at_s >= _STATS_PERIOD_S or not self._engine.has_unfinished:
            self._publish_stats(now_s)
        if step:
            self._post(self._deliver, step)

    def _obey_commands(self) -> bool:
        """Take what is queued; wait for something when there is no work. False: stop."""
        is_idle = self._is_idle()
        while is_idle or not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Stop):
                return False
            if isinstance(command, _Abort):
                self._engine.abort_request(command.request_id, command.index)
            elif isinstance(command, _Add):
                self._add(command)
            is_idle = self._is_idle()
            if is_idle:
                self._publish_stats(time.monotonic())
        return True

    def _is_idle(self) -> bool:
        return not self._engine.has_unfinished or self._engine.is_stalled

    def _add(self, command: _Add) -> None:
        try:
            self._engine.add_request(
                command.request, command.grammar, outlet=command.outlet, key=command.key
            )
        except ServingError as error:
            self._post(self._deliver_error, command.request.request_id, error)

    def _publish_stats(self, now_s: float) -> None:
        self._stats = self._engine.stats()
        self._stats_at_s = now_s

    def _post(self, function: Callable[..., None], *args: object) -> None:
        """Call a function in the loop's thread; a closed loop has no one left to tell."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)
