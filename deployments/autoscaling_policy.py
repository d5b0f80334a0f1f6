"""How many replicas of all but the chat models there should be, by the work that they have.

Serve counts calls, which does for searches. A call of an embedding model is a query of six tokens
or a bulk of a hundred thousand: so each of its replicas reports its queued tokens in seconds, by
its own measured speed, and whether it computes (`EmbedderReplica.record_autoscaling_stats`); Serve
averages both over time. It sees no request of an ingress and no task, so these are reported, too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.config import EmbedderConfig, HTTPConfig, RetrievalConfig

TARGET_QUEUED_S = 2.0  # of work before each replica
TARGET_BUSY = 0.8  # of the time
_LOOK_BACK_S = 15.0
_UPSCALE_DELAY_S = 10.0  # a bulk that is done by then needs no second replica
_DOWNSCALE_DELAY_S = 120.0  # loading a model again is what this avoids
# Retrieval: one core answers some hundred searches a second in batches, so that 16 at once wait
# for each other no longer than some 20 ms.
_TARGET_SEARCHES = 16
# An ingress is one thread: above this part of a core its streams begin to wait for each other.
TARGET_INGRESS_CPU = 0.6
TARGET_OPEN_REQUESTS = 1000  # of an ingress; many that only wait cost memory
_INGRESS_DOWNSCALE_DELAY_S = 600.0  # one that ends closes connections that clients keep open
TARGET_TASKS = 4  # of a task worker, which runs so many of each kind at once

Policy = Callable[[AutoscalingContext], tuple[int, dict[str, Any]]]


def wanted_replicas(queued_s: Sequence[float], busy: Sequence[float], *, num_running: int) -> int:
    """As many as keep every queue short, and none without a pause. One at least.

    At most twice as many as run: what the newest take over is seen only when they do.

    Args:
        queued_s: seconds of work before each replica that has reported.
        busy: the part of the time that each of them computes.
    """
    loads = (sum(queued_s) / TARGET_QUEUED_S, sum(busy) / TARGET_BUSY)
    return _as_many_as(loads, num_running=num_running)


def _as_many_as(loads: Sequence[float], *, num_running: int) -> int:
    """`loads`: of each kind of work, how many replicas it would fill."""
    return max(1, min(math.ceil(max(loads)), 2 * num_running))


def by_queued_work(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """The policy as Serve calls it; delays and bounds are Serve's."""
    queued_s, busy = (_reported(context, name) for name in ("queued_s", "is_busy"))
    return wanted_replicas(queued_s, busy, num_running=context.current_num_replicas), {}


def by_requests(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """The policy of the ingresses."""
    cpu = sum(_reported(context, "cpu_share")) / TARGET_INGRESS_CPU
    requests = sum(_reported(context, "num_open_requests")) / TARGET_OPEN_REQUESTS
    return _as_many_as((cpu, requests), num_running=context.current_num_replicas), {}


def by_tasks(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """The policy of the task workers, each of which reports the whole queue."""
    num_waiting = max(_reported(context, "num_tasks_waiting"), default=0.0)
    num_tasks = num_waiting + sum(_reported(context, "num_tasks_running"))
    return _as_many_as((num_tasks / TARGET_TASKS,), num_running=context.current_num_replicas), {}


def _reported(context: AutoscalingContext, name: str) -> list[float]:
    """One number of each replica that has reported."""
    return list((context.aggregated_metrics or {}).get(name, {}).values())


def embedder_options(config: EmbedderConfig) -> dict[str, Any]:
    """The options of `serve.deployment` that say how many replicas there are."""
    return _range_options(config.min_replicas, config.max_replicas, by_queued_work)


def retrieval_options(config: RetrievalConfig) -> dict[str, Any]:
    """The same of retrieval replicas: by searches under way, which Serve counts itself."""
    if config.min_replicas == config.max_replicas:
        return {"num_replicas": config.min_replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=config.min_replicas,
            initial_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            target_ongoing_requests=_TARGET_SEARCHES,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=_UPSCALE_DELAY_S,
            downscale_delay_s=_DOWNSCALE_DELAY_S,
        )
    }


def ingress_options(config: HTTPConfig) -> dict[str, Any]:
    """The same of ingresses."""
    return _range_options(
        config.num_ingress_replicas,
        config.most_ingress_replicas,
        by_requests,
        downscale_delay_s=_INGRESS_DOWNSCALE_DELAY_S,
    )


def task_worker_options(config: RetrievalConfig) -> dict[str, Any]:
    """The same of task workers."""
    return _range_options(config.num_task_workers, config.most_task_workers, by_tasks)


def _range_options(
    least: int, most: int, policy: Policy, *, downscale_delay_s: float = _DOWNSCALE_DELAY_S
) -> dict[str, Any]:
    if least == most:
        return {"num_replicas": least}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            initial_replicas=least,
            max_replicas=most,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=_UPSCALE_DELAY_S,
            downscale_delay_s=downscale_delay_s,
            policy=AutoscalingPolicy(policy_function=policy),
        )
    }
