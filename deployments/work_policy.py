"""Serve's autoscaling policy for models' pools: feeds `pool_scaling` with what replicas report.

Serve calls it ten times a second in its controller; replicas report once a second
(`ModelReplica.record_autoscaling_stats`), and so often it decides. Serve's own delays are off,
because `pool_scaling` has its own. While a pool has no replica and a call waits in a handle
(`ServeReplicaPicker.wake`), Serve starts the first one without asking the policy.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.config import ModelConfig
from deployments.decision_board import DecisionBoard
from deployments.pool_scaling import PoolLoad, PoolScaler, ScalingSettings

PERIOD_S = 1.0  # of reports and of decisions
_LOOK_BACK_S = 5.0  # reports that Serve keeps; the newest counts
_UNASKED_S = 2 * PERIOD_S  # Serve did not ask for so long: it was starting the first replica

Values = Mapping[str, float]  # of one replica's report, by their names


class LoadMeter:
    """Adds the replicas' reports up; their counters become what came since the last time."""

    def __init__(self, slots_per_replica: float) -> None:
        self._slots_per_replica = slots_per_replica
        self._arrived: dict[str, float] = {}  # by replica

    def read(self, reports: Mapping[str, Values], *, num_replicas: int) -> PoolLoad:
        """`reports`: by replica; one that has not reported yet is not among them."""
        arrived = {replica: report["requests_total"] for replica, report in reports.items()}
        num_arrived = sum(
            max(0.0, total - self._arrived.get(replica, 0.0)) for replica, total in arrived.items()
        )
        self._arrived = arrived

        def total(name: str) -> float:
            return sum(report[name] for report in reports.values())

        return PoolLoad(
            num_replicas=num_replicas,
            num_slots=self._slots_per_replica * num_replicas,
            num_running=total("num_requests_running"),
            num_waiting=total("num_requests_waiting"),
            num_arrived=num_arrived,
            num_used_blocks=total("num_blocks") - total("num_free_blocks"),
            num_blocks=total("num_blocks"),
            num_prefill_tokens=total("num_waiting_prefill_tokens"),
            prefill_tokens_per_s=total("prefill_tokens_per_s"),
        )


class WorkPolicy:
    """The policy of one pool, as Serve makes and calls it."""

    def __init__(
        self,
        deployment: str,
        settings: dict[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`settings`: the fields of `ScalingSettings`; Serve wants JSON."""
        scaling = ScalingSettings(**settings)
        self._scaler = PoolScaler(scaling)
        self._meter = LoadMeter(scaling.slots_per_replica)
        self._board = DecisionBoard(deployment)
        self._clock = clock
        self._asked_at_s: float | None = None
        self._decided_at_s: float | None = None
        self._num_wanted = 0
        self._was_asleep = False

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        now_s = self._clock()
        self._time_first_start(now_s, context)
        if self._decided_at_s is None or now_s - self._decided_at_s >= PERIOD_S:
            reports = reports_of(context)
            load = self._meter.read(reports, num_replicas=context.current_num_replicas)
            decision = self._scaler.decide(now_s, load, num_target=context.target_num_replicas)
            self._board.post(decision.num_replicas, decision.reason)
            self._decided_at_s, self._num_wanted = now_s, decision.num_replicas
        return self._num_wanted, {}

    def _time_first_start(self, now_s: float, context: AutoscalingContext) -> None:
        """Serve does not ask from the first call that waits until its replica runs."""
        is_asleep = context.current_num_replicas == 0
        if self._was_asleep and not is_asleep and self._asked_at_s is not None:
            took_s = now_s - self._asked_at_s
            if took_s > _UNASKED_S:
                self._scaler.note_start(took_s)
        self._was_asleep, self._asked_at_s = is_asleep, now_s


def reports_of(context: AutoscalingContext) -> dict[str, dict[str, float]]:
    """The newest report of each running replica, by its id."""
    reports: dict[str, dict[str, float]] = {}
    for name, by_replica in (context.raw_metrics or {}).items():
        for replica, series in by_replica.items():
            if series:
                reports.setdefault(replica.unique_id, {})[name] = series[-1].value
    return {replica: report for replica, report in reports.items() if "requests_total" in report}


def model_options(config: ModelConfig, deployment: str) -> dict[str, Any]:
    """The options of `serve.deployment` that say how many replicas a model has."""
    if config.least_replicas == config.most_replicas:
        return {"num_replicas": config.least_replicas}
    scaling = config.autoscaling
    settings = {
        "min_replicas": config.least_replicas,
        "max_replicas": config.most_replicas,
        "slots_per_replica": scaling.target_num_seqs or config.engine.max_num_seqs,
        "max_utilization": scaling.max_utilization,
        "prefill_wait_s": scaling.prefill_wait_s,
        "downscale_delay_s": scaling.downscale_delay_s,
        "idle_before_zero_s": scaling.idle_before_zero_s,
        "start_s": scaling.expected_start_s,
    }
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=config.least_replicas,
            # One at least: what is wrong with a model shows when it is deployed.
            initial_replicas=max(1, config.least_replicas),
            max_replicas=config.most_replicas,
            metrics_interval_s=PERIOD_S,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            downscale_to_zero_delay_s=0.0,
            policy=AutoscalingPolicy(
                policy_function=WorkPolicy,
                policy_kwargs={"deployment": deployment, "settings": settings},
            ),
        )
    }
