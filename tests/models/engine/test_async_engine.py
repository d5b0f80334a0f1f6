"""Streams of the asyncio face: their order, their end, and what happens when something breaks."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from cluster.config import EngineConfig
from cluster.errors import (
    BadRequestError,
    EngineGoneError,
    ServiceUnavailableError,
    ServingError,
)
from cluster.types import Request, SamplingParams, TokenDelta
from models.engine.async_engine import AsyncEngine
from models.engine.engine import Engine
from models.engine.outlet import Outlet, TokenColumns
from models.engine.step_inputs import StepInputs, StepOutputs
from tests.models.engine.kv_simulator import KVSimulator, next_token


class BreakableRunner(KVSimulator):
    """Fails when it meets the token 96; while its gate is closed it does no step but free ones."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.gate = threading.Event()
        self.gate.set()
        self.num_free_steps = 0

    def execute(self, inputs: StepInputs) -> StepOutputs:
        self.num_free_steps -= 1
        assert self.num_free_steps >= 0 or self.gate.wait(timeout=120)
        if 96 in inputs.token_ids:
            raise RuntimeError("the device is gone")
        return super().execute(inputs)


def request(request_id: str, *, prompt: list[int] | None = None, **params: object) -> Request:
    params = {"max_tokens": 8, "ignore_eos": True, **params}
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt or [1, 2, 3],
        sampling_params=SamplingParams(**params),  # type: ignore[arg-type]
    )


@pytest.fixture
def runner() -> BreakableRunner:
    return BreakableRunner(num_blocks=64, block_size=4, max_model_len=128)


@pytest.fixture
async def engine(runner: BreakableRunner) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(Engine(runner, EngineConfig(max_num_seqs=8)), max_num_queued_requests=3)
    engine.start()
    yield engine
    await engine.stop()


async def until_idle(engine: AsyncEngine) -> None:
    """One more request goes through every earlier command, so its end proves the abort's."""
    async for _ in engine.generate(request("last", max_tokens=1)):
        pass
    while engine.stats().num_free_blocks != 64:
        await asyncio.to_thread(lambda: None)


async def test_generate_yields_every_token_in_order(engine: AsyncEngine) -> None:
    deltas = [delta async for delta in engine.generate(request("r"))]
    tokens = [token for delta in deltas for token in delta.token_ids]
    expected: list[int] = []
    for _ in range(8):
        expected.append(next_token([1, 2, 3, *expected]))
    assert tokens == expected
    assert [d.finish_reason for d in deltas].count(None) == 7


async def test_closing_the_iterator_frees_the_blocks(engine: AsyncEngine) -> None:
    stream = engine.generate(request("r", max_tokens=None, prompt=list(range(40))))
    await anext(stream)
    await stream.aclose()
    assert engine.num_open_requests == 0
    await asyncio.wait_for(until_idle(engine), 120)


async def test_a_request_ends_with_those_of_its_sequences_that_are_left(
    engine: AsyncEngine, runner: BreakableRunner
) -> None:
    runner.gate.clear()
    runner.num_free_steps = 5
    lengths = [0, 0, 0]
    async for delta in engine.generate(request("r", n=3, max_tokens=16)):
        lengths[delta.index] += len(delta.token_ids)
        if lengths == [5, 5, 5]:
            engine.abort("r", 1)
            engine.abort("r", 1)
            runner.gate.set()
    assert (lengths[0], lengths[2]) == (16, 16)
    assert lengths[1] in (5, 6)  # a step was under way
    assert engine.num_open_requests == 0
    await asyncio.wait_for(until_idle(engine), 120)


async def test_many_streams_at_once_each_get_their_own_tokens(engine: AsyncEngine) -> None:
    async def collect(k: int) -> list[int]:
        stream = engine.generate(request(str(k), prompt=[k, k], max_tokens=5, n=2))
        return [t async for delta in stream for t in delta.token_ids if delta.index == 1]

    for k, tokens in enumerate(await asyncio.gather(*(collect(k) for k in range(3)))):
        assert tokens[0] == next_token([k, k])
        assert len(tokens) == 5


