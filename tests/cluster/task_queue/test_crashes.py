"""Worker processes and the server are killed for real; every unit still has exactly one result."""

import pytest

from tests.cluster.task_queue.crash_run import crash_run


async def test_kills_a_frozen_worker_and_a_killed_server_lose_and_double_nothing() -> None:
    report = await crash_run(num_tasks=6, num_units=60, num_kills=3)
    assert report.problems == []
    assert report.was_fenced, report
    assert report.num_losses >= 1, report
    assert report.num_units <= report.num_executed


@pytest.mark.slow
async def test_twelve_tasks_of_six_hundred_units_survive_eight_kills() -> None:
    report = await crash_run(num_tasks=12, num_units=600, num_kills=8)
    assert report.problems == []
    assert report.was_fenced
    assert report.num_units == 7200 <= report.num_executed
