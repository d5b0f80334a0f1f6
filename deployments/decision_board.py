"""What the autoscaler decided last for each deployment, and why: written by its policies in Serve's
controller, read by whoever reports on the cluster.

It is kept in Ray's own key-value store, which is there wherever Ray is, and is lost with Ray's
state, as the deployments are. A decision is written when its number changes, and else every few
seconds, because its reason has numbers in it that change all the time.
"""

import logging
import time

import msgspec
from ray.experimental import internal_kv  # has no public face

NAMESPACE = "shoal-autoscaling"
REWRITE_S = 5.0

logger = logging.getLogger(__name__)


class PostedDecision(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas a deployment should have."""

    num_replicas: int
    reason: str  # for a person
    at_s: float  # Unix time


class DecisionBoard:
    """The place of one deployment's decisions, for its policy."""

    def __init__(self, deployment: str) -> None:
        self._deployment = deployment
        self._posted: PostedDecision | None = None

    def post(self, num_replicas: int, reason: str) -> None:
        """Blocks for a millisecond, when it writes. A failure is logged: deciding goes on."""
        posted, now_s = self._posted, time.time()
        if posted is not None and posted.num_replicas == num_replicas:
            if now_s - posted.at_s < REWRITE_S:
                return
        elif posted is None or posted.num_replicas != num_replicas:
            logger.info("%s: %d replicas: %s", self._deployment, num_replicas, reason)
        self._posted = PostedDecision(num_replicas=num_replicas, reason=reason, at_s=now_s)
        try:
            internal_kv._internal_kv_put(
                self._deployment, msgspec.json.encode(self._posted), namespace=NAMESPACE
            )
        except Exception as error:  # Ray's own are many, and Serve would stop scaling
            logger.warning("%s: the decision is not written down: %r", self._deployment, error)


def read_decision(deployment: str) -> PostedDecision | None:
    """The last one; None before the first. Blocks for a millisecond."""
    raw = internal_kv._internal_kv_get(deployment, namespace=NAMESPACE)
    if raw is None:
        return None
    return msgspec.json.decode(raw, type=PostedDecision)
