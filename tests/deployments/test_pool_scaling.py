from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.pool_scaling import Decision, PoolLoad, PoolScaler, ScalingSettings

SETTINGS = ScalingSettings(
    min_replicas=1, max_replicas=10, slots_per_replica=10, downscale_delay_s=60, start_s=20
)


@dataclass
class Pool:
    """A scaler with a clock, and replicas that come at once unless told otherwise."""

    settings: ScalingSettings = SETTINGS
    num_replicas: int = 1
    now_s: float = 0.0
    scaler: PoolScaler = field(init=False)
    decision: Decision = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = PoolScaler(self.settings)
        self.target = self.num_replicas

    def tell(self, load: PoolLoad) -> int:
        self.now_s += 1
        self.decision = self.scaler.decide(self.now_s, load, num_target=self.target)
        self.target = self.decision.num_replicas
        return self.target

    def load(self, **values: float) -> PoolLoad:
        """Of the running replicas; a request that runs has arrived at some time."""
        return PoolLoad(num_replicas=self.num_replicas, num_slots=10 * self.num_replicas, **values)

    def flow(self, rate: int, *, stay_s: int, seconds: int) -> list[int]:
        """So many arrive in each second, and stay so long; all run."""
        targets = []
        for _ in range(seconds):
            self.num_replicas = self.target
            targets.append(self.tell(self.load(num_running=rate * stay_s, num_arrived=rate)))
        return targets


def test_a_quiet_pool_stays_at_its_minimum() -> None:
    pool = Pool()
    assert {pool.tell(pool.load()) for _ in range(300)} == {1}
    assert pool.decision.reason == "no requests"


def test_what_waits_needs_slots_at_once() -> None:
    pool = Pool()
    assert pool.tell(pool.load(num_running=10, num_waiting=25, num_arrived=35)) == 4
    assert pool.decision.reason.startswith("10 running, 25 waiting: ")


def test_more_arrivals_are_answered_before_anything_waits() -> None:
    pool = Pool()
    assert set(pool.flow(1, stay_s=5, seconds=60)) == {1}
    load = pool.load(num_running=9, num_arrived=8)
    for _ in range(3):
        pool.tell(load)
    assert pool.target >= 5, "8 a second that stay 5 s fill 40 slots, soon"
    assert "rising" in pool.decision.reason


def test_a_pool_comes_down_only_when_it_was_not_needed_for_the_whole_delay() -> None:
    pool = Pool()
    pool.flow(8, stay_s=5, seconds=100)
    high = pool.target
    quiet = [pool.tell(pool.load()) for _ in range(200)]
    assert quiet[58] == high
    assert quiet[-1] == 1
    assert quiet == sorted(quiet, reverse=True)


def test_a_steady_load_with_its_chance_moves_nothing() -> None:
    rng = np.random.default_rng(3)
    pool = Pool(settings=replace(SETTINGS, max_replicas=100), num_replicas=30)
    last_ten = deque([20] * 10, maxlen=10)
    targets = []
    for _ in range(1800):
        pool.num_replicas = pool.target
        last_ten.append(int(rng.poisson(20)))
        load = pool.load(num_running=sum(last_ten), num_arrived=last_ten[-1])
        targets.append(pool.tell(load))
    settled = targets[200:]
    assert 22 <= min(settled) <= max(settled) <= 27
    assert np.count_nonzero(np.diff(settled)) <= 12


def test_a_small_pool_keeps_a_larger_part_of_its_slots_free_than_a_large_one() -> None:
    def utilization(rate: int) -> float:
        pool = Pool(settings=replace(SETTINGS, max_replicas=10_000), num_replicas=rate)
        pool.flow(rate, stay_s=5, seconds=200)
        return rate * 5 / (10 * pool.target)

    assert utilization(1) <= 0.55
    assert utilization(1000) == pytest.approx(0.9, abs=0.01)


def test_full_kv_caches_count_as_full_replicas() -> None:
    pool = Pool()
    full = pool.load(num_running=4, num_waiting=5, num_used_blocks=100, num_blocks=100)
    pool.tell(full)
    assert pool.target == 3, "9 sequences, and 4 are all that a cache holds"


def test_long_prompts_that_wait_need_replicas() -> None:
    pool = Pool()
    load = pool.load(num_running=2, num_prefill_tokens=30_000, prefill_tokens_per_s=5_000)
    assert pool.tell(load) == 3
    assert pool.decision.reason == "30,000 prompt tokens wait, to be read in 2 s"


