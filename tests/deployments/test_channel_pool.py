"""The channel end to end: all of it is real but the engine, which is stepped by hand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from msgspec.structs import replace

from cluster.errors import (
    ClientTooSlowError,
    EngineGoneError,
    ServiceUnavailableError,
    TooManyRequestsError,
)
from cluster.types import FinishReason, TokenDelta
from deployments.channel_pool import HoldLimits
from deployments.channel_wire import ReplicaStats
from deployments.request_progress import MAX_FRUITLESS_LOSSES
from tests.deployments.channel_fakes import FakePicker, Replica, pool, replica, request


async def collect(stream: AsyncIterator[TokenDelta]) -> list[TokenDelta]:
    return [delta async for delta in stream]


def token_ids(deltas: list[TokenDelta]) -> list[int]:
    return [token_id for delta in deltas for token_id in delta.token_ids]


@pytest.mark.parametrize("node_id", ["node", "elsewhere"], ids=["unix", "tcp"])
async def test_a_request_gets_its_tokens_in_order_over_either_socket(node_id: str) -> None:
    async with replica(node_id=node_id) as only, pool(FakePicker(only.endpoint)) as channel_pool:
        answer = asyncio.create_task(collect(channel_pool.generate(request(max_tokens=3))))
        await only.engine.until_num_running(1)
        for _ in range(3):
            only.engine.step()
        deltas = await answer
        assert token_ids(deltas) == [101, 102, 103]
        assert deltas[-1].finish_reason is FinishReason.LENGTH
        assert {delta.request_id for delta in deltas} == {"r"}
        assert only.server.num_streams == 0


async def test_a_request_of_several_sequences_ends_with_the_last_of_them() -> None:
    async with replica() as only, pool(FakePicker(only.endpoint)) as channel_pool:
        answer = asyncio.create_task(collect(channel_pool.generate(request(max_tokens=2, n=3))))
        await only.engine.until_num_running(1)
        only.engine.step()
        only.engine.step()
        deltas = await answer
        for index in range(3):
            assert token_ids([d for d in deltas if d.index == index]) == [101, 102]


async def test_ending_one_sequence_stops_it_in_the_engine_and_leaves_the_others() -> None:
    async with replica() as only, pool(FakePicker(only.endpoint)) as channel_pool:
        channel_pool.end_sequence("unknown", 0)
        stream = channel_pool.generate(request(max_tokens=4, n=3))
        first = asyncio.ensure_future(anext(stream))
        await only.engine.until_num_running(1)
        only.engine.step()
        deltas = [await first]
        channel_pool.end_sequence("r", 1)
        channel_pool.end_sequence("r", 1)
        await only.engine.until(lambda engine: bool(engine.ended))
        for _ in range(3):
            only.engine.step()
        deltas += await collect(stream)
        assert [index for _, index in only.engine.ended] == [1]
        for index in (0, 2):
            mine = [delta for delta in deltas if delta.index == index]
            assert token_ids(mine) == [101, 102, 103, 104]
        assert only.server.num_streams == 0
        assert only.engine.aborted == []


async def test_an_end_that_was_under_way_when_its_sequence_was_ended_counts_once() -> None:
    async with replica() as only, pool(FakePicker(only.endpoint)) as channel_pool:
        stream = channel_pool.generate(request(max_tokens=2, n=2))
        first = asyncio.ensure_future(anext(stream))
        await only.engine.until_num_running(1)
        only.engine.step()
        deltas = [await first]
        only.engine.step()  # the ends are on the wire
        channel_pool.end_sequence("r", 0)
        deltas += await collect(stream)
        assert token_ids([delta for delta in deltas if delta.index == 1]) == [101, 102]
        await only.engine.until_num_running(0)


async def test_deltas_that_waited_for_the_reader_come_merged() -> None:
    async with replica() as only, pool(FakePicker(only.endpoint)) as channel_pool:
        stream = channel_pool.generate(request(max_tokens=10))
        first = asyncio.ensure_future(anext(stream))
        await only.engine.until_num_running(1)
        only.engine.step()
        assert token_ids([await first]) == [101]
        for _ in range(9):
            only.engine.step()
        await only.engine.until_num_running(0)
        # The last token has arrived when a second request over the same connection is answered.
        await answered(channel_pool.generate(request("other", max_tokens=1)), only)
        merged = await anext(stream)
        assert merged.token_ids == list(range(102, 111))
        assert merged.finish_reason is FinishReason.LENGTH
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_closing_the_stream_aborts_the_request_and_no_other() -> None:
    async with replica() as only, pool(FakePicker(only.endpoint)) as channel_pool:
        async with aclosing(channel_pool.generate(request("left", max_tokens=None))) as stream:
            first = asyncio.ensure_future(anext(stream))
            await only.engine.until_num_running(1)
            other = asyncio.create_task(collect(channel_pool.generate(request("stays"))))
            await only.engine.until_num_running(2)
            only.engine.step()
            await first
        await only.engine.until_num_running(1)
        assert [name.partition("@")[0] for name in only.engine.aborted] == ["left"]
        only.engine.step()
        only.engine.step()
        assert token_ids(await other) == [101, 102, 103]


async def test_cancelling_before_the_first_token_aborts_too() -> None:
    async with replica() as only, pool(FakePicker(only.endpoint)) as channel_pool:
        waiting = asyncio.create_task(collect(channel_pool.generate(request())))
        await only.engine.until_num_running(1)
        waiting.cancel()
        await only.engine.until_num_running(0)
        assert len(only.engine.aborted) == 1


async def test_an_error_of_the_engine_ends_that_stream_as_what_it_is() -> None:
    async with replica() as only, pool(FakePicker(only.endpoint)) as channel_pool:
        stream = channel_pool.generate(request(max_tokens=None))
        first = asyncio.ensure_future(anext(stream))
        await only.engine.until_num_running(1)
        only.engine.step()
        await first
        [request_id] = only.engine.running
        only.engine.fail(request_id, TooManyRequestsError("enough", retry_after_s=3.0))
        with pytest.raises(TooManyRequestsError, match="enough") as caught:
            await anext(stream)
        assert caught.value.retry_after_s == 3.0


async def test_a_refusal_at_submission_reaches_the_caller() -> None:
    async with replica() as only, pool(FakePicker(only.endpoint)) as channel_pool:
        only.engine.refuse_with = ServiceUnavailableError("the queue is full")
        with pytest.raises(ServiceUnavailableError, match="queue is full"):
            await anext(channel_pool.generate(request()))
        assert only.server.num_streams == 0


async def test_a_reader_that_stays_behind_loses_its_stream_and_nobody_elses() -> None:
    picker = FakePicker()
    async with replica() as only, pool(picker, max_buffered_tokens=20) as channel_pool:
        picker.offer(only.endpoint)
        slow = channel_pool.generate(request("slow", max_tokens=None))
        first = asyncio.ensure_future(anext(slow))
        await only.engine.until_num_running(1)
        read: list[TokenDelta] = []
        has_read = asyncio.Event()

        async def read_quickly() -> list[TokenDelta]:
            async for delta in channel_pool.generate(request("quick", max_tokens=40)):
                read.append(delta)
                has_read.set()
            return read

        quick = asyncio.create_task(read_quickly())
        await only.engine.until_num_running(2)
        for number in range(1, 41):
            only.engine.step()
            while len(token_ids(read)) < number:
                has_read.clear()
                await has_read.wait()
        await only.engine.until_num_running(0)
        assert [name.partition("@")[0] for name in only.engine.aborted] == ["slow"]
        assert token_ids(await quick) == list(range(101, 141))
        await first
        with pytest.raises(ClientTooSlowError, match="more than 20 tokens"):
            await anext(slow)


async def test_without_another_replica_a_stream_waits_so_long_and_no_longer() -> None:
    async with (
        replica() as only,
        pool(FakePicker(only.endpoint), hold=HoldLimits(move_s=0.2)) as channel_pool,
    ):
        stream = channel_pool.generate(request(max_tokens=None))
        first = asyncio.ensure_future(anext(stream))
        await only.engine.until_num_running(1)
        only.engine.step()
        await first
        await only.server.stop()
        with pytest.raises(ServiceUnavailableError, match=r"within 0\.2 s"):
            await anext(stream)
        assert not channel_pool.is_ready()


@pytest.mark.parametrize("num_steps", [1, 2, 4])
async def test_a_stream_goes_on_from_another_replica_after_the_tokens_that_have_come(
    num_steps: int,
) -> None:
    picker = FakePicker()
    async with replica("a") as dying, replica("b") as living, pool(picker) as channel_pool:
        picker.offer(dying.endpoint)
        answer = asyncio.create_task(collect(channel_pool.generate(request(max_tokens=5, n=2))))
        await dying.engine.until_num_running(1)
        for _ in range(num_steps):
            dying.engine.step()
        picker.offer(living.endpoint)
        await dying.server.stop()
        await living.engine.until_num_running(1)
        for _ in range(5 - num_steps):
            living.engine.step()
        deltas = await answer
    for index in range(2):
        mine = [delta for delta in deltas if delta.index == index]
        assert token_ids(mine) == [101, 102, 103, 104, 105]
        assert [d.finish_reason for d in mine if d.finish_reason] == [FinishReason.LENGTH]
    (rest,) = living.engine.submitted
    assert rest.prompt_token_ids == [100]
    assert rest.resumed == {index: list(range(101, 101 + num_steps)) for index in range(2)}
    (before,) = dying.engine.submitted
    assert rest.sampling_params == before.sampling_params
    assert rest.sampling_params.seed is not None


async def test_a_failed_engine_hands_its_streams_over() -> None:
    picker = FakePicker()
    async with replica("a") as failing, replica("b") as living, pool(picker) as channel_pool:
        picker.offer(failing.endpoint)
        answer = asyncio.create_task(collect(channel_pool.generate(request())))
        await failing.engine.until_num_running(1)
        failing.engine.step()
        picker.offer(living.endpoint)
        [request_id] = failing.engine.running
        failing.engine.fail(request_id, EngineGoneError("the engine failed"))
        await living.engine.until_num_running(1)
        living.engine.step()
        living.engine.step()
        assert token_ids(await answer) == [101, 102, 103]
        # New requests do not go there either.
        second = asyncio.create_task(collect(channel_pool.generate(request("second"))))
        await living.engine.until_num_running(1)
        second.cancel()


async def test_a_sequence_that_its_reader_ended_is_not_asked_for_again() -> None:
    picker = FakePicker()
    async with replica("a") as dying, replica("b") as living, pool(picker) as channel_pool:
        picker.offer(dying.endpoint)
        stream = channel_pool.generate(request(max_tokens=3, n=2))
        first = asyncio.ensure_future(anext(stream))
        await dying.engine.until_num_running(1)
        dying.engine.step()
        deltas = [await first]
        channel_pool.end_sequence("r", 1)
        picker.offer(living.endpoint)
        await dying.server.stop()
        rest = asyncio.create_task(collect(stream))
        await living.engine.until_num_running(1)
        assert living.engine.submitted[0].resumed == {0: [101]}
        living.engine.step()
        living.engine.step()
        deltas += await rest
        assert token_ids([delta for delta in deltas if delta.index == 0]) == [101, 102, 103]


async def test_a_request_that_kills_one_replica_after_the_other_is_given_up() -> None:
    picker = FakePicker()
    async with replica("a") as living, pool(picker) as channel_pool:
        picker.offer(living.endpoint)
        answer = asyncio.create_task(collect(channel_pool.generate(request())))
        # Each connection that breaks is a replica that is lost.
        for _ in range(MAX_FRUITLESS_LOSSES + 1):
            await living.engine.until_num_running(1)
            for connection in tuple(living.server._connections):
                connection.give_up("the replica dies")
            await living.engine.until_num_running(0)
        with pytest.raises(ServiceUnavailableError, match="lost in a row"):
            await answer


async def test_a_request_without_a_token_moves_silently_to_another_replica() -> None:
    picker = FakePicker()
    async with replica("a") as dying, replica("b") as living, pool(picker) as channel_pool:
        picker.offer(dying.endpoint)
        answer = asyncio.create_task(collect(channel_pool.generate(request())))
        await dying.engine.until_num_running(1)
        picker.offer(living.endpoint)  # the dead one goes on being offered
        await dying.server.stop()
        await living.engine.until_num_running(1)
        for _ in range(3):
            living.engine.step()
        assert token_ids(await answer) == [101, 102, 103]


async def test_a_replica_that_cannot_be_reached_is_not_used_and_the_request_waits() -> None:
    async with replica("gone") as gone:
        endpoint = gone.endpoint
    async with pool(FakePicker(endpoint), hold=HoldLimits(max_s=0.2)) as channel_pool:
        with pytest.raises(ServiceUnavailableError, match=r"within 0\.2 s") as caught:
            await anext(channel_pool.generate(request()))
        assert caught.value.retry_after_s is not None


async def test_with_no_replica_at_all_a_request_waits_for_the_first() -> None:
    picker = FakePicker()
    async with replica() as only, pool(picker) as channel_pool:
        answer = asyncio.create_task(collect(channel_pool.generate(request())))
        await asyncio.sleep(0)
        assert not channel_pool.is_ready()
        picker.offer(only.endpoint)
        await only.engine.until_num_running(1)
        for _ in range(3):
            only.engine.step()
        assert len(token_ids(await answer)) == 3
        assert channel_pool.is_ready()


ASLEEP = HoldLimits(max_requests=2, max_s=5.0, may_sleep=True, start_s=12.0)


async def test_a_pool_that_sleeps_is_ready_and_is_woken_once_by_the_requests_that_wait() -> None:
    picker = FakePicker()
    async with replica() as only, pool(picker, hold=ASLEEP) as channel_pool:
        assert channel_pool.is_ready()
        assert picker.num_wakes == 0, "the upkeep wakes nobody"
        names = ("first", "second")
        answers = [
            asyncio.create_task(collect(channel_pool.generate(request(name)))) for name in names
        ]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (channel_pool.num_held, picker.num_wakes) == (2, 1)
        picker.offer(only.endpoint)
        await only.engine.until_num_running(2)
        for _ in range(3):
            only.engine.step()
        assert [token_ids(deltas) for deltas in await asyncio.gather(*answers)] == [
            [101, 102, 103]
        ] * 2
        assert channel_pool.num_held == 0


async def test_no_more_requests_are_held_than_allowed() -> None:
    async with pool(FakePicker(), hold=ASLEEP) as channel_pool:
        held = [asyncio.create_task(collect(channel_pool.generate(request(name)))) for name in "ab"]
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailableError, match="2 requests wait for it") as caught:
            await anext(channel_pool.generate(request("c")))
        assert caught.value.retry_after_s == 12
        held[0].cancel()
        await asyncio.gather(held[0], return_exceptions=True)
        assert channel_pool.num_held == 1, "who leaves makes room"
        held[1].cancel()
        await asyncio.gather(held[1], return_exceptions=True)


async def test_a_request_that_is_held_too_long_is_told_that_the_model_starts() -> None:
    hold = HoldLimits(max_s=0.05, may_sleep=True, start_s=12.0)
    async with pool(FakePicker(), hold=hold) as channel_pool:
        with pytest.raises(ServiceUnavailableError, match=r"asleep and is starting") as caught:
            await anext(channel_pool.generate(request()))
        assert caught.value.retry_after_s == 12


async def test_requests_spread_over_the_replicas() -> None:
    picker = FakePicker()
    async with replica("a") as a, replica("b") as b, pool(picker) as channel_pool:
        picker.offer(a.endpoint)
        picker.offer(b.endpoint)
        answers = [
            asyncio.create_task(collect(channel_pool.generate(request(str(number)))))
            for number in range(10)
        ]
        await a.engine.until_num_running(5)
        await b.engine.until_num_running(5)
        for _ in range(3):
            a.engine.step()
            b.engine.step()
        await asyncio.gather(*answers)


async def test_the_load_reports_of_the_replicas_arrive() -> None:
    async with replica() as only, pool(FakePicker(only.endpoint)) as channel_pool:
        async with asyncio.timeout(120):
            while not channel_pool.is_ready():  # noqa: ASYNC110 - readiness is asked for, not told
                await asyncio.sleep(0.01)
        only.server.report(ReplicaStats(num_requests_waiting=7, num_blocks=4, num_free_blocks=3))
        await answered(channel_pool.generate(request(max_tokens=1)), only)  # arrives after it
        [(replica_id, stats)] = channel_pool.stats().items()
        assert replica_id == "a"
        assert stats.num_requests_waiting == 7
        assert stats.kv_cache_usage == 0.25


async def test_requests_with_an_adapter_follow_each_other_to_one_replica() -> None:
    picker = FakePicker()
    async with replica("a") as a, replica("b") as b, pool(picker) as channel_pool:
        picker.offer(a.endpoint)
        picker.offer(b.endpoint)
        both = [asyncio.create_task(collect(channel_pool.generate(request(n)))) for n in "xy"]
        await a.engine.until_num_running(1)
        await b.engine.until_num_running(1)
        with_adapter = [
            asyncio.create_task(
                collect(channel_pool.generate(replace(request(f"sql-{n}"), adapter="sql")))
            )
            for n in range(6)
        ]
        while sum(len(each.engine.running) for each in (a, b)) < 8:  # noqa: ASYNC110 - of two engines
            await asyncio.sleep(0.01)
        names = [{r.adapter for r in each.engine.submitted} for each in (a, b)]
        assert sorted(map(len, names)) == [1, 2]
        for _ in range(3):
            a.engine.step()
            b.engine.step()
        await asyncio.gather(*both, *with_adapter)


async def answered(stream: AsyncIterator[TokenDelta], only: Replica) -> None:
    """Let the replica answer a request of one token."""
    answer = asyncio.create_task(collect(stream))
    await only.engine.until_num_running(1)
    only.engine.step()
    await answer
