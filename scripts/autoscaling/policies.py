"""The policies that are compared: ours, Serve's default, and one that knows the future."""

import math
from collections import deque

import numpy as np
from ray.serve import autoscaling_policy as serve_policy
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from deployments.pool_scaling import PoolLoad, PoolScaler, ScalingSettings
from scripts.autoscaling.simulated_pool import PoolShape, PoolState
from scripts.autoscaling.traces import Trace

_SERVE_PUSH_S = 10.0  # how often Serve's handles report by default


class Ours:
    """`deployments.pool_scaling`, told each second of the second before."""

    name = "Shoal"

    def __init__(self, shape: PoolShape, settings: ScalingSettings | None = None) -> None:
        """`settings`: None: the defaults, for a pool of this shape."""
        self._shape = shape
        self._scaler = PoolScaler(
            settings
            or ScalingSettings(
                min_replicas=shape.min_replicas,
                max_replicas=shape.max_replicas,
                slots_per_replica=shape.slots_per_replica,
            )
        )
        self._reported: PoolState | None = None

    def wanted(self, state: PoolState) -> int:
        seen, self._reported = self._reported or state, state
        load = PoolLoad(
            num_replicas=seen.num_ready,
            num_slots=seen.num_ready * self._shape.slots_per_replica,
            num_running=seen.num_running,
            num_waiting=seen.num_waiting,
            num_arrived=seen.num_arrived,
        )
        decision = self._scaler.decide(state.now_s, load, num_target=state.num_target)
        return decision.num_replicas


class ServeDefault:
    """Ray Serve's own policy function and delays, on simulated time.

    Its target of ongoing requests is what an operator would write for such replicas: the given part
    of their slots. Everything else is as Serve has it by default, unless delays are given.
    """

    def __init__(
        self,
        shape: PoolShape,
        *,
        utilization: float,
        name: str,
        upscale_delay_s: float = 30.0,
        downscale_delay_s: float = 600.0,
        look_back_s: float = 30.0,
        push_s: float = _SERVE_PUSH_S,
    ) -> None:
        self.name = name
        self._config = AutoscalingConfig(
            min_replicas=shape.min_replicas,
            max_replicas=shape.max_replicas,
            target_ongoing_requests=utilization * shape.slots_per_replica,
            upscale_delay_s=upscale_delay_s,
            downscale_delay_s=downscale_delay_s,
            look_back_period_s=look_back_s,
        )
        self._push_s = push_s
        self._seen: deque[int] = deque(maxlen=round(look_back_s))
        self._mean = 0.0
        self._pushed_at_s = -math.inf
        self._memory: dict[str, object] = {}

    def wanted(self, state: PoolState) -> int:
        self._seen.append(state.num_running + state.num_waiting)
        if state.now_s - self._pushed_at_s >= self._push_s:
            self._mean, self._pushed_at_s = float(np.mean(self._seen)), state.now_s
        context = self._context(state)
        desired, _ = serve_policy.replica_queue_length_autoscaling_policy(context)
        scaled = serve_policy._apply_scaling_factors(desired, state.num_ready, self._config)
        wanted, self._memory = serve_policy._apply_delay_logic(
            max(0, scaled), state.num_target, self._config, self._memory, _now=state.now_s
        )
        return int(wanted)

    def _context(self, state: PoolState) -> AutoscalingContext:
        return AutoscalingContext(
            deployment_id=DeploymentID(name="pool"),
            deployment_name="pool",
            app_name="simulated",
            current_num_replicas=state.num_ready,
            target_num_replicas=state.num_target,
            running_replicas=[],
            total_num_requests=self._mean,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=self._config.min_replicas,
            capacity_adjusted_max_replicas=self._config.max_replicas,
            policy_state=self._memory,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=state.now_s,
            config=self._config,
        )


class Oracle:
    """Knows every arrival and how long each will stay: as many replicas as keep everybody from
    waiting, started just in time, and kept only where stopping would not pay."""

    name = "oracle"

    def __init__(self, trace: Trace, shape: PoolShape, *, seed: int) -> None:
        rng = np.random.default_rng([seed, 99])
        num_s = len(trace.arrivals_T)
        running_T = np.zeros(num_s, dtype=np.int64)
        ending_S = np.zeros(len(trace.stay_S), dtype=np.int64)
        for now in range(num_s):
            ending_S = np.append(ending_S[1:], 0)
            ending_S += rng.multinomial(int(trace.arrivals_T[now]), trace.stay_S)
            running_T[now] = ending_S.sum()
        needed_T = -(-running_T // shape.slots_per_replica)
        # Started before it is needed by the longest of nearly all starts.
        lead_s = math.ceil(shape.start_s * 1.6)
        self._wanted_T = np.array(
            [needed_T[now : now + lead_s + 1].max(initial=0) for now in range(num_s)]
        )

    @property
    def first(self) -> int:
        """How many the pool begins with: as many as the first five minutes need."""
        return max(1, int(self._wanted_T[:300].max()))

    def wanted(self, state: PoolState) -> int:
        return int(self._wanted_T[min(int(state.now_s), len(self._wanted_T) - 1)])
