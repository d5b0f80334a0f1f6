from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.config import AutoscalingConfig

from cluster.config import ModelConfig
from deployments import work_policy
from deployments.work_policy import LoadMeter, WorkPolicy, model_options, reports_of


class Board:
    def __init__(self, deployment: str) -> None:
        self.posted: list[tuple[int, str]] = []

    def post(self, num_replicas: int, reason: str) -> None:
        self.posted.append((num_replicas, reason))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def report(**values: float) -> dict[str, float]:
    names = (
        "requests_total",
        "num_requests_running",
        "num_requests_waiting",
        "num_waiting_prefill_tokens",
        "num_free_blocks",
        "num_blocks",
        "prefill_tokens_per_s",
    )
    return {**dict.fromkeys(names, 0.0), **values}


def context(reports: dict[str, dict[str, float]], *, current: int, target: int) -> Any:
    metrics: dict[str, dict[Any, list[Any]]] = {}
    for replica, values in reports.items():
        key = ReplicaKey(replica)
        for name, value in values.items():
            series = [SimpleNamespace(value=-1.0), SimpleNamespace(value=value)]
            metrics.setdefault(name, {})[key] = series
    return SimpleNamespace(
        raw_metrics=metrics, current_num_replicas=current, target_num_replicas=target
    )


class ReplicaKey:
    """Serve's replica id, as far as it is looked at."""

    def __init__(self, unique_id: str) -> None:
        self.unique_id = unique_id


def model(**settings: Any) -> ModelConfig:
    return ModelConfig(name="m", source="demo", **settings)


def policy_of(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[WorkPolicy, Clock]:
    monkeypatch.setattr(work_policy, "DecisionBoard", Board)
    scaling = model_options(config, "pool")["autoscaling_config"]
    assert isinstance(scaling, AutoscalingConfig)
    clock = Clock()
    return WorkPolicy(**scaling.policy.policy_kwargs, clock=clock), clock


def test_counters_become_what_came_since_the_last_report() -> None:
    meter = LoadMeter(10)
    first = meter.read({"a": report(requests_total=5)}, num_replicas=1)
    second = meter.read(
        {"a": report(requests_total=7), "b": report(requests_total=2)}, num_replicas=2
    )
    third = meter.read({"b": report(requests_total=2)}, num_replicas=1)
    again = meter.read({"b": report(requests_total=1)}, num_replicas=1)
    arrived = [load.num_arrived for load in (first, second, third, again)]
    assert arrived == [5, 4, 0, 0]
    assert second.num_slots == 20


def test_the_newest_report_of_each_replica_counts() -> None:
    found = reports_of(context({"a": report(num_requests_running=3)}, current=1, target=1))
    assert found == {"a": report(num_requests_running=3)}
    assert reports_of(SimpleNamespace(raw_metrics=None)) == {}  # type: ignore[arg-type]


def test_waiting_requests_bring_replicas_and_the_reason_is_posted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = model(max_replicas=4, autoscaling={"target_num_seqs": 8})
    policy, clock = policy_of(config, monkeypatch)
    busy = {"a": report(requests_total=20, num_requests_running=8, num_requests_waiting=12)}
    assert policy(context(busy, current=1, target=1)) == (3, {})
    clock.now_s += 0.1
    assert policy(context({}, current=1, target=3)) == (3, {}), "it decides once a second"
    board: Any = policy._board
    assert board.posted == [(3, "8 running, 12 waiting: 20 slots of 8 a replica")]


def test_the_first_replicas_start_is_timed_by_when_serve_asks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy, clock = policy_of(model(min_replicas=0, max_replicas=2), monkeypatch)
    before_s = policy._scaler.start_s
    policy(context({}, current=0, target=0))
    clock.now_s += 500
    policy(context({}, current=1, target=1))
    assert policy._scaler.start_s > before_s + 100
    after_s = policy._scaler.start_s
    clock.now_s += 500
    policy(context({}, current=1, target=1))
    assert policy._scaler.start_s == after_s, "it was awake"


def test_a_fixed_number_has_no_policy() -> None:
    assert model_options(model(num_replicas=3), "pool") == {"num_replicas": 3}
    assert model_options(model(), "pool") == {"num_replicas": 1}


def test_a_model_that_may_sleep_is_started_once_when_it_is_deployed() -> None:
    scaling = model_options(model(min_replicas=0, max_replicas=2), "pool")["autoscaling_config"]
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (0, 1, 2)
