"""Work on a thread that is gone afterwards."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from models.passing_thread import run_in_passing, submit_in_passing

TIMEOUT_S = 30.0


def compute() -> float:
    """Enough that OpenMP takes part."""
    return float(torch.ones(2000, 2000).exp_().sum())


def num_threads() -> int:
    """Of this process, those of OpenMP included."""
    count: int = psutil.Process().num_threads()
    return count


def wait_for(expected: int) -> None:
    """The operating system tells nobody that a thread has ended."""
    end_s = time.monotonic() + TIMEOUT_S
    while (count := num_threads()) != expected:
        assert time.monotonic() < end_s, f"{count} threads, {expected} before"
        time.sleep(0.001)


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="OpenMP starts nothing on one core")
def test_the_openmp_threads_of_the_work_are_gone_with_it() -> None:
    before = num_threads()
    with ThreadPoolExecutor(1) as pool:  # that there are any, on a thread that stays
        pool.submit(compute).result(TIMEOUT_S)
        assert num_threads() > before + 1
    wait_for(before)
    assert submit_in_passing("passing", compute).result(TIMEOUT_S) > 0
    wait_for(before)


async def test_its_result_or_error_comes_and_its_thread_has_the_name() -> None:
    def name_of_thread(*, suffix: str) -> str:
        return threading.current_thread().name + suffix

    assert (await run_in_passing("reading", name_of_thread, suffix="!")) == "reading_0!"
    with pytest.raises(ValueError, match="invalid literal"):
        await run_in_passing("reading", int, "x")
