"""The lines of a batch on their way through the engines: so many at once, each saved once."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from cluster.batch_lines import Line, decode_line
from cluster.batch_results import (
    BatchResults,
    LineResult,
    TokenCounts,
    answered_line,
    pointers_of,
    tokens_of,
)
from cluster.batch_store import Batch, BatchState, BatchStore
from cluster.errors import ServiceUnavailableError
from cluster.file_store import FileStore
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.retry_policy import RetryPolicy
from cluster.task_queue.running_task import RunningTask
from cluster.tenants.key_directory import KeyDirectory
from cluster.tenants.records import ApiKey
from cluster.tenants.usage import UsageRecorder
from deployments.fair_places import FairPlaces
from deployments.ingress.line_calls import LineAnswer, LineCalls

logger = logging.getLogger(__name__)

COLLECT_S = 0.2  # results that come within it share a segment
LOOK_S = 1.0  # how soon a cancel is noticed when no line ends
MAX_SEGMENT_BYTES = 4 * 2**20  # then the next one begins
MAX_UNSAVED = 256  # results; who has more waits
_RETRIES = RetryPolicy(first_delay_s=0.5, max_delay_s=30.0)  # of lines, and of saving
# Statuses of a line that is tried again: until the batch expires, and so many times.
_LATER = (429, 503)
_MAX_SERVER_ERRORS = 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTools:
    """What every run of a worker uses."""

    queue: TaskQueue
    store: BatchStore
    files: FileStore
    calls: LineCalls
    keys: KeyDirectory  # for what tenants may use
    usage: UsageRecorder
    is_served: Callable[[str, str | None], bool]  # whether an endpoint has a model
    default_model: Callable[[str], str]  # of an endpoint
    max_requests: int
    max_line_bytes: int
    max_lines_at_once: int  # of a batch, those included that wait to be tried again
    turns: FairPlaces  # at the engines


@dataclass(slots=True)
class _Tally:
    """How many lines are done."""

    completed: int = 0
    failed: int = 0

    def add(self, is_error: bool) -> None:
        self.completed += not is_error
        self.failed += is_error


class _Outbox:
    """Results that are not saved yet."""

    def __init__(self) -> None:
        self._results: asyncio.Queue[LineResult | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(MAX_UNSAVED)

    async def put(self, result: LineResult) -> None:
        await self._room.acquire()
        self._results.put_nowait(result)

    def close(self) -> None:
        """There will be no more."""
        self._results.put_nowait(None)

    async def collect(self) -> tuple[list[LineResult], bool]:
        """Results that came within a moment, and whether there will be no more."""
        try:
            async with asyncio.timeout(LOOK_S):
                first = await self._results.get()
        except TimeoutError:
            return [], False
        if first is None:
            return [], True
        await asyncio.sleep(COLLECT_S)
        results = [first]
        num_bytes = len(first.data)
        is_last = False
        while num_bytes < MAX_SEGMENT_BYTES and not self._results.empty() and not is_last:
            result = self._results.get_nowait()
            if result is None:
                is_last = True
            else:
                results.append(result)
                num_bytes += len(result.data)
        for _ in results:
            self._room.release()
        return results, is_last


class LineRun:
    """Runs the lines that have no result yet, so many at once, and saves what they answer."""

    def __init__(
        self,
        tools: BatchTools,
        batch: Batch,
        task: RunningTask,
        results: BatchResults,
        key: ApiKey,
    ) -> None:
        """`key`: who asked for the batch."""
        self._tools = tools
        self._key = key
        self._batch = batch
        self._task = task
        self._results = results
        self._done: set[int] = set()
        self._tally = _Tally()
        self._outbox = _Outbox()
        self._slots = asyncio.Semaphore(tools.max_lines_at_once)
        self._stopped = asyncio.Event()
        #: Where somebody else has moved the batch meanwhile.
        self.stopped_by: BatchState | None = None

    async def run(self, blocks: AsyncIterator[list[Line]]) -> bool:
        """Whether all lines were run: the window may end before, or the batch may be cancelled.

        Raises:
            as `BatchRun.run`; NotFoundError: there is no input file any more.
        """
        for number, pointer in pointers_of(
            await self._tools.queue.items(self._task.record.task_id)
        ).items():
            self._done.add(number)
            self._tally.add(pointer.is_error)
        feeding = asyncio.create_task(self._feed(blocks))
        saving = asyncio.create_task(self._save_all())
        watching = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait(
                {feeding, saving, watching},
                timeout=max(0.0, self._batch.expires_at - time.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if saving.done():
                await saving  # it ends so early by an error only
            is_complete = feeding.done()
            feeding.cancel()
            (error,) = await asyncio.gather(feeding, return_exceptions=True)
            self._outbox.close()
            await saving
            if is_complete and error is not None:
                raise error
            return is_complete
        finally:
            for part in (feeding, saving, watching):
                part.cancel()
            await asyncio.gather(feeding, saving, watching, return_exceptions=True)

    async def _feed(self, blocks: AsyncIterator[list[Line]]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                async for block in blocks:
                    for line in block:
                        if line.number in self._done:
                            continue
                        await self._slots.acquire()
                        running = group.create_task(self._run_line(line))
                        running.add_done_callback(lambda _: self._slots.release())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _run_line(self, line: Line) -> None:
        assert line.data is not None, "lines that are too long are refused before"
        request = decode_line(line.data)
        answer = await self._answer(bytes(request.body))
        is_error = not 200 <= answer.status < 300
        data = answered_line(
            self._batch.batch_id,
            line.number,
            request.custom_id,
            status=answer.status,
            request_id=answer.request_id,
            body=answer.body,
        )
        tokens = TokenCounts() if is_error else tokens_of(answer.body)
        await self._outbox.put(
            LineResult(number=line.number, is_error=is_error, data=data, tokens=tokens)
        )

    async def _answer(self, body: bytes) -> LineAnswer:
        """Tried again while that may help: a queue that is full, a replica that is lost."""
        num_tries = 0
        while True:
            async with self._tools.turns.place(self._key.tenant):
                answer = await self._tools.calls.call(
                    self._key,
                    self._batch.endpoint,
                    body,
                    limits=self._tools.keys.limits(self._key.tenant),
                )
            num_tries += 1
            if not _is_worth_a_retry(answer.status, num_tries):
                return answer
            await asyncio.sleep(max(_RETRIES.delay_s(num_tries - 1), answer.retry_after_s or 0.0))

    async def _save_all(self) -> None:
        """Save results as they come, until there are no more."""
        is_last = False
        while not is_last:
            results, is_last = await self._outbox.collect()
            if results:
                pointers = await _insist(lambda: self._results.write(results))  # noqa: B023
                await _insist(lambda: self._task.save_items(pointers))  # noqa: B023
            for result in results:
                self._tally.add(result.is_error)
            state = await _insist(self._count)
            if state is not BatchState.IN_PROGRESS:
                self.stopped_by = state
                self._stopped.set()

    async def _count(self) -> BatchState:
        return await self._tools.store.count(
            self._task.record.tenant,
            self._batch.batch_id,
            num_completed=self._tally.completed,
            num_failed=self._tally.failed,
        )


def _is_worth_a_retry(status: int, num_tries: int) -> bool:
    """408 is ours: we read too slowly."""
    is_server_error = status == 408 or status >= 500
    return status in _LATER or (is_server_error and num_tries <= _MAX_SERVER_ERRORS)


async def _insist(do: Callable[[], Awaitable[T]]) -> T:
    """Until it is done: what lines have answered is worth waiting for."""
    num_tries = 0
    while True:
        try:
            return await do()
        except ServiceUnavailableError as error:
            if num_tries == 0:
                logger.warning("results of a batch wait: %s", error)
            await asyncio.sleep(_RETRIES.delay_s(num_tries))
            num_tries += 1