def test_the_reason_names_the_limit() -> None:
    pool = Pool()
    assert pool.tell(pool.load(num_waiting=1000, num_arrived=1000)) == 10
    assert pool.decision.reason.endswith("; max_replicas is 10")


def test_start_times_are_measured_and_what_takes_long_is_kept_long() -> None:
    pool = Pool(settings=replace(SETTINGS, downscale_delay_s=None))
    for _ in range(20):
        pool.num_replicas = 1
        pool.target = 1
        pool.tell(pool.load(num_waiting=12))
        for _ in range(100):
            pool.tell(pool.load(num_waiting=12))
        pool.num_replicas = 2
        pool.tell(pool.load(num_running=12))
    assert pool.scaler.start_s == pytest.approx(101, abs=3)
    assert pool.scaler.downscale_delay_s == pytest.approx(4 * pool.scaler.start_s)


def sleeping(num_replicas: int = 1) -> Pool:
    return Pool(
        settings=replace(SETTINGS, min_replicas=0, idle_before_zero_s=30),
        num_replicas=num_replicas,
    )


def test_an_idle_pool_goes_to_zero_and_comes_back_for_a_held_request() -> None:
    pool = sleeping()
    pool.tell(pool.load(num_running=1, num_arrived=1))
    idle = [pool.tell(pool.load()) for _ in range(40)]
    assert idle[:30] == [1] * 30
    assert idle[-1] == 0
    assert pool.decision.reason == "no request for 30 s"
    pool.num_replicas = 0
    assert pool.tell(pool.load(num_held=1)) == 1
    assert pool.tell(pool.load(num_held=35)) == 4


def test_a_replica_that_still_loads_is_not_idle() -> None:
    pool = Pool(settings=sleeping().settings, num_replicas=0)
    pool.target = 1
    assert {pool.tell(pool.load()) for _ in range(200)} == {1}
    pool.num_replicas = 1
    assert [pool.tell(pool.load()) for _ in range(40)] == [1] * 30 + [0] * 10


def test_time_in_which_nobody_asked_does_not_count_as_idle() -> None:
    pool = sleeping(num_replicas=0)
    pool.tell(pool.load())
    pool.now_s += 1000  # Serve starts a first replica by itself
    pool.target = pool.num_replicas = 1
    assert pool.tell(pool.load()) == 1


def test_a_scaler_that_begins_in_the_middle_keeps_what_is_there() -> None:
    pool = Pool(num_replicas=7)
    assert pool.tell(pool.load(num_running=5)) == 7


LOADS = st.builds(
    PoolLoad,
    num_replicas=st.integers(0, 12),
    num_slots=st.integers(0, 10**4),
    num_running=st.integers(0, 10**5),
    num_waiting=st.integers(0, 10**5),
    num_held=st.integers(0, 10**5),
    num_arrived=st.integers(0, 10**5),
    num_used_blocks=st.integers(0, 10**6),
    num_blocks=st.integers(0, 10**6),
    num_prefill_tokens=st.integers(0, 10**9),
    prefill_tokens_per_s=st.integers(0, 10**6),
)


@settings(max_examples=50)
@given(
    loads=st.lists(LOADS, min_size=1, max_size=8),
    step_s=st.sampled_from([0.0, 0.1, 1.0, 100.0]),
    least=st.integers(0, 3),
    most=st.integers(3, 12),
)
def test_whatever_is_reported_the_number_is_in_range_and_never_zero_under_load(
    loads: list[PoolLoad], step_s: float, least: int, most: int
) -> None:
    scaler = PoolScaler(replace(SETTINGS, min_replicas=least, max_replicas=most))
    target = least
    for number, load in enumerate(loads):
        decision = scaler.decide(number * step_s, load, num_target=target)
        target = decision.num_replicas
        assert least <= target <= most
        assert decision.reason
        if load.num_requests or load.num_arrived:
            assert target >= 1


@settings(max_examples=50)
@given(loads=st.lists(LOADS, min_size=2, max_size=8))
def test_the_number_never_falls_below_what_the_last_delay_needed(loads: list[PoolLoad]) -> None:
    scaler = PoolScaler(SETTINGS)
    fresh: Callable[[], PoolScaler] = lambda: PoolScaler(SETTINGS)  # noqa: E731 - a short name
    alone = [fresh().decide(0.0, load, num_target=0).num_replicas for load in loads]
    targets: list[int] = []
    for number, load in enumerate(loads):
        target = targets[-1] if targets else 0
        targets.append(scaler.decide(float(number), load, num_target=target).num_replicas)
    for later in range(1, len(targets)):
        assert targets[later] >= targets[later - 1], "within 60 s nothing comes down"
    assert targets[0] == alone[0]
