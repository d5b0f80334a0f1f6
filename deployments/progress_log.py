"""How far a long piece of work is, told in the log every ten seconds; short work is not told of."""

import logging
import time
from collections.abc import Callable

_INTERVAL_S = 10.0


class ProgressLog:
    """Of one piece of work, which begins when this is made."""

    def __init__(
        self, logger: logging.Logger, what: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._what = what
        self._clock = clock
        self._start_s = self._told_s = clock()
        self._first: int | None = None  # what was done already when it was first looked at

    def update(self, done: int, of: int) -> None:
        """Tell how much is done, and how long the rest will take, where it is time to."""
        now_s = self._clock()
        if self._first is None:
            self._first = done
        if now_s - self._told_s < _INTERVAL_S:
            return
        self._told_s = now_s
        speed = (done - self._first) / (now_s - self._start_s)
        rest = f", about {(of - done) / speed:,.0f} s more" if speed > 0 else ""
        self._logger.info("%s: %s of %s%s", self._what, f"{done:,}", f"{of:,}", rest)

    def finish(self, result: str) -> None:
        """Tell what has come of it and how long it took, where it took long."""
        elapsed_s = self._clock() - self._start_s
        if elapsed_s >= _INTERVAL_S:
            self._logger.info("%s: %s, in %.0f s", self._what, result, elapsed_s)
