"""All replicas of one model, as the ingress sees them: one stream per request, whoever serves it.

A request whose replica is lost moves to another one and goes on after the tokens that have come;
replicas that cannot be reached are left out for a moment, because Serve learns of a death seconds
later.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cluster.errors import PoolReplacedError, ServiceUnavailableError
from cluster.types import Request, TokenDelta
from deployments.adapter_affinity import prefer_loaded
from deployments.channel_client import (
    DeltaStream,
    ReplicaConnection,
    ReplicaGoneError,
    connect,
)
from deployments.channel_wire import ChannelProtocolError, ReplicaStats
from deployments.replica_endpoint import ReplicaEndpoint, ReplicaFacts, ReplicaPicker
from deployments.request_progress import MAX_FRUITLESS_LOSSES, RequestProgress

REPLICA_WAIT_S = 30.0  # how long a request waits for a replica that takes it
MAX_HELD_REQUESTS = 2048
# The same of one that has begun, whose replica was lost, and of all while a replica is swapped for
# its successor.
MOVE_WAIT_S = 300.0
# Streams of a replica that is to end may end there so long; then they go on elsewhere. Where there
# is no room for a new replica beside it, everybody else waits for them.
HAND_OVER_AFTER_S = 30.0
UPKEEP_PERIOD_S = 1.0
SILENCE_LIMIT_S = 15.0  # replicas report every second
UNREACHABLE_PAUSE_S = 1.0  # before a replica is tried again
_PICK_PAUSES_S = (0.0, 0.0, 0.005, 0.02, 0.05)  # the last one is repeated

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Running:
    """One request on its way."""

    progress: RequestProgress
    stream: DeltaStream | None = None  # None while it has no replica


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldLimits:
    """Requests for which there is no replica: how many wait here, and how long."""

    max_requests: int = MAX_HELD_REQUESTS  # of those that have not begun
    max_s: float = REPLICA_WAIT_S
    move_s: float = MOVE_WAIT_S
    may_sleep: bool = False  # it may be so by intention: a request that comes then wakes the pool
    start_s: float = UNREACHABLE_PAUSE_S  # about how long a replica takes then


class ChannelPool:
    """Streams requests through the replicas that a picker offers."""

    def __init__(
        self,
        picker: ReplicaPicker,
        *,
        model_name: str,
        secret: bytes,
        own_node_id: str,
        max_buffered_tokens: int,
        hold: HoldLimits | None = None,
    ) -> None:
        self._picker = picker
        self._model_name = model_name
        self._secret = secret
        self._own_node_id = own_node_id
        self._max_buffered_tokens = max_buffered_tokens
        self._hold = hold or HoldLimits()
        self._num_held = 0
        self._waking: asyncio.Task[None] | None = None
        self._connections: dict[str, ReplicaConnection] = {}
        self._running: dict[str, _Running] = {}  # by request
        self._connecting: dict[str, asyncio.Task[ReplicaConnection]] = {}
        self._unreachable_until_s: dict[str, float] = {}
        self._upkeep: asyncio.Task[None] | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._is_retired = False
        self._is_removed = False
        self._has_lost_a_drained = False
        # For a replica, and whether the request has begun.
        self._waiting: dict[asyncio.Timeout, bool] = {}

    def start(self) -> None:
        """Keep connections alive, and at least one of them open, from now on."""
        self._upkeep = asyncio.create_task(self._keep_up(), name=f"pool {self._model_name}")

    async def stop(self) -> None:
        """Drop all connections; running streams end."""
        background = [self._upkeep, self._reconnecting, self._waking]
        running = [task for task in background if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for connecting in tuple(self._connecting.values()):
            connecting.cancel()
        for connection in tuple(self._connections.values()):
            connection.give_up("the ingress stops")

    def is_ready(self) -> bool:
        """Requests are taken: a replica is connected, or will be started for them."""
        return self._hold.may_sleep or self._is_connected()

    @property
    def num_held(self) -> int:
        """Requests that wait here, because there is no replica."""
        return self._num_held

    def _is_connected(self) -> bool:
        return any(connection.is_usable for connection in self._connections.values())

    def stats(self) -> Mapping[str, ReplicaStats]:
        """The newest load report of each connected replica, by replica id."""
        return {
            replica_id: connection.stats
            for replica_id, connection in self._connections.items()
            if not connection.is_lost
        }

    def start_seconds(self) -> Mapping[str, Mapping[str, float]]:
        """How long each part of each connected replica's start took, by replica id."""
        return {
            replica_id: connection.endpoint.facts.start_seconds
            for replica_id, connection in self._connections.items()
        }

    async def facts(self, *, version: str | None = None) -> ReplicaFacts:
        """What the replicas of that version (None: any) say of the model; waits for the first, and
        has it started where the pool sleeps."""
        if self._hold.may_sleep:
            await self._picker.wake()
        while True:
            facts = (await self._picker.pick()).facts
            if version is None or facts.version == version:
                return facts
            await asyncio.sleep(UPKEEP_PERIOD_S / 4)

    def expect_successors(self, expected: bool, *, is_removed: bool = False) -> None:
        """Whether replicas that end are followed by others of the same checkpoint. Where they are
        not, streams stay where they are, and whoever waits for a replica has waited long enough.
        `is_removed`: the model itself goes."""
        self._is_retired = not expected
        self._is_removed = is_removed
        self._end_vain_waits(also_begun=True)

    def _end_vain_waits(self, *, also_begun: bool) -> None:
        if self._is_retired and not self._is_connected():
            for limit, has_begun in self._waiting.items():
                if also_begun or not has_begun:
                    limit.reschedule(asyncio.get_running_loop().time())

    async def generate(self, request: Request) -> AsyncGenerator[TokenDelta, None]:
        """Yield deltas until every sequence has finished. Closing the iterator aborts the request.

        Raises:
            PoolReplacedError: it has not begun, and replicas of another checkpoint take over.
            ServiceUnavailableError: no replica took it in time, at its beginning or after its own
                one was lost, or one after the other was lost with it.
            ServingError: the replica refused or failed it, or the reader is too slow.
        """
        progress = RequestProgress(request)
        running = self._running[request.request_id] = _Running(progress)
        try:
            while not progress.is_finished:
                try:
                    connection = await self._choose(request.adapter, has_begun=progress.has_begun)
                    if progress.is_finished:
                        return  # its reader ended it meanwhile
                    stream = running.stream = connection.open(
                        progress.rest(), max_buffered_tokens=self._max_buffered_tokens
                    )
                    while deltas := await stream.next_deltas():
                        for delta in deltas:
                            progress.record(delta)
                            yield delta
                    return
                except ReplicaGoneError as error:
                    self._go_on(request.request_id, progress, error)
                finally:
                    if running.stream is not None:
                        running.stream.close()
                        running.stream = None
        finally:
            del self._running[request.request_id]

    @property
    def _is_being_swapped(self) -> bool:
        """A replica ends, or has ended, on purpose, and none has come after it."""
        is_draining = any(other.draining_for_s for other in self._connections.values())
        return (is_draining or self._has_lost_a_drained) and not self._is_retired

    def _go_on(self, request_id: str, progress: RequestProgress, error: ReplicaGoneError) -> None:
        """
        Raises:
            ServiceUnavailableError: the request has lost too many replicas.
        """
        if error.is_refusal:
            return
        if not progress.note_loss():
            raise ServiceUnavailableError(
                f"{MAX_FRUITLESS_LOSSES} replicas of {self._model_name} were lost in a row while"
                " they were answering.",
                retry_after_s=UNREACHABLE_PAUSE_S,
            ) from error
        logger.warning(
            "request %s goes on elsewhere after %d tokens: %s",
            request_id,
            progress.num_tokens,
            error,
        )

    def end_sequence(self, request_id: str, index: int) -> None:
        """See `ModelPool`."""
        running = self._running.get(request_id)
        if running is None:
            return
        running.progress.end(index)
        if running.stream is not None:
            running.stream.end(index)

    @asynccontextmanager
    async def _known(self, limit: asyncio.Timeout, *, has_begun: bool) -> AsyncIterator[None]:
        self._waiting[limit] = has_begun
        try:
            yield
        finally:
            del self._waiting[limit]

    async def _choose(self, adapter: str, *, has_begun: bool) -> ReplicaConnection:
        """A usable connection: of two offers, the one with fewer streams of ours, or one that has
        the adapter."""
        waits_long = has_begun or self._is_being_swapped
        wait_s = self._hold.move_s if waits_long else self._hold.max_s
        try:
            async with (
                asyncio.timeout(wait_s) as limit,
                self._known(limit, has_begun=has_begun),
            ):
                connection = await self._first_offer(has_begun=has_begun)
                if sum(other.is_usable for other in self._connections.values()) > 1:
                    other = await self._connection_to(await self._picker.pick())
                    # Awaiting may have cost us the first one.
                    candidates = [c for c in (connection, other) if c is not None and c.is_usable]
                    if not candidates:
                        return await self._pick_usable()
                    connection = min(candidates, key=lambda candidate: candidate.num_streams)
                    if adapter:
                        everyone = self._connections.values()
                        connection = prefer_loaded(adapter, connection, everyone)
                return connection
        except TimeoutError as error:
            raise self._waited_in_vain(wait_s, has_begun=has_begun) from error

    async def _first_offer(self, *, has_begun: bool) -> ReplicaConnection:
        """Waits for a replica where there is none; the request is held meanwhile.

        Raises:
            ServiceUnavailableError: too many wait already, or there is nothing to wait for.
        """
        if self._is_connected():
            return await self._pick_usable()
        hold = self._hold
        if self._is_removed and not has_begun:
            raise self._is_going()
        if not has_begun and self._num_held >= hold.max_requests:
            raise ServiceUnavailableError(
                f"{self._model_name} has no replica yet, and {self._num_held} requests wait for it,"
                " the most that are held.",
                retry_after_s=hold.start_s,
            )
        if hold.may_sleep and (self._waking is None or self._waking.done()):
            self._waking = asyncio.create_task(self._wake(), name=f"wake {self._model_name}")
        self._num_held += 1
        try:
            return await self._pick_usable()
        finally:
            self._num_held -= 1

    def _is_going(self) -> ServiceUnavailableError:
        if self._is_removed:
            return ServiceUnavailableError(f"{self._model_name} is being removed.")
        return PoolReplacedError(
            f"The replicas of {self._model_name} are being replaced by those of another"
            " checkpoint.",
            retry_after_s=UNREACHABLE_PAUSE_S,
        )

    def _waited_in_vain(self, wait_s: float, *, has_begun: bool) -> ServiceUnavailableError:
        if self._is_retired and not has_begun:
            return self._is_going()
        if self._hold.may_sleep:
            return ServiceUnavailableError(
                f"{self._model_name} was asleep and is starting; it was not ready within"
                f" {wait_s:g} s.",
                retry_after_s=self._hold.start_s,
            )
        return ServiceUnavailableError(
            f"No replica of {self._model_name} took the request within {wait_s:g} s.",
            retry_after_s=UNREACHABLE_PAUSE_S,
        )

    async def _wake(self) -> None:
        try:
            await self._picker.wake()
        except ServiceUnavailableError as error:
            logger.warning("%s cannot be woken: %s", self._model_name, error)

    async def _pick_usable(self) -> ReplicaConnection:
        num_failures = 0
        while True:
            connection = await self._connection_to(await self._picker.pick())
            if connection is not None:
                return connection
            await asyncio.sleep(_PICK_PAUSES_S[min(num_failures, len(_PICK_PAUSES_S) - 1)])
            num_failures += 1

    async def _connection_to(self, endpoint: ReplicaEndpoint) -> ReplicaConnection | None:
        """The connection to a replica, made if need be; None while it is not to be used."""
        replica_id = endpoint.replica_id
        connection = self._connections.get(replica_id)
        if connection is not None and not connection.is_lost:
            return connection if connection.is_usable else None
        now_s = asyncio.get_running_loop().time()
        if connection is not None:
            self._drop_lost(replica_id)
        if self._unreachable_until_s.get(replica_id, now_s) > now_s:
            return None
        connecting = self._connecting.get(replica_id)
        if connecting is None:
            connecting = asyncio.create_task(self._connect(endpoint))
            self._connecting[replica_id] = connecting
        try:
            # One caller's cancellation must not cost the others their connection.
            connection = await asyncio.shield(connecting)
        except (OSError, TimeoutError, ChannelProtocolError, ReplicaGoneError):
            return None  # logged by _connect
        return connection if connection.is_usable else None

    async def _connect(self, endpoint: ReplicaEndpoint) -> ReplicaConnection:
        replica_id = endpoint.replica_id
        try:
            connection = await connect(endpoint, secret=self._secret, own_node_id=self._own_node_id)
        except (OSError, TimeoutError, ChannelProtocolError, ReplicaGoneError) as error:
            logger.warning("replica %s cannot be reached: %r", replica_id, error)
            self._leave_out(replica_id)
            raise
        finally:
            del self._connecting[replica_id]
        self._unreachable_until_s.pop(replica_id, None)
        self._has_lost_a_drained = False
        self._connections[replica_id] = connection
        return connection

    def _drop_lost(self, replica_id: str) -> None:
        connection = self._connections.pop(replica_id)
        if connection.draining_for_s:
            # It was ended on purpose: another one comes, which may take its time to load.
            self._has_lost_a_drained = True
        self._leave_out(replica_id)

    def _leave_out(self, replica_id: str) -> None:
        now_s = asyncio.get_running_loop().time()
        self._unreachable_until_s[replica_id] = now_s + UNREACHABLE_PAUSE_S

    async def _keep_up(self) -> None:
        while True:
            # Also while there is no replica to be had: those that drain have streams of ours.
            self._look_after_connections()
            is_trying = self._reconnecting is not None and not self._reconnecting.done()
            if not self._is_connected() and not is_trying:
                self._reconnecting = asyncio.create_task(self._reconnect())
            await asyncio.sleep(UPKEEP_PERIOD_S)

    async def _reconnect(self) -> None:
        try:
            await self._pick_usable()
        except ServiceUnavailableError as error:
            logger.warning("no replica of %s: %s", self._model_name, error)

    def _look_after_connections(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._end_vain_waits(also_begun=False)
        for replica_id, connection in tuple(self._connections.items()):
            if not self._is_retired and connection.draining_for_s > HAND_OVER_AFTER_S:
                connection.hand_over()
            if connection.is_lost:
                self._drop_lost(replica_id)
            elif now_s - connection.last_heard_s > SILENCE_LIMIT_S:
                connection.give_up(f"silent for {SILENCE_LIMIT_S:g} s")
            else:
                connection.ping()
        for replica_id, until_s in tuple(self._unreachable_until_s.items()):
            if until_s <= now_s:
                del self._unreachable_until_s[replica_id]
