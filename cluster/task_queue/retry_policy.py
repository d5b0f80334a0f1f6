"""How often a task is tried, and how long it waits in between."""

import random

import msgspec


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Delays double from the first to the last, each less up to a half of it by chance: tasks that
    failed together do not come back together.
    """

    max_attempts: int = 5  # that failed by an error of the task's own
    # That something else did not answer: Redis, an embedder that starts, a full queue.
    max_postponements: int = 500
    first_delay_s: float = 1.0
    max_delay_s: float = 60.0

    def delay_s(self, num_before: int) -> float:
        """After `num_before` attempts before the one that just failed."""
        longest_s = min(self.max_delay_s, self.first_delay_s * 2.0 ** min(num_before, 60))
        return longest_s * random.uniform(0.5, 1.0)
