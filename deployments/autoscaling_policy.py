"""How many replicas of embedding models and of retrieval there should be, by the work that waits.

Serve counts calls, which does for searches. A call of an embedding model is a query of six tokens
or a bulk of a hundred thousand: so each of its replicas reports its queued tokens in seconds, by
its own measured speed, and whether it computes (`EmbedderReplica.record_autoscaling_stats`); Serve
averages both over time.
"""

import math
from collections.abc import Sequence
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from cluster.config import EmbedderConfig, RetrievalConfig

TARGET_QUEUED_S = 2.0  # of work before each replica
TARGET_BUSY = 0.8  # of the time
_LOOK_BACK_S = 15.0
_UPSCALE_DELAY_S = 10.0  # a bulk that is done by then needs no second replica
_DOWNSCALE_DELAY_S = 120.0  # loading a model again is what this avoids
# Retrieval: one core answers some hundred searches a second in batches, so that 16 at once wait
# for each other no longer than some 20 ms.
_TARGET_SEARCHES = 16


def wanted_replicas(queued_s: Sequence[float], busy: Sequence[float], *, num_running: int) -> int:
    """As many as keep every queue short, and none without a pause. One at least.

    At most twice as many as run: what the newest take over is seen only when they do.

    Args:
        queued_s: seconds of work before each replica that has reported.
        busy: the part of the time that each of them computes.
    """
    by_queue = math.ceil(sum(queued_s) / TARGET_QUEUED_S)
    by_time = math.ceil(sum(busy) / TARGET_BUSY)
    return max(1, min(max(by_queue, by_time), 2 * num_running))


def by_queued_work(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """The policy as Serve calls it; delays and bounds are Serve's."""
    metrics = context.aggregated_metrics or {}
    queued_s, busy = (list(metrics.get(name, {}).values()) for name in ("queued_s", "is_busy"))
    return wanted_replicas(queued_s, busy, num_running=context.current_num_replicas), {}


def embedder_options(config: EmbedderConfig) -> dict[str, Any]:
    """The options of `serve.deployment` that say how many replicas there are."""
    if config.min_replicas == config.max_replicas:
        return {"num_replicas": config.min_replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=config.min_replicas,
            initial_replicas=config.min_replicas,
            max_replicas=config.max_replicas,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=_UPSCALE_DELAY_S,
            downscale_delay_s=_DOWNSCALE_DELAY_S,
            policy=AutoscalingPolicy(policy_function=by_queued_work),
        )
    }


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
