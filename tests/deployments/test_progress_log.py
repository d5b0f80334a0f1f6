"""Long work is told of every ten seconds, short work not at all."""

import logging

import pytest

from deployments.progress_log import ProgressLog

logger = logging.getLogger("progress")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(name="clock")
def _clock(caplog: pytest.LogCaptureFixture) -> Clock:
    caplog.set_level(logging.INFO, "progress")
    return Clock()


def test_a_line_every_ten_seconds_says_how_far_it_is_and_how_long_it_will_take(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log = ProgressLog(logger, "loading", clock=clock)
    for second in range(25):
        clock.now_s = 100.0 + second
        log.update(5_000 + 1_000 * second, 105_000)  # 5,000 were there already
    log.finish("105,000")
    assert caplog.messages == [
        "loading: 15,000 of 105,000, about 90 s more",
        "loading: 25,000 of 105,000, about 80 s more",
        "loading: 105,000, in 24 s",
    ]


def test_what_is_done_at_once_is_not_told_of(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log = ProgressLog(logger, "loading", clock=clock)
    clock.now_s += 9
    log.update(1, 2)
    log.finish("2")
    assert not caplog.messages


def test_work_that_does_not_advance_has_no_time_left(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log = ProgressLog(logger, "loading", clock=clock)
    log.update(0, 7)
    clock.now_s += 11
    log.update(0, 7)
    assert caplog.messages == ["loading: 0 of 7"]
