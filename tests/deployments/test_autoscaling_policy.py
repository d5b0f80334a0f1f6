"""How many replicas of an embedding model, ingresses and task workers there should be."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from cluster.config import EmbedderConfig, HTTPConfig, RetrievalConfig
from deployments.autoscaling_policy import (
    by_queued_work,
    by_requests,
    by_tasks,
    embedder_options,
    ingress_options,
    task_worker_options,
    wanted_replicas,
)


@pytest.mark.parametrize(
    ("queued_s", "busy", "num_running", "wanted"),
    [
        ([], [], 0, 1),  # nothing has reported yet
        ([], [], 3, 1),
        ([0.0], [0.0], 1, 1),
        ([0.1], [0.5], 1, 1),  # works, with pauses
        ([0.1], [0.9], 1, 2),  # works without a pause
        ([3.0], [1.0], 1, 2),
        ([60.0], [1.0], 1, 2),  # one step at a time, though 30 would be busy
        ([20.0, 20.0], [1.0, 1.0], 2, 4),
        ([5.0, 5.0, 5.0, 5.0], [1.0] * 4, 4, 8),
        ([0.1, 0.1], [0.6, 0.6], 2, 2),  # one alone would have to work 1.2 of the time
        ([0.1, 0.1], [0.3, 0.3], 2, 1),
        ([0.0, 0.0, 0.0], [0.1, 0.0, 0.0], 3, 1),
    ],
)
def test_as_many_as_keep_queues_short_and_have_pauses(
    queued_s: list[float], busy: list[float], num_running: int, wanted: int
) -> None:
    assert wanted_replicas(queued_s, busy, num_running=num_running) == wanted


def context_of_two() -> Any:
    return SimpleNamespace(
        aggregated_metrics={
            "queued_s": {"a": 5.0, "b": 1.0},
            "is_busy": {"a": 1.0, "b": 1.0},
            "num_queued_tokens": {"a": 90_000.0, "b": 1_000.0},
        },
        current_num_replicas=2,
    )


def test_the_policy_reads_what_replicas_report() -> None:
    assert by_queued_work(context_of_two()) == (3, {})
    nobody: Any = SimpleNamespace(aggregated_metrics=None, current_num_replicas=0)
    assert by_queued_work(nobody) == (1, {})


def test_a_fixed_number_of_replicas_is_not_scaled() -> None:
    config = EmbedderConfig(name="x", source="demo", min_replicas=2, max_replicas=2)
    assert embedder_options(config) == {"num_replicas": 2}


def test_a_range_of_replicas_is_scaled_by_the_policy() -> None:
    config = EmbedderConfig(name="x", source="demo", min_replicas=1, max_replicas=5)
    scaling = embedder_options(config)["autoscaling_config"]
    assert isinstance(scaling, AutoscalingConfig)
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 5)
    policy = scaling.policy.get_policy()  # as it arrives in Serve's controller
    assert policy(context_of_two()) == (3, {})


def context(num_running: int, **metrics: list[float]) -> Any:
    """What so many replicas have reported."""
    aggregated = {
        name: {str(number): value for number, value in enumerate(values)}
        for name, values in metrics.items()
    }
    return SimpleNamespace(aggregated_metrics=aggregated, current_num_replicas=num_running)


@pytest.mark.parametrize(
    ("cpu", "num_open", "wanted"),
    [
        ([0.1], [5], 1),
        ([0.6], [100], 1),
        ([0.7], [100], 2),  # of a core: its streams would wait for each other
        ([0.2], [1500], 2),
        ([0.7, 0.7], [10, 10], 3),
        ([0.2, 0.2], [10, 10], 1),
        ([1.0], [9000], 2),  # one step at a time
    ],
)
def test_ingresses_follow_their_cpu_time_and_open_requests(
    cpu: list[float], num_open: list[float], wanted: int
) -> None:
    seen = context(len(cpu), cpu_share=cpu, num_open_requests=num_open)
    assert by_requests(seen) == (wanted, {})


@pytest.mark.parametrize(
    ("waiting", "running", "wanted"),
    [
        ([0], [0], 1),
        ([0], [4], 1),  # all that it runs at once
        ([1], [4], 2),
        ([20, 20], [4, 4], 4),  # both see the same twenty; one step at a time
        ([0, 0], [3, 1], 1),
    ],
)
def test_task_workers_follow_the_tasks(
    waiting: list[float], running: list[float], wanted: int
) -> None:
    seen = context(len(running), num_tasks_waiting=waiting, num_tasks_running=running)
    assert by_tasks(seen) == (wanted, {})


def test_nobody_has_reported_yet() -> None:
    assert by_requests(context(1)) == by_tasks(context(1)) == (1, {})


def test_ingresses_and_task_workers_are_scaled_where_there_is_a_range() -> None:
    assert ingress_options(HTTPConfig(num_ingress_replicas=2)) == {"num_replicas": 2}
    assert task_worker_options(RetrievalConfig(num_task_workers=3)) == {"num_replicas": 3}
    http = HTTPConfig(num_ingress_replicas=2, max_ingress_replicas=4)
    retrieval = RetrievalConfig(num_task_workers=1, max_task_workers=8)
    for options, ends, seen, wanted in (
        (ingress_options(http), (2, 4), context(2, cpu_share=[1.0, 0.8]), 3),
        (task_worker_options(retrieval), (1, 8), context(1, num_tasks_waiting=[7.0]), 2),
    ):
        scaling = options["autoscaling_config"]
        assert (scaling.min_replicas, scaling.max_replicas) == ends
        policy = scaling.policy.get_policy()  # as it arrives in Serve's controller
        assert policy(seen) == (wanted, {})
