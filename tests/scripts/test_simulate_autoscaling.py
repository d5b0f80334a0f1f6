import numpy as np
import pytest

from scripts.autoscaling.policies import Oracle, Ours, ServeDefault
from scripts.autoscaling.simulated_pool import PoolShape, PoolState, SimulatedPool
from scripts.autoscaling.traces import TRACES, Trace, make_trace, stay_chances

SHAPE = PoolShape(slots_per_replica=2, start_s=10, min_replicas=1, max_replicas=50)


class Fixed:
    name = "fixed"

    def __init__(self, number: int) -> None:
        self._number = number

    def wanted(self, state: PoolState) -> int:
        return self._number


def test_requests_wait_for_a_slot_in_the_order_in_which_they_came() -> None:
    """One a second, each for 4 s, on two slots: after 40 s half of them have run."""
    stays_S = np.zeros(4)
    stays_S[3] = 1.0  # all stay 4 s
    trace = Trace("even", np.ones(40, dtype=np.int64), stays_S)
    outcome = SimulatedPool(trace, SHAPE, 0, 1).run(Fixed(1))
    assert outcome.replica_hours == pytest.approx(40 / 3600)
    assert outcome.waiting_T[-1] == pytest.approx(20, abs=2)
    assert outcome.waits_W.sum() == 40
    assert np.flatnonzero(outcome.waits_W).max() == pytest.approx(20, abs=2)


def test_a_replica_that_drains_costs_until_its_requests_have_ended() -> None:
    stays_S = np.zeros(30)
    stays_S[29] = 1.0
    arrivals_T = np.zeros(60, dtype=np.int64)
    arrivals_T[0] = 4
    outcome = SimulatedPool(Trace("one lot", arrivals_T, stays_S), SHAPE, 0, 2).run(Fixed(1))
    assert outcome.waits_W[0] == 4, "nobody waits, and nothing is cut"
    assert outcome.replica_hours * 3600 == pytest.approx(60 + 30, abs=2)


def test_the_same_seed_gives_the_same_outcome() -> None:
    trace = make_trace("burst", num_slots=20, seed=5)
    first, second = (SimulatedPool(trace, SHAPE, 5, 3).run(Ours(SHAPE)) for _ in range(2))
    assert np.array_equal(first.waits_W, second.waits_W)
    assert first.replica_hours == second.replica_hours


def test_stays_have_the_mean_that_traces_reckon_with() -> None:
    stays_S = stay_chances()
    assert float(stays_S @ np.arange(1, len(stays_S) + 1)) == pytest.approx(10, rel=0.06)


@pytest.mark.parametrize("name", ["steady", "burst", "flash crowd"])
def test_requests_wait_at_most_half_as_long_as_under_serves_default_and_for_no_more_hours(
    name: str,
) -> None:
    assert name in TRACES
    shape = PoolShape(slots_per_replica=32, start_s=30, min_replicas=1, max_replicas=80)
    trace = make_trace(name, num_slots=40 * 32 * 0.9, seed=11)
    oracle = Oracle(trace, shape, seed=11)
    ours, serve, best = (
        SimulatedPool(trace, shape, 11, oracle.first).run(policy)
        for policy in (
            Ours(shape),
            ServeDefault(shape, utilization=0.8, name="Serve's default"),
            oracle,
        )
    )
    assert ours.waiting_time_s(0.99) <= serve.waiting_time_s(0.99) / 2
    assert ours.replica_hours <= 1.1 * serve.replica_hours
    assert best.waiting_time_s(0.99) <= 1
    assert best.replica_hours <= ours.replica_hours
