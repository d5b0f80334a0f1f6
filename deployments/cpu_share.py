"""How much of a core this process computes, measured between two looks."""

import time
from collections.abc import Callable


class CPUShare:
    """Kept by one process."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._last_s, self._last_cpu_s = clock(), cpu_clock()

    def update(self) -> float:
        """Cores in use on average since the last look, or since this was made."""
        now_s, cpu_s = self._clock(), self._cpu_clock()
        elapsed_s, used_s = now_s - self._last_s, cpu_s - self._last_cpu_s
        self._last_s, self._last_cpu_s = now_s, cpu_s
        return used_s / elapsed_s if elapsed_s > 0 else 0.0