async def test_listeners_run_once_after_the_deltas_of_a_step(engine: AsyncEngine) -> None:
    events: list[str] = []
    done = asyncio.Event()

    def on_delta(delta: TokenDelta | ServingError) -> None:
        assert isinstance(delta, TokenDelta)
        events.append("delta")
        if delta.finish_reason is not None:
            done.set()

    engine.add_step_listener(lambda: events.append("step"))
    engine.submit(request("r", n=3, max_tokens=2), on_delta)
    await asyncio.wait_for(done.wait(), 120)
    await asyncio.sleep(0)
    assert events[:4] == ["delta", "delta", "delta", "step"]


async def test_an_outlet_takes_all_tokens_but_the_first_and_the_last_under_its_own_keys(
    engine: AsyncEngine,
) -> None:
    heard: dict[int, list[int]] = {7: [], 8: []}
    done = asyncio.Event()

    def take(columns: TokenColumns) -> None:
        for key, index, token_id in zip(
            columns.keys, columns.indices, columns.token_ids, strict=True
        ):
            assert index == 0
            heard[key].append(token_id)

    def listener(key: int) -> Callable[[TokenDelta | ServingError], None]:
        def on_delta(delta: TokenDelta | ServingError) -> None:
            assert isinstance(delta, TokenDelta)
            assert len(heard[key]) in (0, 7), "only the first and the last come as deltas"
            heard[key].extend(delta.token_ids)
            if all(len(tokens) == 8 for tokens in heard.values()):
                done.set()

        return on_delta

    outlet = Outlet(take)
    for key in heard:
        prompt = [key, key]
        engine.submit(request(str(key), prompt=prompt), listener(key), outlet=outlet, key=key)
    await asyncio.wait_for(done.wait(), 120)
    for key, tokens in heard.items():
        expected: list[int] = []
        for _ in range(8):
            expected.append(next_token([key, key, *expected]))
        assert tokens == expected


async def test_a_full_queue_refuses_with_a_time_to_come_back(engine: AsyncEngine) -> None:
    for k in range(3):
        engine.submit(request(str(k)), lambda delta: None)
    with pytest.raises(ServiceUnavailableError, match="3 requests are waiting") as caught:
        engine.submit(request("late"), lambda delta: None)
    assert caught.value.retry_after_s


async def test_a_request_that_cannot_be_served_is_refused_at_once(engine: AsyncEngine) -> None:
    with pytest.raises(BadRequestError, match="context of 128"):
        await anext(engine.generate(request("r", prompt=[1] * 500)))
    engine.submit(request("twice"), lambda delta: None)
    with pytest.raises(BadRequestError, match="in use"):
        engine.submit(request("twice"), lambda delta: None)


async def test_a_failing_step_ends_every_stream_and_refuses_new_ones(engine: AsyncEngine) -> None:
    waiting = asyncio.ensure_future(anext(engine.generate(request("broken", prompt=[96]))))
    with pytest.raises(EngineGoneError):
        await asyncio.wait_for(waiting, 120)
    with pytest.raises(RuntimeError):
        engine.check_health()
    with pytest.raises(ServiceUnavailableError):
        engine.submit(request("next"), lambda delta: None)


async def test_stopping_tells_those_who_wait(engine: AsyncEngine, runner: BreakableRunner) -> None:
    runner.gate.clear()
    runner.num_free_steps = 1
    stream = engine.generate(request("r", max_tokens=None, prompt=[5] * 60))
    await anext(stream)
    stopping = asyncio.create_task(engine.stop())
    await asyncio.sleep(0)  # it has asked, and waits
    runner.gate.set()
    await stopping
    with pytest.raises(ServiceUnavailableError):
        async for _ in stream:
            pass
