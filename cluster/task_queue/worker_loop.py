"""A consumer of the durable queue: claims, keeps the lease, runs the handler, saves, acknowledges.

A worker that dies costs what its tasks had not saved: another claims them when their leases are
over. A worker that is frozen and thaws is fenced off: see `leases`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from cluster.errors import ServiceUnavailableError, ServingError, TooManyRequestsError
from cluster.log_context import tagged
from cluster.task_queue.leases import NO_LIMIT, TaskLeases
from cluster.task_queue.queue import TaskQueue
from cluster.task_queue.retry_policy import RetryPolicy
from cluster.task_queue.running_task import RunningTask
from cluster.task_queue.task import (
    BodyT,
    Lease,
    LeaseLostError,
    Outcome,
    TaskBody,
    TaskCancelledError,
    TaskStatus,
    type_name,
)

logger = logging.getLogger(__name__)

LEASE_S = 15.0
NUM_SLOTS = 4  # tasks that a worker runs at once
_BEATS_PER_LEASE = 5
_SWEEP_S = 60.0
_UNKNOWN_TYPE_DELAY_S = 30.0
_RECONNECT_DELAYS = RetryPolicy(first_delay_s=0.2, max_delay_s=2.0)

Handler = Callable[[BodyT, RunningTask], Awaitable[Outcome]]


class TaskWorkerLoop:
    """Runs up to `num_slots` tasks at once, of the types that were given to `handle`.

    A handler returns the task's outcome, or raises:
        ServiceUnavailableError, TooManyRequestsError: tried again later, many times.
        another ServingError: it failed for good, and the tenant is told why.
        anything else: tried again, `RetryPolicy.max_attempts` times; then it is a dead letter.
    It is cancelled when the task is, when another worker has it, and when the loop stops.
    """

    def __init__(
        self,
        queue: TaskQueue,
        *,
        name: str,
        num_slots: int = NUM_SLOTS,
        num_workers: int | None = None,
        lease_s: float = LEASE_S,
        retries: RetryPolicy | None = None,
    ) -> None:
        """`num_workers`: the most that the queue has, where tenants share them; one tenant leaves
        a slot of each to others, since tasks may take hours. None: it may have all."""
        self._queue = queue
        most = NO_LIMIT if num_workers is None else max(1, num_workers * (num_slots - 1))
        self._leases = TaskLeases(queue, worker=name, lease_s=lease_s, max_running_per_tenant=most)
        self._name = name
        self._beat_s = lease_s / _BEATS_PER_LEASE
        self._retries = retries or RetryPolicy()
        self._handlers: dict[str, tuple[type[TaskBody], Handler[Any]]] = {}
        self._slots = asyncio.Semaphore(num_slots)
        self._works: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()  # nothing is claimed any more
        self._out_of_time = asyncio.Event()  # what still runs is given back
        self._ended = asyncio.Event()

    @property
    def num_running(self) -> int:
        return len(self._works)

    def handle(self, body_type: type[BodyT], run: Handler[BodyT]) -> None:
        self._handlers[type_name(body_type)] = (body_type, run)

    async def run(self) -> None:
        """Work until `stop` is called; returns when nothing is running any more."""
        sweeper = asyncio.create_task(self._sweep_now_and_then())
        try:
            while (lease := await self._next_lease()) is not None:
                work = asyncio.create_task(self._work(lease))
                self._works.add(work)
                work.add_done_callback(self._forget)
            await asyncio.gather(*self._works)
        finally:
            sweeper.cancel()
            for work in self._works:
                work.cancel()
            await asyncio.gather(sweeper, *self._works, return_exceptions=True)
            self._ended.set()

    async def stop(self, *, grace_s: float) -> None:
        """Claim nothing more, let running tasks end within the time, and give the others back."""
        self._stopping.set()
        try:
            async with asyncio.timeout(grace_s):
                await self._ended.wait()
        except TimeoutError:
            self._out_of_time.set()
            await self._ended.wait()

    def _forget(self, work: asyncio.Task[None]) -> None:
        self._works.discard(work)
        self._slots.release()
        if not work.cancelled() and work.exception() is not None:  # its lease runs out
            logger.error("a task's end could not be recorded", exc_info=work.exception())

    async def _next_lease(self) -> Lease | None:
        """None when the loop is to stop."""
        await self._unless(self._stopping, self._slots.acquire())
        num_tries = 0
        while not self._stopping.is_set():
            try:
                claimed = await self._leases.claim()
                if isinstance(claimed, Lease):
                    return claimed
                num_tries = 0
                await self._unless(self._stopping, self._leases.wait_for_work(claimed))
            except ServiceUnavailableError as error:
                if num_tries == 0:
                    logger.warning("%s waits: %s", self._name, error)
                pause_s = _RECONNECT_DELAYS.delay_s(num_tries)
                num_tries += 1
                await self._unless(self._stopping, asyncio.sleep(pause_s))
        return None

    async def _work(self, lease: Lease) -> None:
        with tagged(task_id=lease.record.task_id):
            await self._work_off(lease)

    async def _work_off(self, lease: Lease) -> None:
        task = RunningTask(self._queue, self._leases, lease)
        if lease.record.task_type not in self._handlers:
            await self._record(lease, lambda: self._leave_to_others(lease))
            return
        handling = asyncio.create_task(self._handle(task))
        try:
            await self._attend(task, handling)
            await self._record(lease, lambda: self._end(task, handling))
        except LeaseLostError as error:
            logger.warning("%s", error)
        finally:
            handling.cancel()
            await asyncio.gather(handling, return_exceptions=True)

    async def _handle(self, task: RunningTask) -> Outcome:
        record = task.record
        body_type, run = self._handlers[record.task_type]
        return await run(record.decode_body(body_type), task)

    async def _attend(self, task: RunningTask, handling: "asyncio.Task[Outcome]") -> None:
        """Keep the lease until the handler has ended; cancel it when it is to end.

        Raises:
            LeaseLostError: another worker has the task.
        """
        signals = [
            asyncio.create_task(event.wait())
            for event in (self._out_of_time, task.cancel_requested)
        ]
        waited_for: set[asyncio.Task[Any]] = {handling, *signals}
        try:
            while not handling.done():
                done, _ = await asyncio.wait(
                    waited_for, timeout=self._beat_s, return_when=asyncio.FIRST_COMPLETED
                )
                if done - {handling}:
                    handling.cancel()
                    waited_for -= done - {handling}
                elif not done:
                    await self._beat(task)
        finally:
            for signal in signals:
                signal.cancel()

    async def _beat(self, task: RunningTask) -> None:
        try:
            await task.heart_beat()
        except ServiceUnavailableError as error:
            logger.warning("no heart-beat of task %s: %s", task.record.task_id, error)

    async def _end(self, task: RunningTask, handling: "asyncio.Task[Outcome]") -> None:
        """Write down how the handler ended.

        Raises:
            LeaseLostError, ServiceUnavailableError: as the leases do.
        """
        lease = task.lease
        is_cancelled = handling.cancelled()
        error = asyncio.CancelledError() if is_cancelled else handling.exception()
        is_unwanted = is_cancelled or isinstance(error, TaskCancelledError)
        if is_unwanted and task.cancel_requested.is_set():
            await self._leases.finish(lease, Outcome(status=TaskStatus.CANCELLED))
        elif is_cancelled and self._out_of_time.is_set():
            await self._leases.give_back(lease)
        elif error is None:
            await self._leases.finish(lease, handling.result())
        elif isinstance(error, LeaseLostError):
            raise error
        elif isinstance(error, (ServiceUnavailableError, TooManyRequestsError)):
            await self._postpone(lease, error)
        elif isinstance(error, ServingError):
            await self._leases.finish(lease, _failure(error))
        else:
            await self._retry(lease, error)

    async def _leave_to_others(self, lease: Lease) -> None:
        """A worker of a newer version may know the type."""
        message = f"{self._name} does not know tasks of type {lease.record.task_type!r}"
        await self._leases.retry(
            lease, delay_s=_UNKNOWN_TYPE_DELAY_S, error=message, is_failure=False
        )

    async def _postpone(self, lease: Lease, error: ServingError) -> None:
        num_before = lease.record.num_postponed
        if num_before + 1 >= self._retries.max_postponements:
            await self._leases.finish(lease, _failure(error), is_dead=True)
            return
        delay_s = max(self._retries.delay_s(num_before), error.retry_after_s or 0.0)
        await self._leases.retry(lease, delay_s=delay_s, error=str(error), is_failure=False)

    async def _retry(self, lease: Lease, error: BaseException) -> None:
        record = lease.record
        logger.error("task %s failed", record.task_id, exc_info=error)
        is_hopeless = isinstance(error, msgspec.ValidationError)  # its body cannot be read
        num_failures = record.num_failures + 1
        if is_hopeless or num_failures >= self._retries.max_attempts:
            await self._leases.finish(lease, _failure(error), is_dead=True)
            return
        delay_s = self._retries.delay_s(record.num_failures)
        await self._leases.retry(lease, delay_s=delay_s, error=_text(error), is_failure=True)

    async def _record(self, lease: Lease, write: Callable[[], Awaitable[None]]) -> None:
        """Write until it is written, unless the loop must end: then the lease runs out.

        Raises:
            LeaseLostError: another worker has the task.
        """
        num_tries = 0
        while not self._out_of_time.is_set() or num_tries == 0:
            try:
                await write()
                return
            except ServiceUnavailableError as error:
                logger.warning("the end of task %s waits: %s", lease.record.task_id, error)
                pause_s = _RECONNECT_DELAYS.delay_s(num_tries)
                num_tries += 1
                await self._unless(self._out_of_time, asyncio.sleep(pause_s))

    async def _sweep_now_and_then(self) -> None:
        while True:
            try:
                if await self._queue.begin_period("sweep", _SWEEP_S):
                    await self._queue.sweep()
            except ServiceUnavailableError:
                pass  # the loop says so
            await asyncio.sleep(_SWEEP_S)

    async def _unless(self, event: asyncio.Event, work: Coroutine[Any, Any, object]) -> None:
        """Do `work`, or stop doing it as soon as the event is set.

        Raises:
            what `work` raises.
        """
        doing = asyncio.create_task(work)
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
        finally:
            for part in (doing, waiting):
                part.cancel()
            await asyncio.gather(doing, waiting, return_exceptions=True)


def _failure(error: BaseException) -> Outcome:
    return Outcome(status=TaskStatus.FAILED, error=_text(error))


def _text(error: BaseException) -> str:
    """What a person reads of it."""
    if isinstance(error, ServingError):
        return error.detail
    return f"{type(error).__name__}: {error}"[:2000]
