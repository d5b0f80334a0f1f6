"""How many replicas of an embedding model there should be."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from cluster.config import EmbedderConfig
from deployments.autoscaling_policy import by_queued_work, embedder_options, wanted_replicas


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
