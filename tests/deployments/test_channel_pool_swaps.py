"""Replicas that end on purpose, over real channels: their streams, and whoever waits."""

import asyncio

import pytest

from cluster.errors import PoolReplacedError, ServiceUnavailableError
from deployments import channel_pool as channel_pool_module
from deployments.channel_client import ReplicaConnection
from deployments.channel_pool import HoldLimits
from tests.deployments.channel_fakes import FakePicker, pool, replica, request
from tests.deployments.test_channel_pool import collect, token_ids


async def test_a_draining_replica_hears_of_its_ingress_while_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picker = FakePicker()
    pings: asyncio.Queue[None] = asyncio.Queue()
    monkeypatch.setattr(channel_pool_module, "UPKEEP_PERIOD_S", 0.001)
    async with replica("a") as old, pool(picker) as channel_pool:
        picker.offer(old.endpoint)
        running = asyncio.create_task(collect(channel_pool.generate(request())))
        await old.engine.until_num_running(1)
        picker.withdraw()
        drained = asyncio.create_task(old.server.drain())
        while channel_pool.is_ready():  # noqa: ASYNC110 - readiness is asked for, not told
            await asyncio.sleep(0.001)
        monkeypatch.setattr(ReplicaConnection, "ping", lambda _: pings.put_nowait(None))
        for _ in range(3):
            await pings.get()
        for _ in range(3):
            old.engine.step()
        assert len(token_ids(await running)) == 3
        await drained


async def test_a_draining_replica_finishes_its_streams_and_gets_no_new_ones() -> None:
    picker = FakePicker()
    async with replica("a") as old, replica("b") as new, pool(picker) as channel_pool:
        picker.offer(old.endpoint)
        running = asyncio.create_task(collect(channel_pool.generate(request())))
        await old.engine.until_num_running(1)
        drained = asyncio.create_task(old.server.drain())
        picker.offer(new.endpoint)
        second = asyncio.create_task(collect(channel_pool.generate(request("second"))))
        await new.engine.until_num_running(1)
        assert len(old.engine.running) == 1
        assert not drained.done()
        for _ in range(3):
            old.engine.step()
            new.engine.step()
        assert token_ids(await running) == token_ids(await second) == [101, 102, 103]
        await drained


async def test_streams_of_a_draining_replica_go_on_elsewhere_when_it_takes_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_pool_module, "HAND_OVER_AFTER_S", 0.0)
    picker = FakePicker()
    async with replica("a") as old, replica("b") as new, pool(picker) as channel_pool:
        picker.offer(old.endpoint)
        running = asyncio.create_task(collect(channel_pool.generate(request())))
        await old.engine.until_num_running(1)
        old.engine.step()
        drained = asyncio.create_task(old.server.drain())
        picker.offer(new.endpoint)
        await new.engine.until_num_running(1)
        await drained
        assert new.engine.submitted[0].resumed == {0: [101]}
        new.engine.step()
        new.engine.step()
        assert token_ids(await running) == [101, 102, 103]


async def test_a_swap_without_room_for_two_hands_streams_over_and_holds_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_pool_module, "HAND_OVER_AFTER_S", 0.01)
    monkeypatch.setattr(channel_pool_module, "UPKEEP_PERIOD_S", 0.01)
    picker = FakePicker()
    async with (
        replica("a") as old,
        replica("b") as new,
        pool(picker, hold=HoldLimits(max_s=60)) as channel_pool,
    ):
        picker.offer(old.endpoint)
        running = asyncio.create_task(collect(channel_pool.generate(request())))
        await old.engine.until_num_running(1)
        channel_pool._hold = HoldLimits(max_s=0.05)
        old.engine.step()
        draining = asyncio.create_task(old.server.drain())
        await old.engine.until_num_running(0)  # the stream has nowhere to go yet
        await draining
        held = asyncio.create_task(collect(channel_pool.generate(request("held"))))
        await old.server.stop()
        await asyncio.sleep(0.1)  # longer than a request waits where nothing is being swapped
        assert not held.done()
        picker.offer(new.endpoint)
        await new.engine.until_num_running(2)
        for _ in range(3):
            new.engine.step()
        assert token_ids(await running) == token_ids(await held) == [101, 102, 103]


async def test_streams_of_a_model_that_is_removed_end_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_pool_module, "HAND_OVER_AFTER_S", 0.0)
    monkeypatch.setattr(channel_pool_module, "UPKEEP_PERIOD_S", 0.01)
    async with replica("a") as only, pool(FakePicker(only.endpoint)) as channel_pool:
        channel_pool.expect_successors(False)
        running = asyncio.create_task(collect(channel_pool.generate(request())))
        await only.engine.until_num_running(1)
        drained = asyncio.create_task(only.server.drain())
        await asyncio.sleep(0.05)  # several rounds of upkeep
        assert not drained.done()
        for _ in range(3):
            only.engine.step()
        assert token_ids(await running) == [101, 102, 103]
        await drained


async def test_whoever_waits_for_a_model_that_is_removed_is_told() -> None:
    async with pool(FakePicker(), hold=HoldLimits(max_s=60)) as channel_pool:
        waiting = asyncio.create_task(collect(channel_pool.generate(request())))
        await asyncio.sleep(0)
        channel_pool.expect_successors(False, is_removed=True)
        with pytest.raises(ServiceUnavailableError, match="is being removed"):
            await asyncio.wait_for(waiting, 120)


async def test_whoever_waits_when_another_checkpoint_takes_over_is_told_that() -> None:
    async with pool(FakePicker(), hold=HoldLimits(max_s=60)) as channel_pool:
        waiting = asyncio.create_task(collect(channel_pool.generate(request())))
        await asyncio.sleep(0)
        channel_pool.expect_successors(False)
        with pytest.raises(PoolReplacedError):
            await asyncio.wait_for(waiting, 120)
        with pytest.raises(PoolReplacedError):
            await asyncio.wait_for(collect(channel_pool.generate(request("later"))), 120)


async def test_before_another_checkpoint_takes_over_the_old_replica_answers_until_it_drains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_pool_module, "UPKEEP_PERIOD_S", 0.01)
    picker = FakePicker()
    async with replica("a") as old, pool(picker, hold=HoldLimits(max_s=60)) as channel_pool:
        picker.offer(old.endpoint)
        channel_pool.expect_successors(False)
        running = asyncio.create_task(collect(channel_pool.generate(request())))
        await old.engine.until_num_running(1)
        picker.withdraw()  # from now on the router offers the new ones, which this pool leaves out
        waiting = asyncio.create_task(collect(channel_pool.generate(request("waits"))))
        await asyncio.sleep(0)
        drained = asyncio.create_task(old.server.drain())
        with pytest.raises(PoolReplacedError):
            await asyncio.wait_for(waiting, 120)
        for _ in range(3):
            old.engine.step()
        assert token_ids(await running) == [101, 102, 103]
        await drained
