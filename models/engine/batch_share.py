"""How many tokens of batch sequences a step may compute beside those of online requests.

Online requests share their step's time with whoever is in it. So the time that a token adds is
learned from the steps that were computed, and batch tokens are let in for a small share of the time
that online steps take. What a step does not use is kept for the next ones, up to a limit. Steps
without online requests are not limited.

A few tokens beside few others cost more than a line through steps of all sizes says: kernels have
fixed costs, and shapes are padded. So steps with batch tokens are compared with online steps alone,
and what they took more is what is paid.
"""

import math

_FORGETTING = 0.98  # of the weight of earlier steps, per step
_KEPT_STEPS = 8.0  # unused time is kept for so many steps


class TokenCost:
    """Seconds that one more token adds to a step: the slope of a line through the latest steps, and
    its standard error on top, so that what is not known well is not thought cheap."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._mean_tokens = 0.0
        self._mean_s = 0.0
        self._variance = 0.0  # of the tokens
        self._covariance = 0.0
        self._variance_s = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        self._weight = _FORGETTING * self._weight + 1.0
        share = 1.0 / self._weight
        from_mean, from_mean_s = num_tokens - self._mean_tokens, seconds - self._mean_s
        self._mean_tokens += share * from_mean
        self._mean_s += share * from_mean_s
        rest, rest_s = num_tokens - self._mean_tokens, seconds - self._mean_s
        self._variance += share * (from_mean * rest - self._variance)
        self._covariance += share * (from_mean * rest_s - self._covariance)
        self._variance_s += share * (from_mean_s * rest_s - self._variance_s)

    @property
    def seconds(self) -> float | None:
        """None: nothing was observed. Where all steps were alike, a token's part of them, which is
        never too little."""
        if self._weight == 0.0:
            return None
        most = self._mean_s / max(self._mean_tokens, 1.0)
        if self._variance == 0.0:
            return most
        slope = self._covariance / self._variance
        unexplained = max(0.0, self._variance_s - slope * self._covariance)
        error = math.sqrt(unexplained / (self._variance * self._weight))
        return min(most, max(0.0, slope) + error)

    def step_s(self, num_tokens: int) -> float | None:
        """How long a step of so many tokens takes. None: nothing was observed."""
        if self._weight == 0.0:
            return None
        slope = max(0.0, self._covariance / self._variance) if self._variance else 0.0
        return max(0.0, self._mean_s + slope * (num_tokens - self._mean_tokens))


class _Markup:
    """By how much batch tokens were dearer, in the latest steps, than tokens are on the average."""

    def __init__(self) -> None:
        self._measured_s = 0.0
        self._expected_s = 0.0

    def observe(self, measured_s: float, expected_s: float) -> None:
        self._measured_s = _FORGETTING * self._measured_s + measured_s
        self._expected_s = _FORGETTING * self._expected_s + expected_s

    @property
    def factor(self) -> float:
        return max(1.0, self._measured_s / self._expected_s) if self._expected_s else 1.0


class BatchShare:
    """The allowance of batch sequences in one engine."""

    def __init__(self, max_slowdown: float | None) -> None:
        """`max_slowdown`: how much longer batch tokens may make the steps of online requests, as a
        share of their time; None: as long as they like."""
        self._max_slowdown = max_slowdown
        self.token_cost = TokenCost()
        self._alone = TokenCost()  # of steps without batch tokens
        self._markup = _Markup()
        self._kept_s = 0.0
        self._most_kept_s = 0.0

    def num_tokens(self, num_left: int) -> int:
        """Batch tokens that the step with online requests may have, of the `num_left` that fit."""
        if self._max_slowdown is None:
            return num_left
        token_s = self.token_cost.seconds
        if token_s is None or self._kept_s <= 0.0:
            return 0
        if token_s == 0.0:
            return num_left
        # At the limit one is let in whatever it costs: what it costs more is owed by later steps.
        least = 1 if self._kept_s >= self._most_kept_s else 0
        return min(num_left, max(least, int(self._kept_s / (token_s * self._markup.factor))))

    def observe(self, *, num_tokens: int, num_batch_tokens: int, seconds: float) -> None:
        """A step was computed: `num_batch_tokens` of its tokens were of batch sequences."""
        self.token_cost.observe(num_tokens, seconds)
        if self._max_slowdown is None or num_batch_tokens == num_tokens:
            return
        added_s = self._added_s(num_tokens, num_batch_tokens, seconds)
        online_s = max(0.0, seconds - added_s)
        self._most_kept_s = self._max_slowdown * _KEPT_STEPS * online_s
        self._kept_s += self._max_slowdown * online_s - added_s
        self._kept_s = min(self._kept_s, self._most_kept_s)

    def _added_s(self, num_tokens: int, num_batch_tokens: int, seconds: float) -> float:
        """What the batch tokens of a step with online requests cost."""
        if not num_batch_tokens:
            self._alone.observe(num_tokens, seconds)
            return 0.0
        expected_s = num_batch_tokens * (self.token_cost.seconds or 0.0)
        alone_s = self._alone.step_s(num_tokens - num_batch_tokens)
        if alone_s is not None:
            self._markup.observe(seconds - alone_s, expected_s)
        return expected_s * self._markup.factor
