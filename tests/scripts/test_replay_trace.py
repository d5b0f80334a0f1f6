"""What is made of a replayed trace: curves by the second, starts, stays, and how far curves are."""

from pathlib import Path

import numpy as np

from scripts.autoscaling.live_pool import LiveRun, Request, Sample
from scripts.replay_trace import difference, lag_s, make_arrivals, report, simulate


def run_of(num_s: int) -> LiveRun:
    """A second replica is wanted after 20 s and runs after 30; a request a second stays 4 s."""

    def states(at_s: int) -> dict[str, str]:
        second = {} if at_s < 20 else {"b": "STARTING" if at_s < 30 else "RUNNING"}
        return {"a": "RUNNING", **second}

    return LiveRun(
        samples=[
            Sample(at_s=float(at_s), num_wanted=len(states(at_s)), states=states(at_s))
            for at_s in range(num_s + 1)
        ],
        requests=[
            Request(at_s=at_s + 0.5, wait_s=0.2, stay_s=4.0, problem=None) for at_s in range(num_s)
        ],
    )


def test_samples_become_curves_and_start_times() -> None:
    run = run_of(60)
    assert run.wanted()[:19].tolist() == [1] * 19
    assert run.wanted()[19:].tolist() == [2] * 41
    assert np.flatnonzero(run.ready() == 2)[0] == 29
    assert run.start_seconds == [10.0]


def test_the_simulator_gets_the_arrivals_and_stays_as_measured() -> None:
    trace = run_of(60).as_trace()
    assert trace.arrivals_T.tolist() == [1] * 60
    assert trace.stay_S[3] == 1.0


def test_a_run_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    run = run_of(30)
    run.save(tmp_path / "run.json")
    assert LiveRun.load(tmp_path / "run.json") == run
    assert "30 requests, 0 of them not whole" in report(run, simulate(run))


def test_a_curve_that_comes_later_has_a_lag() -> None:
    early, late = np.zeros(100, dtype=np.int64), np.zeros(100, dtype=np.int64)
    early[40:] = late[47:] = 1
    assert lag_s(late, early) == 7
    assert lag_s(early, late) == -7
    assert lag_s(early, early) == 0
    assert difference(late, early) == 0.07
    assert difference(late, early, 7) == 0


def test_the_trace_is_silent_long_enough_for_the_last_replica_to_go() -> None:
    arrivals_T = make_arrivals(600, seed=0)
    assert len(arrivals_T) == 600
    assert not arrivals_T[-100:].any()
    assert arrivals_T[420:480].sum() > 60
