"""Work on a thread that is gone afterwards."""

import subprocess
import sys
import threading

import pytest

from models.passing_thread import run_in_passing

# A process of its own: threads of other tests come and go.
SCRIPT = """
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import torch

from models.passing_thread import submit_in_passing

torch.set_num_threads(2)
num_threads = psutil.Process().num_threads


def compute():
    return float(torch.ones(2000, 2000).exp_().sum())


def wait_for(expected):
    end_s = time.monotonic() + 30  # the operating system tells nobody that a thread has ended
    while num_threads() != expected:
        assert time.monotonic() < end_s, f"{num_threads()} threads, {expected} before"
        time.sleep(0.001)


before = num_threads()
with ThreadPoolExecutor(1) as pool:  # that there are any, on a thread that stays
    pool.submit(compute).result(30)
    assert num_threads() == before + 2, num_threads()
wait_for(before)
assert submit_in_passing("passing", compute).result(30) > 0
wait_for(before)
"""


def test_the_openmp_threads_of_the_work_are_gone_with_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_its_result_or_error_comes_and_its_thread_has_the_name() -> None:
    def name_of_thread(*, suffix: str) -> str:
        return threading.current_thread().name + suffix

    assert (await run_in_passing("reading", name_of_thread, suffix="!")) == "reading_0!"
    with pytest.raises(ValueError, match="invalid literal"):
        await run_in_passing("reading", int, "x")
