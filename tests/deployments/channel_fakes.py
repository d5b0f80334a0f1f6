"""Fakes for the channel's tests: an engine stepped by hand, a picker that offers what it has."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from cluster.errors import ServingError
from cluster.types import FinishReason, Request, SamplingParams, TokenDelta
from deployments.channel_pool import ChannelPool, HoldLimits
from deployments.channel_server import ChannelServer
from deployments.channel_wire import ReplicaStats
from deployments.replica_endpoint import ReplicaEndpoint, ReplicaFacts
from models.engine.outlet import Outlet

SECRET = b"s" * 32


class FakeEngine:
    """Every step gives each running sequence its next token: the prompt's last plus one, and so on.

    Nothing happens until `step` is called.
    """

    def __init__(self) -> None:
        self.running: dict[str, Request] = {}
        self.aborted: list[str] = []
        self.ended: set[tuple[str, int]] = set()  # sequences
        self.submitted: list[Request] = []
        self.refuse_with: ServingError | None = None
        self.changed = asyncio.Event()
        self._on_delta: dict[str, Callable[[TokenDelta | ServingError], None]] = {}
        self._outlets: dict[str, tuple[Outlet, object]] = {}
        self._num_tokens: dict[str, int] = {}
        self._num_before: dict[str, int] = {}  # of a request that goes on here
        self._listeners: list[Callable[[], None]] = []

    def submit(
        self,
        request: Request,
        on_delta: Callable[[TokenDelta | ServingError], None],
        *,
        outlet: Outlet,
        key: object,
    ) -> None:
        if self.refuse_with is not None:
            raise self.refuse_with
        self.submitted.append(request)
        self.running[request.request_id] = request
        self._on_delta[request.request_id] = on_delta
        self._outlets[request.request_id] = (outlet, key)
        resumed = request.resumed or {}
        self._num_tokens[request.request_id] = max(map(len, resumed.values()), default=0)
        self._num_before[request.request_id] = self._num_tokens[request.request_id]
        self._tell()

    def abort(self, request_id: str, index: int | None = None) -> None:
        if index is not None:
            self.ended.add((request_id, index))
        elif self.running.pop(request_id, None) is not None:
            self.aborted.append(request_id)
        self._tell()

    def add_step_listener(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def step(self) -> None:
        for request_id, request in list(self.running.items()):
            self._num_tokens[request_id] += 1
            num_tokens = self._num_tokens[request_id]
            token_id = request.prompt_token_ids[-1] + num_tokens
            is_last = num_tokens == request.sampling_params.max_tokens
            if is_last:
                del self.running[request_id]
            for index in sorted(request.indices):
                if (request_id, index) in self.ended:
                    continue
                if num_tokens > self._num_before[request_id] + 1 and not is_last:
                    outlet, key = self._outlets[request_id]
                    outlet.add(key, index, token_id)
                    continue
                reason = FinishReason.LENGTH if is_last else None
                self._on_delta[request_id](TokenDelta(request_id, index, [token_id], reason))
        for outlet in {outlet for outlet, _ in self._outlets.values() if not outlet.is_empty}:
            assert outlet.deliver is not None
            outlet.deliver(outlet.take())
        for listener in self._listeners:
            listener()
        self._tell()

    def fail(self, request_id: str, error: ServingError) -> None:
        del self.running[request_id]
        self._on_delta[request_id](error)

    async def until(self, condition: Callable[["FakeEngine"], bool]) -> None:
        """Wait until the engine has been told enough for the condition to hold."""
        async with asyncio.timeout(120):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()

    async def until_num_running(self, num_running: int) -> None:
        await self.until(lambda engine: len(engine.running) == num_running)

    def _tell(self) -> None:
        self.changed.set()


class Replica:
    """A channel server with a fake engine behind it."""

    def __init__(
        self, engine: FakeEngine, server: ChannelServer, endpoint: ReplicaEndpoint
    ) -> None:
        self.engine = engine
        self.server = server
        self.endpoint = endpoint


class FakePicker:
    """Offers its endpoints in turn; waits while there is none."""

    def __init__(self, *endpoints: ReplicaEndpoint) -> None:
        self.endpoints: list[ReplicaEndpoint] = []
        self.num_picks = 0
        self.num_wakes = 0
        self._some = asyncio.Event()
        for endpoint in endpoints:
            self.offer(endpoint)

    def offer(self, endpoint: ReplicaEndpoint) -> None:
        self.endpoints.append(endpoint)
        self._some.set()

    def withdraw(self) -> None:
        """Offer nothing any more."""
        self.endpoints.clear()
        self._some.clear()

    async def wake(self) -> None:
        self.num_wakes += 1
        await self._some.wait()

    async def pick(self) -> ReplicaEndpoint:
        self.num_picks += 1
        await self._some.wait()
        return self.endpoints[self.num_picks % len(self.endpoints)]


def request(
    request_id: str = "r", *, first: int = 100, max_tokens: int | None = 3, n: int = 1
) -> Request:
    """The fake engine answers it with first + 1, first + 2, …"""
    return Request(
        request_id=request_id,
        prompt_token_ids=[first],
        sampling_params=SamplingParams(max_tokens=max_tokens, n=n),
    )


@asynccontextmanager
async def replica(
    replica_id: str = "a",
    *,
    secret: bytes = SECRET,
    max_unsent_bytes: int = 8 * 2**20,
    node_id: str = "node",
) -> AsyncIterator[Replica]:
    """A running replica on a private Unix socket and a loopback port."""
    with tempfile.TemporaryDirectory(prefix="shoal-test-") as folder:
        engine = FakeEngine()
        server = ChannelServer(
            engine,
            secret=secret,
            read_stats=lambda: ReplicaStats(num_requests_running=len(engine.running)),
            max_unsent_bytes=max_unsent_bytes,
        )
        unix_path = Path(folder) / "channel"
        port = await server.start(unix_path=unix_path, tcp_host="127.0.0.1")
        endpoint = ReplicaEndpoint(
            replica_id=replica_id,
            node_id=node_id,
            unix_path=str(unix_path),
            tcp_host="127.0.0.1",
            tcp_port=port,
            facts=ReplicaFacts(
                model_name="m", max_model_len=64, vocab_size=1000, num_blocks=8, summary="fake"
            ),
        )
        try:
            yield Replica(engine=engine, server=server, endpoint=endpoint)
        finally:
            await server.stop()


@asynccontextmanager
async def pool(
    picker: FakePicker,
    *,
    max_buffered_tokens: int = 1000,
    hold: HoldLimits | None = None,
) -> AsyncIterator[ChannelPool]:
    """A pool whose upkeep runs."""
    channel_pool = ChannelPool(
        picker,
        model_name="m",
        secret=SECRET,
        own_node_id="node",
        max_buffered_tokens=max_buffered_tokens,
        hold=hold or HoldLimits(max_s=5.0, move_s=5.0),
    )
    channel_pool.start()
    try:
        yield channel_pool
    finally:
        await channel_pool.stop()
